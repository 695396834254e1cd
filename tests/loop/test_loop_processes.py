"""fork(), and the end of the interpreter, with a dispatcher open."""

from __future__ import annotations

import sys

import pytest
from loop_tools import PROLOGUE, python

# A parent with all that can be open. `child` is what the fork runs; the parent then sees whether all goes on.
FORKING = PROLOGUE + """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of fork, in a process that may have threads
from contextlib import suppress

dispatcher, context = borrow()
step = dispatcher.hook("mq_step")
reader, writer = os.pipe()
os.set_blocking(reader, False)
seen, finished = [], []

def read(watcher, events):
    if os.getpid() != parent:
        os._exit(9)  # the parent's fds are not for the child to serve
    seen.append(os.read(reader, 100))

def fire(name):
    if os.getpid() != parent:
        os._exit(8)
    seen.append(name)

def done(message, outcome):
    if os.getpid() != parent:
        os._exit(7)
    finished.append(outcome)

parent = os.getpid()
watcher = context.watch(reader, READ, read)
timer = context.start_timer(0.03, fire, "timer")
held = mqcore.Message()
step.run(held, done=done)
queued = mqcore.Message()
step.run(queued, done=done)
hold = context.hold(held)
hold_watcher = hold.watch(writer, READ, print)
hold_timer = hold.start_timer(100, print)
turn()

def attempts():
    return {
        "run": lambda: step.run(mqcore.Message()),
        "run_many": lambda: step.run_many([mqcore.Message()]),
        "start_timer": lambda: context.start_timer(0, print),
        "watch": lambda: context.watch(writer, WRITE, print),
        "events": lambda: setattr(watcher, "events", READ | WRITE),
        "reset": lambda: timer.reset(0),
        "stop a timer": timer.stop,
        "stop a watcher": watcher.stop,
        "cancel": lambda: dispatcher.cancel(held),
        "held": dispatcher.held,
        "hold": lambda: context.hold(held),
        "complete": lambda: context.complete(held),
        "hold.complete": hold.complete,
        "hold.start_timer": lambda: hold.start_timer(0, print),
    }

def told():
    for name, attempt in attempts().items():
        try:
            attempt()
        except mqcore.MqError as error:
            print(name, type(error).__name__, "fork" in str(error))
        else:
            print(name, "allowed")
    sys.stdout.flush()

def go_on(child):
    # What the parent still has, when the child is gone.
    pid = os.fork()
    if pid == 0:
        child()
        os._exit(5)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code == 0, f"the child ended with {code}"
    os.write(writer, b"data")
    context.complete(queued)
    for _ in range(100):
        turn()
        if len(seen) >= 2 and finished:
            break
    assert sorted(map(repr, seen)) == ["'timer'", "b'data'"], seen
    assert finished == [mqcore.COMPLETE], finished
    watcher.events = WRITE | READ
    watcher.events = READ
    os.write(writer, b"more")
    while b"more" not in seen:
        turn()
    assert timer.stop() is False and watcher.stop() is True
    dispatcher.close()
    assert finished == [mqcore.COMPLETE, mqcore.FAIL], finished
    turn()
    made, freed = mqcore.loop._reactor.handles()
    assert made == freed, (made, freed)
"""


@pytest.fixture(params=["uvloop", "pyuv"])
def name(request):
    return request.param


def test_in_the_child_all_but_close_raises(name):
    said = python(FORKING + """
import mqcore.loop._reactor

def child():
    told()
    dispatcher.close()
    dispatcher.close()
    told()
    os._exit(0)

go_on(child)
""", name)
    lines = said.splitlines()
    half = len(lines) // 2
    assert half == 14
    for line in lines[:half]:
        assert line.endswith(("MqError True", "NotHeld True")), line
    for line in lines[half:]:  # as after any close()
        assert line.endswith(("DispatcherClosed False", "NotHeld False")) or line.startswith(
            ("stop", "cancel", "held allowed")), line


def test_stats_in_the_child(name):
    assert python(FORKING + """
import mqcore.loop._reactor

def child():
    before = dispatcher.stats()
    assert (before.entered, before.held) == (2, 2)
    repr(watcher), repr(timer), watcher.fd, watcher.events, held.holder, dispatcher.loop
    dispatcher.close()
    s = dispatcher.stats()
    assert s.entered == s.continued + s.completed + s.failed + s.cancelled + s.held + s.running
    os._exit(0)

go_on(child)
""", name) == ""


def test_close_in_the_child_calls_nothing(name):
    """It only forgets: what the plugins have is the parent's."""
    assert python(FORKING + """
import mqcore.loop._reactor

Lender.mq_context_cleanup = lambda self, context: os._exit(6) if os.getpid() != parent else None

def child():
    with suppress(mqcore.MqError):
        dispatcher.close()
    assert not finished
    os._exit(0)

go_on(child)
""", name) == ""


