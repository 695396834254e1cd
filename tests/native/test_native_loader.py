"""Loading native plugins: what is refused, and how; their life; reload; and what of mqcore they see."""

from __future__ import annotations

import random
import re
import shutil
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import uvloop
from loop_tools import PROLOGUE, python
from native_tools import STRICT, VERSION, compile_plugin

import mqcore
import mqcore.native._abi
from mqcore.native._shared import inspect

HOOK = "mq_smtp_in_message"
PASSES_ON = """
MQ_EXPORT bool mq_smtp_in_message(MQ_Context *context, MQ_Connection *connection, MQ_Message *message)
{
    (void)context, (void)connection, (void)message;
    return false;
}
"""
linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into ELF files")


def refused(path, **options):
    """The error that refuses a plugin; nothing else is left of it."""
    with pytest.raises(mqcore.PluginError) as caught:
        mqcore.Plugins(path, **options)
    return caught.value


@pytest.fixture
def plugin(tmp_path):
    return compile_plugin(tmp_path / "plugins" / "10-a.so", PASSES_ON)


def test_a_plugin_from_its_directory_and_by_its_path(plugin):
    for path in (plugin, plugin.parent):
        with mqcore.Plugins(path) as plugins:
            (made,) = plugins
            assert (made.name, made.kind, made.path, list(made.hooks)) == ("10-a", "native", str(plugin), [HOOK])
            assert plugins.order(HOOK) == ["10-a"]


def test_all_hooks_are_found(tmp_path):
    names = [hook.name for hook in mqcore.MAILERQ_HOOKS]
    signatures = (Path(mqcore.get_include()) / "mqcore.h").read_text()
    source = ""
    for name in names:
        arguments = signatures.split(f"{name}(")[1].split(");")[0]
        uses = "".join(f"(void){each.split()[-1].lstrip('*')};" for each in arguments.split(","))
        source += f"MQ_EXPORT bool {name}({arguments}) {{ {uses} return false; }}\n"
    path = compile_plugin(tmp_path / "10-a.so", source)
    with mqcore.Plugins(path) as plugins:
        assert sorted(next(iter(plugins)).hooks) == sorted(names)


# What is wrong with it


@linux
@pytest.mark.parametrize("size", [0, 3, 16, 63, 64, 500, 4096, -1000, -1])
def test_truncated(plugin, size):
    data = plugin.read_bytes()
    plugin.write_bytes(data[:size])
    error = refused(plugin)
    assert error.path == str(plugin) and error.plugin == "10-a"
    assert ("is empty" if size == 0 else "does not begin like one" if size == 3 else "truncated") in str(error) or (
        size < 0 and "headers make no sense" in str(error))


@linux
@pytest.mark.parametrize(
    ("offset", "value", "what"),
    [
        (4, b"\x01", "built for another machine (32-bit "),
        (5, b"\x02", "built for another machine"),
        (18, b"\xb7\x00", "built for another machine (AArch64; this is x86-64); build it for this one"),
        (18, b"\xff\x7f", "built for another machine (ELF machine 32767;"),
        (16, b"\x01\x00", "an object file or a program, not a shared object; link it with cc -shared"),
        (32, struct.pack("<Q", 2**63), "truncated"),
        (40, struct.pack("<Q", 2**40), "headers make no sense"),
        (54, b"\x01\x00", "cannot be loaded"),
    ],
)
def test_headers_of_another_kind(plugin, offset, value, what):
    data = bytearray(plugin.read_bytes())
    if what.startswith("built for another machine (AArch64") and data[18] != 62:
        pytest.skip("for x86-64")
    data[offset : offset + len(value)] = value
    plugin.write_bytes(data)
    text = str(refused(plugin))
    assert what in text or "make no sense" in text, text


