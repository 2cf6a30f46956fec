"""What becomes of a call to a service by name: which instance is asked, for how long, how often, and whether at all.

Everything here decides and does no I/O; `quorate_sdk.service_http` and `quorate_sdk.sync_http` carry it out, the one on
an event loop, the other in threads.

- `errors`: what a caller can catch, of our family and of httpx's at once.
- `request_context`: the request that is being served, whose deadline and trace go along with the calls made for it.
- `trace`: W3C trace context.
- `options`: what a client, and what one request may choose.
- `endpoints`: a service's instances with their state, and the balancers over them.
- `services`: all services with their breakers and budgets.
- `call`: one call from its beginning to the end of its answer.
"""
