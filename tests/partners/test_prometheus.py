"""Prometheus scrapes a running gateway, and knows the alerts in contrib/."""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path

from cli_tools import serve
from mail_tools import write_plugin
from prometheus import prometheus, promtool

CONTRIB = Path(__file__).parents[2] / "contrib"
RULES = CONTRIB / "prometheus" / "mqcore.rules.yml"
DASHBOARD = CONTRIB / "grafana" / "mqcore.json"
PASSES = """
def mq_smtp_in_message(context, message):
    return False
"""



def metrics_of(server) -> str:
    line = server.process.stderr.readline()
    return re.fullmatch(r"mqcore: metrics at (http://(?:\S+)/)\n", line)[1]


def test_a_gateway_is_scraped(tmp_path):
    write_plugin(tmp_path / "plugins", "10-pass", PASSES)
    with serve("--to", "null:", "--plugins", tmp_path / "plugins", "--metrics", ":0") as server:
        url = metrics_of(server)
        with urllib.request.urlopen(f"{url}metrics", timeout=30) as answer:
            assert promtool("check", "metrics", input=answer.read()) == ""
        with prometheus(tmp_path, url.split("/")[2], RULES) as watcher:
            with server.client() as client:
                for _ in range(3):
                    client.sendmail("a@example.org", ["b@example.org"], b"Subject: hello\r\n\r\nhello\r\n")
            watcher.wait_for('mqcore_mails_total{result="stored"}', 3)
            assert watcher.value('mqcore_plugin_calls_total{plugin="10-pass",hook="mq_smtp_in_message"}') == 3
            assert watcher.value("mqcore_steps_entered_total - sum without (outcome) (mqcore_steps_total)") == 0
            assert watcher.value('up{job="mqcore"}') == 1
            (group,) = watcher.ask("rules")["groups"]
            assert all(rule["health"] in ("ok", "unknown") for rule in group["rules"]), group


def test_the_alerts_are_rules():
    assert "SUCCESS" in promtool("check", "rules", RULES)


def test_alerts_and_dashboard_use_names_that_there_are():
    sources = (Path(__file__).parents[2] / "mqcore" / "server" / "exposition.py").read_text()
    known = set(re.findall(r'"((?:mqcore)_\w+)"', sources))
    for file in (RULES, DASHBOARD):
        for name in set(re.findall(r"\bmqcore_\w+", file.read_text())):
            assert re.sub(r"_(total|bucket|sum|count)$", "", name) in known, (file, name)


def test_the_dashboard_is_one():
    dashboard = json.loads(DASHBOARD.read_text())
    assert dashboard["title"] == "mqcore" and dashboard["panels"]
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
