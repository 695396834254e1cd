"""Where mails go that failed or were rejected, with the reasons why."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ._mail import Mail
from .base import Store
from .errors import not_stored
from .files import append


class FailedSink(Store):
    """Stores mails in a sink as the source had them, and the reasons in a file beside it, one JSON object a line.

    A mail that an earlier run stored there is not stored again, but the reason is: the last line for an id holds.
    """

    def __init__(self, sink: Store, source: str) -> None:
        self._sink = sink
        self.url = sink.url
        self._source = source

    def store(self, mails: Sequence[Mail]) -> None:
        """As `Sink.store`."""
        if self._sink.notes is not None:
            self._note(self._sink.notes, mails)
        # Without what a mailbox would add to it.
        new = [Mail.read(mail.origin._replace(is_traced=False)) for mail in mails if mail.origin.id not in self._sink]
        if new:
            self._sink.store(new)

    def _note(self, path: Path, mails: Sequence[Mail]) -> None:
        lines = "".join(self._line(mail) for mail in mails)
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                append(fd, lines.encode())
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise not_stored(str(path), error) from error

    def _line(self, mail: Mail) -> str:
        """What plugins raised and left behind may be anything: what cannot be told of it is left out."""
        about: dict[str, Any] = {
            "id": mail.origin.id,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "source": self._source,
            "place": mail.origin.place,
            "envelope": mail.origin.envelope,
        }
        try:
            return json.dumps(self._reason(mail, about), default=repr) + "\n"
        except Exception:
            return json.dumps(about | {"error": type(mail.error).__name__}) + "\n"

    def _reason(self, mail: Mail, about: Mapping[str, Any]) -> dict[str, Any]:
        reason = dict(about)
        if mail.origin.recipient is not None:
            reason["recipient"] = mail.origin.recipient
        if mail.results:
            reason["results"] = mail.results
        if mail.rejection is not None:
            return reason | {"rejected": mail.rejection._asdict()}
        error = mail.error
        if error is None:
            return reason | {"error": "the sink does not say why"}
        return reason | {"error": f"{type(error).__name__}: {error}", "where": getattr(error, "__notes__", [])}

    def close(self) -> None:
        self._sink.close()
