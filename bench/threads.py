"""How two dispatchers on two threads scale, on a CPython built without the GIL: `PYTHON_GIL=0 python threads.py`.

The processor time of messages whose hooks return CONTINUE, on one thread and on two: what both count takes longer.
"""

from __future__ import annotations

import statistics
import sys
import threading
import time

import uvloop

import mqcore

COUNT = 600_000
HOOK = mqcore.HookSpec("mq_step")


def own_plugin() -> object:
    """A plugin whose class and function no other thread uses."""
    space = {"CONTINUE": mqcore.CONTINUE}
    exec("class Plugin:\n    def mq_step(self, context, message):\n        return CONTINUE", space)
    return space["Plugin"]()  # type: ignore[operator]


def work(barrier: threading.Barrier, times: list[float]) -> None:
    plugins = mqcore.Plugins(hooks=[HOOK])
    for number in range(3):
        plugins.add(f"plugin-{number}", own_plugin())
    messages = [mqcore.Message() for _ in range(1_000)]

    async def main() -> None:
        with mqcore.Dispatcher(plugins) as dispatcher:
            run = dispatcher.hook("mq_step").run
            barrier.wait()
            began = time.thread_time()
            for _ in range(COUNT // len(messages)):
                for message in messages:
                    run(message)
            times.append(time.thread_time() - began)
            barrier.wait()

    uvloop.run(main())


def taken(count: int) -> float:
    """Seconds of the slowest of so many threads."""
    barrier = threading.Barrier(count)
    times: list[float] = []
    threads = [threading.Thread(target=work, args=(barrier, times)) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return max(times)


if __name__ == "__main__":
    if getattr(sys, "_is_gil_enabled", lambda: True)():
        sys.exit("This needs a CPython built without the GIL, and PYTHON_GIL=0")
    ratios = [2 * taken(1) / taken(2) for _ in range(7)]
    print(f"two threads do {statistics.median(ratios):.2f} times the work of one")
