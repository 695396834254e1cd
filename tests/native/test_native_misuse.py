"""What plugins may do wrong with the functions of mqcore.h without hurting: it is logged, counted and ignored."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import logging
import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from loop_tools import PROLOGUE, python
from native_tools import SIGNATURES, TIMER_CALLBACK, WATCH_CALLBACK, Puppet, compile_plugin, mq, refused, start

import mqcore
from mqcore.native import accessors

GIVE_BACKS = [mq.MQ_continue, mq.MQ_complete, mq.MQ_retry]


@pytest.fixture
def held(puppet):
    """The connections that the puppet was called with; it holds them all."""
    connections = []
    puppet.step = lambda context, connection, message: connections.append(connection) or True
    return connections


def hold(owner, dispatcher, count=1):
    messages = [mqcore.Message() for _ in range(count)]
    dispatcher.hook("mq_step").run_many(messages, done=owner.done)
    return messages


@pytest.mark.parametrize("again", GIVE_BACKS, ids=lambda each: each.__name__)
def test_given_back_twice(owner, puppet, held, again, caplog):
    dispatcher = start(owner, [puppet])
    (message,) = hold(owner, dispatcher)
    mq.MQ_continue(held[0])
    again(held[0])
    owner.run_until(lambda: owner.finished and refused(dispatcher))
    again(held[0])
    owner.run_until(lambda: refused(dispatcher) == 2)
    assert owner.finished == [(message, mqcore.CONTINUE)]
    assert dispatcher.stats().hooks[0].refused == 2  # of this hook
    assert [record.name for record in caplog.records] == ["mqcore.plugins.20-puppet"] * 2
    assert "plugin 20-puppet gave back a message that it does not hold" in caplog.text


def test_given_back_twice_in_the_hook(owner, puppet):
    def step(context, connection, message):
        mq.MQ_continue(connection)
        mq.MQ_complete(connection)
        return True

    puppet.step = step
    dispatcher = start(owner, [puppet])
    hold(owner, dispatcher)
    owner.run_until(lambda: owner.finished and refused(dispatcher) == 1)
    assert owner.finished[0][1] is mqcore.CONTINUE


def test_given_back_after_the_hook_returned_false(owner, puppet, caplog):
    seen = []
    puppet.step = lambda context, connection, message: seen.append(connection)
    dispatcher = start(owner, [puppet])
    (message,) = hold(owner, dispatcher)
    for give_back in GIVE_BACKS:
        give_back(seen[0])
    owner.run_until(lambda: len(caplog.records) == 3)  # not by code of the plugin, so it is in nobody's books
    assert dispatcher.hook("mq_step").run(message) is mqcore.CONTINUE


def test_given_back_by_the_plugin_before(owner, tmp_path, puppet, held, caplog):
    """It had its turn; the next plugin's is another one, with another handle."""
    seen = []
    first = Puppet(tmp_path / "10-first.so", lambda context, connection, message: seen.append(connection))
    dispatcher = start(owner, [first, puppet])
    (message,) = hold(owner, dispatcher)
    mq.MQ_continue(seen[0])
    owner.run_until(lambda: caplog.records)
    owner.turn()
    assert message.holder == "20-puppet"
    mq.MQ_continue(held[0])
    owner.run_until(lambda: owner.finished)


def test_a_handle_that_is_used_by_another_plugin(owner, tmp_path, puppet, held, caplog):
    """In a callback of its own, and in a hook: that is refused, and counted for the one that did it."""
    thief = Puppet(tmp_path / "30-thief.so")
    dispatcher = start(owner, [puppet, thief])
    (message,) = hold(owner, dispatcher)
    used = []

    def use(data):
        mq.MQ_complete(held[0])
        mq.MQ_setConnectionData(held[0], 1)
        mq.MQ_setContextData(puppet.context, 1)
        used.append((mq.MQ_connectionData(held[0]), mq.MQ_contextData(puppet.context),
                     puppet.timer(puppet.context, 0, lambda data: None)))

    puppet.step = lambda context, connection, message: False
    thief.step = lambda context, connection, message: use(0)
    other = mqcore.Message()
    assert dispatcher.hook("mq_step").run(other) is mqcore.CONTINUE
    owner.run_until(lambda: refused(dispatcher) == 6)
    assert used == [(0, 0, 0)] and message.holder == "20-puppet"
    assert {hook.plugin for hook in dispatcher.stats().hooks if hook.refused} == {"30-thief"}
    assert "plugin 30-thief gave back a message that another plugin holds" in caplog.text
    mq.MQ_continue(held[0])
    owner.run_until(lambda: owner.finished)
    assert owner.finished[0][1] is mqcore.CONTINUE and not puppet.errors + thief.errors


