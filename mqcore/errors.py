"""The errors of mqcore: all of them are `MqError`."""

# Most of them tell how a step ended rather than that a call went wrong: hence no "Error" in their names.

from __future__ import annotations


class MqError(Exception):
    """Raised for a wrong use of mqcore, such as running a message that is in a step already; base of all its errors."""


class PluginError(MqError):
    """Raised when a plugin cannot be found, read, checked, started or reloaded.

    The message is about what is wrong and how to mend it. `plugin`, `path` and `line` say where, as far as that is
    known, and `str` puts them in front: give them here rather than write them into the message.
    """

    def __init__(
        self, message: str, *, plugin: str | None = None, path: str | None = None, line: int | None = None
    ) -> None:
        super().__init__(message)
        self.plugin = plugin
        self.path = path
        self.line = line

    def __str__(self) -> str:
        place = f"{self.path}:{self.line}" if self.path and self.line else self.path
        plugin = f"plugin {self.plugin}" if self.plugin else None
        return ": ".join(part for part in (place, plugin, super().__str__()) if part)


class NotHeld(MqError):
    """Raised by a give-back of a message that the plugin does not hold: twice, too late, or never its own."""


class HoldTimeout(MqError):
    """In `message.error` when a plugin held the message longer than its `hold_timeout`."""


class RetryLimit(MqError):
    """In `message.error` when plugins asked for more than `max_retries` retries in one step."""


class Abandoned(MqError):
    """In `message.error` when a plugin held the message, and no reference by which it could give it back was left."""


class Cancelled(MqError):
    """In `message.error` when `Dispatcher.cancel` ended the step."""


class DispatcherClosed(MqError):
    """Raised by the use of a closed dispatcher; in `message.error` of the steps that were open when it closed."""
