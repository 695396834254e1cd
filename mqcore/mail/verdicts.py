"""What becomes of a mail, as a sink tells the gateway, and the gateway a source."""

from __future__ import annotations

import enum
from typing import NamedTuple


class Rejection(NamedTuple):
    """What a plugin refused a mail with."""

    code: int
    text: str

    def __str__(self) -> str:
        return f"{self.code} {self.text}"


class Kind(enum.Enum):
    ACCEPTED = "accepted"
    """The next owner has it, on disk or confirmed."""
    DISCARDED = "discarded"
    """It was to be dropped, and is."""
    REJECTED = "rejected"
    """Refused for good: 5xx."""
    DEFERRED = "deferred"
    """Refused for now: 4xx."""
    FAILED = "failed"
    CANCELLED = "cancelled"
    """Taken back before anything was done with it."""
    IN_DOUBT = "in doubt"
    """Given to the next owner, who did not answer: it may have it, or not."""


class PutBack(enum.Enum):
    """What a source that is a queue did with a mail that was refused, or failed."""

    RETRIED = "retried"
    """It comes again later."""
    SET_ASIDE = "set aside"
    """It is where the queue has what failed."""
    DECLINED = "declined"
    """It is to go where the gateway has what failed."""
    LEFT = "left"
    """Nothing: the queue has it still."""


class Verdict(NamedTuple):
    """What became of one mail; for each kind there is a class method or a constant that makes it."""

    kind: Kind
    code: int = 0
    """Of the reply, for what is rejected or deferred."""
    text: str = ""
    """Of the reply. With ACCEPTED, what the next owner calls it; empty if that says nothing."""
    error: BaseException | None = None
    partly: bool = False
    """Whether some recipients of this one mail have it, so that it cannot be taken back."""
    unavailable: bool = False
    """Whether it is refused for now as there is no next owner to ask, which is no fault of the mail's."""

    @classmethod
    def accepted(cls, text: str = "") -> Verdict:
        return cls(Kind.ACCEPTED, text=text) if text else ACCEPTED

    @classmethod
    def rejected(cls, code: int, text: str) -> Verdict:
        return cls(Kind.REJECTED, _check(code, text, 500), text)

    @classmethod
    def deferred(cls, code: int, text: str) -> Verdict:
        return cls(Kind.DEFERRED, _check(code, text, 400), text)

    @classmethod
    def refused(cls, rejection: Rejection) -> Verdict:
        """Rejected or deferred, by the code."""
        return cls(Kind.DEFERRED if rejection.code < 500 else Kind.REJECTED, *rejection)

    @classmethod
    def failed(cls, error: BaseException | None = None) -> Verdict:
        return cls(Kind.FAILED, error=error)

    @classmethod
    def in_doubt(cls, text: str) -> Verdict:
        return cls(Kind.IN_DOUBT, 451, text)

    @property
    def is_good(self) -> bool:
        """Whether the mail's source is done with it."""
        return self.kind is Kind.ACCEPTED or self.kind is Kind.DISCARDED

    @property
    def reply(self) -> Rejection:
        """What a client is told of a mail that is not taken."""
        return Rejection(self.code, self.text) if self.code else UNAVAILABLE


def _check(code: int, text: str, least: int) -> int:
    """The code: a client is told it, so it must mean what the verdict does."""
    if not isinstance(code, int) or not isinstance(text, str):
        raise TypeError(f"a refusal has an int and a text, as 550, 'no such user', not {code!r}, {text!r}")
    if not least <= code < least + 100:
        raise ValueError(f"this refusal has a code from {least} to {least + 99}, not {code}")
    return code


ACCEPTED = Verdict(Kind.ACCEPTED)
DISCARDED = Verdict(Kind.DISCARDED)
CANCELLED = Verdict(Kind.CANCELLED)
FAILED = Verdict(Kind.FAILED)
UNAVAILABLE = Rejection(451, "4.3.0 this server has a problem; try again later")
FULL = Verdict.deferred(452, "4.3.1 there is no room for it now; try again later")
