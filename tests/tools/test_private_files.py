"""What the tool makes can be read by its user alone, and belongs to the user of the directory it is made in."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest
from fixtures.node import NodeFactory, clean_environment
from fixtures.tools import TIMEOUT_S, TOOL, address, filled

from merklekv.engine.engine import Engine

OTHER = 54_321  # a user and a group without a name


def run(umask: int, *arguments: str | Path) -> None:
    """The tool under this umask, with success."""
    command = ["sh", "-c", f'umask {umask:03o}; exec "$@"', "sh", *TOOL, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, env=clean_environment(), check=False)
    assert done.returncode == 0, done.stderr.decode()


def readable(path: Path) -> dict[str, str]:
    """Everything that its user alone may not, or others may, use: name and mode."""
    found = {}
    for one in (path, *path.rglob("*")):
        mode = stat.S_IMODE(one.stat().st_mode)
        if mode != (0o700 if one.is_dir() else 0o600):
            found[str(one)] = oct(mode)
    return found


def owners(path: Path) -> set[tuple[int, int]]:
    return {(one.lstat().st_uid, one.lstat().st_gid) for one in (path, *path.rglob("*"))}


@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_only_its_user_can_read_what_the_tool_makes(tmp_path: Path, node_factory: NodeFactory, umask: int) -> None:
    node = node_factory("--memtable-size", "64KiB")
    with node.connect() as client:
        for number in range(300):
            assert client.ask(f"SET k{number} {'v' * 1000}") == "OK"
    filled(tmp_path / "data")
    made = tmp_path / "made"
    made.mkdir(0o700)
    for name, place in (("node", address(node)), ("data", tmp_path / "data")):
        run(umask, "backup", place, made / f"{name}-backup")
        run(umask, "backup", place, made / f"{name}.tar.gz")
        run(umask, "restore", made / f"{name}.tar.gz", made / f"{name}-restored")
        run(umask, "restore", made / f"{name}-backup", made / f"{name}-again")
    run(umask, "dump", address(node), "--output", made / "dump.jsonl")
    (made / "old.cbor").touch(0o644)
    run(umask, "dump", address(node), "--format", "cbor", "--output", made / "old.cbor")
    run(umask, "load", made / "dump.jsonl", made / "loaded")
    assert readable(made) == {}
    assert readable(node.directory) == {}


def test_what_root_makes_belongs_to_the_user_of_the_directory(tmp_path: Path) -> None:
    """Only root can make files of other users, so there is nothing to see for others."""
    if os.geteuid() != 0:
        return
    filled(tmp_path / "data")
    run(0o022, "backup", tmp_path / "data", tmp_path / "backup.tar.gz")
    run(0o022, "dump", tmp_path / "data", "--output", tmp_path / "dump.jsonl")
    restored, loaded = tmp_path / "restored", tmp_path / "loaded"
    for path in (restored, loaded):
        path.mkdir()
        os.chown(path, OTHER, OTHER)
    run(0o022, "restore", tmp_path / "backup.tar.gz", restored)
    run(0o022, "load", tmp_path / "dump.jsonl", loaded)
    for path in (restored, loaded):
        assert owners(path) == {(OTHER, OTHER)}
        (path / "base" / "lock.mdb").unlink(missing_ok=True)  # LMDB makes it anew
        run(0o022, "backup", path, tmp_path / f"backup-of-{path.name}")
        run(0o022, "verify", path)
        run(0o022, "log", path)
        run(0o022, "tree", path)
        run(0o022, "load", "--anew", tmp_path / "dump.jsonl", path)
        assert owners(path) == {(OTHER, OTHER)}
        assert owners(tmp_path / f"backup-of-{path.name}") == {(0, 0)}
    run(0o022, "restore", tmp_path / "backup.tar.gz", tmp_path / "new")
    assert owners(tmp_path / "new") == {(0, 0)}
    Engine(restored, checkpoint="manual").close()
    assert owners(restored) == {(OTHER, OTHER)}
