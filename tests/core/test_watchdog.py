"""The watchdog: what keeps the loop is told of while it does. Most hooks here keep it until the line of them has come."""

from __future__ import annotations

import faulthandler
import gc
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from loop_tools import PROLOGUE, python
from native_tools import compile_plugin

import mqcore
from mqcore.loop import _reporter
from mqcore.loop._watchdog import can_dump

OWNERS = ["uvloop", "pyuv"]

# Standard error is a pipe whose other end the hook has.
BLOCKING = (
    PROLOGUE
    + """
import ctypes, json, logging, re
reading, writing = os.pipe()
terminal = os.dup(2)
os.dup2(writing, 2)

records = []
class Keep(logging.Handler):
    def emit(self, record):
        records.append(record)
logging.getLogger("mqcore.watchdog").addHandler(Keep())

class Plugin:
    def __init__(self, block):
        self.block = block
        self.told = b""
    def mq_context_initialize(self, context):
        self.context = context
    def mq_step(self, context, message):
        self.told += self.block()
    def call(self, *args):
        self.told += self.block()

def sleeping():
    return os.read(reading, 4096)

def looping():
    os.set_blocking(reading, False)
    while True:
        try:
            return os.read(reading, 4096)
        except BlockingIOError:
            pass

def in_c():
    room = ctypes.create_string_buffer(4096)
    size = ctypes.PyDLL(None).read(reading, room, 4096)  # which keeps the GIL
    return room.raw[:size]

def in_c_with_the_stack():
    ctypes.PyDLL(None).sleep(2)  # no frame changes while they are looked at, which would be at one's own risk
    return os.read(reading, 1 << 16)

def matching():
    re.match(r"(a+)+$", "a" * 22 + "b")
    return sleeping()

def start(block, **options):
    plugin = Plugin(block)
    plugins = mqcore.Plugins(hooks=[mqcore.HookSpec("mq_step")])
    plugins.add("20-slow", plugin)
    return plugin, mqcore.Dispatcher(plugins, loop=loop, **options)

def blocked(dispatcher):
    return [(one.plugin, one.hook, one.times) for one in dispatcher.lag().blocked]
"""
)


def run_blocking(program, owner):
    """What a program that begins with BLOCKING prints; its `dispatcher` is closed in the end."""
    return python(BLOCKING + program + "dispatcher.close()\nturn()\n", owner)


@pytest.mark.parametrize("owner", OWNERS)
@pytest.mark.parametrize("block", ["sleeping", "looping", "in_c"])
def test_a_hook_is_told_of_while_it_keeps_the_loop(owner, block):
    text = run_blocking(
        f"""
plugin, dispatcher = start({block}, watchdog=0.02)
turn()
dispatcher.hook("mq_step").run(mqcore.Message())
print(plugin.told.decode(), end="")
print(blocked(dispatcher))
""",
        owner,
    )
    line, figures = text.splitlines()
    assert " WARNING mqcore.watchdog: plugin 20-slow has kept the loop for " in line
    assert line.endswith(" s in mq_step")
    assert figures == "[('20-slow', 'mq_step', 1)]"


@pytest.mark.parametrize("owner", OWNERS)
def test_a_regular_expression_gone_wild(owner):
    text = run_blocking(
        """
plugin, dispatcher = start(matching, watchdog=0.02)
turn()
dispatcher.hook("mq_step").run(mqcore.Message())
print(plugin.told.decode(), end="")
""",
        owner,
    )
    assert "plugin 20-slow has kept the loop for " in text


