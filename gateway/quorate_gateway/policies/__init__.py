"""What a route asks for beyond its endpoint, each compiled once a snapshot into a closure or None.

A policy module has one `compile_…` function from the route as published to what the data plane calls for each
request; None means that the route does not ask for it, and costs nothing.
"""
