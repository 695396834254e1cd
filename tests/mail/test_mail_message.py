"""The message: `Mail` and its parts."""

from __future__ import annotations

import enum

import pytest

import mqcore
from mqcore.mail import Connection, Mail, Origin

MIME = b"Subject: hello\n\nworld\n"


def test_a_mail_is_a_message_that_passes_through_hooks(uvloop_owner):
    async def run(dispatcher):
        return await dispatcher.hook("mq_step")(mail)

    mail = Mail(MIME, envelope="alice@example.org")
    seen = []
    dispatcher = uvloop_owner.start({"10-a": lambda context, message: seen.append(message.mime)})
    assert uvloop_owner.run(run(dispatcher)) is mqcore.CONTINUE
    assert seen == [MIME]


def test_what_is_not_known_is_none():
    mail = Mail(MIME)
    assert (mail.envelope, mail.recipient, mail.recipients, mail.connection, mail.rejection) == (
        None,
        None,
        [],
        None,
        None,
    )
    assert mail.json == {}


def test_envelope_and_recipients_are_keys_of_the_json():
    mail = Mail(MIME, envelope="a@example.org", recipients=["b@example.org"], json={"ips": ["192.0.2.1"]})
    assert mail.json == {"envelope": "a@example.org", "recipients": ["b@example.org"], "ips": ["192.0.2.1"]}
    mail.json["envelope"] = "c@example.org"
    mail.recipient = "d@example.org"
    mail.json["mine"] = {"any": "thing"}
    assert mail.envelope == "c@example.org"
    assert mail.json["recipient"] == "d@example.org"
    assert mail.recipients == ["b@example.org"]
    del mail.json["recipients"]
    assert mail.recipients == ["d@example.org"]
    mail.envelope = mail.recipient = None
    assert (mail.envelope, mail.recipients) == (None, [])


def test_the_json_that_a_mail_is_made_with_is_not_changed():
    mine = {"envelope": "a@example.org"}
    Mail(MIME, json=mine).envelope = "b@example.org"
    assert mine == {"envelope": "a@example.org"}


def test_the_origin_stays_what_the_source_has():
    mail = Mail.read(Origin(MIME, "00" * 16, envelope="a@example.org"))
    mail.mime = b"changed"
    mail.envelope = "b@example.org"
    assert (mail.origin.mime, mail.origin.envelope) == (MIME, "a@example.org")
    assert Mail(MIME).origin.id == Mail(MIME).origin.id != Mail(MIME + b"x").origin.id


@pytest.mark.parametrize("mime", ["text", bytearray(b"text"), None])
def test_the_mime_is_bytes(mime):
    mail = Mail(MIME)
    with pytest.raises(TypeError, match=f"mime is the mail as bytes, not as {type(mime).__name__}"):
        mail.mime = mime
    assert mail.mime == MIME


def test_a_rejection():
    mail = Mail(MIME)
    mail.reject(550, "no such user")
    assert mail.rejection == (550, "no such user")
    assert str(mail.rejection) == "550 no such user"
    mail.reject(450, "later")
    assert mail.rejection.code == 550, "the first one stands"


@pytest.mark.parametrize("text", ["two\nlines", "two\rlines", "end\r\n"])
def test_a_line_end_is_refused_wherever_it_would_split_a_line(text):
    mail = Mail(MIME)
    with pytest.raises(ValueError, match="must be one line"):
        mail.reject(550, text)
    with pytest.raises(ValueError, match="must be one line"):
        mail.envelope = text
    with pytest.raises(ValueError, match="must be one line"):
        mail.recipient = text
    with pytest.raises(ValueError, match="must be one line"):
        mail.recipients = ["fine@example.org", text]
    assert (mail.rejection, mail.json) == (None, {})


@pytest.mark.parametrize("code", ["550", None, 550.0, True, b"550"])
def test_a_code_is_a_number(code):
    """And what is wrong is said in the words of reject()."""
    with pytest.raises(TypeError, match=rf"as reject\(550, 'no such user'\); the code is {code!r}"):
        Mail(MIME).reject(code, "no")
    with pytest.raises(TypeError, match="the code is 'no such user'"):
        Mail(MIME).reject("no such user", 550)


def test_a_code_may_be_of_an_enum():
    class Code(enum.IntEnum):
        NO_SUCH_USER = 550

    class Odd(int):
        def __le__(self, other):
            raise AssertionError

        __ge__ = __int__ = __index__ = __repr__ = __le__

    for code in (Code.NO_SUCH_USER, Odd(550)):
        mail = Mail(MIME)
        mail.reject(code, "no")
        assert mail.rejection == (550, "no") and type(mail.rejection.code) is int


@pytest.mark.parametrize("text", [None, b"no", 550, ["no"]])
def test_texts_and_addresses_are_str(text):
    mail = Mail(MIME)
    with pytest.raises(TypeError, match="the text of a rejection is a str, not"):
        mail.reject(550, text)
    with pytest.raises(TypeError, match="the recipient is a str, not"):
        mail.recipients = [text]
    assert (mail.rejection, mail.recipients) == (None, [])


@pytest.mark.parametrize("code", [200, 399, 600])
def test_a_rejection_has_a_code_that_rejects(code):
    with pytest.raises(ValueError, match=f"from 400 to 599, not {code}"):
        Mail(MIME).reject(code, "no")


def test_repr_names_the_mail_and_not_its_text():
    mail = Mail(MIME, envelope="a@example.org", connection=Connection(1, "192.0.2.1"))
    assert repr(mail) == f"<Mail {mail.origin.id} from 'a@example.org', 22 bytes>"