def test_given_back_by_a_python_plugin(owner, puppet, held):
    """It has no control of what a native plugin holds."""
    contexts = []
    dispatcher = start(owner, [puppet], {"10-python": lambda context, message: contexts.append(context)})
    (message,) = hold(owner, dispatcher)
    with pytest.raises(mqcore.NotHeld, match="plugin 20-puppet holds it now"):
        contexts[0].continue_(message)
    with pytest.raises(mqcore.NotHeld):
        contexts[0].hold(message)
    mq.MQ_continue(held[0])
    owner.run_until(lambda: owner.finished)


def test_the_same_message_held_again(owner, puppet, held):
    """An old handle never means a new hold."""
    dispatcher = start(owner, [puppet])
    message = mqcore.Message()
    for number in range(50):
        dispatcher.hook("mq_step").run(message, done=owner.done)
        for connection in held[:number]:
            mq.MQ_continue(connection)
        owner.turn()
        assert message.holder == "20-puppet" and len(owner.finished) == number
        mq.MQ_continue(held[-1])
        owner.run_until(lambda number=number: len(owner.finished) == number + 1)


def made_up(connection):
    """Handles that are nearly right, and others that are far from it."""
    some = ctypes.create_string_buffer(64)
    near = [connection ^ 1 << bit for bit in range(64)]
    far = [0, 1, 2**64 - 1, 0xDEADBEEF, id(near), ctypes.addressof(some), 2**63, 0xFF << 56, 1 << 56, 1 << 56 | 0xFFFFFF << 32]
    return [*near, *far, *(random.Random(1).getrandbits(64) for _ in range(1_000))]


def test_made_up_handles(owner, puppet, held, caplog):
    dispatcher = start(owner, [puppet])
    (message,) = hold(owner, dispatcher)
    handles = [handle for handle in made_up(held[0]) if handle != held[0]]
    for number, handle in enumerate(handles):
        GIVE_BACKS[number % 3](handle)
        if number % 500 == 0:  # of a flood only the first 1,000 are logged
            owner.run_until(lambda number=number: len(caplog.records) == number + 1)
    owner.turn()
    assert message.holder == "20-puppet" and not owner.finished
    owner.run_until(lambda: len(caplog.records) == len(handles))  # also where nobody can say which plugin it was
    mq.MQ_continue(held[0])
    owner.run_until(lambda: owner.finished)


def test_a_misuse_between_two_messages(owner, puppet, caplog):
    """By what is called when run_many lets the error of an earlier step go: no hook is being called then."""

    class Misuses(Exception):
        def __del__(self):
            mq.MQ_continue(12345)

    def raises(context, message, extra):
        raise Misuses

    caplog.set_level(logging.CRITICAL, "mqcore")  # a log would keep the error
    dispatcher = start(owner, [puppet], {"10-python": SimpleNamespace(mq_other=raises)})
    failed = mqcore.Message()
    assert dispatcher.hook("mq_other").run(failed, 1) is mqcore.FAIL
    caplog.set_level(logging.WARNING, "mqcore")
    messages = [*(mqcore.Message() for _ in range(40)), failed]
    assert dispatcher.hook("mq_step").run_many(messages) == [mqcore.CONTINUE] * 41
    owner.run_until(lambda: caplog.records)


MISUSES = """
MQ_EXPORT bool mq_step(MQ_Context *context, MQ_Connection *connection, MQ_Message *message)
{
    (void)context, (void)connection, (void)message;
    MQ_log(MQ_WARN, "hello");
    MQ_continue((MQ_Connection *)12345);
    return false;
}
"""


