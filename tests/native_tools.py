"""What the tests of native plugins share: plugins written in C, compiled by `cc`."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

import mqcore

STRICT = ("-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fvisibility=hidden", "-O1", "-g")
VERSION = "MQ_EXPORT int mq_version(void) { return MQ_API_VERSION; }\n"

_built = Path(tempfile.mkdtemp(prefix="mqcore-tests-"))


def compile_plugin(target: Path, source: str, *options: str) -> Path:
    """The C source of a plugin as a shared object at `target`. What was compiled before is only copied."""
    source = f"#include <mqcore.h>\n#include <stdint.h>\n{VERSION if 'mq_version' not in source else ''}{source}"
    digest = hashlib.sha256("\0".join((source, *options)).encode()).hexdigest()[:24]
    built = _built / f"{digest}.so"
    if not built.exists():
        file = _built / f"{digest}.c"
        file.write_text(source)
        command = ("cc", *STRICT, "-shared", "-fPIC", "-I", mqcore.get_include(), str(file), "-o", str(built), *options)
        subprocess.run(command, check=True, timeout=60)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(built, target)
    return target
