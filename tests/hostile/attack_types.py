"""Rule 22: each extension type of mqcore is attacked: `python -m attack_types OWNER NAME...`, in a process of its own.

What was done last is on standard error, in case of a crash. Ends well when each attack worked or raised anything but a
SystemError, and the dispatchers still work afterwards.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import copy
import faulthandler
import functools
import gc
import importlib
import itertools
import operator
import os
import pickle
import pkgutil
import shutil
import socket
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import hostile_tools as tools
from hostile_tools import Owner, assert_conserved, mqcore

HEAP_TYPE = 1 << 9
VIOLATIONS: list[str] = []


def extension_types() -> dict[str, type]:
    """All of them by name, also those that no module shows: each type knows its subclasses."""
    for module in pkgutil.walk_packages(mqcore.__path__, "mqcore."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found: dict[str, type] = {}
    waiting: list[type] = [object]
    while waiting:
        for kind in type.__subclasses__(waiting.pop()):
            if kind is not type:
                waiting.append(kind)
            # Python 3.15 has a type of its own without a module.
            if str(getattr(kind, "__module__", "")).startswith("mqcore") and not kind.__flags__ & HEAP_TYPE:
                found[f"{kind.__module__}.{kind.__qualname__}"] = kind
    return dict(sorted(found.items()))


def attempt(what: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call. What it returns, or the exception as `Raised`."""
    os.write(2, f"{what}\n".encode(errors="replace"))
    try:
        return function(*args, **options)
    except BaseException as error:
        if issubclass(type(error), SystemError):
            VIOLATIONS.append(f"{what}: {error!r}")
        return Raised(type(error))


class Raised:
    def __init__(self, kind: type[BaseException]) -> None:
        self.kind = kind

    def __repr__(self) -> str:
        return f"raised {self.kind.__name__}"


class Number(int):
    def __eq__(self, other: object) -> bool:
        return True

    __lt__ = __le__ = __gt__ = __ge__ = __eq__

    def __hash__(self) -> int:
        return 0


