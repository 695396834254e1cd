"""The extension modules: every ``mqcore/**/_*.pyx``.

``MQCORE_DEBUG=1`` in the environment builds them for tests: bounds and None checks and assertions on. ``MQCORE_SANITIZE=1``
does that with AddressSanitizer and UndefinedBehaviorSanitizer, ``MQCORE_SANITIZE=thread`` with ThreadSanitizer. Each keeps its
files in a build folder of its own, so the kinds of build never mix; C files, which are the same for every Python, are shared.

A release build is the same, byte for byte, wherever and whenever it is made with the same compiler, Cython and Python: no path
of the build folder gets into it, nor what debuggers read, in which there are many. The times in a wheel are SOURCE_DATE_EPOCH.
"""

from __future__ import annotations

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SANITIZE = os.environ.get("MQCORE_SANITIZE", "0")
THREADS = SANITIZE == "thread"
MEMORY = SANITIZE not in ("", "0", "thread")
DEBUG = MEMORY or THREADS or os.environ.get("MQCORE_DEBUG", "0") not in ("", "0")
KIND = "threads" if THREADS else "sanitize" if MEMORY else "debug" if DEBUG else "release"
FLAGS = ["-O1", "-g1", "-UNDEBUG"] if DEBUG else ["-O3", "-g0", f"-ffile-prefix-map={Path.cwd()}=."]
SANITIZERS = {"threads": ["-fsanitize=thread"], "sanitize": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]}
FLAGS += SANITIZERS.get(KIND, [])
C_FILES = "build/c-checked" if DEBUG else "build/c"

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": DEBUG,
    "wraparound": DEBUG,
    "initializedcheck": DEBUG,
    "nonecheck": DEBUG,
    "cdivision": True,
    # Methods that check their `self`, as those of types in C do, and objects that cannot be pickled.
    "binding": False,
    "auto_pickle": False,
    "embedsignature": True,
    "embedsignature.format": "clinic",
}


class BuildExtension(build_ext):
    """Has Cython write C files only where one is older than what it is made from, on whichever Python that was done."""

    def build_extensions(self) -> None:
        """Write them in as many processes as there are cores, as Cython is Python, and then build all modules."""
        made = cythonize(
            self.extensions,
            build_dir=C_FILES,
            compiler_directives=DIRECTIVES,
            include_path=["mqcore/native/include"],
            nthreads=os.cpu_count(),
            quiet=True,
        )
        sources = {extension.name: extension.sources for extension in made}
        for extension in self.extensions:
            extension.sources = sources[extension.name]
        super().build_extensions()


def extension(source: Path) -> Extension:
    """Describe the module that one ``.pyx`` file becomes."""
    return Extension(
        ".".join(source.with_suffix("").parts),
        [source.as_posix()],
        depends=["mqcore/native/include/mqcore.h"],
        define_macros=[("MQCORE_DEBUG", "1")] if DEBUG else [("CYTHON_WITHOUT_ASSERTIONS", "1")],
        include_dirs=["mqcore/native/include"],
        # Hidden: what modules share they share by capsules, and native plugins must find nothing but the functions for them.
        extra_compile_args=["-fvisibility=hidden", *FLAGS],
        extra_link_args=SANITIZERS.get(KIND, []),
    )


if __name__ == "__main__":  # and not in the processes of Cython, some of which import this file anew
    setup(
        ext_modules=[extension(source) for source in sorted(Path("mqcore").rglob("_*.pyx"))],
        cmdclass={"build_ext": BuildExtension},
        options={"build": {"build_base": f"build/{KIND}"}, "build_ext": {"parallel": os.cpu_count()}},
    )
