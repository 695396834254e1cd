"""Native plugins: shared objects, looked at before they are opened, since a broken one can take the process with it."""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import os
import struct
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, NamedTuple

from ..errors import PluginError
from ..hooks import LIFECYCLE, misspelt, unknown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..hooks import HookSpec

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM = struct.Struct("<IIQQQQQQ")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_LOADED, _DYNAMIC_SYMBOLS, _SHARED_OBJECT = 1, 11, 3
_DATA = {1, 5, 6}  # types of symbols that are variables
_MACHINES = {3: "32-bit x86", 40: "32-bit ARM", 62: "x86-64", 183: "AArch64", 243: "RISC-V"}
_MAILERQ_ARGUMENTS = {"mq_smtp_in_authenticate", "mq_smtp_in_mailfrom", "mq_smtp_in_rcptto", "mq_smtp_in_data"}

_MAPPINGS = 8  # of one shared object, at the most that is usual

# Functions that nobody can have the plugin's code called with later, in another thread, or by a signal: memory, strings,
# numbers, the clock, files, and what mqcore ends itself. A plugin that needs no others can be taken out of memory.
_HARMLESS_NAMES = """
malloc calloc realloc free memcpy memmove memset memcmp memchr memrchr memmem mempcpy strlen strnlen strcmp strncmp
strcasecmp strncasecmp strcpy strncpy strcat strncat strchr strrchr strchrnul strstr strcasestr strspn strcspn strpbrk
strsep strtok_r strdup strndup stpcpy stpncpy strerror strerror_r strtol strtoul strtoll strtoull strtod strtof atoi atol
atoll atof abs labs snprintf vsnprintf sprintf vsprintf asprintf vasprintf sscanf printf vprintf fprintf vfprintf dprintf
puts putchar putc fputc fputs fwrite fflush fopen fclose fread fgets fgetc getc getline fseek ftell feof ferror perror stdin
stdout stderr open open64 close read write pread pwrite lseek fcntl fcntl64 fstat stat unlink access pipe pipe2 eventfd
socket socketpair connect send recv sendto recvfrom sendmsg recvmsg getsockopt setsockopt getpeername getsockname shutdown
htons htonl ntohs ntohl inet_pton inet_ntop poll time clock_gettime gettimeofday gmtime_r localtime_r mktime timegm strftime
usleep nanosleep sleep getenv getpid rand rand_r srand random srandom abort qsort bsearch toupper tolower isalpha isdigit
isalnum isspace pthread_self pthread_mutex_init pthread_mutex_destroy pthread_mutex_lock pthread_mutex_trylock
pthread_mutex_unlock __errno_location __ctype_b_loc __ctype_tolower_loc __ctype_toupper_loc __assert_fail __stack_chk_fail
__tls_get_addr __cxa_finalize __gmon_start__ _ITM_deregisterTMCloneTable _ITM_registerTMCloneTable
"""
_HARMLESS = frozenset(_HARMLESS_NAMES.split())
_LASTING = {"MQ_uv", "MQ_uvSymbol"}  # with these a plugin may start handles of its own on the loop

_numbers = itertools.count(1)
# What was opened and has not left memory: path -> file. The dynamic linker would give these out again as they were.
_opened: dict[str, tuple[int, int]] = {}


def load_shared(plugin: str, path: str, hooks: Mapping[str, HookSpec]) -> SimpleNamespace:
    """Open the shared object of a native plugin: an object with its functions for attributes.

    One that is opened again, in a reload or for another set of plugins, is opened as a private copy of itself.
    """
    symbols = inspect(plugin, path)
    wrong = None if symbols is None else _wrong(symbols.exported, hooks)
    if wrong:
        raise PluginError(wrong, plugin=plugin, path=path)
    from ._library import close_idle, count_open
    from ._loader import open_library

    _forget(close_idle())
    if count_open() >= most_open():
        raise PluginError(_TOO_MANY.format(count_open()), plugin=plugin, path=path)
    may_close = symbols is not None and all(map(_is_harmless, symbols.imported))
    try:
        functions = open_library(_new_name(path), plugin, hooks, may_close)
    except OSError as error:
        raise PluginError(f"it cannot be loaded: {error}{_hint(str(error))}", plugin=plugin, path=path) from error
    if "mq_version" not in functions:
        raise PluginError(_NO_VERSION, plugin=plugin, path=path)
    return SimpleNamespace(**functions)


