"""`mail.headers`: fields are read and edited, and all else stays as it was, byte for byte."""

from __future__ import annotations

import copy
import gc
import pickle
import random
import subprocess
import sys
import textwrap
from email import policy
from email.header import decode_header, make_header
from email.parser import BytesHeaderParser

import pytest
from cli_tools import serve
from hypothesis import given
from hypothesis import strategies as st
from mail_tools import read_maildir, real_mails
from smtp_tools import TEXT, codes, plugin, run, serving
from test_mail_gateway import envelope

from mqcore.mail import Headers, Mail, _spool
from mqcore.mail._mail import bytes_of, put_in_spool
from mqcore.mail._spool import Memory, Spool

MIME = (
    b"Received: from a.example\r\n\tby b.example; Sun, 29 Nov 2026 11:35:31 +0100\r\n"
    b"Subject: hello\r\nX-Tag: one\r\nTo: b@example.org\r\nx-tAG:two \r\n\r\nSubject: of the body\r\n"
)


def fields_of(mime: bytes) -> list[tuple[str, str]]:
    """The fields as the standard library finds them: folds joined, without the blanks around."""
    parsed = BytesHeaderParser(policy=policy.compat32).parsebytes(mime)
    return [(name, joined(value)) for name, value in parsed._headers]


def joined(value: str) -> str:
    """As it stands: octets that are no ASCII are read as Headers reads them."""
    octets = value.encode("ascii", "surrogateescape").replace(b"\r\n", b"").replace(b"\n", b"").replace(b"\r", b"")
    return octets.decode("utf-8", "surrogateescape").strip(" \t")


def test_reading():
    headers = Mail(MIME).headers
    assert headers.get("subject") == headers["SUBJECT"] == "hello"
    assert headers.get("Received") == "from a.example\tby b.example; Sun, 29 Nov 2026 11:35:31 +0100"
    assert headers.get("X-None") is None and headers.get("X-None", "else") == "else"
    assert headers.get_all("X-Tag") == ["one", "two"] and headers.get_all("X-None") == []
    assert "to" in headers and "X-None" not in headers and "Of" not in headers
    assert len(headers) == 5
    assert list(headers) == ["Received", "Subject", "X-Tag", "To", "x-tAG"]
    assert headers.items()[1:] == [("Subject", "hello"), ("X-Tag", "one"), ("To", "b@example.org"), ("x-tAG", "two")]
    with pytest.raises(KeyError, match="X-None"):
        headers["X-None"]


def test_editing():
    mail = Mail(MIME)
    mail.headers.add("X-New", "1")
    assert mail.size == len(MIME) + 10
    assert mail.mime == b"X-New: 1\r\n" + MIME
    mail.headers.add("X-Newer", "2")
    mail.headers.replace("x-NEW", "3")
    mail.headers.replace("X-Tag", "three")
    assert mail.headers.remove("TO") == 1 and mail.headers.remove("To") == 0
    assert mail.headers.items()[:2] == [("X-Newer", "2"), ("x-NEW", "3")]
    assert mail.mime == b"X-Newer: 2\r\nx-NEW: 3\r\n" + MIME.replace(b"X-Tag: one", b"X-Tag: three").replace(
        b"To: b@example.org\r\n", b"").replace(b"x-tAG:two \r\n", b"")
    mail.headers.replace("X-Absent", "4")
    assert mail.mime.startswith(b"X-Absent: 4\r\nX-Newer: 2\r\n")
    mail.mime = b"Subject: all new\r\n\r\n"
    assert mail.headers.items() == [("Subject", "all new")]