@pytest.mark.parametrize("owner", OWNERS)
@pytest.mark.parametrize("kind", ["timer", "fd"])
def test_a_callback_is_told_of_while_it_keeps_the_loop(owner, kind):
    text = run_blocking(
        f"""
plugin, dispatcher = start(sleeping, watchdog=0.02)
ours, theirs = socket.socketpair()
def once(watcher, events):
    watcher.stop()
    plugin.call()
if "{kind}" == "timer":
    plugin.context.start_timer(0.001, plugin.call)
else:
    theirs.send(b"x")
    plugin.context.watch(ours, READ, once)
while not plugin.told:
    turn()
print(plugin.told.decode(), end="")
print(blocked(dispatcher))
""",
        owner,
    )
    line, figures = text.splitlines()
    assert line.endswith(" s in a callback of a timer or watcher")
    assert figures == "[('20-slow', None, 1)]"


def test_done_is_told_of():
    text = run_blocking(
        """
plugin, dispatcher = start(lambda: b"", watchdog=0.02)
plugin.mq_step = None
class Holds(Plugin):
    def mq_step(self, context, message):
        context.continue_(message)
        return mqcore.HOLD
holds = Holds(sleeping)
dispatcher.plugins.add("30-holds", holds)
message = mqcore.Message()
dispatcher.hook("mq_step").run(message, done=holds.call)
while not holds.told:
    turn()
print(holds.told.decode(), end="")
print(blocked(dispatcher))
""",
        "uvloop",
    )
    line, figures = text.splitlines()
    assert "a done callback has kept the loop for " in line
    assert figures == "[(None, 'done', 1)]"


@pytest.mark.parametrize("owner", OWNERS)
def test_the_stack_follows(owner):
    """While the hook still keeps the loop, if Python's lock can be had."""
    text = run_blocking(
        """
def until_the_stack():
    while not records:
        time.sleep(0.001)
    return sleeping()
plugin, dispatcher = start(until_the_stack, watchdog=0.02)
turn()
dispatcher.hook("mq_step").run(mqcore.Message())
record = records[0]
print(record.plugin, record.hook, record.event)
print(record.getMessage())
""",
        owner,
    )
    first, said, *stack = text.splitlines()
    assert first == "20-slow mq_step stack"
    assert said == "plugin 20-slow keeps the loop in mq_step:"
    assert any("in until_the_stack" in line for line in stack)


def test_the_stack_without_the_lock():
    """Where this Python can do that: for those who hunt what keeps its lock."""
    if not can_dump():
        with pytest.raises(ValueError, match="unsafe_stack needs"):
            mqcore.Watchdog(0.02, unsafe_stack=True)
        return
    text = run_blocking(
        """
plugin, dispatcher = start(in_c_with_the_stack, watchdog=mqcore.Watchdog(0.25, unsafe_stack=True))
turn()
dispatcher.hook("mq_step").run(mqcore.Message())
print(plugin.told.decode(), end="")
""",
        "uvloop",
    )
    assert "in mq_step\n" in text
    assert "in in_c_with_the_stack\n" in text


def test_it_is_told_again_later():
    """Once for a block, and once more after a second: with the limit at half of one, that is soon."""
    text = run_blocking(
        """
def twice():
    return sleeping() + sleeping()
plugin, dispatcher = start(twice, watchdog=0.5)
turn()
dispatcher.hook("mq_step").run(mqcore.Message())
print(plugin.told.decode(), end="")
print(blocked(dispatcher))
""",
        "uvloop",
    )
    _, second, figures = text.splitlines()
    assert "has kept the loop for " in second
    assert figures == "[('20-slow', 'mq_step', 1)]"


def test_lines_in_json():
    """Also of a plugin whose name would end the text."""
    text = run_blocking(
        r"""
plugin = Plugin(sleeping)
plugins = mqcore.Plugins(hooks=[mqcore.HookSpec("mq_step")])
plugins.add('a"b\\c\u00fc', plugin)
dispatcher = mqcore.Dispatcher(plugins, loop=loop, watchdog=mqcore.Watchdog(0.02, json=True))
turn()
dispatcher.hook("mq_step").run(mqcore.Message())
print(plugin.told.decode(), end="")
print(ascii(dispatcher.lag().blocked[0].plugin))
""",
        "uvloop",
    )
    line, name = text.splitlines()
    told = json.loads(line)
    assert told["plugin"] == 'a"b\\c\u00fc' == eval(name)
    assert (told["hook"], told["event"], told["level"], told["logger"]) == ("mq_step", "blocked", "WARNING", "mqcore.watchdog")
    assert told["seconds"] >= 0.02