def check_distinct(paths: Mapping[str, str | None]) -> None:
    """Two plugins cannot be one shared object: it would have one set of variables for both."""
    files: dict[tuple[int, int], str] = {}
    for plugin, path in paths.items():
        if path is not None and path.endswith(".so"):
            with contextlib.suppress(OSError):
                status = os.stat(path)
                other = files.setdefault((status.st_dev, status.st_ino), plugin)
                if other != plugin:
                    raise PluginError(
                        f"this is the same file as plugin {other} ({paths[other]}), by another name; remove one of them, "
                        "or make it a copy",
                        plugin=plugin,
                        path=path,
                    )


_TOO_MANY = (
    "{} shared objects of plugins are in memory already, most of them older versions: one that may have threads, or handles of "
    "its own on the loop, is never taken out; start the process anew"
)
_NO_VERSION = "it exports no mq_version(), so it is no plugin; define MQ_EXPORT int mq_version(void), with C linkage"


def _wrong(exported: Mapping[str, bool], hooks: Mapping[str, HookSpec]) -> str | None:
    """What can be seen to be wrong before any code of the plugin runs."""
    if "mq_version" not in exported:
        if any(name.startswith("PyInit_") for name in exported):
            return "this is a module of Python's, not a native plugin; import it in a plugin that is a .py file"
        return _NO_VERSION
    missing = [name for name in hooks if name not in exported]
    for name, is_data in sorted(exported.items()):
        if name.startswith("mq_") and name not in hooks and name not in LIFECYCLE:
            return unknown(name, [*hooks, *LIFECYCLE])
        if is_data and (name in hooks or name in LIFECYCLE):
            return f"{name} is a variable, and only a function can be called; define it as one, or make it static"
        if name in hooks and hooks[name].args and name not in _MAILERQ_ARGUMENTS:
            return f"{name} has arguments that native plugins cannot be given; implement it in Python"
        wrong = None if is_data or name in hooks else misspelt(name, missing)
        if wrong:
            return wrong
    return None


def _hint(error: str) -> str:
    if "undefined symbol" in error:
        return "; correct the name, or link the plugin with the library that has it"
    if "cannot open shared object file" in error:
        return "; install that library, or link the plugin so that it is found (-Wl,-rpath)"
    return "; build it again, on this machine"


def most_open() -> int:
    """How many shared objects of plugins there may be: half of the mappings that the system allows a process."""
    try:
        with open("/proc/sys/vm/max_map_count") as file:
            mappings = int(file.read())
    except (OSError, ValueError):
        mappings = 65_530
    return mappings // 2 // _MAPPINGS


def _is_harmless(name: str) -> bool:
    """Whether a function can leave nothing behind that calls the plugin's code later."""
    if name.startswith("MQ_"):
        return name not in _LASTING
    name = name.removeprefix("__isoc99_").removeprefix("__isoc23_")  # as glibc has the functions of newer standards
    return name in _HARMLESS or name.removeprefix("__").removesuffix("_chk") in _HARMLESS  # and those that check sizes


def _new_name(path: str) -> str:
    """A name by which the dynamic linker does not know the file yet."""
    path = os.path.realpath(path)
    if path in _opened or _file(path) in _opened.values():
        import shutil  # takes its time, which most need not wait for

        path = shutil.copyfile(path, os.path.join(_folder(), f"{next(_numbers)}-{os.path.basename(path)}"))
        os.chmod(path, 0o700)
    _opened[path] = _file(path)
    return path


