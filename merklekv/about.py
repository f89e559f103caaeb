"""What is installed here: the release, what it runs on, and the formats and protocols that it speaks.

The file `COMMIT` beside this module names the commit that a package was built from; `hatch_build.py` puts it there.
A checkout has none.
"""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path
from typing import Final

import lmdb

from merklekv import __version__, core
from merklekv.engine.format import FORMAT_VERSION
from merklekv.replication.cluster.members import TABLE_VERSION
from merklekv.replication.stream import event, pubsub
from merklekv.replication.sync.messages import EXCHANGE_VERSION

COMMIT: Final = Path(__file__).with_name("COMMIT")
LIBRARIES: Final = ("cbor2", "hiredis", "lmdb", "lupa", "paho-mqtt", "prometheus-client", "rich", "typer", "xxhash")


def about() -> dict[str, object]:
    """All of it, for JSON. `build` is None unless this is an installed package that was built from a checkout."""
    return {
        "version": __version__,
        "build": COMMIT.read_text().strip() if COMMIT.exists() else None,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": platform.platform(),
        "implementation": core.IMPLEMENTATION,
        "why_pure": core.WHY_PURE or None,
        "formats": {
            "data": FORMAT_VERSION,
            "members": TABLE_VERSION,
            "exchange": EXCHANGE_VERSION,
            "events": event.SCHEMA_VERSION,
            "pubsub": pubsub.SCHEMA_VERSION,
        },
        "libraries": {name: metadata.version(name) for name in LIBRARIES}
        | {"lmdb (C library)": ".".join(map(str, lmdb.version()))},
    }