def test_its_lines_follow_the_log():
    """Whose format and level a reload may change: the line in C comes without it."""
    text = run_blocking(
        """
def noted():
    while not records:
        time.sleep(0.001)
    os.write(writing, b"noted\\n")
    return sleeping()
plugin, dispatcher = start(noted, watchdog=0.02)
turn()
dispatcher._report_as(json=False, warnings=False)
dispatcher.hook("mq_step").run(mqcore.Message())
print(plugin.told.decode(), end="")
plugin.block, plugin.told = sleeping, b""
dispatcher._report_as(json=True, warnings=True)
dispatcher.hook("mq_step").run(mqcore.Message())
print(plugin.told.decode(), end="")
print(blocked(dispatcher))
""",
        "uvloop",
    )
    first, second, figures = text.splitlines()
    assert first == "noted"
    assert json.loads(second)["event"] == "blocked"
    assert figures == "[('20-slow', 'mq_step', 2)]"


def test_a_reload_is_told_of_as_that():
    """Of a server that runs: what it keeps the loop for is no hook's, and not of code that nobody knows."""
    text = run_blocking(
        """
plugin, dispatcher = start(sleeping, watchdog=0.02)
def reload():
    text = sleeping()
    while not records:
        time.sleep(0.001)
    return text
turn()
print(dispatcher._run_reload(reload).decode(), end="")
print(records[0].getMessage().splitlines()[0])
try:
    dispatcher._run_reload(lambda: 1 / 0)
except ZeroDivisionError:
    print(blocked(dispatcher))
""",
        "uvloop",
    )
    line, stack, figures = text.splitlines()
    assert "WARNING mqcore.watchdog: a reload has kept the loop for " in line
    assert stack == "a reload keeps the loop:"
    assert figures == "[(None, 'reload', 1)]"


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_its_thread_sleeps_also_when_a_byte_comes_late():
    """One by which the loop wakes it up that is awake already: else it would turn without a pause."""
    text = python(
        BLOCKING
        + """
import fcntl, struct, termios
def pipes():
    found = set()
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            if os.readlink(f"/proc/self/fd/{fd}").startswith("pipe:"):
                found.add(fd)
        except OSError:  # it was that of the folder
            pass
    return found
before = pipes()
plugin, dispatcher = start(sleeping, watchdog=3600)
waking = sorted(pipes() - before)[:2]  # they are made first
def unread():
    room = fcntl.ioctl(waking[0], termios.FIONREAD, bytes(4))
    return struct.unpack("i", room)[0]
os.write(waking[1], b"!")
end = time.monotonic() + 20
while unread() and time.monotonic() < end:
    time.sleep(0.001)
print(unread())
dispatcher.close()
turn()
""",
        "uvloop",
    )
    assert text == "0\n"


def test_what_is_no_plugins():
    """A callback of asyncio: told of as that, when Python's lock can be had, with the task."""
    text = run_blocking(
        """
import asyncio
plugin, dispatcher = start(sleeping, watchdog=0.02)
async def host():
    await asyncio.sleep(0)
    while not records:
        time.sleep(0.001)
asyncio.set_event_loop(loop)
loop.run_until_complete(loop.create_task(host(), name="host"))
print(records[0].getMessage())
print(blocked(dispatcher))
""",
        "uvloop",
    )
    first, *stack, figures = text.splitlines()
    assert first.startswith("what is no plugin's has kept the loop for ")
    assert first.endswith(", in the task host:")
    assert any("in host" in line for line in stack)
    assert figures == "[(None, None, 1)]"