def _file(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _forget(paths: list[str]) -> None:
    """These have left memory: their private copies are of no more use."""
    for path in paths:
        _opened.pop(path, None)
        if os.path.dirname(path) == _folder():
            with contextlib.suppress(OSError):
                os.unlink(path)


@functools.cache
def _folder() -> str:
    """A folder of this process's own."""
    import shutil
    import tempfile

    folder = tempfile.mkdtemp(prefix="mqcore-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


# The linker maps what the file's headers say, and a file that is shorter ends the process with SIGBUS.


class Symbols(NamedTuple):
    """The names in an ELF file that the dynamic linker knows."""

    exported: dict[str, bool]
    """And whether each is a variable."""
    imported: list[str]


def inspect(plugin: str, path: str) -> Symbols | None:
    """The symbols of an ELF file; None for another kind, or if it does not say.

    Raises PluginError for what is no shared object of this machine.
    """
    with open(path, "rb") as file:
        data = file.read()
    with open(sys.modules["mqcore.loop._reactor"].__file__ or "", "rb") as file:
        ours = file.read(64)
    if not ours.startswith(b"\x7fELF"):
        return None  # another system's: what can be wrong there, its linker says
    try:
        wrong = _wrong_header(data, ours) or _truncated(data)
        if wrong is None:
            return _symbols(data)
    except (struct.error, IndexError, OverflowError, ValueError):
        wrong = "its headers make no sense, so it is damaged; build or copy it again"
    raise PluginError(wrong, plugin=plugin, path=path)


class _Elf(NamedTuple):
    """The fields of the header, as the ELF specification has them."""

    ident: bytes
    type: int
    machine: int
    version: int
    entry: int
    phoff: int
    shoff: int
    flags: int
    ehsize: int
    phentsize: int
    phnum: int
    shentsize: int
    shnum: int
    shstrndx: int


def _wrong_header(data: bytes, ours: bytes) -> str | None:
    if not data.startswith(b"\x7fELF"):
        what = "does not begin like one" if data else "is empty"
        return f"this is no shared object: it {what}; compile it with cc -shared"
    if len(data) < _HEADER.size:
        return "it is truncated; copy or build it again"
    theirs, mine = (_Elf(*_HEADER.unpack_from(each)) for each in (data, ours))
    if theirs.ident[4:6] != mine.ident[4:6] or theirs.machine != mine.machine:
        bits = "" if theirs.ident[4] == mine.ident[4] else f"{32 * theirs.ident[4]}-bit "
        return (
            f"it is built for another machine ({bits}{_MACHINES.get(theirs.machine, f'ELF machine {theirs.machine}')}; "
            f"this is {_MACHINES.get(mine.machine, f'ELF machine {mine.machine}')}); build it for this one"
        )
    if theirs.type != _SHARED_OBJECT:
        return "this is an object file or a program, not a shared object; link it with cc -shared"
    return None


def _truncated(data: bytes) -> str | None:
    elf = _Elf(*_HEADER.unpack_from(data))
    end = elf.phoff + elf.phnum * elf.phentsize
    if end <= len(data):
        for number in range(elf.phnum):
            kind, _, offset, _, _, size, _, _ = _PROGRAM.unpack_from(data, elf.phoff + number * elf.phentsize)
            if kind == _LOADED:
                end = max(end, offset + size)
    if end > len(data):
        return f"it is truncated, with {len(data)} bytes of at least {end}; copy or build it again"
    return None


def _symbols(data: bytes) -> Symbols | None:
    elf = _Elf(*_HEADER.unpack_from(data))
    sections = [_SECTION.unpack_from(data, elf.shoff + number * elf.shentsize) for number in range(elf.shnum)]
    for _, kind, _, _, offset, size, link, _, _, _ in sections:
        if kind == _DYNAMIC_SYMBOLS:
            start = sections[link][4]
            exported, imported = {}, []
            for name, info, _, section, _, _ in _SYMBOL.iter_unpack(data[offset : offset + size]):
                if name and info >> 4:  # it has a name, and is not local
                    text = data[start + name : data.index(b"\0", start + name)].decode("utf-8", "replace")
                    if section:
                        exported[text] = info & 15 in _DATA
                    else:
                        imported.append(text)
            return Symbols(exported, imported)
    return None
