"""Plugins: what a plugin offers, and the set of them that dispatchers run messages through.

A set is an immutable tuple in order of names. A change builds a new tuple beside the old one and swaps it in when
nothing can fail any more; until then each step leaves behind how to undo it, so that a failure leaves no trace.

There are two locks. A change holds `_changes` from its beginning to its end, while plugins' code runs, which may take any
time: only other changes wait for it. `_lock` guards the tuple and the dispatchers, and no code of anybody's runs under it:
so a dispatcher can be made, closed, and brought up to date while another thread is changing the plugins.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from .._plugin_set import AnyChange, AnyDispatcher, PluginSet
from ..errors import MqError, PluginError
from ..hooks import API_VERSION, LIFECYCLE, MAILERQ_HOOKS, HookSpec, nearest
from ..native._shared import check_distinct, load_shared
from ._checks import check, is_coroutine_function, nearly_hooks, no_hook, place, raised, refuse_what_has_no_hooks
from ._config import Config, read_config, settings_of
from ._files import find, import_file

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

_log = logging.getLogger("mqcore")

_Path = str | os.PathLike[str]
_Accept = Callable[["Snapshot"], object]


class Snapshot(tuple["Plugin", ...]):
    """The plugins as they are at one moment, in order; `paused` are the names of those that are in no chain."""

    paused: frozenset[str]
    of_hook: Mapping[str, tuple[Plugin, ...]]
    """By hook, the plugins that are in its chain: found out once, by whoever makes the change, for all dispatchers."""

    def __new__(cls, plugins: Iterable[Plugin] = (), paused: Iterable[str] = ()) -> Self:
        self = super().__new__(cls, plugins)
        self.paused = frozenset(paused).intersection(plugin.name for plugin in self)
        found: dict[str, list[Plugin]] = {}
        for plugin in self:
            if plugin.name not in self.paused:
                for hook in plugin.hooks:
                    found.setdefault(hook, []).append(plugin)
        self.of_hook = {hook: tuple(implementing) for hook, implementing in found.items()}
        return self


class Plugin:
    """A named unit of callbacks. `Plugins` makes them; all attributes are for reading.

    `kind`: "python" or "native". `hooks`: a read-only mapping of hooks' names to what is called. `config`: a read-only mapping.
    `log`: the logger `mqcore.plugins.NAME`.
    """

    def __init__(
        self, name: str, path: str | None, config: Config, callables: Mapping[str, Any], undo: ExitStack
    ) -> None:
        self.name = name
        self.kind = "native" if path is not None and path.endswith(".so") else "python"
        self.path = path
        """The file or package directory; None for an added object and for an entry point."""
        self.config = config
        self.hooks: Mapping[str, Callable[..., Any]] = MappingProxyType(
            {name: function for name, function in callables.items() if name not in LIFECYCLE}
        )
        self._coroutine_hooks = frozenset(name for name, function in self.hooks.items() if is_coroutine_function(function))
        self.context_initialize: Callable[[Any], object] | None = callables.get("mq_context_initialize")
        self.context_cleanup: Callable[[Any], object] | None = callables.get("mq_context_cleanup")
        self.log = logging.getLogger(f"mqcore.plugins.{name}")
        self._life = {name: value for name, value in callables.items() if name in LIFECYCLE}
        self._lock = threading.RLock()
        self._users = 0
        self._retired = False
        # Ends the plugin: at most once, and at the latest when the interpreter exits.
        self._undo = undo
        self._end = weakref.finalize(self, undo.close)

    def __repr__(self) -> str:
        return f"<mqcore.Plugin {self.name} ({self.path or 'added'})>"

    def _start(self) -> None:
        """Compare the version, then initialize; only a plugin that did will be cleaned up."""
        given = self._life.get("mq_version", API_VERSION)
        version = self._call("mq_version") if callable(given) else given
        if type(version) is not int or version != API_VERSION:
            path, line = place(given, self.path)
            raise PluginError(
                f"mq_version is {version!r}, but this mqcore runs plugins of version {API_VERSION}; "
                "adapt the plugin, or install the mqcore it was written for",
                plugin=self.name,
                path=path,
                line=line,
            )
        if "mq_initialize" in self._life:
            self._call("mq_initialize")
        if "mq_cleanup" in self._life:
            self._undo.callback(_clean_up, self._life["mq_cleanup"], self.log)

    def _call(self, name: str, *args: object) -> Any:
        """Call a function of the plugin's life; what it raises becomes a PluginError with file and line."""
        function = self._life[name]
        try:
            return function(*args)
        except (Exception, SystemExit) as error:
            home = self.path or place(function, None)[0]
            raise raised(f"{name}()", error, self.name, home) from error

    def _acquire(self) -> None:
        """A dispatcher begins to use the plugin, which may have been removed if it still has another user."""
        with self._lock:
            if self._retired and self._users == 0:
                raise PluginError("it was removed; load it again", plugin=self.name, path=self.path)
            self._users += 1

    def _release(self) -> None:
        """A dispatcher has let go of the plugin, which ends with the last one if it was removed or replaced."""
        with self._lock:
            self._users -= 1
            ended = self._retired and self._users == 0
        if ended:
            self._end()

    def _retire(self) -> None:
        """The plugin was removed or replaced: it ends as soon as no dispatcher uses it."""
        with self._lock:
            self._retired = True
            ended = self._users == 0
        if ended:
            self._end()


