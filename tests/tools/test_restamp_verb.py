"""`restamp`: what it says, and what it refuses; tests/replication/test_restamp.py has what becomes of the data."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import pytest
from fixtures.node import NodeProcess
from fixtures.tools import address, fails, opened, run, succeeds
from merklekv_tool.verbs.restamp import restamp

from merklekv.engine.base.writer import BaseWriter
from merklekv.engine.engine import Engine
from merklekv.errors import DiskFull
from merklekv.exit_codes import EXIT_FORMAT, EXIT_LOCKED, EXIT_USAGE
from merklekv.replication.cluster.storage import load_members

YEARS_NS = 9 * 365 * 86_400 * 10**9
ODD = "käse\x1b".encode()


def wall_clock(ahead_ns: int) -> int:
    return time.time_ns() + ahead_ns


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A node has run on it, with the right date and with a wrong one."""
    place = tmp_path / "data"
    for ahead in (0, YEARS_NS):
        engine = Engine(place, checkpoint="manual", wall_clock=partial(wall_clock, ahead))
        load_members(engine, "node-1", joins=True)
        engine.set(b"kept-%d" % ahead, b"v")
        if ahead:
            engine.set(ODD, b"v")
            engine.delete(b"kept-0")
        engine.close()
    return place


def test_restamp_says_what_it_did(directory: Path) -> None:
    would = succeeds("restamp", directory, "--dry-run").decode().splitlines()
    assert would[0].startswith(f"{directory}: it is 20")
    assert would[1].startswith("3 records, 1 of them deleted, up to 20")
    assert would[1].endswith("UTC, would get a version of now")
    assert would[2:] == [
        "    kept-0",
        f"    kept-{YEARS_NS}",
        r"    käse\x1b",
        "node node-1 would have a new store id",
    ]
    before = time.time_ns()
    did = succeeds("restamp", directory).decode().splitlines()
    assert did[1].endswith("UTC, have a version of now")
    assert did[2:5] == would[2:5]
    with opened(directory) as engine:
        assert before < engine.clock.newest < time.time_ns()
        store_id = load_members(engine, "node-1").identity.store_id.hex()
    assert did[5:] == [f"node node-1 has the new store id {store_id}"], "there is no other node to say anything of"
    again = succeeds("restamp", directory).decode()
    assert again.startswith(f"{directory}: nothing is from after now, 20")
    assert again.endswith("UTC; nothing was changed\n")
    assert succeeds("verify", directory)
    members = json.loads(succeeds("members", directory, "--json"))["members"]
    assert [(row["node"], row["state"]) for row in members] == [("node-1", "self"), ("node-1", "removed")]


def test_restamp_for_scripts(directory: Path) -> None:
    engine = Engine(directory, checkpoint="manual", wall_clock=partial(wall_clock, YEARS_NS))
    engine.truncate()
    engine.close()
    would = json.loads(succeeds("restamp", directory, "--dry-run", "--json"))
    assert (would["restamped"], would["records"], would["store_id"]) == (False, 0, "")
    did = json.loads(succeeds("restamp", directory, "--json"))
    assert did["restamped"]
    assert did["truncation_ns"] == would["truncation_ns"] > time.time_ns() + YEARS_NS // 2
    assert did["store_id"] != did["former_store_id"] != ""
    assert json.loads(succeeds("restamp", directory, "--json"))["restamped"] is False


def test_restamp_names_damaged_records(directory: Path) -> None:
    with opened(directory) as engine:
        engine.checkpoint_now()
        record = engine.record(ODD)
    assert record is not None
    with BaseWriter(directory / "base") as writer:
        writer.put([(ODD, record[:-1] + b"x")])
    done = run("restamp", directory)
    assert done.returncode == 0
    assert "left as they are: 1 damaged record; merklekv verify names them" in done.stderr.decode()
    assert "2 records, 1 of them deleted" in done.stdout.decode()


def test_restamp_refuses_what_is_no_closed_directory(node: NodeProcess, tmp_path: Path) -> None:
    fails(EXIT_LOCKED, f"in use by process {node.pid}; stop it first", done=run("restamp", node.directory))
    assert "HOST:PORT" not in run("restamp", node.directory).stderr.decode()
    fails(EXIT_USAGE, "give the directory of the node, when it is stopped", done=run("restamp", address(node)))
    fails(EXIT_FORMAT, "there is no such directory", done=run("restamp", tmp_path / "none"))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), DiskFull("disk full, cannot checkpoint")])
def test_a_restamp_that_is_cut_off_says_so(
    error: BaseException, directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By Ctrl-C or a full disk, when the table of members has been stored already; the next run does the rest."""
    with monkeypatch.context() as patch:
        patch.setattr(BaseWriter, "put", Mock(side_effect=error))
        with pytest.raises(type(error)) as caught:
            restamp(str(directory))
    assert "run this again" in capsys.readouterr().err + str(caught.value)
    assert "3 records, 1 of them deleted" in succeeds("restamp", directory).decode()
    assert succeeds("restamp", directory).decode().endswith("nothing was changed\n")
    assert succeeds("verify", directory)
