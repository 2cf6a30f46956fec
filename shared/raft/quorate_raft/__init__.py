"""Raft consensus: a core without I/O, and the runtime that persists, sends and applies for it."""