def _clean_up(mq_cleanup: Callable[[], object], logger: logging.Logger) -> None:
    try:
        mq_cleanup()
    except (Exception, SystemExit):
        logger.exception("mq_cleanup() raised")


class _Candidate(NamedTuple):
    """A plugin that may come in: `load` makes its object, and registers what undoes that."""

    name: str
    path: str | None
    load: Callable[[Callable[..., object]], object]


class Plugins(PluginSet):
    """The plugins of a server, in order of their names.

    Each of `paths` is a directory of plugins, a `.py` file or a package. `hooks` are the hooks that plugins may
    implement. `config` is a mapping or the path of a TOML file, and has a table for each plugin: at the top, or in a
    table `plugins`. Files and directories that everyone may write to are refused unless `trust_writable`.

    Any thread may call the methods. One that fails raises a `PluginError` and leaves all as it was. A change waits for the
    one before it; nothing else does. `with` closes it; to iterate gives each `Plugin`. `hooks`: by name, for reading.

    Raises ValueError for a hook that is declared twice with different arguments, TypeError for hooks that are no `HookSpec`.
    """

    def __init__(
        self,
        *paths: _Path,
        hooks: Iterable[HookSpec] = MAILERQ_HOOKS,
        config: Config | _Path | None = None,
        trust_writable: bool = False,
    ) -> None:
        self.snapshot = Snapshot()
        """The plugins as they are now; every change makes a new tuple."""
        self.hooks: Mapping[str, HookSpec] = MappingProxyType(_specs(hooks))
        self._paths = [_absolute(path) for path in paths]
        what = "config=, where it is no mapping,"
        self._config_source = config if config is None or isinstance(config, Mapping) else _absolute(config, what)
        self._trust_writable = trust_writable
        self._dispatchers: list[weakref.ref[AnyDispatcher]] = []
        self._lock = threading.RLock()
        self._changes = threading.RLock()
        self._changing = False
        self._gone: list[Plugin] = []
        self._closed = False
        self._config: Config = {}
        with self._one_change():
            self._change((), self._find(self._paths), read_config(self._config_source))

    def load(self, path: _Path) -> None:
        """Load the file, the package or the directory of plugins at `path`, from now on one of the set's paths."""
        with self._one_change():
            path = _absolute(path)
            self._change(self.snapshot, self._find([path]), self._config)
            self._paths.append(path)

    def add(self, name: str, obj: object) -> None:
        """Make a plugin of any object with hooks for attributes: a module, an instance, a namespace.

        It stays through `reload`, as it is. Raises TypeError for what can have no hooks: a path, a function, None.
        """
        refuse_what_has_no_hooks(obj)
        with self._one_change():
            self._change(self.snapshot, [_Candidate(name, None, lambda undo: obj)], self._config)

    def load_entry_points(self, group: str = "mqcore.plugins") -> None:
        """Add the objects that installed packages offer as entry points of `group`."""
        from importlib.metadata import entry_points  # takes its time, which most sets of plugins need not wait for

        with self._one_change():
            points = entry_points(group=group)
            candidates = [_Candidate(point.name, None, functools.partial(load_entry_point, point)) for point in points]
            self._change(self.snapshot, candidates, self._config)

    def remove(self, name: str) -> None:
        """Take a plugin out. Steps that hold it end as they began.

        If it is in a directory of the set, `reload` brings it back for as long as its file is there.
        """
        with self._one_change():
            removed = self._named(name)
            self._change([plugin for plugin in self.snapshot if plugin is not removed], [], self._config)
            self._paths = [path for path in self._paths if path != removed.path]

    def reload(self) -> None:
        """Read the config and all files again, as they are now; a file that is gone is a plugin that is gone.

        Every file is executed afresh as a new module, and its plugin initialized, before the old one is cleaned up.
        Added objects and entry points stay as they are.
        """
        self._reload()

    def _reload(self, accept: _Accept = list) -> None:
        """The same, if `accept` does not raise for the plugins that there will be."""
        with self._one_change():
            kept = [plugin for plugin in self.snapshot if plugin.path is None]
            self._change(kept, self._find(self._paths), read_config(self._config_source), accept)

    def pause(self, name: str) -> None:
        """Leave a plugin out of every step that begins from now on, until `resume`. It stays loaded: steps that are under way
        go on as they began, what it holds included. New code of the same name, after a `reload`, is paused too."""
        with self._one_change():
            self._swap(Snapshot(self.snapshot, self.snapshot.paused | {self._named(name).name}))

    def resume(self, name: str) -> None:
        """End what `pause` began; of one that is not paused, do nothing."""
        with self._one_change():
            self._swap(Snapshot(self.snapshot, self.snapshot.paused - {self._named(name).name}))

    @property
    def paused(self) -> frozenset[str]:
        """The names of those that are paused."""
        return self.snapshot.paused

    def order(self, hook: str) -> list[str]:
        """The names of the plugins that implement `hook` and are not paused, in the order in which they are called: that of
        their names, compared byte by byte. Raises MqError when there is no such hook."""
        if hook not in self.hooks:
            raise MqError(f"no hook is named {hook!r}{nearest(hook, self.hooks)}")
        return [plugin.name for plugin in self.snapshot.of_hook.get(hook, ())]

    @property
    def unused_config(self) -> list[str]:
        """What the config has that is no plugin's table: most often a plugin's name misspelt, or a setting in none."""
        names = {plugin.name for plugin in self.snapshot}
        return [name for name in self._config if name not in names]

    def close(self) -> None:
        """Clean up every plugin, as soon as the dispatchers that use it are closed. May be called again; all other changes are
        an MqError from then on."""
        with self._one_change(closing=True), self._lock:
            self._closed = True
            self._gone.extend(self.snapshot)
            self.snapshot = Snapshot()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Plugin]:
        return iter(self.snapshot)

    def __len__(self) -> int:
        return len(self.snapshot)

    def __repr__(self) -> str:
        return f"<mqcore.Plugins {', '.join(plugin.name for plugin in self.snapshot) or '(none)'}>"

    @contextmanager
    def _attach(self, dispatcher: AnyDispatcher) -> Iterator[Snapshot]:
        """For a dispatcher that is being made: the plugins that it takes, as `_current` gives them.

        From then on changes reach the dispatcher, also one that is under way, unless the block raises.
        """
        with ExitStack() as used:
            with self._lock:
                self._check_open()
                self._dispatchers.append(weakref.ref(dispatcher))
                plugins = self._use(used)
            try:
                yield plugins
            except BaseException:
                self._detach(dispatcher)
                raise

    def _detach(self, dispatcher: AnyDispatcher) -> None:
        """Changes reach the dispatcher no more."""
        with self._lock:
            self._dispatchers = [ref for ref in self._dispatchers if ref() is not None and ref() is not dispatcher]

    @contextmanager
    def _current(self) -> Iterator[Snapshot | None]:
        """The plugins as they are now, for a dispatcher that takes them over; None once they are closed.

        Other threads may change the set meanwhile, but within the block none of these plugins ends.
        """
        with ExitStack() as used:
            with self._lock:
                plugins = None if self._closed else self._use(used)
            yield plugins

    def _use(self, used: ExitStack) -> Snapshot:
        for plugin in self.snapshot:
            plugin._acquire()
            used.callback(plugin._release)
        return self.snapshot

    def _named(self, name: str) -> Plugin:
        for plugin in self.snapshot:
            if plugin.name == name:
                return plugin
        raise PluginError(f"no plugin is named {name!r}{nearest(name, [p.name for p in self.snapshot])}")

    def _check_open(self) -> None:
        if self._closed:
            raise MqError("these plugins are closed; make a new Plugins")

    @contextmanager
    def _one_change(self, *, closing: bool = False) -> Iterator[None]:
        """One change at a time, and none from inside another: that one would overwrite it.

        The plugins that are in `_gone` in the end are retired when the change is over: their `mq_cleanup` may make another.
        """
        with ExitStack() as afterwards, self._changes:
            if not closing:
                self._check_open()
            if self._changing:
                raise MqError("a plugin cannot change the set of plugins while that is being changed; do it later")
            none: list[Plugin] = []
            afterwards.callback(_retire, self._gone)
            self._changing = True  # nothing that takes memory stands between this and its end
            try:
                yield
            finally:
                self._changing = False
                self._gone = none

    def _find(self, paths: list[str]) -> list[_Candidate]:
        found = {path: name for start in paths for name, path in find(start, trust_writable=self._trust_writable)}
        return [_Candidate(name, path, self._loader(name, path)) for path, name in found.items()]

    def _loader(self, name: str, path: str) -> Callable[[Callable[..., object]], object]:
        if path.endswith(".so"):
            return lambda undo: load_shared(name, path, self.hooks)
        return functools.partial(import_file, name, path)

    def _change(
        self, kept: Iterable[Plugin], candidates: list[_Candidate], config: Config, accept: _Accept = list
    ) -> None:
        """Make the set consist of the plugins kept and of new ones, if `accept` does not raise for these."""
        kept = list(kept)
        _check_names(kept, candidates)
        old, staying = self.snapshot, set(kept)
        with ExitStack() as undo:
            made = []
            for candidate in sorted(candidates, key=_order):
                plugin = self._load(candidate, config)
                undo.callback(plugin._retire)
                made.append(plugin)
            new = Snapshot(sorted(kept + made, key=_order), old.paused)
            accept(new)
            for plugin in made:
                plugin._start()
            self._swap(new)
            undo.pop_all()
        self._config = config
        self._gone.extend(plugin for plugin in old if plugin not in staying)

    def _load(self, candidate: _Candidate, config: Config) -> Plugin:
        with ExitStack() as undo:
            settings = settings_of(candidate.name, candidate.path, config, self._config_source)
            obj = candidate.load(undo.callback)
            callables = check(obj, candidate.name, candidate.path, self.hooks)
            near = nearly_hooks(obj, callables, self.hooks) if candidate.path else []
            for name, line, hook in near:
                where = candidate.path if line is None else f"{candidate.path}:{line}"
                _log.warning("%s: %s is no hook, so nobody calls it; did you mean %s?", where, name, hook)
            if candidate.path and not callables and not near:
                _log.warning("%s has no hook, so it does nothing; %s", candidate.path, no_hook(obj, self.hooks))
            return Plugin(candidate.name, candidate.path, settings, callables, undo.pop_all())

    def _swap(self, new: Snapshot) -> None:
        """Bring the new set into every dispatcher, or into none; also into those that are made meanwhile."""
        changes: list[AnyChange] = []
        asked: list[AnyDispatcher] = []
        with ExitStack() as undo:
            while dispatchers := self._take_over(new, asked):
                for dispatcher in dispatchers:
                    change = dispatcher._prepare(new)
                    undo.callback(change.discard)
                    changes.append(change)
                    asked.append(dispatcher)
            undo.pop_all()
        for change in changes:
            change.commit()

    def _take_over(self, new: Snapshot, asked: list[AnyDispatcher]) -> list[AnyDispatcher]:
        """The dispatchers that are not ready for the new set; when there are none, it is the set from now on."""
        with self._lock:
            dispatchers = [reference() for reference in self._dispatchers]
            others = [each for each in dispatchers if each is not None and not any(each is one for one in asked)]
            if not others:
                self.snapshot = new
            return others