@linux
@pytest.mark.parametrize("first", [0, 32])
def test_random_damage_of_the_headers_is_refused_or_not_seen(plugin, first):
    """No other error than a PluginError. (What passes is the dynamic linker's to judge: it is not asked here.)"""
    good = plugin.read_bytes()
    refusals = 0
    for seed in range(1_000):
        chance = random.Random(seed)
        data = bytearray(good)
        for _ in range(3):
            data[chance.randrange(first, 64)] = chance.randrange(256)
        plugin.write_bytes(data)
        try:
            inspect("10-a", str(plugin))
        except mqcore.PluginError:
            refusals += 1
    assert refusals > 500


def test_an_object_file(tmp_path):
    (tmp_path / "a.c").write_text("int x;")
    subprocess.run(("cc", "-c", tmp_path / "a.c", "-o", tmp_path / "10-a.so"), check=True)
    assert "link it with cc -shared" in str(refused(tmp_path / "10-a.so"))


def test_a_program(tmp_path):
    (tmp_path / "a.c").write_text("int mq_version(void) { return 1; }\nint main(void) { return 0; }")
    subprocess.run(("cc", "-rdynamic", tmp_path / "a.c", "-o", tmp_path / "10-a.so"), check=True)
    assert "it cannot be loaded: " in str(refused(tmp_path / "10-a.so"))


def test_a_text_file(tmp_path):
    (tmp_path / "10-a.so").write_text("INPUT(-lc)\n")
    assert "this is no shared object: it does not begin like one" in str(refused(tmp_path / "10-a.so"))


def test_no_version(tmp_path):
    """And none of its code runs, constructors included."""
    path = compile_plugin(tmp_path / "10-a.so", """
        #include <stdlib.h>
        __attribute__((constructor)) static void constructor(void) { abort(); }
        int unseen(void) { return 0; } /* mq_version */
    """)
    assert str(refused(path)) == (
        f"{path}: plugin 10-a: it exports no mq_version(), so it is no plugin; define MQ_EXPORT int mq_version(void), "
        "with C linkage")


def test_cplusplus_without_c_linkage(tmp_path):
    (tmp_path / "a.cpp").write_text("bool other() { return false; }\nint mq_version() { return 1; }\n")
    subprocess.run(("cc", "-shared", "-fPIC", "-xc++", tmp_path / "a.cpp", "-o", tmp_path / "10-a.so"), check=True)
    assert "with C linkage" in str(refused(tmp_path / "10-a.so"))


@pytest.mark.parametrize("version", [0, 2, -1, 1000])
def test_another_version(tmp_path, version):
    """Nothing but mq_version runs."""
    path = compile_plugin(tmp_path / "10-a.so", f"""
        #include <stdlib.h>
        MQ_EXPORT int mq_version(void) {{ return {version}; }}
        MQ_EXPORT void mq_initialize(void) {{ abort(); }}
        MQ_EXPORT void mq_cleanup(void) {{ abort(); }}
    """)
    assert str(refused(path)) == (
        f"{path}: plugin 10-a: mq_version is {version}, but this mqcore runs plugins of version 1; adapt the plugin, or "
        "install the mqcore it was written for")


def test_an_undefined_symbol(tmp_path):
    path = compile_plugin(tmp_path / "10-a.so", """
        extern void MQ_noSuchFunction(void);
        MQ_EXPORT void mq_initialize(void) { MQ_noSuchFunction(); }
    """)
    error = str(refused(path))
    assert "MQ_noSuchFunction" in error
    assert error.endswith("; correct the name, or link the plugin with the library that has it")


def test_a_library_that_is_missing(tmp_path):
    (tmp_path / "a.c").write_text("int x(void) { return 1; }")
    library = tmp_path / "libmissing.so"
    subprocess.run(("cc", "-shared", "-fPIC", tmp_path / "a.c", "-o", library), check=True)
    path = compile_plugin(tmp_path / "10-a.so", "int x(void); MQ_EXPORT void mq_initialize(void) { x(); }", str(library))
    library.unlink()
    assert "libmissing.so" in str(refused(path))


