"""Types of MailerQ's hooks, by which a type checker finds mistakes in plugins; they cost nothing when the plugin runs.

For a file of functions, in one line that names the hooks it has:

    _ = Hooks(mq_smtp_in_rcptto=mq_smtp_in_rcptto, mq_smtp_in_message=mq_smtp_in_message)

For an object, as its base class: `class Audit(Plugin): ...`. Or, for one function, a `Protocol`, which has the name of the hook
without `mq_`: `hook: SmtpInMessage = audit.look`.

Any of these finds a wrong number or type of arguments, and a result that is no verdict. Arguments are given by position, so
parameters may have any names. The message is a `mqcore.mail.Mail`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypedDict

from .._context import Context
from .._typing import HookResult
from ._mail import Mail

__all__ = [
    "Hooks",
    "Plugin",
    "SmtpInAuthenticate",
    "SmtpInClose",
    "SmtpInConnect",
    "SmtpInData",
    "SmtpInMailfrom",
    "SmtpInMessage",
    "SmtpInRcptto",
    "SmtpInRejected",
    "SmtpInSecure",
    "SmtpOutData",
    "SmtpOutSent",
]


class _OfMessage(Protocol):
    def __call__(self, context: Context, message: Mail, /) -> HookResult: ...


class _OfAddress(Protocol):
    def __call__(self, context: Context, message: Mail, address: str, /) -> HookResult: ...


class SmtpInConnect(_OfMessage, Protocol):
    """`mq_smtp_in_connect(context, message)`"""


class SmtpInSecure(_OfMessage, Protocol):
    """`mq_smtp_in_secure(context, message)`"""


class SmtpInAuthenticate(Protocol):
    """`mq_smtp_in_authenticate(context, message, login, password)`"""

    def __call__(self, context: Context, message: Mail, login: str, password: str, /) -> HookResult: ...


class SmtpInMailfrom(_OfAddress, Protocol):
    """`mq_smtp_in_mailfrom(context, message, address)`"""


class SmtpInRcptto(_OfAddress, Protocol):
    """`mq_smtp_in_rcptto(context, message, address)`"""


class SmtpInData(Protocol):
    """`mq_smtp_in_data(context, message, mime)`"""

    def __call__(self, context: Context, message: Mail, mime: bytes, /) -> HookResult: ...


class SmtpInMessage(_OfMessage, Protocol):
    """`mq_smtp_in_message(context, message)`"""


class SmtpInClose(_OfMessage, Protocol):
    """`mq_smtp_in_close(context, message)`"""


class SmtpInRejected(_OfMessage, Protocol):
    """`mq_smtp_in_rejected(context, message)`"""


class SmtpOutData(_OfMessage, Protocol):
    """`mq_smtp_out_data(context, message)`"""


class SmtpOutSent(_OfMessage, Protocol):
    """`mq_smtp_out_sent(context, message)`"""


class _OfContext(Protocol):
    def __call__(self, context: Context, /) -> object: ...


class _OfPlugin(Protocol):
    def __call__(self) -> object: ...


class Hooks(TypedDict, total=False):
    """What a plugin may have, by name. Another name is a mistake."""

    mq_initialize: _OfPlugin
    mq_cleanup: _OfPlugin
    mq_context_initialize: _OfContext
    mq_context_cleanup: _OfContext
    mq_smtp_in_connect: SmtpInConnect
    mq_smtp_in_secure: SmtpInSecure
    mq_smtp_in_authenticate: SmtpInAuthenticate
    mq_smtp_in_mailfrom: SmtpInMailfrom
    mq_smtp_in_rcptto: SmtpInRcptto
    mq_smtp_in_data: SmtpInData
    mq_smtp_in_message: SmtpInMessage
    mq_smtp_in_close: SmtpInClose
    mq_smtp_in_rejected: SmtpInRejected
    mq_smtp_out_data: SmtpOutData
    mq_smtp_out_sent: SmtpOutSent


class Plugin:
    """The base class of a plugin that is an object. It is empty; type checkers compare hooks with what they see here."""

    if TYPE_CHECKING:

        def mq_initialize(self) -> object: ...
        def mq_cleanup(self) -> object: ...
        def mq_context_initialize(self, context: Context, /) -> object: ...
        def mq_context_cleanup(self, context: Context, /) -> object: ...
        def mq_smtp_in_connect(self, context: Context, message: Mail, /) -> HookResult: ...
        def mq_smtp_in_secure(self, context: Context, message: Mail, /) -> HookResult: ...
        def mq_smtp_in_authenticate(
            self, context: Context, message: Mail, login: str, password: str, /
        ) -> HookResult: ...
        def mq_smtp_in_mailfrom(self, context: Context, message: Mail, address: str, /) -> HookResult: ...
        def mq_smtp_in_rcptto(self, context: Context, message: Mail, address: str, /) -> HookResult: ...
        def mq_smtp_in_data(self, context: Context, message: Mail, mime: bytes, /) -> HookResult: ...
        def mq_smtp_in_message(self, context: Context, message: Mail, /) -> HookResult: ...
        def mq_smtp_in_close(self, context: Context, message: Mail, /) -> HookResult: ...
        def mq_smtp_in_rejected(self, context: Context, message: Mail, /) -> HookResult: ...
        def mq_smtp_out_data(self, context: Context, message: Mail, /) -> HookResult: ...
        def mq_smtp_out_sent(self, context: Context, message: Mail, /) -> HookResult: ...