@pytest.mark.parametrize("owner", OWNERS)
def test_many_short_calls_are_nobodys_block(owner):
    """And neither is a loop that sleeps or does not run."""
    text = run_blocking(
        """
plugin, dispatcher = start(lambda: b"", watchdog=0.15)
turn()
step = dispatcher.hook("mq_step")
end = time.monotonic() + 0.6  # long enough for the watchdog to find out that the loop does not run
while time.monotonic() < end:
    step.run(mqcore.Message())
turn(100)
time.sleep(0.3)
print(blocked(dispatcher), [record.plugin for record in records])
""",
        owner,
    )
    assert text == "[] []\n"


def test_a_process_that_was_stopped_is_not_accused():
    script = (
        BLOCKING
        + """
import signal, subprocess
def stopped():
    other = subprocess.Popen([sys.executable, "-c",
        f"import os, time; os.kill({os.getpid()}, 19); time.sleep(0.5); os.kill({os.getpid()}, 18)"])
    other.wait()
    return b""
plugin, dispatcher = start(stopped, watchdog=0.4)
turn()
dispatcher.hook("mq_step").run(mqcore.Message())
print(blocked(dispatcher))
dispatcher.close()
turn()
"""
    )
    assert python(script, "uvloop") == "[]\n"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how long a thread waited for a processor")
@pytest.mark.alone
def test_a_starved_thread_that_has_the_gil_is_not_accused():
    """It keeps the loop's thread waiting for the GIL, as it hardly gets any time itself."""
    script = (
        BLOCKING
        + """
import subprocess
processor = {min(os.sched_getaffinity(0))}
busy = subprocess.Popen([sys.executable, "-c", f"import os; os.sched_setaffinity(0, {processor}); print(flush=True); "
    f"any(iter(lambda: os.getppid() != {os.getpid()}, True))"], stdout=subprocess.PIPE)  # as long as this process lives
busy.stdout.readline()

def starve():
    os.sched_setaffinity(0, processor)  # of this thread
    os.nice(19)
    time.sleep(0.02)  # until the loop runs
    re.match(r"(a+)+$", "a" * 19 + "b")  # some milliseconds

plugin, dispatcher = start(lambda: b"", watchdog=0.1)
slowest = 0
while slowest < 0.2:
    thread = threading.Thread(target=starve)
    thread.start()
    while thread.is_alive():
        before = time.monotonic()
        turn(1)
        slowest = max(slowest, time.monotonic() - before)
busy.kill()
busy.communicate()
print(blocked(dispatcher), [record.getMessage() for record in records])
dispatcher.close()
turn()
"""
    )
    assert python(script, "uvloop") == "[] []\n"


@pytest.mark.parametrize("how", ["a hook", "a timer"])
def test_a_native_plugin_is_told_of(tmp_path, how):
    """Which needs no GIL, and nothing is noted for it."""
    library = compile_plugin(
        tmp_path / "40-native.so",
        """
#include <unistd.h>
#include <stdlib.h>
static void wait_for_line(void)
{
    char room[4096];
    ssize_t size = read(atoi(getenv("READING")), room, sizeof room);
    if (write(atoi(getenv("NOTING")), room, (size_t)size) < 0)
        abort();
}
static void rings(void *data) { (void)data; wait_for_line(); }
MQ_EXPORT bool mq_smtp_in_message(MQ_Context *context, MQ_Connection *connection, MQ_Message *message)
{
    (void)connection;
    (void)message;
    if (getenv("BY_TIMER"))
        MQ_startTimer(context, 0.001f, rings, NULL);
    else
        wait_for_line();
    return false;
}
""",
    )
    text = run_blocking(
        f"""
noted, noting = os.pipe()
os.environ["READING"], os.environ["NOTING"] = str(reading), str(noting)
if {how == "a timer"}:
    os.environ["BY_TIMER"] = "1"
plugins = mqcore.Plugins({str(library)!r})
dispatcher = mqcore.Dispatcher(plugins, loop=loop, watchdog=0.02)
turn()
dispatcher.hook("mq_smtp_in_message").run_many([mqcore.Message()])
while not blocked(dispatcher):
    turn()
print(os.read(noted, 4096).decode(), end="")
print(blocked(dispatcher))
""",
        "uvloop",
    )
    line, figures = text.splitlines()
    hook = None if how == "a timer" else "mq_smtp_in_message"
    assert "plugin 40-native has kept the loop for " in line
    assert line.endswith(" s in a callback of a timer or watcher" if hook is None else f" s in {hook}")
    assert figures == f"[('40-native', {hook!r}, 1)]"


