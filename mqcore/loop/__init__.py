"""libuv, borrowed from the owner of the event loop: ticks, the timing wheel, polls, and what plugins start on the loop.

Knows nothing of messages.
"""
