"""The deletion rule, row by row, and its two examples with real nodes.

Every row of the table in `deletion_rule` has tests here, named after its number.  SCENARIOS says which tests need
the row, with whole nodes.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fixtures.exchanges import cluster, exchange, meet_all

from merklekv.engine.record import TOMBSTONE
from merklekv.replication.cluster.exceptions import by_key
from merklekv.replication.cluster.lost_writes import LostWriteInterval
from merklekv.replication.cluster.members import Identity, MemberRow, MemberTable, SelfReport
from merklekv.replication.cluster.refused import RefusedRecord
from merklekv.replication.sync import deletion_rule
from merklekv.replication.sync.deletion_rule import NONE_STALE, RECORD_ROWS, TIME_ROWS, stale_records
from merklekv.replication.sync.messages import Hello

ROOT = Path(__file__).parents[2]
SCENARIOS = {
    1: ("test_exchange_stale.test_what_two_new_nodes_gave_each_other",),
    2: (
        "test_exchange_stale.test_what_a_writer_lost_that_was_restored_is_not_stale",
        "test_exchange_news.test_a_restored_node_with_a_slow_clock_is_known_before_it_writes",
        "test_exchange_news.test_a_node_that_exchanged_with_a_restored_node_learns_what_others_applied_of_it_before",
    ),
    3: (
        "test_refused_records.test_what_a_node_has_refused_is_not_deleted_elsewhere",
        "test_refused_records.test_an_old_record_of_a_key_that_a_node_has_refused",
    ),
    4: (
        "test_exchange_stale.test_what_a_writer_outside_has_written_is_not_stale",
        "test_exchange_news.test_a_dump_is_loaded_on_a_node_whose_first_exchange_was_cut_at_its_end",
    ),
    5: (
        "test_exchange_news.test_damage_above_every_horizon_deletes_nothing",
        "test_exchange_stale.test_a_new_node_that_holds_little_takes_the_rest_page_by_page",
    ),
    6: (
        "test_exchange_gc_horizon.test_a_restored_node_drops_what_was_deleted_without_it",
        "test_exchange_stale.test_what_came_from_a_restored_node",
        "test_exchange_stale.test_what_a_restored_node_makes_stable_with_a_new_one_first",
        "test_exchange_stale.test_a_restored_node_is_known_by_one_that_joined_later",
        "test_exchange_news.test_a_dump_that_was_loaded_before_a_backup_and_deleted_since",
    ),
    7: (
        "test_exchange_news.test_what_another_group_takes_for_news_is_stale_for_those_that_had_it",
        "test_exchange_news.test_a_node_that_follows_no_horizon_takes_nothing_stale_from_a_restored_one",
    ),
    8: (
        "test_exchange_stale.test_damage_on_a_member_deletes_nothing_elsewhere",
        "test_exchange_news.test_damage_to_what_a_removed_member_wrote_deletes_nothing",
        "test_exchange_news.test_a_dump_is_loaded_on_a_node_that_others_know",
        "test_exchange_news.test_damage_deletes_nothing_on_a_node_that_has_joined_while_a_member_is_away",
        "test_exchange_news.test_damage_deletes_nothing_below_a_horizon_that_is_not_adopted",
    ),
}

PARIS, OSLO, ROME, LIMA, KYIV = (
    Identity(name, name.encode().ljust(8)) for name in ["paris", "oslo", "rome", "lima", "kyiv"]
)
COVERED = dict.fromkeys((PARIS, OSLO, ROME), 250)
RESTORED = {PARIS: MemberRow(300), OSLO: MemberRow(249)}  # what rome has applied according to an old backup


def hello(who: Identity, **told: Any) -> Hello:
    """By default of a member that the horizon, 250, covers and has applied all that the others wrote through 300."""
    rows = {other: MemberRow(300) for other in COVERED if other != who}
    table: dict[str, Any] = {"max_gc_horizon": 400, "rows": rows, "stable_through": COVERED} | told
    return Hello("test", bytes(4), bytes(24), 250, b"", 1, 1000, MemberTable(who, SelfReport(320), **table))


def record(timestamp: int, writer: Identity = OSLO, flags: int = 0, process: bytes = bytes(4)) -> bytes:
    return timestamp.to_bytes(8, "big") + writer.store_id + process + bytes(4) + bytes([flags]) + bytes(16)


def is_stale(a_record: bytes, holder: Hello, lacking: Hello | None = None) -> bool:
    """Whether paris, unless it is another node, finds this record of the holder stale."""
    return stale_records(holder, lacking or hello(PARIS)).contains(b"k", a_record)


def test_row_1_a_tombstone_is_new() -> None:
    restored = hello(ROME, rows=RESTORED)
    assert is_stale(record(100), restored)
    assert not is_stale(record(100, flags=TOMBSTONE), restored)


def test_row_2_what_its_writer_may_have_lost_is_new() -> None:
    restored = hello(ROME, rows=RESTORED)
    paris = hello(PARIS, lost_writes={OSLO: frozenset({LostWriteInterval(90, 110, b"2nd.")})})
    assert [time for time in (90, 91, 110, 111) if not is_stale(record(time), restored, paris)] == [91, 110, 111]
    assert is_stale(record(111, process=b"2nd."), restored, paris), "the process that began then has lost nothing"
    missed = hello(PARIS, lost_writes={OSLO: frozenset({LostWriteInterval(90, 110, b"2nd.", missed_through=200)})})
    assert not is_stale(record(200, process=b"2nd."), restored, missed), "its clock was slow: paris saw other writes"
    assert is_stale(record(201, process=b"2nd."), restored, missed)


def test_row_3_what_was_refused_is_new() -> None:
    restored, refused = hello(ROME, rows=RESTORED), RefusedRecord(b"k", record(200)[:24], "value size", 101, "oslo")
    paris = hello(PARIS, refused=by_key([refused]))
    assert [time for time in (100, 200, 201) if not is_stale(record(time), restored, paris)] == [100, 200]
    assert is_stale(record(100), restored, hello(PARIS, refused=by_key([refused._replace(key=b"other")])))


def test_row_4_what_is_later_than_applied_through_is_new() -> None:
    restored = hello(ROME, rows=RESTORED)
    assert is_stale(record(300), restored)
    assert not is_stale(record(301), restored)
    assert not is_stale(record(120, LIMA), hello(LIMA, rows={}, stable_through={})), "nothing of it was applied"


def test_row_4_what_only_the_holder_has_known_is_new() -> None:
    """Also if it has removed the writer since."""
    restored, time = hello(ROME, rows=RESTORED), 120
    assert is_stale(record(time, LIMA), restored), "as if rome had written it"
    for known in ({"rows": RESTORED | {LIMA: MemberRow(200)}}, {"rows": RESTORED, "removed": {LIMA: 200}}):
        assert not is_stale(record(time, LIMA), hello(ROME, **known)), known
        applied = hello(PARIS, removed={LIMA: 150})
        assert [t for t in (150, 151) if is_stale(record(t, LIMA), hello(ROME, **known), applied)] == [150], known


def test_row_4_what_a_joining_node_has_from_a_dump_is_new() -> None:
    applied = {who: MemberRow(300) for who in (OSLO, ROME, LIMA)}
    assert not is_stale(record(1, KYIV), hello(LIMA, rows={}, stable_through={}), hello(PARIS, rows=applied))


def test_row_5_what_is_later_than_every_horizon_is_new() -> None:
    restored, paris = hello(ROME, rows=RESTORED), hello(PARIS, max_gc_horizon=280)
    assert is_stale(record(280), restored, paris)
    assert not is_stale(record(281), restored, paris)


def test_row_6_what_a_node_brings_that_is_behind_is_stale() -> None:
    assert is_stale(record(100), hello(ROME, rows=RESTORED)), "rome was restored"
    assert is_stale(record(100), hello(LIMA, rows={}, stable_through={})), "lima is new"
    assert is_stale(record(100), hello(LIMA, rows=RESTORED, removed={ROME: 249}))
    assert not is_stale(record(100), hello(ROME, rows=RESTORED | {OSLO: MemberRow(250)}))
    assert not is_stale(record(100), hello(ROME, rows={PARIS: MemberRow(250)}, removed={OSLO: 250}))


def test_row_6_what_a_node_that_is_behind_has_from_a_dump_is_stale() -> None:
    """Through the horizon that covers it, as if it had written it."""
    assert is_stale(record(250, KYIV), hello(ROME, rows=RESTORED))
    assert not is_stale(record(251, KYIV), hello(ROME, rows=RESTORED))


def test_row_7_what_is_later_than_stable_through_is_stale() -> None:
    assert is_stale(record(251), hello(ROME))
    rows = {who: MemberRow(300) for who in (OSLO, ROME, KYIV)}
    assert is_stale(record(100, KYIV), hello(ROME), hello(PARIS, rows=rows)), "no horizon has covered kyiv"
    further = dict.fromkeys(COVERED, 280)
    assert is_stale(record(281), hello(ROME, stable_through=further))
    assert is_stale(record(280), hello(ROME, stable_through={OSLO: 280, ROME: 280})), "it did not wait for paris"
    assert is_stale(record(281), hello(ROME), hello(PARIS, stable_through=COVERED | {OSLO: 280}))


def test_row_8_what_all_had_and_none_deleted_is_new() -> None:
    assert not is_stale(record(250), hello(ROME))
    assert not is_stale(record(280), hello(ROME, stable_through=dict.fromkeys(COVERED, 280)))
    assert not is_stale(record(250), hello(LIMA, rows={who: MemberRow(300) for who in COVERED})), "lima has applied all"
    rows = {who: MemberRow(300) for who in (OSLO, ROME, KYIV)}
    assert not is_stale(record(100, KYIV), hello(ROME), hello(PARIS, rows=rows, stable_through=COVERED | {KYIV: 100}))


def test_row_8_what_a_member_has_from_a_dump_is_new() -> None:
    assert not is_stale(record(100, KYIV), hello(ROME))


def test_whether_any_record_can_be_stale() -> None:
    assert not NONE_STALE.is_possible()
    assert not NONE_STALE.contains(b"k", record(1))
    assert stale_records(hello(ROME), hello(PARIS)).is_possible(), "those between horizon and applied-through"
    assert not stale_records(replace(hello(ROME), count=0), hello(PARIS)).is_possible(), "it holds nothing"


# -- the examples ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("begins", ["paris", "rome"])
def test_example_of_a_stale_record(tmp_path: Path, begins: str) -> None:
    with cluster(tmp_path, ("paris", "oslo", "rome")) as (paris, oslo, rome):
        oslo.set(b"cart:17")
        meet_all([paris, oslo, rome])
        backup = rome.backup()
        paris.delete(b"cart:17")
        meet_all([paris, oslo, rome])
        assert not any(node.engine.tombstone_count for node in (paris, oslo, rome))
        rome.restore(backup)
        assert set(rome.values()) == {b"cart:17"}
        report = exchange(paris, rome) if begins == "paris" else exchange(rome, paris)
        assert report.discarded == 1
        assert paris.values() == rome.values() == {}
        meet_all([paris, oslo, rome])
        assert oslo.values() == {}


@pytest.mark.parametrize("begins", ["paris", "lima"])
def test_example_of_a_new_record(tmp_path: Path, begins: str) -> None:
    with cluster(tmp_path, ("paris", "oslo", "lima")) as (paris, oslo, lima):
        lima.set(b"user:9")
        for node in (paris, oslo):
            node.tick(100)
        meet_all([paris, oslo])
        assert lima.records()[b"user:9"] < paris.engine.gc_horizon.to_bytes(8, "big")
        report = exchange(paris, lima) if begins == "paris" else exchange(lima, paris)
        assert report.discarded == 0
        assert set(paris.values()) == set(lima.values()) == {b"user:9"}


def test_the_page_shows_what_the_examples_print() -> None:
    script = ROOT / "scripts" / "write_deletion_examples.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


# -- the index ---------------------------------------------------------------------------------------------------------


def _rows(text: str, row: str) -> dict[int, str]:
    """The rows of a decision table, with what they decide."""
    return {int(number): decision for number, decision in re.findall(row, text, re.MULTILINE)}


def test_every_row_has_a_name_and_tests() -> None:
    rows = _rows(deletion_rule.__doc__ or "", r"^ {4}(\d+) .* {2,}(new|stale)$")
    page = (ROOT / "docs" / "replication.md").read_text()
    assert _rows(page, r"^\| (\d+) .*\| (new|stale) \| `test_row_.*` \|$") == rows
    assert all(name in globals() for name in re.findall(r"`(test_row_\w+)`", page))
    tests = [re.match(r"test_row_(\d+)_.*_is_(new|stale)$", name) for name in globals()]
    assert {(int(test[1]), test[2]) for test in tests if test} == set(rows.items())
    named = [(row.name, False) for row in RECORD_ROWS] + [(row.name, row.is_stale) for row in TIME_ROWS]
    assert {int(name[0]): ["new", "stale"][is_stale] for name, is_stale in named} | {len(rows): "new"} == rows
    assert list(rows) == list(SCENARIOS)


def test_every_row_has_scenarios() -> None:
    for scenario in [scenario for scenarios in SCENARIOS.values() for scenario in scenarios]:
        module, _, name = scenario.partition(".")
        assert hasattr(importlib.import_module(module), name), scenario