def test_a_misuse_in_a_hook_that_another_dispatchers_hook_runs(owner, tmp_path, puppet, caplog):
    """Whichever of the two dispatchers came first, it is the inner plugin's."""
    inner = owner.plugins({})
    inner.load(compile_plugin(tmp_path / "10-inner.so", MISUSES))
    dispatchers = [owner.dispatcher(inner), start(owner, [puppet]), owner.dispatcher(inner)]
    for dispatcher in dispatchers[::2]:
        puppet.step = lambda *_, dispatcher=dispatcher: dispatcher.hook("mq_step").run(mqcore.Message()) is None
        hold(owner, dispatchers[1])
        owner.run_until(lambda dispatcher=dispatcher: refused(dispatcher) == 1)
    assert refused(dispatchers[1]) == 0
    assert [record.name for record in caplog.records] == ["mqcore.plugins.10-inner"] * 4


ALL_BUT_LOG = sorted(name for name in SIGNATURES if name != "MQ_log")
ANY_THREAD = ("MQ_continue", "MQ_complete", "MQ_retry", "MQ_fail")
RESULTS = {"MQ_fileDescriptor": -1, "MQ_send": 0}


def call(name, handle):
    """One of the functions, with sensible arguments beside the handle, and what is ignored by."""
    _, _, *kinds = SIGNATURES[name]
    values = {ctypes.c_float: 0.0, TIMER_CALLBACK: TIMER_CALLBACK(), WATCH_CALLBACK: WATCH_CALLBACK(), ctypes.c_char_p: b"x"}
    result = getattr(mq, name)(handle, *(values.get(kind, 1) for kind in kinds))
    assert result in (None, False, RESULTS.get(name)), (name, result)


def kind_of(name):
    """What the function takes a handle of."""
    kinds = {
        "context": "config contextData setContextData startTimer ioWatch uv uvSymbol",
        "message": "envelope setEnvelope recipient setRecipient mime mimeSize setMime header addHeader local setLocal json "
        "setJson",
        "address": "email",
        "timer": "stopTimer resetTimer",
        "watcher": "ioUnwatch",
    }
    return next((kind for kind, names in kinds.items() if name.removeprefix("MQ_") in names.split()), "connection")


@pytest.mark.parametrize("name", ALL_BUT_LOG)
def test_every_function_with_made_up_handles(owner, puppet, name):
    """In a hook, where the right handles would do."""
    dispatcher = None

    def step(context, connection, message):
        right = {handle + part for handle in (context, connection) for part in range(4)}
        for handle in made_up(connection) + made_up(context):
            if handle not in right:
                call(name, handle)
        return False

    puppet.step = step
    dispatcher = start(owner, [puppet])
    hold(owner, dispatcher)
    owner.run_until(lambda: refused(dispatcher))


@pytest.mark.parametrize("name", ALL_BUT_LOG)
def test_every_function_with_a_handle_of_another_kind(owner, puppet, name):
    takes = kind_of(name)
    count = []

    def step(context, connection, message):
        ours, theirs = os.pipe()
        handles = {
            "context": context, "connection": connection, "message": message, "address": connection + 2,
            "timer": puppet.timer(context, 100, print), "watcher": puppet.watch(context, ours, mqcore.READ, print),
        }
        assert all(handles.values()) and len(set(handles.values())) == 6
        for kind, handle in handles.items():
            if kind != takes:
                call(name, handle)
                count.append(handle)
        mq.MQ_ioUnwatch(handles["watcher"])
        mq.MQ_stopTimer(handles["timer"])
        os.close(ours)
        os.close(theirs)
        return False

    puppet.step = step
    dispatcher = start(owner, [puppet])
    hold(owner, dispatcher)
    owner.run_until(lambda: refused(dispatcher) == 5)
    assert len(count) == 5


@pytest.mark.parametrize("name", [name for name in ALL_BUT_LOG if name not in ANY_THREAD])
def test_every_other_function_on_another_thread(owner, puppet, held, name):
    """With the right handle."""
    dispatcher = start(owner, [puppet])
    hold(owner, dispatcher)
    handles = {"context": puppet.context, "connection": held[0], "message": held[0] + 1, "address": held[0] + 2}
    handle = handles.get(kind_of(name), 1)
    thread = threading.Thread(target=call, args=(name, handle))
    thread.start()
    thread.join()
    call(name, handle)  # and here, outside of all calls
    mq.MQ_continue(held[0])
    owner.run_until(lambda: owner.finished)
    owner.turn()