def test_many_short_calls_of_a_native_plugin_are_nobodys_block(tmp_path):
    """Though all of one run_many() are counted at its end."""
    library = compile_plugin(
        tmp_path / "40-native.so",
        """
#include <unistd.h>
MQ_EXPORT bool mq_smtp_in_message(MQ_Context *context, MQ_Connection *connection, MQ_Message *message)
{
    (void)context;
    (void)connection;
    (void)message;
    usleep(1000);
    return false;
}
""",
    )
    text = run_blocking(
        f"""
plugins = mqcore.Plugins({str(library)!r})
dispatcher = mqcore.Dispatcher(plugins, loop=loop, watchdog=0.15)
turn()
dispatcher.hook("mq_smtp_in_message").run_many([mqcore.Message() for _ in range(600)])
turn(100)
print(blocked(dispatcher), [record.plugin for record in records])
""",
        "uvloop",
    )
    assert text == "[] []\n"


def test_a_chain_with_hooks_of_both_kinds(tmp_path):
    """Who is told of is who is called now."""
    library = compile_plugin(
        tmp_path / "10-native.so",
        "MQ_EXPORT bool mq_smtp_in_message(MQ_Context *a, MQ_Connection *b, MQ_Message *c)"
        " { (void)a; (void)b; (void)c; return false; }",
    )
    text = run_blocking(
        f"""
class Slow:
    told = b""
    def mq_smtp_in_message(self, context, message):
        self.told += sleeping()
plugins = mqcore.Plugins({str(library)!r})
plugin = Slow()
plugins.add("20-slow", plugin)
dispatcher = mqcore.Dispatcher(plugins, loop=loop, watchdog=0.02)
turn()
dispatcher.hook("mq_smtp_in_message").run(mqcore.Message())
print(blocked(dispatcher))
""",
        "uvloop",
    )
    assert text == "[('20-slow', 'mq_smtp_in_message', 1)]\n"


def test_the_process_ends_with_all_stacks():
    script = (
        PROLOGUE
        + """
class Plugin:
    def mq_step(self, context, message):
        while True:
            time.sleep(0.01)
plugins = mqcore.Plugins(hooks=[mqcore.HookSpec("mq_step")])
plugins.add("20-slow", Plugin())
dispatcher = mqcore.Dispatcher(plugins, loop=loop, watchdog=mqcore.Watchdog(0.05, abort=0.2))
turn()
dispatcher.hook("mq_step").run(mqcore.Message())
"""
    )
    process = subprocess.run([sys.executable, "-c", script, "uvloop"], capture_output=True, text=True, timeout=30)
    assert process.returncode == -6
    assert "CRITICAL mqcore.watchdog: plugin 20-slow has kept the loop for " in process.stderr
    assert "; the process ends" in process.stderr
    assert "in mq_step" in process.stderr.partition("Fatal Python error: Aborted")[2]


@pytest.mark.parametrize("owner", OWNERS)
def test_several_and_a_fork(owner):
    """Each dispatcher has its own, and the child of a fork has none."""
    text = python(
        BLOCKING
        + """
import warnings
warnings.simplefilter("ignore")  # that there are threads
_, first = start(sleeping, watchdog=0.02)
_, second = start(sleeping, watchdog=0.02)
turn()
child = os.fork()
if child == 0:
    first.close()
    os._exit(0)
print(os.waitpid(child, 0)[1])
first.close()
second.hook("mq_step").run(mqcore.Message())
print(blocked(first), blocked(second))
second.close()
turn()
""",
        owner,
    )
    assert text == "0\n[] [('20-slow', 'mq_step', 1)]\n"


