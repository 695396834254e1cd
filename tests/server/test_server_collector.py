"""`mqcore.prometheus.Collector`, for programs of one's own: the same names and numbers as those of `mqcore run --metrics`."""

from __future__ import annotations

import threading

from metrics_tools import shown
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse
from smtp_tools import ALL, Holds, plugin, run

import mqcore
from mqcore.prometheus import Collector
from mqcore.server.exposition import OPENMETRICS, Exposition, Labels, families
from mqcore.server.figures import Figures
from mqcore.stats import HOLD_TIMES


def read(text: str) -> dict:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse(text)
        if family.name.startswith(("mqcore_plugin", "mqcore_steps"))
        for sample in family.samples
    }


@run
async def test_the_same_as_the_server_says():
    holder = Holds("message")
    async with shown({"10-hold": holder, "20-pass": plugin(message=lambda context, message: False)}) as it:
        registry = CollectorRegistry()
        registry.register(Collector(it.it.gateway.dispatcher))
        for _ in range(2):
            client = await it.it.connect()
            client.send(ALL)
        await it.it.until(lambda: len(holder.held) == 2)
        holder.held.pop()[0].complete(it.it.gateway.dispatcher.held()[-1].message)
        await it.it.until(lambda: it.it.sink.mails)
        ours = Exposition(OPENMETRICS).write(families(Figures(it.http._shown._server).collect(), Labels())).decode()
        ours, theirs = read(ours), read(generate_latest(registry).decode())
        assert ours.keys() == theirs.keys()
        ages = {key for key in ours if key[0] == "mqcore_plugin_held_oldest_seconds"}
        assert len(ages) == 1
        assert all(ours[key] == theirs[key] for key in ours.keys() - ages)
        holder.release()


def test_any_thread_may_collect_also_after_the_end(owner):
    dispatcher = owner.start({"a": lambda context, message: True}, hold_timeout=0)
    message = mqcore.Message()
    dispatcher.hook("mq_step").run(message)
    found = []
    collector = Collector(dispatcher)
    thread = threading.Thread(target=lambda: found.append(list(collector.collect())))
    thread.start()
    thread.join(30)
    by_name = {family.name: family.samples for (families_,) in [found] for family in families_}
    assert [sample.value for sample in by_name["mqcore_plugin_held"] if sample.labels["hook"] == "mq_step"] == [1]
    assert by_name["mqcore_plugin_held_oldest_seconds"] == []
    dispatcher.close()
    by_name = {family.name: family.samples for family in collector.collect()}
    buckets = [sample for sample in by_name["mqcore_plugin_hold_seconds"] if sample.name.endswith("_bucket")]
    assert len(buckets) == len(HOLD_TIMES) + 1 and buckets[-1].value == 1