def test_a_hook_misspelt(tmp_path):
    path = compile_plugin(tmp_path / "10-a.so", """
        #include <stdlib.h>
        __attribute__((constructor)) static void constructor(void) { abort(); }
        MQ_EXPORT bool mq_smtp_in_mesage(void); MQ_EXPORT bool mq_smtp_in_mesage(void) { return false; }
    """)
    error = str(refused(path))
    assert "mq_smtp_in_mesage begins with mq_ and is no known hook; the nearest name is mq_smtp_in_message" in error


def test_a_hook_of_ones_own(tmp_path):
    source = PASSES_ON.replace(HOOK, "mq_mine")
    path = compile_plugin(tmp_path / "10-a.so", source)
    with mqcore.Plugins(path, hooks=[mqcore.HookSpec("mq_mine")]) as plugins:
        assert plugins.order("mq_mine") == ["10-a"]
    error = refused(path, hooks=[mqcore.HookSpec("mq_mine", "size")])
    assert "mq_mine has arguments that native plugins cannot be given; implement it in Python" in str(error)


OWN = """
MQ_EXPORT bool connect(MQ_Context *context, MQ_Connection *connection, MQ_Message *message);
bool connect(MQ_Context *context, MQ_Connection *connection, MQ_Message *message)
{
    (void)context, (void)message;
    MQ_complete(connection);
    return true;
}
"""


def test_a_hook_that_libc_has_a_function_for(tmp_path):
    """The plugin's own `connect` is its hook, and libc's `close` is not, which dlsym() finds just as well."""
    hooks = [mqcore.HookSpec(name) for name in ("connect", "close", "mq_end")]
    for name in ("10-a", "20-b"):
        compile_plugin(tmp_path / f"{name}.so", OWN if name == "10-a" else PASSES_ON.replace(HOOK, "mq_end"))

    async def main():
        with mqcore.Plugins(tmp_path, hooks=hooks) as plugins:
            for _ in range(2):  # as it is in its directory, and as the copy that a reload opens
                assert [plugins.order(spec.name) for spec in hooks] == [["10-a"], [], ["20-b"]]
                with mqcore.Dispatcher(plugins) as dispatcher:
                    assert await dispatcher.hook("connect")(mqcore.Message()) is mqcore.COMPLETE
                    assert await dispatcher.hook("close")(mqcore.Message()) is mqcore.CONTINUE
                plugins.reload()

    uvloop.run(main())


def test_a_hook_in_a_library_that_the_plugin_is_linked_to(tmp_path):
    """That one is not the plugin's own either; a name of mqcore's can be nobody else's."""
    library = compile_plugin(tmp_path / "lib" / "libshared.so", PASSES_ON + PASSES_ON.replace(HOOK, "upload"))
    source = "extern bool upload(void); MQ_EXPORT void mq_initialize(void) { upload(); }"
    path = compile_plugin(tmp_path / "10-a.so", source, str(library), f"-Wl,-rpath,{library.parent}")
    with mqcore.Plugins(path, hooks=[*mqcore.MAILERQ_HOOKS, mqcore.HookSpec("upload")]) as plugins:
        assert (plugins.order("upload"), plugins.order(HOOK)) == ([], ["10-a"])


@linux
def test_an_own_hook_misspelt(tmp_path):
    path = compile_plugin(tmp_path / "10-a.so", OWN.replace("connect", "conect") + "MQ_EXPORT int closed = 1;")
    error = str(refused(path, hooks=[mqcore.HookSpec("connect"), mqcore.HookSpec("closed_")]))
    assert "plugin 10-a: conect is one letter away from the hook connect, which this plugin does not have; correct" in error
    with mqcore.Plugins(path, hooks=[mqcore.HookSpec("connection"), mqcore.HookSpec("closed_")]) as plugins:
        assert plugins.order("connection") == []