def _retire(plugins: Iterable[Plugin]) -> None:
    """Retire them all, the last one first, also when one of them is interrupted."""
    with ExitStack() as stack:
        for plugin in plugins:
            stack.callback(plugin._retire)


def _order(plugin: Plugin | _Candidate) -> bytes:
    return plugin.name.encode()


def _absolute(path: _Path, what: str = "a path of plugins") -> str:
    try:
        return os.path.abspath(os.fsdecode(path))
    except TypeError:
        hint = f"; give them one by one, as Plugins({', '.join(map(repr, path))})" if isinstance(path, (list, tuple)) else ""
        raise TypeError(f"{what} is a str or os.PathLike, not {path!r}{hint}") from None


def _specs(hooks: Iterable[HookSpec]) -> dict[str, HookSpec]:
    specs: dict[str, HookSpec] = {}
    if isinstance(hooks, (HookSpec, str)) or not isinstance(hooks, Iterable):
        one = f"HookSpec({hooks.name!r}, ...)" if isinstance(hooks, HookSpec) else "HookSpec(name, ...)"
        raise TypeError(
            f"hooks= is a list of HookSpec, not {hooks!r}; write hooks=[{one}], "
            f"or hooks=[*mqcore.MAILERQ_HOOKS, {one}] to have MailerQ's hooks too"
        )
    for spec in hooks:
        if not isinstance(spec, HookSpec):
            raise TypeError(f"hooks are declared with HookSpec(name, *args), not with {spec!r}")
        if specs.setdefault(spec.name, spec) != spec:
            raise ValueError(f"the hook {spec.name} is declared twice, with different arguments")
    return specs