@pytest.mark.parametrize(("mime", "added"), [
    (b"A: 1\nB: 2\r\n\n", b"X: y\nA: 1\nB: 2\r\n\n"),
    (b"A: 1\r\nB: 2\n\n", b"X: y\r\nA: 1\r\nB: 2\n\n"),
    (b"A: 1\rB: 2\r\rbody\r", b"X: y\rA: 1\rB: 2\r\rbody\r"),
    (b"A: 1\rB: 2\n\n", b"X: y\nA: 1\rB: 2\n\n"),  # a CR alone ends no line where LFs do
    (b"A: 1", b"X: y\r\nA: 1"),
    (b"", b"X: y\r\n"),
    (b"\nbody\n", b"X: y\n\nbody\n"),
    (b"\r\nbody\r\n", b"X: y\r\n\r\nbody\r\n"),
    (b"no header\n", b"X: y\n\nno header\n"),
    (b" blank first\nA: 1\n\n", b"X: y\n\n blank first\nA: 1\n\n"),
    (b"From a@b.example Sun Nov 29 11:35:31 2026\nA: 1\n\n", b"From a@b.example Sun Nov 29 11:35:31 2026\nX: y\nA: 1\n\n"),
    (b">From a@b.example Sun\nA: 1\n\n", b">From a@b.example Sun\nX: y\nA: 1\n\n"),
    (b"From : a@b.example\n\n", b"X: y\nFrom : a@b.example\n\n"),
    (b": no name\nA: 1\n\n", b"X: y\n: no name\nA: 1\n\n"),
])
def test_add_on_top_of_any_mail(mime, added):
    """In the line ends of the mail, and so that nothing else becomes a field, or ceases to be one."""
    mail = Mail(mime)
    before = mail.headers.items()
    mail.headers.add("X", "y")
    assert mail.headers.items() == [("X", "y"), *before]
    assert mail.mime == added
    assert mail.headers.items() == [("X", "y"), *before]
    mail.headers.add("Z", "z")
    assert mail.headers.items() == [("Z", "z"), ("X", "y"), *before]
    assert mail.headers.remove("X") == mail.headers.remove("Z") == 1
    assert mail.headers.items() == before


@pytest.mark.parametrize(("mime", "fields"), [
    (b"Subject : as of old\n\n", [("Subject", "as of old")]),
    (b"A:\nB: \r\nC:\t x \t\n\n", [("A", ""), ("B", ""), ("C", "x")]),
    (b"A: 1\n \n 2\n\n", [("A", "1  2")]),
    (b"A: 1\nnonsense\nB: 2\n\n", [("A", "1")]),
    (b"A: 1\nN\xc3\xa4me: x\n\n", [("A", "1")]),
    (b": x\n y\nA: 1\n\n", [("A", "1")]),
    (b"A: \xe9 \xc3\xa9\n\n", [("A", "\udce9 é")]),
    (b"A: 1\0 2\n\n", [("A", "1\0 2")]),
    (b"A: 1\n", [("A", "1")]),
    (b"A", []),
    (b"A: b\r\n\r c\n", [("A", "b")]),
])
def test_odd_headers(mime, fields):
    assert Mail(mime).headers.items() == fields


@pytest.mark.parametrize("name", ["", "a b", "a:", "a\r\nB", "a\n", "\0", "ä", " a", "a\t", "\x7f"])
def test_a_name_that_can_be_none_is_refused(name):
    headers = Mail(MIME).headers
    for use in (headers.get, headers.get_decoded, headers.get_all, headers.remove, headers.__contains__, headers.__getitem__,
                lambda name: headers.add(name, "x"), lambda name: headers.replace(name, "x")):
        with pytest.raises(ValueError, match="the name of a header field has printable ASCII characters, no"):
            use(name)
    assert headers.items() == Mail(MIME).headers.items()


@pytest.mark.parametrize("value", [
    "a\r\nBcc: x@example.org", "a\nb", "a\rb", "a\r\n b", "a\n", "\n", "a\0b", "ä\nb", "\udce9\r\n", "x" * 100 + "\n y",
    b"a\r\nBcc: x@example.org", b"a\rb", b"a\nb", b"a\n \nb", b"a\n \n b", b"a\n\tb\n", b"a\r\r\n b", b"\n b\0", b"a\n ",
])
def test_a_value_that_would_end_the_field_is_refused(value):
    mail = Mail(MIME)
    for edit in (mail.headers.add, mail.headers.replace):
        with pytest.raises(ValueError, match=r"a header field (is one line, without|may not have a NUL, nor) .*X-Tag"):
            edit("X-Tag", value)
    assert mail.mime is MIME


