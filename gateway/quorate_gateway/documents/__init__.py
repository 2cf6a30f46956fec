"""The parts of the documents that operators publish for the gateway: their schemas, with names, units and bounds.

They are imported by whoever validates documents, so nothing here loads the data plane or the admin API.
"""