class Broken:
    """Raises whatever is asked of it."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("eq")

    def __hash__(self) -> int:
        raise RuntimeError("hash")

    def __repr__(self) -> str:
        raise RuntimeError("repr")

    def __bool__(self) -> bool:
        raise RuntimeError("bool")


def odd_values() -> list[Any]:
    numbers = [1, -1, 2**70, Number(15), 0.5, float("nan")]
    return [None, *numbers, "text", "\ud800", b"", (), [], {}, object(), Broken(), int, print]


# ------------------------------------------------------------------------------------------------------------ the scenario


class Plugin:
    """Holds messages in all ways, and starts what can be started."""

    def __init__(self) -> None:
        self.kept: list[Any] = []
        self.in_hook: Callable[[list[Any]], None] | None = None

    def mq_context_initialize(self, context: Any) -> None:
        self.context = context

    def mq_step(self, context: Any, message: Any) -> Any:
        if self.in_hook is not None:
            self.in_hook([context, message, context.hold(message)])
            return False
        number = len(self.kept)
        hold = context.hold(message)
        self.kept.append(hold)
        if number % 4 == 0:
            self.kept.append(hold.start_timer(100, print))
            return hold
        if number % 4 == 1:
            return True
        context.continue_(message)
        return number % 4 == 2

    def mq_other(self, context: Any, message: Any, extra: Any) -> bool:
        return True


class CoroutinePlugin:
    async def mq_step(self, context: Any, message: Any) -> bool:
        await asyncio.sleep(3600)
        return True


NATIVE = """
static void fired(void *data) { (void)data; }
MQ_EXPORT bool mq_step(MQ_Context *context, MQ_Connection *connection, MQ_Message *message)
{
    (void)connection; (void)message;
    MQ_startTimer(context, 100.0f, fired, 0);
    return true;
}
"""


@functools.cache
def native_plugin() -> str:
    import native_tools

    return str(native_tools.compile_plugin(Path(COMPILED.name) / "30-native.so", NATIVE))


COMPILED = tempfile.TemporaryDirectory()
atexit.register(COMPILED.cleanup)
OLD: dict[int, Any] = {}
"""What was there before anything was made to be attacked, by `id`, and is not looked through: it has none of it, and stays."""


class Scenario:
    """A dispatcher with everything that can be found on one, in every state."""

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self.plugin = Plugin()
        self.pair = socket.socketpair()
        plugins = owner.plugins({"20-all": self.plugin})
        self.folder = tempfile.TemporaryDirectory()
        if shutil.which("cc"):
            plugins.load(shutil.copy(native_plugin(), self.folder.name))
        self.dispatcher = owner.dispatcher(plugins, hold_timeout=0)
        step = self.dispatcher.hook("mq_step")
        context = self.plugin.context
        self.messages = [mqcore.Message() for _ in range(10)]
        self.kept: list[Any] = [step, self.dispatcher.hook("mq_other"), context, self.messages]
        step.run_many(self.messages[:8])
        self.dispatcher.hook("mq_other").run(self.messages[8], object(), done=print)
        stopped, running = context.start_timer(100, print), context.start_timer(100, print)
        stopped.stop()
        ended, active = (context.watch(each, mqcore.READ, print) for each in self.pair)
        ended.stop()
        self.kept += [stopped, running, ended, active, context.start_timer(0, int)]
        owner.turn()
        with contextlib.suppress(mqcore.NotHeld):
            context.continue_(self.messages[1])  # and is in the queue
        if owner.name == "uvloop":
            self._coroutines(plugins)

    def _coroutines(self, plugins: Any) -> None:
        loop = self.owner.loop
        plugins.add("10-coroutine", CoroutinePlugin())
        step = self.dispatcher.hook("mq_step")
        awaitable = step(mqcore.Message())
        self.kept += [step.run(message := mqcore.Message()), message, awaitable]

        async def wait() -> Any:
            return await awaitable

        self.kept.append(loop.create_task(wait()))
        if hasattr(step, "stream"):
            stream = step.stream(mqcore.Message() for _ in range(5))
            self.kept += [stream, step.stream([]), stream.__aiter__(), attempt("anext", stream.__anext__)]
        self.owner.turn()
        plugins.remove("10-coroutine")

    def instances(self, kind: type) -> list[Any]:
        """Of exactly this type."""
        return self.instances_of({kind})[kind]

    def instances_of(self, kinds: Collection[type]) -> dict[type, list[Any]]:
        """A few of each type: of what the collector knows, and of what can be reached from what is kept. One walk for all
        types, as it takes longer than most attacks."""
        found: dict[type, list[Any]] = {kind: [] for kind in kinds}
        waiting: list[Any] = [self, *gc.get_objects()]
        seen = set(OLD)
        while waiting:
            each = waiting.pop()
            if id(each) in seen:
                continue
            seen.add(id(each))
            if type(each) in found:
                found[type(each)].append(each)
            if str(type(each).__module__).startswith(("mqcore", __name__, "_asyncio", "builtins")):
                waiting.extend(gc.get_referents(each))
        return {kind: some[:4] for kind, some in found.items()}

    def finish(self) -> None:
        """The dispatcher's books are in order, and it closes."""
        if type(self.dispatcher) is mqcore.Dispatcher:
            attempt("books", assert_conserved, self.dispatcher)
            for _ in range(3):
                closed = attempt("close", self.dispatcher.close)
                if closed is None:
                    break
            assert closed is None, closed.kind
            s = self.dispatcher.stats()
            assert (s.held, s.running) == (0, 0), s
            assert_conserved(self.dispatcher)
        for each in self.pair:
            each.close()
        self.folder.cleanup()


# ------------------------------------------------------------------------------------------------------------- the attacks

LAST = ("close", "__exit__", "__aexit__", "__del__", "aclose")  # after which there is less to attack
LEFT_ALONE = {"__class__", "__doc__", "__dict__", "__module__", "__weakref__", "__getattribute__"}