def test_the_child_drops_everything(name):
    """Messages, holds, timers and watchers whose last references go."""
    assert python(FORKING + """
import mqcore.loop._reactor

def child():
    global held, queued, hold, timer, watcher, hold_timer, hold_watcher
    held = queued = hold = timer = watcher = hold_timer = hold_watcher = None
    gc.collect()
    dispatcher.close()
    gc.collect()
    os._exit(0)

go_on(child)
""", name) == ""


def test_the_child_drops_everything_after_close(name):
    assert python(FORKING + """
import mqcore.loop._reactor

def child():
    global dispatcher, context, step, held, queued, hold, timer, watcher, hold_timer, hold_watcher
    dispatcher.close()
    watcher.stop()
    timer.stop()
    dispatcher = context = step = held = queued = hold = timer = watcher = hold_timer = hold_watcher = None
    gc.collect()
    os._exit(0)

go_on(child)
""", name) == ""


@pytest.mark.parametrize("closes", [True, False])
def test_the_child_ends_as_a_program_does(name, closes):
    """By sys.exit(), with all finalizers."""
    python(FORKING + """
import mqcore.loop._reactor

def child():
    if sys.argv[2] == "True":
        dispatcher.close()
    sys.exit(0)

if True:
    go_on(child)
""", name, closes)


def test_the_child_has_a_loop_and_a_dispatcher_of_its_own(name):
    assert python(FORKING + """
import mqcore.loop._reactor

def child():
    global loop
    dispatcher.close()
    loop = new_loop()
    mine, my_context = borrow()
    mine_finished, fired = [], []
    mine.hook("mq_step").run(message := mqcore.Message(), done=lambda message, outcome: mine_finished.append(outcome))
    my_context.start_timer(0.001, my_context.complete, message)
    end, other_end = os.pipe()
    my_context.watch(end, READ, lambda watcher, events: fired.append(watcher.stop()))
    os.write(other_end, b"x")
    while not (mine_finished and fired):
        turn()
    mine.close()
    turn()
    os._exit(0 if mine_finished == [mqcore.COMPLETE] else 4)

go_on(child)
""", name) == ""


def test_fork_in_a_callback(name):
    """In a turn: the child leaves from there, or goes on in the callback."""
    assert python(FORKING + """
import mqcore.loop._reactor
codes = []

def fork():
    pid = os.fork()
    if pid == 0:
        try:
            context.start_timer(0, print)
        except mqcore.MqError:
            dispatcher.close()
            os._exit(0)
        os._exit(3)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

context.start_timer(0, fork)
while not codes:
    turn()
assert codes == [0], codes
go_on(lambda: os._exit(0))
""", name) == ""


def test_the_child_of_a_callback_returns_into_the_loop(name):
    """Its dispatcher calls nothing any more."""
    assert python(FORKING + """
import mqcore.loop._reactor
codes = []

def fork():
    pid = os.fork()
    if pid:
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

def never():
    if os.getpid() != parent:
        os._exit(3)

context.start_timer(0, fork)
context.start_timer(0, never)
time.sleep(0.002)
turn()
if os.getpid() != parent:
    dispatcher.close()
    os._exit(0)
assert codes == [0], codes
go_on(lambda: os._exit(0))
""", name) == ""


# The end of the interpreter

ENDING = PROLOGUE + """
dispatcher, context = borrow()
step = dispatcher.hook("mq_step")
reader, writer = os.pipe()
messages = [mqcore.Message() for _ in range(5)]
step.run_many(messages, done=print)
holds = [context.hold(message) for message in messages[:2]]
holds[0].start_timer(100, print)
holds[0].watch(reader, READ, print)
timer = context.start_timer(100, print)
due = context.start_timer(0, print, "due")
watcher = context.watch(reader, READ, print)
knot = {}
knot["knot"] = [knot, timer, watcher, messages, holds, dispatcher]
"""


@pytest.mark.parametrize("turns", [False, True])
@pytest.mark.parametrize("end", ["", "sys.exit(0)", "del dispatcher, context", "messages.clear(); holds.clear()",
                                 "loop = None", "context.complete(messages[4])"])
def test_the_interpreter_ends_with_all_open(name, end, turns):
    """Exit code 0, and nothing on stderr."""
    said = python(ENDING + ("turn()\n" if turns else "") + end, name)
    assert said == ("due\n" if turns else "")


