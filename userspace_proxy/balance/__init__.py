"""Which Backend, now: pure decisions on every connection. No clock, no sockets, no logging."""