def attack(thing: Any, what: str) -> None:
    """Everything that can be done with an object."""
    operators(thing, what)
    copies(thing, what)
    names = sorted(set(dir(type(thing))) - LEFT_ALONE, key=lambda name: (name in LAST, name))
    for name in names:
        value = attempt(f"{what}: get {name}", getattr, thing, name)
        for odd in odd_values():
            if not callable(value):
                attempt(f"{what}: set {name}", setattr, thing, name, odd)
        attempt(f"{what}: delete {name}", delattr, thing, name)
        attempt(f"{what}: get {name}", getattr, thing, name)
    for name in names:
        method = attempt(f"{what}: get {name}", getattr, thing, name)
        if callable(method) and type(method) is not type:
            call_oddly(method, f"{what}.{name}")


def call_oddly(function: Any, what: str, most: int = 2, every: int = 1) -> None:
    first = finish_awaitable(attempt(f"{what}()", function))
    del first
    for count in range(1, most + 1):
        for odd in odd_values()[::every]:
            attempt(f"{what}({', '.join([type(odd).__name__] * count)})", function, *[odd] * count)
    attempt(f"{what}(1, 'text', print)", function, 1, "text", print)
    attempt(f"{what}(odd=1)", function, odd=1)
    attempt(f"{what}(**many)", function, 1, message=None, done=print, error="text")


def finish_awaitable(value: Any) -> Any:
    if hasattr(type(value), "close") and hasattr(type(value), "__await__"):
        attempt("close a coroutine", value.close)
    return value


def operators(thing: Any, what: str) -> None:
    for name in ("lt", "le", "eq", "ne", "gt", "ge", "add", "mul", "and_", "getitem", "contains", "concat", "is_", "iadd"):
        function = getattr(operator, name)
        for other in (thing, None, 1, Broken()):
            attempt(f"{what}: {name}", function, thing, other)
            attempt(f"{what}: {name}, the other way", function, other, thing)
    looks = (hash, repr, str, bool, len, iter, next, aiter, dir, vars, sys.getsizeof, weakref.ref, format, reversed, callable)
    for unary in looks:
        attempt(f"{what}: {unary.__name__}", unary, thing)
    attempt(f"{what}: setitem", operator.setitem, thing, 0, 0)
    attempt(f"{what}: delitem", operator.delitem, thing, 0)
    attempt(f"{what}: iterate", lambda: list(itertools.islice(thing, 5)))
    attempt(f"{what}: await", lambda: list(itertools.islice(type(thing).__await__(thing), 3)))
    attempt(f"{what}: send", lambda: thing.send(None))
    attempt(f"{what}: isinstance", isinstance, thing, thing)
    attempt(f"{what}: memoryview", memoryview, thing)
    attempt(f"{what}: int", int, thing)
    attempt(f"{what}: in a set", lambda: {thing, thing})
    for kind in (object, int, mqcore.Message, type("Heap", (), {}), Plugin):
        attempt(f"{what}: __class__ = {kind.__name__}", setattr, thing, "__class__", kind)
    for kind in (object, type(thing).__base__, type(thing)):
        for odd in ((), (None,), (1, 2, 3)):
            attempt(f"{what}: {kind}.__init__", kind.__init__, thing, *odd)


def copies(thing: Any, what: str) -> None:
    made = [attempt(f"{what}: copy", copy.copy, thing), attempt(f"{what}: deepcopy", copy.deepcopy, thing)]
    for protocol in range(-1, pickle.HIGHEST_PROTOCOL + 1):
        pickled = attempt(f"{what}: pickle {protocol}", pickle.dumps, thing, protocol)
        if isinstance(pickled, bytes):
            made.append(attempt(f"{what}: unpickle {protocol}", pickle.loads, pickled))
        reduced = attempt(f"{what}: reduce {protocol}", lambda protocol=protocol: thing.__reduce_ex__(protocol))
        if isinstance(reduced, tuple):
            made.append(attempt(f"{what}: rebuild {protocol}", lambda reduced=reduced: reduced[0](*reduced[1])))
    for odd in odd_values():
        for name in ("__setstate__", "__setstate_cython__"):
            attempt(f"{what}: {name}", lambda name=name, odd=odd: getattr(thing, name)(odd))
    for each in made:
        if type(each) is type(thing) and each is not thing:
            attack_made(each, f"a copy of {what}")


