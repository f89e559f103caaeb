"""MerkleKV: a persistent, replicated key-value server, and its storage engine as a library.

    import merklekv
    with merklekv.open("data") as db:
        db.set(b"key", b"value")

Importing this package costs next to nothing: the engine is loaded when `open`, `Database` or an error class is first
used. The version is declared here and nowhere else.
"""

from __future__ import annotations

TYPE_CHECKING = False  # to type checkers it is True; the module `typing` would take a while to import
if TYPE_CHECKING:
    from merklekv.engine.library import Database, open
    from merklekv.errors import (
        Corruption,
        DirectoryLocked,
        DirectoryUnwritable,
        DiskFull,
        FormatTooNew,
        InvalidArgument,
        MerkleKVError,
        NotADataDirectory,
        NotANumber,
        NumberOverflow,
        StorageFailed,
    )

__version__ = "0.1.0"
__all__ = [
    "Corruption",
    "Database",
    "DirectoryLocked",
    "DirectoryUnwritable",
    "DiskFull",
    "FormatTooNew",
    "InvalidArgument",
    "MerkleKVError",
    "NotADataDirectory",
    "NotANumber",
    "NumberOverflow",
    "StorageFailed",
    "__version__",
    "open",
]


def __getattr__(name: str) -> object:
    if name in ("Database", "open"):
        from merklekv.engine import library

        return getattr(library, name)
    if name in __all__:
        from merklekv import errors

        return getattr(errors, name)
    raise AttributeError(f"module 'merklekv' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