@linux
@pytest.mark.parametrize("name", ["mq_version", HOOK, "upload"])
def test_a_variable_is_no_function(tmp_path, name):
    source = f"int {name} = 1;" + ("" if name == "mq_version" else "int mq_version(void) { return 1; }")
    (tmp_path / "a.c").write_text(source)
    subprocess.run(("cc", "-shared", "-fPIC", tmp_path / "a.c", "-o", tmp_path / "10-a.so"), check=True)
    error = refused(tmp_path / "10-a.so", hooks=[*mqcore.MAILERQ_HOOKS, mqcore.HookSpec("upload")])
    assert f"plugin 10-a: {name} is a variable, and only a function can be called; define it as one" in str(error)


def test_a_module_of_python(tmp_path):
    shutil.copy(mqcore.native._abi.__file__, tmp_path / "10-a.so")
    assert "this is a module of Python's, not a native plugin; import it in a plugin that is a .py file" in str(
        refused(tmp_path / "10-a.so"))


def test_a_directory(tmp_path):
    (tmp_path / "plugins" / "10-a.so").mkdir(parents=True)
    for path in (tmp_path / "plugins", tmp_path / "plugins" / "10-a.so"):
        assert "plugin 10-a: this is not a regular file; a plugin is a .py or .so file" in str(refused(path))


@pytest.mark.parametrize("link", ["symlink_to", "hardlink_to"])
def test_the_same_file_under_two_names(plugin, link):
    getattr(plugin.with_name("20-b.so"), link)(plugin)
    error = refused(plugin.parent)
    assert f"plugin 20-b: this is the same file as plugin 10-a ({plugin}), by another name" in str(error)
    with mqcore.Plugins(plugin) as plugins, pytest.raises(mqcore.PluginError, match="the same file"):
        plugins.load(plugin.with_name("20-b.so"))


def test_two_plugins_of_one_name(plugin):
    plugin.with_suffix(".py").write_text("")
    assert "another plugin has this name" in str(refused(plugin.parent))


def test_copies_are_plugins_of_their_own(tmp_path):
    source = """
        static int calls;
        MQ_EXPORT bool mq_smtp_in_message(MQ_Context *context, MQ_Connection *connection, MQ_Message *message)
        {
            (void)context, (void)message;
            if (++calls == 3)
                MQ_complete(connection);
            return calls == 3;
        }
    """
    for name in ("10-a.so", "20-b.so"):
        compile_plugin(tmp_path / name, source)

    async def main():
        outcomes = []
        # Also those of another set: it has the same files, opened once more.
        with mqcore.Plugins(tmp_path) as one, mqcore.Plugins(tmp_path) as two:
            for plugins in (one, two):
                with mqcore.Dispatcher(plugins) as dispatcher:
                    hook = dispatcher.hook(HOOK)
                    outcomes.append([(await hook(mqcore.Message())).name for _ in range(4)])
        return outcomes

    assert uvloop.run(main()) == [["CONTINUE", "CONTINUE", "COMPLETE", "COMPLETE"]] * 2


def test_everyone_may_write_to_it(plugin):
    plugin.chmod(0o777)
    assert "everyone may write to this file (mode 0777)" in str(refused(plugin))


def test_one_that_fails_leaves_nothing(tmp_path):
    """Those before it are cleaned up."""
    life = """
        #include <stdio.h>
        MQ_EXPORT void mq_initialize(void) { puts("+"); fflush(stdout); }
        MQ_EXPORT void mq_cleanup(void) { puts("-"); fflush(stdout); }
    """
    compile_plugin(tmp_path / "10-a.so", life)
    (tmp_path / "20-b.py").write_text("def mq_initialize():\n    raise ValueError('no')\n")
    script = """
import sys, mqcore
try:
    mqcore.Plugins(sys.argv[1])
except mqcore.PluginError:
    print("refused", flush=True)
"""
    assert python(script, tmp_path) == "+\n-\nrefused\n"


# Its life


