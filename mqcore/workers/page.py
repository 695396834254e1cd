"""What a worker counts, and has in hand, in memory that outlives it: it is exact after kill -9, too."""

from __future__ import annotations

import mmap
import os
import struct
import tempfile

from ..mail._counts import SIZE
from ..mail._hand import Hand
from ..mail.report import Counts

DIGEST = 8
"""Octets of a digest of what is in hand."""
MOST_IN_HAND = 1 << 14
_HAND = -(-SIZE // 64) * 64
"""Where the digests begin."""


class Page:
    """The memory of one worker. The supervisor makes it, the worker opens it by its descriptor."""

    def __init__(self, fd: int) -> None:
        """`fd` belongs to this from now on."""
        self.fd = fd
        self._memory = mmap.mmap(fd, os.fstat(fd).st_size)
        self.counts = Counts(self._memory)

    @classmethod
    def make(cls, in_flight: int) -> Page:
        """For so many transactions in flight."""
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create("mqcore-worker")
        else:
            with tempfile.TemporaryFile() as file:  # which has no name any more
                fd = os.dup(file.fileno())
        os.ftruncate(fd, _HAND + DIGEST * min(in_flight, MOST_IN_HAND))
        return cls(fd)

    def hand(self, seed: int) -> Hand:
        """The worker's own, where it notes what it has in hand."""
        return Hand(self._memory, _HAND, seed)

    def digests(self) -> set[int]:
        """What it has in hand."""
        return {digest for (digest,) in struct.iter_unpack("Q", self._memory[_HAND:]) if digest}

    def close(self) -> None:
        """The memory goes with the last who looks at it."""
        os.close(self.fd)
