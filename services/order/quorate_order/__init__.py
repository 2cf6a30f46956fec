"""Sample order service: an order and the event that tells of it are written in one local transaction.

`model` decides, `handlers` are the use cases, `adapters` keep orders in a database, `api` is HTTP, `bootstrap` wires.
"""
