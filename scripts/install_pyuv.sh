#!/bin/sh
# Build pyuv 1.4.0 from its source and install it: scripts/install_pyuv.sh [PYTHON]
#
# pyuv's own release does not compile on CPython 3.10 and later; with pyuv_compat.h force-included it does, on 3.11 to
# 3.15. Needs a C compiler. PYTHON is the interpreter to install it for, by default the first python3 on PATH.
set -eu

python=${1:-python3}
here=$(cd "$(dirname "$0")" && pwd)

if "$python" -c 'import pyuv' 2>/dev/null; then
    exit 0
fi
# Built once for each Python, whatever virtual environments it has.
install() {
    "$python" -m pip install --quiet --no-index --no-deps --find-links "$here/../build/pyuv" pyuv==1.4.0
}
if ! install 2>/dev/null; then
    # No build isolation: the C flags then reach pyuv's build and nothing else. Its setup.py imports a file beside it.
    "$python" -m pip install --quiet setuptools wheel
    CFLAGS="${CFLAGS:-} -include $here/pyuv_compat.h" PYTHONSAFEPATH="" "$python" -m pip wheel --quiet --no-deps \
        --no-build-isolation --no-binary pyuv --no-cache-dir --wheel-dir "$here/../build/pyuv" pyuv==1.4.0
    install
fi
"$python" -c 'import pyuv; print("pyuv", pyuv.__version__, "with libuv", pyuv.LIBUV_VERSION)'