@pytest.mark.parametrize("owner", OWNERS)
def test_the_interpreter_exits_without_close(owner):
    python(BLOCKING + "plugin, dispatcher = start(sleeping, watchdog=0.02)\nturn()\n", owner)


def test_threads_end_and_files_are_closed():
    text = python(
        BLOCKING
        + """
def files():
    return len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
def cycle():
    _, dispatcher = start(sleeping, watchdog=0.02)
    turn()
    dispatcher.close()
    turn()
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join()
cycle()
before = files()
for _ in range(3):
    cycle()
print(files() - before)
""",
        "uvloop",
    )
    assert text == "0\n"


@pytest.mark.parametrize(
    ("watchdog", "error", "says"),
    [
        (-1, ValueError, "a limit in seconds, 0.01 to 3600, or 0 for none, not -1.0"),
        (0.001, ValueError, "0.01 to 3600"),
        (float("nan"), ValueError, "0.01 to 3600"),
        ("1s", TypeError, "a number of seconds, 0 for none, or a Watchdog, not '1s'"),
        (True, TypeError, "not True"),
    ],
)
def test_wrong_limits(owner, watchdog, error, says):
    with pytest.raises(error, match=says):
        owner.start({}, watchdog=watchdog)


def test_an_abort_without_a_standard_error(monkeypatch):
    """As under pythonw, or where a program has put something of its own in its place."""
    monkeypatch.setattr(faulthandler, "is_enabled", lambda: False)
    monkeypatch.setattr(sys, "stderr", None)
    assert mqcore.Watchdog(1, abort=5).abort == 5


def test_an_abort_before_the_limit():
    with pytest.raises(ValueError, match="abort comes after its limit, 1 s, not after 0.5 s"):
        mqcore.Watchdog(1, abort=0.5)


@pytest.mark.parametrize("watchdog", [None, 0, 0.0])
def test_without_one_there_are_no_figures(owner, watchdog):
    assert owner.start({}, watchdog=watchdog).lag() is None


def test_the_lag_is_counted(owner):
    """Each turn in one bucket."""
    dispatcher = owner.start({}, watchdog=1)
    for _ in range(3):
        owner.turn()
    lag = dispatcher.lag()
    assert lag.turns >= 3
    assert sum(count for _, count in lag.buckets) == lag.turns
    assert [bound for bound, _ in lag.buckets] == sorted(bound for bound, _ in lag.buckets)
    assert lag.longest <= lag.seconds


def test_a_context_that_outlives_its_dispatcher(owner):
    """And its books, in which the watchdog's thread would read."""
    contexts = []
    plugin = SimpleNamespace(mq_context_initialize=contexts.append, mq_step=lambda context, message: False)
    dispatcher = owner.start({"10-a": plugin}, watchdog=5)
    dispatcher.hook("mq_step").run(owner.Message())
    dispatcher.close()
    owner.dispatchers.clear()
    del dispatcher
    gc.collect()
    for _ in range(10):
        with pytest.raises(mqcore.DispatcherClosed):
            contexts[0].continue_(owner.Message())


def test_what_rang_when_the_dispatcher_closed_is_not_told(owner, caplog):
    dispatcher = owner.start({"10-a": lambda context, message: False}, watchdog=5)
    (guard,) = (each for each in gc.get_objects() if type(each).__name__ == "LoopWatchdog" and each.loop is owner.loop)
    dispatcher.close()
    assert guard.report() is None
    assert _reporter.report_one(guard, 7) == 7
    assert not caplog.records
    assert guard.lag().blocked == ()
