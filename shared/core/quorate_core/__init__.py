"""What every part of Quorate stands on.

Errors with one table to HTTP, settings, logs, metrics, clock, tasks with owners, bounded frames, and the
ASGI plumbing that every HTTP surface of the platform shares. Nothing here knows Raft, registry or gateway.
"""
