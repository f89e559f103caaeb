"""SIGHUP: the settings are read again, and what can change while the node runs takes effect.

A setting that differs from what runs either has a function in `changes`, which is called, or needs a restart, and the
log has its name. Files of certificates may have a new content under the same name: then `renew` is called. Settings
that are not valid change nothing.

Only what differs from the last reading counts, so a value that CONFIG SET has set stays while its setting stays.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from merklekv.config import TLS_FILES, Loaded
from merklekv.errors import MerkleKVError
from merklekv.settings import Settings

log = logging.getLogger(__name__)

Change = Callable[[Settings], None]


class Reload:
    """Call it for each SIGHUP. `read` reads the settings and checks their files. Raises nothing."""

    def __init__(
        self, loaded: Loaded, read: Callable[[], Loaded], changes: Mapping[str, Change], renew: Callable[[], None]
    ) -> None:
        self._read = read
        self._changes = changes
        self._renew = renew
        self._values = {one.key: one.value for one in loaded.effective}  # what runs
        self._certificates = _certificates(loaded)

    def __call__(self) -> None:
        try:
            loaded = self._read()
            certificates = _certificates(loaded)
        except (MerkleKVError, OSError) as error:
            log.error("SIGHUP: nothing is changed: %(reason)s", {"reason": str(error)})
            return
        except Exception:
            log.exception("SIGHUP: nothing is changed, because of a defect of this program")
            return
        changed = {one.key: one for one in loaded.effective if one.value != self._values[one.key]}
        applied = {key: changed[key] for key in changed if key in self._changes}
        restart = [key for key in changed if key not in applied]
        for key, one in applied.items():
            self._changes[key](loaded.settings)
            self._values[key] = one.value
        told = [f"{key} = {one.shown()}" for key, one in applied.items()]
        renewed = [key for key in certificates if key not in changed and certificates[key] != self._certificates[key]]
        if renewed:
            self._renew()
            self._certificates.update({key: certificates[key] for key in renewed})
            told.append(f"new content in {', '.join(renewed)}")
        if restart:
            told.append(f"a restart is needed for {', '.join(restart)}")
        fields = {"changes": "; ".join(told), "changed": [*applied, *renewed], "needs_restart": restart}
        log.log(
            logging.WARNING if restart else logging.INFO,
            "SIGHUP: %(changes)s" if told else "SIGHUP: nothing changed",
            fields,
        )


def _certificates(loaded: Loaded) -> dict[str, bytes]:
    """A digest of each file for TLS. Raises OSError."""
    paths = {one.key: str(one.value) for one in loaded.effective if one.key in TLS_FILES}
    return {key: hashlib.sha256(Path(path).read_bytes() if path else b"").digest() for key, path in paths.items()}