def test_everything_after_the_dispatcher_closed(owner, puppet, held):
    dispatcher = start(owner, [puppet])
    hold(owner, dispatcher, 5)
    timers = []
    puppet.begin = lambda context: timers.append(puppet.timer(context, 100, print))
    dispatcher.close()
    for number in range(2):
        for name in ALL_BUT_LOG:
            for handle in (*held, *(each + 1 for each in held), *timers, puppet.context):
                call(name, handle)
        hold(owner, start(owner, [Puppet(puppet.path.parent / f"{number}.so")]))  # which has the table now
    owner.turn()


def test_context_handle_of_a_closed_dispatcher_is_not_that_of_the_next(owner, puppet):
    first = start(owner, [puppet])
    old = puppet.context
    first.close()
    second = start(owner, [Puppet(puppet.path.parent / "30-another.so", lambda *_: call("MQ_startTimer", old))])
    hold(owner, second)
    owner.run_until(lambda: refused(second) == 1)


DEADLOCK = """
#include <pthread.h>
#include <unistd.h>
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static _Atomic int locked, misused;
static MQ_Connection *held;

static void *misuse(void *data)
{
    (void)data;
    pthread_mutex_lock(&lock);
    locked = 1;
    usleep(20000);
    MQ_continue(held);
    MQ_continue(held);
    MQ_log(MQ_INFO, "from a thread");
    misused = 1;
    pthread_mutex_unlock(&lock);
    return NULL;
}

MQ_EXPORT bool mq_step(MQ_Context *context, MQ_Connection *connection, MQ_Message *message)
{
    (void)context, (void)message;
    if (held == NULL) {
        pthread_t thread;
        held = connection;
        pthread_create(&thread, NULL, misuse, NULL);
        pthread_detach(thread);
        return true;
    }
    while (!locked)
        usleep(100);
    pthread_mutex_lock(&lock); /* with the GIL, in this version */
    pthread_mutex_unlock(&lock);
    return !misused;
}
"""