@pytest.mark.parametrize("end", ["", "raise SystemExit", "context.complete(message)"])
def test_the_interpreter_ends_with_an_awaiting_task_in_a_loop_that_is_not_closed(end):
    """Nothing on stderr but asyncio's own."""
    python(ENDING + """
import asyncio
message = mqcore.Message()

async def wait():
    await step(message)

task = loop.create_task(wait())
turn()
""" + end, "uvloop", stderr=None)


@pytest.mark.parametrize("end", ["", "loop.close()", "stop = True; thread.join(); loop = None"])
def test_the_interpreter_ends_while_a_thread_gives_back(end):
    python(ENDING + """
stop = False

def give_back():
    while not stop:
        for message in messages:
            try:
                context.complete(message)
            except mqcore.MqError:
                pass

thread = threading.Thread(target=give_back, daemon=True)
thread.start()
turn()
""" + end, "uvloop", stderr=None)


def test_the_interpreter_ends_with_both_owners_open():
    python(ENDING + """
sys.argv[1] = "pyuv"
loop = new_loop()
other = borrow()
other[0].hook("mq_step").run(messages2 := mqcore.Message())
turn()
""", "uvloop")


def test_exit_in_a_thread_that_runs_a_loop():
    """A daemon thread is stopped wherever it is, with its loop running.

    Not with `-X dev` before CPython 3.14: a thread that is about to take the GIL when the interpreter exits then looks at its
    state, which is freed (python/cpython#124878) and, with `-X dev`, overwritten. That is CPython's own race.
    """
    python(PROLOGUE + """
def work():
    global dispatcher
    plugins = mqcore.Plugins(hooks=[mqcore.HookSpec("mq_step")])
    plugins.add("lender", lender := Lender())
    dispatcher = mqcore.Dispatcher(plugins, loop=loop)
    context = lender.context
    def again():
        context.start_timer(0, again)
    again()
    started.set()
    loop.run_forever()

started = threading.Event()
threading.Thread(target=work, daemon=True).start()
started.wait()
time.sleep(0.02)
""", "uvloop", dev=sys.version_info >= (3, 14))


# Memory


@pytest.mark.parametrize("kind", ["idle", "busy"])
def test_a_thousand_dispatchers_leave_no_memory(name, kind):
    python(PROLOGUE + """
import resource

def one():
    dispatcher, context = borrow()
    if sys.argv[2] == "busy":
        reader, writer = os.pipe()
        for _ in range(10):
            context.start_timer(100, print)
        context.watch(reader, READ, print)
        messages = [mqcore.Message() for _ in range(10)]
        dispatcher.hook("mq_step").run_many(messages, done=lambda message, outcome: None)
        context.hold(messages[0]).start_timer(100, print)
        turn(0)
        dispatcher.close()
        os.close(reader)
        os.close(writer)
    else:
        dispatcher.close()
    turn(0)

def used():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

def used_at_most():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

measure = used if sys.platform == "linux" else used_at_most
repeat(one, 200)
before = measure()
repeat(one, 1000)
grown = measure() - before
assert grown < 1_500_000, f"{grown} bytes more"
import mqcore.loop._reactor
made, freed = mqcore.loop._reactor.handles()
assert made == freed
""", name, kind)


def test_three_hundred_loops_that_close_with_a_dispatcher_open():
    python(PROLOGUE + """
import resource

def one():
    global loop
    loop = uvloop.new_event_loop()
    dispatcher, context = borrow()
    context.start_timer(100, print)
    messages = [mqcore.Message() for _ in range(10)]
    dispatcher.hook("mq_step").run_many(messages, done=lambda message, outcome: None)
    turn(0)
    loop.close()

def used():
    gc.collect()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

loop.close()
repeat(one, 100)
before = used()
repeat(one, 300)
grown = used() - before
assert grown < 1_500_000, f"{grown} bytes more"
""", "uvloop")


def test_timers_and_watchers_leave_no_memory(name):
    python(PROLOGUE + """
import resource
dispatcher, context = borrow()
reader, writer = os.pipe()
os.write(writer, b"x")
class Knot: pass

def rounds(count):
    for number in range(count):
        knot = Knot()
        knot.timer = context.start_timer(0, print, knot) if number % 2 else context.start_timer(0, len, (knot,))
        if number % 2:
            knot.timer.stop()
        knot.watcher = context.watch(reader, READ, lambda watcher, events, knot: watcher.stop(), knot)
        if number % 3:
            knot.watcher.stop()
        if number % 50 == 0:
            turn(0)
    turn()
    gc.collect()

def used():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

rounds(5000)
before = used()
rounds(20000)
grown = used() - before
assert grown < 1_500_000, f"{grown} bytes more"
dispatcher.close()
turn()
if sys.argv[1] == "uvloop":
    loop.close()
""", name)
