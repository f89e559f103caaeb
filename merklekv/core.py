"""Chooses at import between the compiled core and pure Python.

`merklekv/_core.pyx` has compiled twins of a few hot functions and classes. They do the same, only faster, and all works
without them. A definition with `@compiled` is replaced by its twin, unless MERKLEKV_PURE is set, the core is not built,
or what is built has another INTERFACE, as in a checkout that went on without a new build.

It imports nothing of MerkleKV but the core, so every module may import it.
"""

from __future__ import annotations

import importlib
import os
from typing import Any, Final, TypeVar

T = TypeVar("T")

INTERFACE: Final = 9  # what the twins take and return: raise it here and in `_core.pyx` whenever that changes
PURE_VARIABLE: Final = "MERKLEKV_PURE"
MODULE: Final = "merklekv._core"

REFERENCES: Final[dict[str, Any]] = {}  # what `compiled` was given, by name: the tests compare it with its twin


def _load() -> tuple[Any, str]:
    """The core, or None and the reason."""
    if os.environ.get(PURE_VARIABLE, "") not in ("", "0"):
        return None, f"{PURE_VARIABLE} is set"
    try:
        core = importlib.import_module(MODULE)
    except ImportError as error:
        is_missing = isinstance(error, ModuleNotFoundError) and error.name == MODULE
        return None, "the core is not built" if is_missing else f"the core cannot be loaded: {error}"
    if getattr(core, "INTERFACE", None) != INTERFACE:
        return None, "the core was built from other sources"
    return core, ""


_core, _why_pure = _load()
WHY_PURE: Final[str] = _why_pure  # empty if the core runs
IMPLEMENTATION: Final = "pure" if _core is None else "compiled"
DESCRIPTION: Final = f"pure Python, {WHY_PURE}" if _core is None else "compiled core"


def compiled(reference: T) -> T:
    """Decorates a function or class: its twin of the same name in the core if the core runs, else itself."""
    name: str = reference.__name__  # type: ignore[attr-defined]
    REFERENCES[name] = reference
    twin: T = reference if _core is None else getattr(_core, name)
    return twin
