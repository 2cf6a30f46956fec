"""Consensus as a state machine: messages, ticks and proposals in, `Ready` out. Nothing here waits, reads a clock,
draws a random number or touches a file; `node.RaftNode` is the whole of it, and says what its caller owes."""
