"""MerkleKV: a persistent, replicated key-value server, and its storage engine as a library.

    import merklekv
    with merklekv.open("data") as db:
        db.set(b"key", b"value")

Importing this package costs next to nothing: the engine is loaded when a name of it is first used. The version is
declared here and nowhere else.
"""

from __future__ import annotations

TYPE_CHECKING = False  # to type checkers it is True; the module `typing` would take a while to import
if TYPE_CHECKING:
    from merklekv.engine.batch import Batch
    from merklekv.engine.feed import Change, Cursor
    from merklekv.engine.library import ChangeIterator, Database, open
    from merklekv.errors import (
        ChangesGone,
        Corruption,
        DatabaseClosed,
        DirectoryLocked,
        DirectoryUnwritable,
        DiskFull,
        FormatTooNew,
        InvalidArgument,
        MerkleKVError,
        NotADataDirectory,
        NotANumber,
        NumberOverflow,
        Shortage,
        StorageFailed,
    )

__version__ = "0.1.0"
__all__ = [
    "Batch",
    "Change",
    "ChangeIterator",
    "ChangesGone",
    "Corruption",
    "Cursor",
    "Database",
    "DatabaseClosed",
    "DirectoryLocked",
    "DirectoryUnwritable",
    "DiskFull",
    "FormatTooNew",
    "InvalidArgument",
    "MerkleKVError",
    "NotADataDirectory",
    "NotANumber",
    "NumberOverflow",
    "Shortage",
    "StorageFailed",
    "__version__",
    "open",
]


def __getattr__(name: str) -> object:
    if name in ("ChangeIterator", "Database", "open"):
        from merklekv.engine import library

        return getattr(library, name)
    if name == "Batch":
        from merklekv.engine.batch import Batch

        return Batch
    if name in ("Change", "Cursor"):
        from merklekv.engine import feed

        return getattr(feed, name)
    if name in __all__:
        from merklekv import errors

        return getattr(errors, name)
    raise AttributeError(f"module 'merklekv' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
