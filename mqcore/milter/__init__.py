"""The milter protocol, by which Postfix and Sendmail ask about mail, without I/O: bytes in, events and replies out."""
