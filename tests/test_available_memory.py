"""How much memory a process may have, by what the system says of it."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from merklekv import available_memory as module
from merklekv.available_memory import available_memory
from merklekv.node import fit
from merklekv.settings import LimitSettings, Settings

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
MIB = 1 << 20
GROUPS = {
    "version 2": ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": "104857600\n"}),
    "version 2 in a container": ("0::/\n", {"memory.max": "104857600\n"}),
    "version 1": ("4:memory:/a/b\n1:cpu:/\n", {"memory/a/b/memory.limit_in_bytes": "104857600\n"}),
    "version 1 in a container": ("4:memory:/of/host\n", {"memory/memory.limit_in_bytes": "104857600\n"}),
    "both versions": ("4:memory:/a\n0::/\n", {"memory/a/memory.limit_in_bytes": "104857600", "unified/x": ""}),
}


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "_MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(module, "_HIERARCHIES", tmp_path / "groups")
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return tmp_path


@pytest.mark.parametrize(("membership", "files"), GROUPS.values(), ids=GROUPS)
def test_the_limit_of_a_control_group(groups: Path, membership: str, files: dict[str, str]) -> None:
    (groups / "membership").write_text(membership)
    for name, text in files.items():
        path = groups / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert available_memory() == 100 * MIB


@pytest.mark.parametrize("membership", [None, "", "0::/\n", "what\n", "1:2\n", "0::/" + "../" * 20 + "\n", "\n\n"])
def test_what_cannot_be_read_is_no_limit(groups: Path, membership: str | None) -> None:
    if membership is not None:
        (groups / "membership").write_text(membership)
    assert available_memory() == MACHINE


def test_a_resource_limit(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (50 * MIB if kind == resource.RLIMIT_DATA else -1, -1))
    assert available_memory() == 50 * MIB


def test_settings_that_fit() -> None:
    settings = Settings()
    assert fit(settings, 8 << 30) == settings
    small = fit(settings, 256 * MIB)
    assert (small.limits.memory, small.memtable_size) == (256 * MIB // 5, 8 * MIB)
    assert fit(small, 256 * MIB) == small
    tight = fit(Settings(max_value_size=MIB, limits=LimitSettings(memory=16 * MIB)), 32 * MIB)
    assert (tight.limits.memory, tight.memtable_size) == (32 * MIB // 5, MIB)