def attack_made(made: Any, what: str) -> None:
    """An object that came from a constructor or a copy: it is whole, or refuses."""
    operators(made, what)
    for name in sorted(set(dir(type(made))) - LEFT_ALONE):
        value = attempt(f"{what}: get {name}", getattr, made, name)
        if callable(value) and type(value) is not type:
            call_oddly(value, f"{what}.{name}", 1, 4)
        else:
            attempt(f"{what}: set {name}", setattr, made, name, None)
    attempt(f"{what}: traverse", gc.get_referents, made)
    gc.collect()


def constructors(kind: type, what: str) -> None:
    for count in range(4):
        for odd in odd_values():
            made = attempt(f"{what}({type(odd).__name__} x {count})", kind, *[odd] * count)
            if type(made) is kind and count < 2:
                attack_made(made, f"{what}(...)")
    attempt(f"{what}(odd=1)", kind, odd=1)
    for base in (*kind.__mro__, int, tuple):
        for args in ((), (None,), (1, 2)):
            made = attempt(f"{base.__name__}.__new__({what})", base.__new__, kind, *args)
            if type(made) is kind:
                attack_made(made, f"{base.__name__}.__new__({what})")
                del made
                gc.collect()
    subclasses(kind, what)
    for name, value in (("stop", print), ("__del__", print), ("odd", 1)):
        attempt(f"{what}.{name} = ", setattr, kind, name, value)


def subclasses(kind: type, what: str) -> None:
    bodies: dict[str, dict[str, Any]] = {
        "plain": {},
        "slots": {"__slots__": ("odd",)},
        "no slots": {"__slots__": ()},
        "del": {"__del__": lambda self: None},
        "getattr": {"__getattr__": lambda self, name: 1 / 0},
        "new": {"__new__": lambda cls, *args: object.__new__(cls)},
    }
    for name, body in bodies.items():
        for bases in ((kind,), (Plugin, kind), (kind, Exception), (kind, int)):
            derived = attempt(f"a subclass of {what}, {name}, {len(bases)} bases", type, "Derived", bases, dict(body))
            if not isinstance(derived, type):
                continue
            for args in ((), (None,), (1, 2)):
                made = attempt(f"a subclass of {what}, {name}: call", derived, *args)
                if isinstance(made, kind):
                    attack_made(made, f"an instance of a subclass of {what}, {name}")
                made = attempt(f"a subclass of {what}, {name}: __new__", kind.__new__, derived, *args)
                if isinstance(made, kind):
                    attack_made(made, f"a new instance of a subclass of {what}, {name}")
                del made
            gc.collect()


def other_selves(kind: type, what: str, others: list[Any]) -> None:
    """What is taken from the type and used on another `self` is a TypeError."""
    own = [each for each in reversed(kind.__mro__) if str(each.__module__).startswith("mqcore")]
    members = {name: (each, member) for each in own for name, member in vars(each).items()}
    for name, (defined_in, member) in members.items():
        if isinstance(member, staticmethod | classmethod) or name in ("__new__", *LEFT_ALONE):
            continue
        method = getattr(kind, name, member)
        for other in others:
            if isinstance(other, defined_in):
                continue
            label = f"{what}.{name} with {type(other).__name__}"
            attempt(label, lambda member=member, other=other: member.__get__(other, type(other)))
            attempt(label, lambda member=member, other=other: member.__set__(other, 1))
            attempt(label, lambda member=member, other=other: member.__delete__(other))
            if not callable(method) or isinstance(method, type):
                continue
            for args in ((), (None,), (1, 2), (mqcore.Message(),)):
                result = attempt(f"{label}, {len(args)} arguments", method, other, *args)
                if not isinstance(result, Raised) or not issubclass(result.kind, (TypeError, AttributeError)):
                    if result is not NotImplemented:
                        VIOLATIONS.append(f"{label}: {result!r} and no TypeError")