def test_a_misuse_with_a_lock_that_the_hook_waits_for(owner, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    plugins = owner.plugins({})
    plugins.load(compile_plugin(tmp_path / "10-locks.so", DEADLOCK, "-pthread"))
    dispatcher = owner.dispatcher(plugins)
    first, second = hold(owner, dispatcher, 2)
    owner.run_until(lambda: owner.finished and refused(dispatcher))
    assert owner.finished == [(first, mqcore.CONTINUE)]
    assert ("mqcore.plugins.10-locks", logging.INFO, "from a thread") in caplog.record_tuples
    assert second.holder is None


def test_a_flood_of_misuses_is_bounded(owner, puppet, held, caplog):
    caplog.set_level(logging.CRITICAL)
    dispatcher = start(owner, [puppet])
    hold(owner, dispatcher)
    for _ in range(100_000):
        mq.MQ_continue(12345)
    mq.MQ_continue(held[0])
    owner.run_until(lambda: owner.finished)


@pytest.mark.parametrize("loop", ["uvloop", "pyuv"])
def test_in_the_child_of_a_fork(loop, tmp_path):
    compile_plugin(tmp_path / "10-a.so", """
        static MQ_Connection *held;
        static void never(void *data) { (void)data; }
        MQ_EXPORT void give(void) { MQ_continue(held); MQ_continue(held); }
        MQ_EXPORT bool mq_step(MQ_Context *context, MQ_Connection *connection, MQ_Message *message)
        {
            (void)message;
            held = connection;
            return MQ_startTimer(context, 100, never, NULL) != NULL;
        }
    """)
    script = f"""
import ctypes, logging
logging.basicConfig(level=logging.CRITICAL)
plugins = mqcore.Plugins({str(tmp_path / "10-a.so")!r}, hooks=[mqcore.HookSpec("mq_step")])
dispatcher = mqcore.Dispatcher(plugins, loop=loop)
library = ctypes.CDLL({str(tmp_path / "10-a.so")!r})
told = []
dispatcher.hook("mq_step").run(mqcore.Message(), done=lambda message, outcome: told.append(outcome))
child = os.fork()
if child == 0:
    library.give()
    library.give()
    dispatcher.close()
    library.give()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
turn()
assert not told
library.give()
while not told:
    turn()
print(told[0].name)
dispatcher.close()
turn()
plugins.close()
"""
    assert python(PROLOGUE + script, loop, stderr=None) == "CONTINUE\n"


def test_functions_of_native_plugins_are_no_trapdoor_for_python(owner, tmp_path, puppet):
    """What Python code can reach of a native plugin, called or used in other ways than mqcore does."""
    import mqcore._chain
    import mqcore.native._native_context

    dispatcher = start(owner, [puppet])
    (native,) = dispatcher.plugins
    hook = native.hooks["mq_step"]
    with pytest.raises(TypeError, match="called by a dispatcher alone"):
        hook(None, mqcore.Message())
    contexts = []
    other = start(owner, [], {"10-thief": hook, "20-python": lambda context, message: contexts.append(context)})
    message = mqcore.Message()
    assert other.hook("mq_step").run(message) is mqcore.FAIL and isinstance(message.error, TypeError)
    for kind in (mqcore._chain.NativeFunction, mqcore.native._native_context.LifecycleFunction, mqcore.native._access.Pointer):
        for make in (kind, functools.partial(kind.__new__, kind), functools.partial(object.__new__, kind)):
            with pytest.raises(TypeError, match="made by mqcore alone|not safe"):
                make()
    start(owner, [], {"20-python": lambda context, message: contexts.append(context)}).hook("mq_step").run(message)
    for function in (native.context_initialize, native.context_cleanup):
        for arguments in ((), (None,), (1,), (contexts[0],)):  # a context of another plugin
            with pytest.raises(TypeError, match="needs a context"):
                function(*arguments)


def test_functions_of_a_context_s_life_called_again(owner, puppet):
    dispatcher = start(owner, [puppet], {"20-python": lambda context, message: seen.append(context)})
    seen: list[mqcore.Context] = []
    (native, _) = dispatcher.plugins
    context = next(each for each in gc.get_objects() if type(each) is mqcore.Context and each.plugin is native)
    with pytest.raises(mqcore.MqError, match="initialized already"):
        native.context_initialize(context)
    with ThreadPoolExecutor(1) as pool, pytest.raises(mqcore.MqError):
        pool.submit(native.context_cleanup, context).result()
    for _ in range(2):
        native.context_cleanup(context)
    assert dispatcher.hook("mq_step").run(mqcore.Message()) is mqcore.CONTINUE  # with a handle that is stale
    native.context_initialize(context)
    dispatcher.close()
    owner.turn()
    native.context_cleanup(context)
    with pytest.raises(mqcore.MqError):
        native.context_initialize(context)


def test_an_accessor_that_ends_the_program(uvloop_owner, tmp_path):
    """It leaves through the loop; the plugin gets what it would have got without a mail."""

    class Ends(mqcore.Message):
        pass

    class EndsAccessors(accessors.Accessors):
        def json(self, message):
            raise KeyboardInterrupt

    accessors.register(Ends, EndsAccessors())
    puppet, seen = Puppet(tmp_path / "10-puppet.so"), []
    puppet.step = lambda context, connection, message: seen.append(mq.MQ_json(message))
    dispatcher = start(uvloop_owner, [puppet])
    assert dispatcher.hook("mq_step").run(Ends()) is mqcore.CONTINUE
    with pytest.raises(KeyboardInterrupt):
        uvloop_owner.turn()
    assert seen == [None] and not puppet.errors


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_a_handler_of_logging_that_raises_in_a_plugin_s_life(tmp_path, error, capfd):
    """No loop is there. What ends the program is raised when the plugin's function returns."""

    class Raises(logging.Handler):
        def emit(self, record):
            raise error("of the handler")

    path = compile_plugin(tmp_path / "10-says.so", """
        MQ_EXPORT void mq_initialize(void) { MQ_log(MQ_ERROR, "begins"); MQ_log(MQ_ERROR, "again"); }
    """)
    logger, handler = logging.getLogger("mqcore.plugins.10-says"), Raises()
    logger.addHandler(handler)
    try:
        with contextlib.nullcontext() if error is ValueError else pytest.raises((error, mqcore.PluginError)) as told:
            mqcore.Plugins(path).close()
        if told is not None:
            assert "of the handler" in str(told.value)
    finally:
        logger.removeHandler(handler)
    assert "could not log what a native plugin said" in capfd.readouterr().err
