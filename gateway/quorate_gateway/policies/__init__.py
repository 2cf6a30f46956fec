"""What a route asks for beyond its endpoint, each compiled once a snapshot into a closure or None.

A policy module has one `compile_…` function from the route as published to what the data plane calls for each
request; None means that the route does not ask for it, and costs nothing. `admission` states the order of those that
decide whether a request may go on.

Three policies have state: a limit's counts, a breaker's calls and a retry rule's budget. It belongs to the route's name
and the policy's own parameters, and goes over from snapshot to snapshot for as long as neither changes.
"""
