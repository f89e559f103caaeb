"""MerkleKV: a persistent, replicated key-value server, and its storage engine as a library.

    import merklekv
    with merklekv.open("data") as db:
        db.set(b"key", b"value")

Importing this package costs next to nothing: the engine and what it needs are loaded when `open`, `Database`
or an error class is first asked for. This file is the one place that says the version.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from merklekv.engine.database import Database, open
    from merklekv.errors import MerkleKVError

__version__ = "0.1.0"
__all__ = ["Database", "MerkleKVError", "__version__", "open"]


def __getattr__(name: str) -> object:
    if name in ("Database", "open"):
        from merklekv.engine import database

        return getattr(database, name)
    if name == "MerkleKVError":
        from merklekv.errors import MerkleKVError

        return MerkleKVError
    raise AttributeError(f"module 'merklekv' has no attribute {name!r}")
