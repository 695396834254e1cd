"""Clients of RabbitMQ, as they are written in a few lines with the libraries for Python.

    amqp_clients.py aio-pika|faststream|mqcore|pika publish|consume|relay PORT QUEUE

What each does is in amqp_client.c, which does the same: publishes are persistent, mandatory and confirmed, with 1,000 on the
way; as many messages are prefetched; consumers acknowledge each hundred together, where their library can; relays acknowledge
each message when the broker has confirmed its copy. mqcore is here to publish only: all else is `mqcore run`.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

WINDOW = 1000
GROUP = 100
HEADERS = {"envelope": "sender@example.org", "recipient": "recipient@example.org"}
RAW = "message/rfc822"

numbers = itertools.count()
"""Of what is published."""


def asked_for() -> tuple[int, bytes] | None:
    """How many messages are to be published, and the body of each; None if nobody asks any more. It waits."""
    line = sys.stdin.readline().split()
    return (int(line[0]), b"Subject: x\r\n\r\n".ljust(int(line[1]), b".")) if line else None


def tell_done() -> None:
    """Of what was asked for."""
    print("done", flush=True)


def confirmed_of(waiting: Iterable[int], method: Any) -> list[int]:
    """The tags that a confirm is about, of those that wait for one, in their order."""
    if not method.multiple:
        return [method.delivery_tag]
    return list(itertools.takewhile(lambda tag: tag <= method.delivery_tag, waiting))


# aio-pika


async def publish_by_aio_pika(url: str, queue: str) -> None:
    """With a task for each that is on its way."""
    import aio_pika

    async with await aio_pika.connect(url) as connection:
        exchange = (await connection.channel(publisher_confirms=True)).default_exchange

        async def publish(left: Iterable[int], body: bytes) -> None:
            for _ in left:
                message = aio_pika.Message(
                    body,
                    headers=HEADERS,
                    content_type=RAW,
                    message_id=f"{next(numbers):032x}",
                    delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
                )
                await exchange.publish(message, queue, mandatory=True)

        await publish_all(publish)


async def publish_all(publish: Callable[[Iterable[int], bytes], Coroutine[Any, Any, None]]) -> None:
    """As often as somebody asks. Each `publish` has one message on its way."""
    while asked := asked_for():
        left = iter(range(asked[0]))
        await asyncio.gather(*(publish(left, asked[1]) for _ in range(WINDOW)))
        tell_done()


async def consume_by_aio_pika(url: str, queue: str) -> None:
    """With a task for each message, as aio-pika starts one for each callback."""
    import aio_pika

    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=WINDOW)
        taken = 0

        async def take(message: Any) -> None:
            nonlocal taken
            taken += 1
            if taken % GROUP == 0:
                await message.ack(multiple=True)

        await (await channel.get_queue(queue)).consume(take)
        await asyncio.Event().wait()


async def relay_by_aio_pika(url: str, queue: str) -> None:
    """Likewise."""
    import aio_pika

    async with await aio_pika.connect(url) as incoming, await aio_pika.connect(url) as outgoing:
        source, sink = await incoming.channel(), await outgoing.channel(publisher_confirms=True)
        await source.set_qos(prefetch_count=WINDOW)

        async def pass_on(message: Any) -> None:
            copy = aio_pika.Message(
                message.body,
                headers=message.headers,
                content_type=message.content_type,
                message_id=message.message_id,
                delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            )
            await sink.default_exchange.publish(copy, f"{queue}.to", mandatory=True)
            await message.ack()

        await (await source.get_queue(queue)).consume(pass_on)
        await asyncio.Event().wait()


# FastStream, at its quickest: nothing validates or decodes a body, and there is no line of a log for each.


def faststream_broker(url: str) -> Any:
    """Not connected yet."""
    from faststream.rabbit import Channel, RabbitBroker

    return RabbitBroker(url, default_channel=Channel(prefetch_count=WINDOW), apply_types=False, logger=None)


async def undecoded(message: Any) -> Any:
    """What a subscriber is given."""
    return message


async def publish_by_faststream(url: str, queue: str) -> None:
    """With a task for each that is on its way."""
    async with faststream_broker(url) as broker:

        async def publish(left: Iterable[int], body: bytes) -> None:
            for _ in left:
                await broker.publish(
                    body, queue, headers=HEADERS, content_type=RAW, message_id=f"{next(numbers):032x}", persist=True
                )

        await publish_all(publish)


async def consume_by_faststream(url: str, queue: str) -> None:
    """It acknowledges each message when its subscriber returns, and cannot do so for several together."""
    from faststream.rabbit import RabbitQueue

    broker = faststream_broker(url)

    @broker.subscriber(RabbitQueue(queue, declare=False), decoder=undecoded, no_reply=True)
    async def take(message: Any) -> None:
        """Nothing is to be done."""

    async with broker:
        await broker.start()
        await asyncio.Event().wait()


async def relay_by_faststream(url: str, queue: str) -> None:
    """With a subscriber, whose message is acknowledged when it returns."""
    from faststream.rabbit import RabbitQueue

    broker = faststream_broker(url)

    @broker.subscriber(RabbitQueue(queue, declare=False), decoder=undecoded, no_reply=True)
    async def pass_on(message: Any) -> None:
        await broker.publish(
            message.body,
            f"{queue}.to",
            headers=message.headers,
            content_type=message.content_type,
            message_id=message.message_id,
            persist=True,
        )

    async with broker:
        await broker.start()
        await asyncio.Event().wait()


# pika, with its callbacks: its connection calls nothing but these.


def run_pika(url: str, begin: Callable[[Any], object]) -> None:
    """For ever. `begin` has the connection when it is open."""
    import pika

    pika.SelectConnection(pika.URLParameters(url), on_open_callback=begin).ioloop.start()


def publish_by_pika(url: str, queue: str) -> None:
    """While it waits for somebody who asks, its loop stands still."""
    import pika

    waiting: dict[int, None] = {}
    last = left = 0
    body = b""

    def begin(connection: Any) -> None:
        connection.channel(on_open_callback=select)

    def select(channel: Any) -> None:
        def confirm(frame: Any) -> None:
            for tag in confirmed_of(waiting, frame.method):
                del waiting[tag]
            if not waiting and not left:
                tell_done()
                wait()
            publish()

        def wait() -> None:
            nonlocal left, body
            if (asked := asked_for()) is None:
                sys.exit()
            left, body = asked

        def publish() -> None:
            nonlocal last, left
            while left and len(waiting) < WINDOW:
                left -= 1
                last += 1
                waiting[last] = None
                properties = pika.BasicProperties(
                    content_type=RAW, delivery_mode=2, message_id=f"{next(numbers):032x}", headers=HEADERS
                )
                channel.basic_publish("", queue, body, properties, mandatory=True)

        def selected(_: Any) -> None:
            wait()
            publish()

        channel.confirm_delivery(confirm, callback=selected)

    run_pika(url, begin)


def consume_by_pika(url: str, queue: str) -> None:
    """On one channel."""
    taken = 0

    def consume(channel: Any) -> None:
        def take(_: Any, method: Any, properties: Any, body: bytes) -> None:
            nonlocal taken
            taken += 1
            if taken % GROUP == 0:
                channel.basic_ack(method.delivery_tag, multiple=True)

        channel.basic_qos(prefetch_count=WINDOW, callback=lambda _: channel.basic_consume(queue, take))

    run_pika(url, lambda connection: connection.channel(on_open_callback=consume))


def relay_by_pika(url: str, queue: str) -> None:
    """On two channels."""
    delivered: dict[int, int] = {}
    last = 0

    def begin(connection: Any) -> None:
        connection.channel(on_open_callback=lambda sink: select(connection, sink))

    def select(connection: Any, sink: Any) -> None:
        def confirm(frame: Any) -> None:
            for tag in confirmed_of(delivered, frame.method):
                sources[0].basic_ack(delivered.pop(tag))

        def selected(_: Any) -> None:
            connection.channel(on_open_callback=consume)

        sources: list[Any] = []

        def consume(source: Any) -> None:
            def pass_on(_: Any, method: Any, properties: Any, body: bytes) -> None:
                nonlocal last
                last += 1
                delivered[last] = method.delivery_tag
                properties.delivery_mode = 2
                sink.basic_publish("", f"{queue}.to", body, properties, mandatory=True)

            sources.append(source)
            source.basic_qos(prefetch_count=WINDOW, callback=lambda _: source.basic_consume(queue, pass_on))

        sink.confirm_delivery(confirm, callback=selected)

    run_pika(url, begin)


# mqcore


async def publish_by_mqcore(url: str, queue: str) -> None:
    """As a program of one's own does it: its source offers mails to a gateway, whose sink is the queue, without plugins."""
    import mqcore
    from mqcore.mail import Gateway, Mail, Origin, Source, Transaction
    from mqcore.mail.amqp.sink import AmqpSink

    def mail_of(body: bytes) -> Mail:
        return Mail.read(Origin(body, f"{next(numbers):032x}", **HEADERS, comes_again=False, is_traced=True))

    class Asked(Source):
        url = "asked:"
        finite = False

        async def run(self, gateway: Gateway) -> None:
            while asked := await asyncio.to_thread(asked_for):
                left, body = asked
                while left:
                    count = min(left, await gateway.room())
                    gateway.offer([Transaction([mail_of(body)]) for _ in range(count)])
                    left -= count
                while gateway.in_flight:  # noqa: ASYNC110 (each mail could tell, and all would pay for that)
                    await asyncio.sleep(0.01)
                tell_done()

        def stop(self) -> None:
            """Nobody asks it to."""

    path = url.removeprefix("amqp:").partition("?")[0]
    sink = AmqpSink(f"{path}?queue={queue}&format=mime")
    with mqcore.Plugins() as plugins, mqcore.Dispatcher(plugins) as dispatcher:
        await Gateway(dispatcher, Asked(), sink, max_in_flight=WINDOW).run()


WAYS = {
    "pika": {"publish": publish_by_pika, "consume": consume_by_pika, "relay": relay_by_pika},
    "aio-pika": {"publish": publish_by_aio_pika, "consume": consume_by_aio_pika, "relay": relay_by_aio_pika},
    "faststream": {"publish": publish_by_faststream, "consume": consume_by_faststream, "relay": relay_by_faststream},
    "mqcore": {"publish": publish_by_mqcore},
}


def main() -> None:
    """Run one."""
    _, way, mode, port, queue = sys.argv
    # Who waits to be asked says nothing meanwhile, and is not to be taken for dead.
    url = f"amqp://guest:guest@127.0.0.1:{port}/%2F?heartbeat=0"
    work: Any = WAYS[way][mode]
    if way == "pika":
        work(url, queue)
    else:
        import uvloop

        uvloop.run(work(url, queue))


if __name__ == "__main__":
    main()
