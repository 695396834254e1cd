"""SMTP, without I/O: bytes in, events and replies out. Each part can be used alone."""
