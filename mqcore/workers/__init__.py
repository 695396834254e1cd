"""Several processes that serve one source: a supervisor, which reads no mail, and its workers, each of which is a gateway.

The supervisor listens, starts workers (`slot`), looks after them (`process`), counts what they did (`books`), and answers for
them.
A worker is `mqcore run` as without a supervisor, but for what `worker` adds.
"""
