"""SMTP as a place, in and out; the protocol itself, without I/O, is `mqcore.smtp`.

Receiving: a `source` is served by a `server`, which has a `connection` for each client; what came in is a `transaction`.
Sending: a `sink` is delivered to by a `sender`, with a `delivery` for each job over a `pool` of `client`s to
an `upstream`.
"""
