"""What carries out what the core decides: files, sockets, timers. `driver` ties them together; `ports` says what a
simulation replaces."""
