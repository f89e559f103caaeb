"""How much memory this process may have: what the machine has, or what a container or a resource limit leaves of it."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

_MEMBERSHIP: Final = Path("/proc/self/cgroup")
_HIERARCHIES: Final = Path("/sys/fs/cgroup")


def available_memory() -> int:
    """In bytes. The least of what is known: a limit that cannot be read is none."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_cgroup_limits()]
    for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
        soft, _ = resource.getrlimit(kind)
        if soft != resource.RLIM_INFINITY:
            limits.append(soft)
    return min(limits)


def _cgroup_limits() -> Iterator[int]:
    """Those of this process's control groups and of all above, see cgroups(7).

    Within a container the path may be the one that the host sees, so each part of it may be missing.
    """
    lines: list[str] = []
    with suppress(OSError):
        lines = _MEMBERSHIP.read_text().splitlines()
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if not controllers:  # version 2
            roots, name = [_HIERARCHIES, _HIERARCHIES / "unified"], "memory.max"
        elif "memory" in controllers.split(","):
            roots, name = [_HIERARCHIES / controllers, _HIERARCHIES / "memory"], "memory.limit_in_bytes"
        else:
            continue
        group = Path(path.lstrip("/"))
        for root in roots:
            for level in (group, *group.parents):
                with suppress(OSError, ValueError):  # there is none at this level, or it is "max"
                    yield int((root / level / name).read_text())
