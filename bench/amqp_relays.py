"""Relays from one queue of RabbitMQ to another, as they are written in a few lines with the libraries for Python.

    amqp_relays.py aio-pika|faststream|pika PORT QUEUE

From QUEUE to QUEUE.to, for ever. Each message is acknowledged when the broker has confirmed its copy.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

WINDOW = 1000


async def relay_by_aio_pika(url: str, queue: str) -> None:
    """With a task for each message, as aio-pika starts one for each callback."""
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


async def relay_by_faststream(url: str, queue: str) -> None:
    """With a subscriber, whose message is acknowledged when it returns. Nothing validates or decodes a body, and there is no
    line of a log for each: that is FastStream at its quickest."""
    from faststream.rabbit import Channel, RabbitBroker, RabbitQueue

    channel = Channel(prefetch_count=WINDOW)
    broker = RabbitBroker(url, default_channel=channel, apply_types=False, logger=None)

    async def undecoded(message: Any) -> Any:
        return message

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


def relay_by_pika(url: str, queue: str) -> None:
    """With pika's callbacks, on two channels: its connection calls nothing but these."""
    import pika

    delivered: dict[int, int] = {}
    last = 0

    def begin(connection: Any) -> None:
        connection.channel(on_open_callback=lambda sink: select(connection, sink))

    def select(connection: Any, sink: Any) -> None:
        def confirm(frame: Any) -> None:
            tag = frame.method.delivery_tag
            done = [each for each in delivered if each <= tag] if frame.method.multiple else [tag]
            for each in done:
                sources[0].basic_ack(delivered.pop(each))

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

    pika.SelectConnection(pika.URLParameters(url), on_open_callback=begin).ioloop.start()


def main() -> None:
    """Relay."""
    _, kind, port, queue = sys.argv
    url = f"amqp://guest:guest@127.0.0.1:{port}/%2F"
    if kind == "pika":
        relay_by_pika(url, queue)
    else:
        import uvloop

        uvloop.run((relay_by_aio_pika if kind == "aio-pika" else relay_by_faststream)(url, queue))


if __name__ == "__main__":
    main()