LIFE = """
#include <stdio.h>
#define SAY(name) do { puts(name); fflush(stdout); } while (0)
MQ_EXPORT int mq_version(void) { SAY("version"); return MQ_API_VERSION; }
MQ_EXPORT void mq_initialize(void) { SAY("initialize"); }
MQ_EXPORT void mq_cleanup(void) { SAY("cleanup"); }
MQ_EXPORT void mq_context_initialize(MQ_Context *context) { (void)context; SAY("context"); }
MQ_EXPORT void mq_context_cleanup(MQ_Context *context) { (void)context; SAY("end of context"); }
"""


@pytest.mark.parametrize("close", ["plugins.close()", ""], ids=["closed", "at exit"])
@pytest.mark.parametrize("loop", ["uvloop", "pyuv"])
def test_life(tmp_path, loop, close):
    path = compile_plugin(tmp_path / "10-a.so", LIFE)
    script = f"""
plugins = mqcore.Plugins({str(path)!r})
for _ in range(2):
    dispatcher = mqcore.Dispatcher(plugins, loop=loop)
    turn()
    dispatcher.close()
    turn()
{close}
"""
    assert python(PROLOGUE + script, loop).split("\n") == [
        "version", "initialize", *["context", "end of context"] * 2, "cleanup", ""]


def test_255_dispatchers(tmp_path):
    """In a process of its own, as their tables stay, and other tests need one that is new."""
    path = compile_plugin(tmp_path / "10-a.so", PASSES_ON)
    said = python(PROLOGUE + f"""
plugins = mqcore.Plugins({str(path)!r})
dispatchers = [mqcore.Dispatcher(plugins, loop=loop) for _ in range(255)]
try:
    mqcore.Dispatcher(plugins, loop=loop)
except mqcore.PluginError as error:
    print(error)
dispatchers.pop().close()
dispatchers.append(mqcore.Dispatcher(plugins, loop=loop))
for dispatcher in dispatchers:
    dispatcher.close()
turn()
""", "uvloop")
    assert "there are 255 dispatchers with native plugins already; close some" in said


# Reload


def numbered(path, number):
    """A plugin that holds each message; given back, it says its number."""
    return compile_plugin(path, f"""
        #include <stdio.h>
        static void fire(void *data) {{ MQ_log(MQ_INFO, "{number}"); MQ_continue(data); }}
        MQ_EXPORT void mq_initialize(void) {{ MQ_log(MQ_INFO, "+{number}"); }}
        MQ_EXPORT void mq_cleanup(void) {{ MQ_log(MQ_INFO, "-{number}"); }}
        MQ_EXPORT void mq_context_cleanup(MQ_Context *context) {{ (void)context; MQ_log(MQ_INFO, "={number}"); }}
        MQ_EXPORT bool mq_step(MQ_Context *context, MQ_Connection *connection, MQ_Message *message)
        {{
            (void)message;
            return MQ_startTimer(context, 0.03f, fire, connection) != NULL;
        }}
    """)


def test_reload_held_messages_finish_with_the_old_code(owner, tmp_path, caplog):
    caplog.set_level("INFO")
    path = numbered(tmp_path / "10-a.so", 1)
    plugins = owner.plugins({})
    plugins.load(path)
    dispatcher = owner.dispatcher(plugins)
    hook = dispatcher.hook("mq_step")
    old, new = mqcore.Message(), mqcore.Message()
    hook.run(old, done=owner.done)
    numbered(path, 2)
    plugins.reload()
    hook.run(new, done=owner.done)
    owner.run_until(lambda: len(owner.finished) == 2)
    owner.run_until(lambda: "-1" in caplog.text)
    numbered(path, 3)
    plugins.reload()
    owner.turn()
    dispatcher.close()
    plugins.close()
    said = [record.getMessage() for record in caplog.records]
    assert [each for each in said if "1" in each] == ["+1", "1", "=1", "-1"]
    assert [each for each in said if "1" not in each] == ["+2", "2", "+3", "=2", "-2", "=3", "-3"]
    assert said.index("+2") < said.index("1")


