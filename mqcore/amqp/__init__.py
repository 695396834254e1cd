"""AMQP 0-9-1 as a client speaks it, without I/O: bytes in, events and frames out. `client.py` has all of it for programs."""
