"""Starts Python processes that import what this one imports: the same `sys.path`, options and warnings.

    subprocess.Popen(command("merklekv.engine.checkpoint.child", "argument"), env=environment())

With `-m` or `-c` Python puts the working directory first in `sys.path`, and would import any `logging.py` there; `-P`
prevents that. The child gets the parent's present `sys.path` instead.
"""

import os
import subprocess
import sys
from typing import Final

_RUN: Final = """\
import sys
sys.path[:] = {path}
import runpy
runpy.run_module(sys.argv.pop(1), None, "__main__", alter_sys=True)
"""


def _working_directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:  # it was removed
        return "/"


_STARTED_IN: Final = _working_directory()


def command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module with arguments, as `python -m` does."""
    options = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # as `multiprocessing` does
    for name, value in sys._xoptions.items():
        options += ["-X", name if value is True else f"{name}={value}"]
    path = ascii([entry for entry in sys.path if isinstance(entry, str)])
    return [sys.executable, *options, "-P", "-c", _RUN.format(path=path), module, *arguments]


def environment() -> dict[str, str]:
    """The environment for such a process. Relative parts of PYTHONPATH refer to where this one started."""
    variables = dict(os.environ)
    if variables.get("PYTHONPATH"):
        parts = variables["PYTHONPATH"].split(os.pathsep)
        variables["PYTHONPATH"] = os.pathsep.join(os.path.join(_STARTED_IN, part) for part in parts)
    return variables