def _check_names(kept: list[Plugin], candidates: list[_Candidate]) -> None:
    paths: dict[str, str | None] = {plugin.name: plugin.path for plugin in kept}
    for candidate in candidates:
        name = candidate.name
        if not isinstance(name, str):
            raise TypeError(f"a plugin's name is a str, not {name!r}")
        if not name or not name.isprintable():
            raise PluginError(
                f"{name!r} is no name for a plugin: it is empty or has characters that do not print; choose another",
                path=candidate.path,
            )
        if name in paths:
            raise PluginError(
                f"another plugin has this name ({paths[name] or 'an added object'}); rename or remove one of them",
                plugin=name,
                path=candidate.path,
            )
        paths[name] = candidate.path
    check_distinct(paths)


def load_entry_point(point: EntryPoint, undo: object = None) -> object:
    """There is nothing to undo. Raises PluginError."""
    package = f" of {point.dist.name}" if point.dist else ""
    try:
        return point.load()
    except (Exception, SystemExit) as error:
        doing = f"loading the entry point {point.value}{package}"
        raise raised(doing, error, point.name, _origin(point.module)) from error


def _origin(module: str) -> str | None:
    """The file of a module, or the directory of a package."""
    with suppress(Exception):  # whatever its parent package raises
        spec = importlib.util.find_spec(module)
        if spec and spec.origin:
            return os.path.dirname(spec.origin) if spec.submodule_search_locations else spec.origin
    return None