@pytest.mark.parametrize("value", [None, 1, bytearray(b"x"), ["x"]])
def test_values_are_str_or_bytes(value):
    with pytest.raises(TypeError, match="the value of a header field is a str or bytes, not"):
        Mail(MIME).headers.add("X", value)


def test_bytes_are_written_as_they_are_in_the_line_ends_of_the_mail():
    for end in (b"\n", b"\r\n"):
        mail = Mail(b"A: 1" + end * 2)
        mail.headers.add("Subject", "grüße".encode() + b" \xe9")  # as with SMTPUTF8
        mail.headers.add("X-Signature", b"v=1;\r\n\ta=2;\n b=" + b"x" * 100)
        lines = [b"X-Signature: v=1;", b"\ta=2;", b" b=" + b"x" * 100, "Subject: grüße".encode() + b" \xe9", b"A: 1", b"", b""]
        assert mail.mime == end.join(lines)
        assert mail.headers["Subject"] == "grüße \udce9"


def test_what_was_read_can_be_written():
    mail = Mail(b"Subject: gr\xfc\xdfe\r\n\r\n")
    mail.headers.add("X-Subject", mail.headers["Subject"])
    assert mail.mime == b"X-Subject: gr\xfc\xdfe\r\nSubject: gr\xfc\xdfe\r\n\r\n"


def test_a_value_with_lone_surrogates_is_no_text():
    with pytest.raises(ValueError, match="surrogates"):
        Mail(MIME).headers.add("X", "\ud800")


@pytest.mark.parametrize("name", ["Subject", "X"])
@given(value=st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), max_size=300))
def test_text_comes_back(name, value):
    """In lines of ASCII that are not long, where it has a blank or is not ASCII."""
    mail = Mail(b"A: 1\r\n\r\nbody\r\n")
    mail.headers.add(name, value)
    written = mail.mime.removesuffix(b"A: 1\r\n\r\nbody\r\n")
    assert written.isascii() and written.startswith(name.encode() + b": ")
    assert mail.headers.items()[1:] == [("A", "1")]
    text = value.strip(" \t")
    if text.isascii():
        assert mail.headers[name] == text
    else:
        assert mail.headers.get_decoded(name) == text
        assert mail.headers[name].isascii()
    for line in written.split(b"\r\n"):
        assert len(line) <= 78 or len(line.removeprefix(name.encode() + b": ").split()) == 1
    assert fields_of(written + b"\r\n") == [(name, mail.headers[name])]


@pytest.mark.parametrize(("value", "written"), [
    ("Jörg <j@example.org>", b"=?utf-8?b?SsO2cmc=?= <j@example.org>"),
    ('"Jörg, M." <j@example.org>, Bob <b@example.org>, c@example.org',
     b"=?utf-8?b?SsO2cmcsIE0u?= <j@example.org>, Bob <b@example.org>,\r\n c@example.org"),
])
def test_of_addresses_the_names_are_encoded(value, written):
    mail = Mail(MIME)
    mail.headers.replace("To", value)
    assert b"\r\nTo: " + written + b"\r\n" in mail.mime


@pytest.mark.parametrize("value", ["jörg@example.org", "a@bücher.example", "ö", "Jörg <>"])
def test_an_address_that_is_not_ascii_is_not_encoded(value):
    with pytest.raises(ValueError, match="one that is not ASCII, which is written as bytes"):
        Mail(MIME).headers.replace("From", value)


@pytest.mark.parametrize("value", ["=?nonsense?q?x?=", "=?utf-8?b?x?=", "=?utf-8?q?=ff?=", "=?", "=?utf-8?q?"])
def test_what_cannot_be_decoded_stays(value):
    mail = Mail(b"Subject: " + value.encode() + b"\n\n")
    assert mail.headers["Subject"] == value
    assert isinstance(mail.headers.get_decoded("Subject"), str)


