"""Ask a Postfix policy server, such as postgrey, over a socket that the event loop watches.

Speaks the protocol of https://www.postfix.org/SMTPD_POLICY_README.html. Where the server
is must be set in mqcore.toml; without an address this plugin does nothing.

    [plugins.40-policy]
    address = "127.0.0.1:10023"
    timeout = 5.0
"""

import errno
import re
import socket

import mqcore
from mqcore.mail import Mail


def mq_smtp_in_message(context: mqcore.Context, message: Mail) -> mqcore.HookResult:
    address = context.config.get("address")
    if not address:
        return False
    host, _, port = address.rpartition(":")
    hold = context.hold(message)
    question = Question(context, message, hold, (host, int(port)))
    hold.start_timer(context.config.get("timeout", 5.0), question.give_up, "no answer in time")
    return hold


class Question:
    """One question to the server. However the hold ends, its timer and watcher end, and the socket goes with them."""

    def __init__(self, context: mqcore.Context, message: Mail, hold: mqcore.Hold, address: tuple[str, int]) -> None:
        self.context, self.message, self.hold = context, message, hold
        attributes = {
            "request": "smtpd_access_policy",
            "protocol_state": "END-OF-MESSAGE",
            "sender": message.envelope or "",
            "recipient": message.recipient or "",
            "size": message.size,
        }
        self.out = "".join(f"{name}={value}\n" for name, value in attributes.items()).encode() + b"\n"
        self.answer = b""
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.connect_ex(address)  # goes on in the background; what becomes of it shows when we send
        hold.watch(self.socket.fileno(), mqcore.WRITE, self.ready)

    def __del__(self) -> None:
        self.socket.close()

    def ready(self, watcher: mqcore.Watcher, events: int) -> None:
        try:
            if self.out:
                self.out = self.out[self.socket.send(self.out) :]
                if not self.out:
                    watcher.events = mqcore.READ
                return
            received = self.socket.recv(4096)
        except BlockingIOError:
            return
        except OSError as error:
            self.give_up(errno.errorcode.get(error.errno or 0, str(error)))
            return
        self.answer += received
        if b"\n\n" in self.answer:
            self.decide()
        elif not received:
            self.give_up("the connection was closed")

    def decide(self) -> None:
        match = re.search(r"^action=(\S+) *(.*)$", self.answer.decode(errors="replace"), re.MULTILINE)
        action, text = match.groups() if match else ("DUNNO", "")
        if action.upper() in ("REJECT", "DEFER", "DEFER_IF_PERMIT"):
            self.message.reject(550 if action.upper() == "REJECT" else 450, text or "refused by policy")
        elif action.upper() == "DISCARD":
            self.message.discard()
        # Control is given back in any case. Who rejects or discards has decided: the plugins after this one are not called.
        self.hold.continue_()

    def give_up(self, why: str) -> None:
        """A policy server that is down must not stop the mail."""
        self.context.log.warning("policy server: %s; the mail goes on without its answer", why)
        self.hold.continue_()