def others_than(scenario: Scenario, kinds: dict[str, type]) -> list[Any]:
    """An object of each type of mqcore that has one, and some that are none."""
    found = scenario.instances_of(list(kinds.values()))
    return [1, None, object(), "text", mqcore.Message, *(some[0] for some in found.values() if some)]


# ------------------------------------------------------------------------------------------------------------------- a run


def still_works(owner: Owner) -> None:
    """A dispatcher that is made now passes, holds, and takes back."""
    holds: list[Any] = []

    def hook(context: Any, message: Any) -> Any:
        holds.append(context.hold(message))
        return holds[-1] if len(holds) % 2 else False

    dispatcher = owner.start({"10-works": hook})
    messages = [mqcore.Message() for _ in range(4)]
    outcomes = dispatcher.hook("mq_step").run_many(messages, done=owner.done)
    assert outcomes == [None, mqcore.CONTINUE, None, mqcore.CONTINUE], outcomes
    holds[0].complete()
    holds[2].continue_()
    owner.run_until(lambda: len(owner.finished) == 2)
    assert dict(owner.finished) == {messages[0]: mqcore.COMPLETE, messages[2]: mqcore.CONTINUE}
    assert tools.books(dispatcher) == (3, 1, 0, 0, 0, 0)


def states(owner: Owner, kind: type) -> Iterator[tuple[str, Scenario, list[Any]]]:
    """The instances there are: on a live dispatcher, in a hook of it, from another thread, and when it is closed."""
    for state in ("live", "thread", "closed"):
        scenario = Scenario(owner)
        instances = scenario.instances(kind)
        if state == "closed":
            scenario.dispatcher.close()
            owner.turn()
        yield state, scenario, instances
    scenario = Scenario(owner)

    def in_hook(found: list[Any]) -> None:
        for each in found + scenario.instances(kind):
            if type(each) is kind:
                attack(each, f"{kind.__name__} in a hook")

    scenario.plugin.in_hook = in_hook
    attempt("run", lambda: scenario.dispatcher.hook("mq_step").run(mqcore.Message()))
    scenario.plugin.in_hook = None
    yield "hook", scenario, []


def in_thread(function: Callable[..., None], *args: Any) -> None:
    thread = threading.Thread(target=attempt, args=("in a thread", function, *args))
    thread.start()
    thread.join()


def attack_type(owner: Owner, name: str) -> None:
    kinds = extension_types()
    kind = kinds[name]
    seen = 0
    for state, scenario, instances in states(owner, kind):
        seen += len(instances)
        for number, each in enumerate(instances):
            what = f"{kind.__name__} {number}, {state}"
            in_thread(attack, each, what) if state == "thread" else attack(each, what)
        if state == "live":
            constructors(kind, kind.__name__)
            other_selves(kind, kind.__name__, others_than(scenario, kinds))
        del instances
        owner.turn()
        scenario.finish()
        owner.turn()
    del scenario
    print(f"{seen} instances")


def quiet_faults(owner: Owner) -> None:
    """Errors are the point here, so nobody need read them."""
    import logging

    logging.disable(logging.CRITICAL)
    sys.unraisablehook = lambda what: (
        VIOLATIONS.append(f"{what.exc_value!r} ignored in {what.object!r}") if isinstance(what.object, str) else None
    )
    owner.loop_errors.clear()


def main() -> None:
    owner_name, *names = sys.argv[1:]
    extension_types()
    OLD.update((id(each), each) for each in gc.get_objects())
    gc.collect()
    gc.freeze()  # these are no instances to attack, and each attack ends with a collection
    owner = tools.start_owner(owner_name)
    quiet_faults(owner)
    faulthandler.dump_traceback_later(200, exit=True)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        for name in names:
            attack_type(owner, name)
            owner.loop_errors.clear()
        gc.collect()
        still_works(owner)
        owner.loop_errors.clear()
        owner.finish()
    assert not VIOLATIONS, "\n".join(VIOLATIONS[:20])


if __name__ == "__main__":
    main()