def test_decoding():
    mail = Mail(b"Subject: =?iso-8859-1?q?gr=FC=DFe?= =?utf-8?b?4pyT?= x\nA: plain\n\n")
    assert mail.headers.get_decoded("Subject") == str(make_header(decode_header(mail.headers["Subject"]))) == "grüße✓ x"
    assert mail.headers.get_decoded("A") == "plain" and mail.headers.get_decoded("B", "none") == "none"


# Beside the standard library

LINES = st.lists(st.sampled_from([
    b"A: 1", b"B:2", b"a:  3 ", b"\tfolded", b" folded too", b"X-Long: " + b"w " * 60, b"C:",
    b"D: \xff\xc3\xa9", b"E::e", b"F: f:f",
]), max_size=12)
ENDINGS = st.sampled_from([b"\n", b"\r\n"])


@given(lines=LINES, end=ENDINGS, body=st.sampled_from([b"", b"body", b"A: of the body"]), seed=st.integers(0, 1 << 30))
def test_fields_are_those_of_the_standard_library(lines, end, body, seed):
    lines = [b"First: 0", *lines]
    mime = end.join([*lines, b"", body])
    check_beside_the_standard_library(mime, seed)


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_fields_of_real_mails(end):
    count = 0
    for _, raw in real_mails():
        mime = raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", end)
        check_beside_the_standard_library(mime, count)
        count += 1
    assert count > 40


def check_beside_the_standard_library(mime: bytes, seed: int) -> None:
    """Read, and edited at random: a model is a list of fields and the bytes that are not the header."""
    rng = random.Random(seed)
    mail = Mail(mime)
    model = fields_of(mime)
    assert mail.headers.items() == model
    names = [name for name, _ in model] or ["A"]
    rest = mail.mime  # without all fields
    bare = Mail(mime)
    for name in set(names):
        bare.headers.remove(name)
    assert bare.headers.items() == []
    for _ in range(rng.randrange(8)):
        name = rng.choice([*names, "X-New"])
        name = rng.choice([name, name.upper(), name.lower()])
        same = [index for index, (other, _) in enumerate(model) if other.lower() == name.lower()]
        match rng.randrange(5):
            case 0:
                mail.headers.add(name, "top")
                model.insert(0, (name, "top"))
            case 1:
                assert mail.headers.remove(name) == len(same)
                model = [field for index, field in enumerate(model) if index not in same]
            case 2:
                mail.headers.replace(name, "new")
                first = same[0] if same else 0
                model = [field for index, field in enumerate(model) if index not in same]
                model.insert(first, (name, "new"))
            case 3:
                assert mail.mime is mail.mime
            case 4:
                shared = Spool(Memory())
                put_in_spool(Mail(rest), shared)
                put_in_spool(mail, shared)
        assert mail.headers.items() == model
        assert mail.size == len(mail.mime)
        assert mail.headers.get_all(name) == [value for other, value in model if other.lower() == name.lower()]
        assert mail.headers.get(name) == next((value for other, value in model if other.lower() == name.lower()), None)
    assert fields_of(mail.mime) == model
    for name in {name for name, _ in model}:
        mail.headers.remove(name)
    assert mail.mime.endswith(bare.mime)


@pytest.mark.parametrize("seed", range(30))
def test_what_is_not_edited_stays_byte_for_byte(seed):
    """Whatever the mail is made of."""
    rng = random.Random(seed)
    mime = b"".join(rng.choice([b"A: 1", b"B: 2", b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b"x", b"From ", b"\0", b"\xff"])
                    for _ in range(rng.randrange(40)))
    mail = Mail(mime)
    before = mail.headers.items()
    assert len(mail.headers) == len(before) and list(mail.headers) == [name for name, _ in before]
    assert mail.mime is mime
    assert mail.headers.remove("X-None") == 0 and mail.mime is mime
    mail.headers.add("X-New", "1")
    assert mail.headers.items() == [("X-New", "1"), *before]
    added = mail.mime
    assert mail.headers.items() == [("X-New", "1"), *before]
    mail.headers.remove("X-New")
    assert mail.headers.items() == before
    assert len(added) - len(mime) <= len(b"X-New: 1\r\n\r\n")
    top = added.index(b"X-New: 1")
    assert added[:top] == mime[:top] and mime.endswith(added[top:].removeprefix(b"X-New: 1").lstrip(b"\r\n")[:len(mime)] or b"")


