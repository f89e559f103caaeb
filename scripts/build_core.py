"""Makes sure, after an installation into the virtual environment, that the compiled core is there if it can be built.

python scripts/build_core.py STAMP    touches STAMP when there is nothing left to try, see the Makefile

If it is missing and there is a C compiler with the headers of this Python, it is built. Without them, or if that fails,
one line says so, and the status is 0: everything works without the core.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parent.parent
INSTALL = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--editable", str(ROOT)]
PACKAGES = "gcc python3-dev"


def is_built() -> bool:
    """Whether this Python has a core to load."""
    importlib.invalidate_caches()
    return importlib.util.find_spec("merklekv._core") is not None


def can_compile() -> bool:
    """Whether the compiler that a build would take is there, with the headers of this Python."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    command = [*compiler, "-fsyntax-only", "-I", sysconfig.get_path("include"), "-x", "c", "-"]
    try:
        return subprocess.run(command, input=b"#include <Python.h>\n", capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def main(stamp: Path) -> None:
    """Build it if it is missing, and say how it went if it is missing then."""
    if os.environ.get("MERKLEKV_PURE", "") not in ("", "0"):
        return
    if not is_built():
        if not can_compile():
            print(
                "Without the compiled core, which makes it faster: there is no C compiler with the headers of Python. "
                f"To have it, run this as root and then make again: apt-get install {PACKAGES}"
            )
            return
        print(shlex.join(INSTALL), flush=True)  # as make does
        subprocess.run(INSTALL, check=True)
        if not is_built():
            print(
                "Without the compiled core, which makes it faster: it cannot be built. To see why, run: "
                f"{shlex.join(INSTALL).replace('--quiet', '--verbose')}"
            )
    stamp.touch()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
