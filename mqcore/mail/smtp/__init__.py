"""SMTP, in and out.

Receiving: a `source` is served by a `server`, which has a `connection` for each client, with the `dialogue` that it speaks and
the `incoming` message; what came in is a `transaction`. Sending: a `sink` is delivered to by a `sender`, with a `delivery` for
each job over a `pool` of `client`s.
"""