# In little memory


def test_a_field_on_top_shares_the_rest():
    base = b"Subject: hello\r\n\r\n" + random.Random(1).randbytes(1 << 20)
    memory = Memory()
    shared = Spool(memory)
    mails = [Mail(base) for _ in range(40)]
    for number, mail in enumerate(mails):
        mail.headers.add("X-For", str(number // 2))
        if number % 4 == 0:
            mail.headers.replace("Subject", "changed")
        put_in_spool(mail, shared)
    assert memory.used < 40 * 100
    assert len({bytes_of(mail) for mail in mails}) == 30
    for number, mail in enumerate(mails):
        subject = b"changed" if number % 4 == 0 else b"hello"
        assert mail.mime == b"X-For: %d\r\nSubject: %b\r\n" % (number // 2, subject) + base[16:]


@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_headers_of_a_mail_in_a_spool(limit, monkeypatch):
    """A hook of another stage may edit once more what another has edited, and what waits in a file."""
    monkeypatch.setattr(_spool, "MEMORY", limit)
    rng = random.Random(2)
    header = b"".join(b"X-%d: %d\r\n" % (number, number) for number in range(9_000))  # more than is read first
    for base in (b"Subject: hello\r\n\r\n" + rng.randbytes(100_000), header + b"\r\n" + rng.randbytes(300_000)):
        shared = Spool(Memory())
        put_in_spool(Mail(base), shared)
        mail, other = Mail(base), Mail(base)
        mail.headers.add("A", "1")
        other.mime = b"A: 1\r\n" + base
        put_in_spool(mail, shared)
        put_in_spool(other, shared)
        if limit:
            assert bytes_of(mail) == bytes_of(other)
        expected = Mail(b"A: 1\r\n" + base)
        for name, value in [("B", "2"), ("Subject", "new"), ("A", "3"), ("X-8999", "x"), ("C", "4")]:
            assert mail.headers.items() == expected.headers.items()
            for each in (mail, expected):
                each.headers.replace(name, value)
            assert mail.size == expected.size
            if name != "B":
                again = Spool(Memory())
                put_in_spool(mail, again)
            assert mail.mime == expected.mime


HUGE = """
    import asyncio, resource, sys
    sys.path[:0] = {path!r}
    from mqcore.mail import Mail
    from mqcore.mail._mail import put_in_spool
    from mqcore.mail._spool import Memory, Spool

    base = b"Subject: x\\r\\n\\r\\n" + b"x" * 20_000_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    mails = [Mail(base)]
    mails += [Mail(base, origin=mails[0].origin) for _ in range(99)]
    for number, mail in enumerate(mails):
        mail.headers.add("X-For", str(number))  # all of them held, none in a spool yet
        assert mail.headers["Subject"] == "x" and mail.size == len(base) + len(f"X-For: {{number}}\\r\\n")
    for mail in mails:
        put_in_spool(mail, shared := Spool(Memory()))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_twenty_megabytes_to_a_hundred_recipients_take_no_memory_for_a_field_each():
    """Not even for a moment."""
    script = textwrap.dedent(HUGE).format(path=sys.path)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) * 1024 < 5_000_000


# On the way


@run
async def test_fields_that_plugins_add_at_each_stage():
    def data(context, mail, mime):
        mail.headers.add("X-Data", "1")

    def message(context, mail):
        assert mail.headers["X-Data"] == "1"
        mail.headers.add("X-For", mail.recipient)

    async with serving({"10-add": plugin(data=data, message=message)}) as it:
        client = await it.greeted()
        await client.asks(envelope(3), 5)
        assert codes([await client.ask(TEXT + b".\r\n")]) == ["250 2.6.0"]
        assert [mail.mime for mail in it.sink.mails] == [
            b"X-For: %s\r\nX-Data: 1\r\n" % mail.recipient.encode() + mail.origin.mime for mail in it.sink.mails]
        # And nothing is left of it for the next mail of the connection.
        await client.asks(envelope(1), 3)
        assert codes([await client.ask(TEXT + b".\r\n")]) == ["250 2.6.0"]
        assert it.sink.mails[3].headers.get_all("X-Data") == ["1"]


EDITS = """
def mq_smtp_in_message(context, message):
    message.headers.add("X-In", message.recipient if "same" not in message.recipient else "same")

def mq_smtp_out_data(context, message):
    message.headers.replace("Subject", "in " + message.headers["X-In"])
    message.headers.add("X-Out", "1")
"""


def test_edited_on_the_way_in_and_out(tmp_path):
    """What is different for each recipient, and what is the same for some, which goes out in one transaction."""
    (tmp_path / "10-edit.py").write_text(EDITS)
    body = "".join(f"line {number}\r\n" for number in range(20_000))
    recipients = ["a@example.org", "same1@example.org", "same2@example.org"]
    with serve("--to", f"maildir:{tmp_path}/out", "--no-trace") as next_server:
        out = ("--to", f"smtp://127.0.0.1:{next_server.port}", "--failed", f"maildir:{tmp_path}/failed", "--no-trace")
        with serve(*out, "--plugins", tmp_path / "10-edit.py") as server, server.client() as client:
            client.sendmail("a@example.com", recipients, f"Subject: x\r\n\r\n{body}")
    mails = sorted(read_maildir(tmp_path / "out"))
    assert mails == [
        f"X-Out: 1\r\nX-In: {text}\r\nSubject: in {text}\r\n\r\n{body}".encode() for text in ("a@example.org", "same", "same")]


@run
async def test_whoever_is_told_of_a_rejection_sees_the_header_as_it_was_edited():
    seen = []

    def message(context, mail):
        mail.headers.replace("Subject", "edited")
        mail.reject(550, "no")

    def rejected(context, mail):
        seen.append((mail.headers["Subject"], mail.mime, mail.size))

    async with serving({"10-reject": plugin(message=message, rejected=rejected)}) as it:
        client = await it.greeted()
        await client.asks(envelope(1), 3)
        assert codes([await client.ask(TEXT + b".\r\n")])[0].startswith("550")
    ((subject, mime, size),) = seen
    assert subject == "edited" and b"Subject: edited\r\n" in mime and size == len(mime)


# No trap (rule 22)


def test_the_view_can_be_made_and_is_no_trap():
    mail = Mail(MIME)
    assert isinstance(mail.headers, Headers)
    assert Headers(mail)["Subject"] == "hello" and repr(Headers(mail)).startswith("<Headers [('Received', ")
    with pytest.raises(TypeError):
        Headers(None)
    with pytest.raises(TypeError):
        Headers.__new__(Headers)
    with pytest.raises(TypeError):
        Headers.get(mail, "Subject")
    with pytest.raises(TypeError):
        type("Mine", (Headers,), {})
    for use in (copy.copy, pickle.dumps):
        with pytest.raises(TypeError):
            use(mail.headers)
    with pytest.raises(AttributeError):
        mail.headers = {}
    bare = Mail.__new__(Mail)
    assert bare.headers.items() == [] and bare.headers.remove("A") == 0
    bare.headers.add("A", "1")
    assert bare.mime == b"A: 1\r\n"


def test_a_view_that_is_kept_sees_the_mail_as_it_is():
    mail = Mail(MIME)
    headers = mail.headers
    mail.mime = b"Subject: other\n\n"
    assert headers["Subject"] == "other"
    for name in headers:
        headers.remove(name)
    assert mail.mime == b"\n"
    mail.json["view"] = headers  # a cycle
    del mail, headers
    gc.collect()