def test_reload_that_fails_leaves_everything_as_it_was(owner, tmp_path):
    path = numbered(tmp_path / "10-a.so", 1)
    plugins = owner.plugins({})
    plugins.load(path)
    dispatcher = owner.dispatcher(plugins)
    before = list(plugins)
    path.unlink()
    path.write_bytes(b"\x7fELF")
    with pytest.raises(mqcore.PluginError, match="truncated"):
        plugins.reload()
    assert list(plugins) == before
    dispatcher.hook("mq_step").run(mqcore.Message(), done=owner.done)
    owner.run_until(lambda: owner.finished)
    assert owner.finished[0][1] is mqcore.CONTINUE


def test_an_unchanged_file_is_loaded_afresh_and_another_plugin_keeps_its_messages(owner, tmp_path):
    path = compile_plugin(tmp_path / "10-a.so", """
        static int calls;
        MQ_EXPORT bool mq_step(MQ_Context *context, MQ_Connection *connection, MQ_Message *message)
        {
            (void)context, (void)message;
            if (++calls == 2)
                MQ_complete(connection);
            return calls == 2;
        }
    """)
    plugins = owner.plugins({})
    plugins.load(path)
    dispatcher = owner.dispatcher(plugins)
    for _ in range(3):
        assert dispatcher.hook("mq_step").run(mqcore.Message()) is mqcore.CONTINUE
        assert dispatcher.hook("mq_step").run(mqcore.Message(), done=owner.done) is None
        owner.run_until(lambda: owner.finished)
        assert owner.finished.pop()[1] is mqcore.COMPLETE
        plugins.reload()


def test_reload_from_another_thread(owner, tmp_path, caplog):
    caplog.set_level("INFO")
    path = numbered(tmp_path / "10-a.so", 1)
    plugins = owner.plugins({})
    plugins.load(path)
    dispatcher = owner.dispatcher(plugins)
    messages = [mqcore.Message() for _ in range(10)]
    dispatcher.hook("mq_step").run_many(messages, done=owner.done)
    numbered(path, 2)
    thread = threading.Thread(target=plugins.reload)
    thread.start()
    owner.run_until(lambda: not thread.is_alive())
    owner.run_until(lambda: "-1" in caplog.text and len(owner.finished) == 10)


# What plugins see of mqcore


@linux
def test_the_symbols_that_mqcore_exports():
    """MQ_* and the init function; nothing else of any module."""
    header = (Path(mqcore.get_include()) / "mqcore.h").read_text()
    for module in sorted(Path(mqcore.native._abi.__file__).parent.glob("_*.so")):
        listed = subprocess.run(("nm", "-D", "--defined-only", module), capture_output=True, text=True, check=True).stdout
        names = {line.split()[-1] for line in listed.splitlines()}
        init = f"PyInit_{module.name.partition('.')[0]}"
        if module.name.startswith("_abi."):
            offered = header.partition("What mqcore offers.")[2]
            declared = set(re.findall(r"^[a-zA-Z].*?\b(MQ_\w+)\(", offered, re.MULTILINE))
            assert {name for name in names if name.startswith("MQ_")} == declared
            names = {name for name in names if not name.startswith("MQ_")}
        assert names == {init}, module


def test_a_plugin_is_built_with_nothing_but_the_header(tmp_path):
    (tmp_path / "a.c").write_text(f"#include <mailerq.h>\n{VERSION}{PASSES_ON}")
    include = python("import mqcore; print(mqcore.get_include())").strip()
    command = f"cc -shared -fPIC -I{include} -o {tmp_path}/10-a.so {tmp_path}/a.c"
    subprocess.run(command.split(), check=True)
    needed = subprocess.run(("ldd", tmp_path / "10-a.so"), capture_output=True, text=True, check=False).stdout
    assert "mqcore" not in needed and STRICT
    mqcore.Plugins(tmp_path / "10-a.so").close()
