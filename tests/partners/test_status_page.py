"""The status page in a real browser: the figures move, the plots draw, in the dark, on a telephone, and by keyboard; and a
plugin cannot put anything into it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from browser import chromium
from cli_tools import serve
from mail_tools import write_plugin

SLOW = """
def mq_smtp_in_message(context, message):
    context.start_timer(0.01, lambda: context.continue_(message))
    return True
"""
FAST = """
def mq_smtp_in_rcptto(context, message, address):
    return False
"""
EVIL = "<script>document.title='evil'"
INK = """
    [...document.querySelectorAll("canvas")].map(each =>
        each.getContext("2d").getImageData(0, 0, each.width, each.height).data.some(value => value))
"""
TAB, ENTER = "\ue004", "\ue007"


def send(server, count: int) -> None:
    with server.client() as client:
        for _ in range(count):
            client.sendmail("a@example.org", ["b@example.org"], b"Subject: hello\r\n\r\nhello\r\n")


def test_the_status_page(tmp_path):
    """A screenshot of each look is left in the folder that STATUS_PAGE_SHOTS names, if it names one."""
    shots = Path(os.environ.get("STATUS_PAGE_SHOTS", tmp_path))
    write_plugin(tmp_path / "plugins", EVIL, SLOW)
    write_plugin(tmp_path / "plugins", "10-fast", FAST)
    with serve("--to", "null:", "--plugins", tmp_path / "plugins", "--metrics", ":0") as server:
        url = re.fullmatch(r"mqcore: metrics at (\S+)\n", server.process.stderr.readline())[1]
        send(server, 3)
        with chromium(tmp_path) as page:
            page.emulate("Emulation.setDeviceMetricsOverride", width=1200, height=900, deviceScaleFactor=1, mobile=False)
            page.open(url)
            page.wait_for("document.getElementById('state').textContent === 'running'")
            page.wait_for("document.getElementById('tiles').innerText.match(/mails\\n3\\n/)")
            send(server, 4)  # and the page follows
            page.wait_for("document.getElementById('tiles').innerText.match(/mails\\n7\\n/)")
            page.wait_for("[...document.querySelectorAll('.now')].every(each => each.textContent)")
            assert page.run(f"return {INK.strip()}") == [True] * 4
            assert page.run("return document.title") == "mqcore"
            names = "return [...document.querySelectorAll('#rows td:first-child')].map(each => each.textContent)"
            assert page.run(names) == ["10-fast", EVIL]
            page.run("document.querySelector('th button').focus()")
            page.press(ENTER)
            assert page.run(names) == [EVIL, "10-fast"]
            page.press(TAB, ENTER)  # by hook
            assert page.run("return document.querySelector('th[aria-sort]').textContent") == "hook"
            colour = "return getComputedStyle(document.body).backgroundColor"
            page.emulate("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}])
            light = page.run(colour)
            page.screenshot(shots / "light.png")
            page.emulate("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
            assert page.run(colour) != light
            page.screenshot(shots / "dark.png")
            page.emulate("Emulation.setDeviceMetricsOverride", width=360, height=800, deviceScaleFactor=2, mobile=True)
            page.wait_for("document.documentElement.scrollWidth === 360")
            page.screenshot(shots / "narrow.png")
            asked = page.run("return performance.getEntriesByType('resource').map(each => each.name)")
            assert all(one.startswith(url) for one in asked), asked  # nothing from anywhere else
            complaints = [entry for entry in page.log() if "favicon" not in entry["message"]]
            assert not complaints
            server.stop()
            page.wait_for("document.getElementById('state').textContent === 'not connected'")
