"""Sample inventory service: stock is reserved exactly once for an order, all lines or none, and never oversold.

`model` decides, `handlers` are the use cases, `adapters` keep stock in a database, `api` is HTTP, `bootstrap` wires.
"""
