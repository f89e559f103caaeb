"""`diff`: exactly the keys that two places do not hold alike, whether they are directories or nodes."""

from __future__ import annotations

import base64
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from fixtures.node import NodeFactory
from fixtures.tools import FakeNode, address, fails, fill, filled, opened, run, succeeds
from merklekv_tool.comparison import DIFFERENCES, Difference, compare
from merklekv_tool.exit_codes import EXIT_NODE, EXIT_PROBLEMS, EXIT_UNREACHABLE
from merklekv_tool.output import text_of, time_text
from merklekv_tool.verbs import diff
from merklekv_tool.verbs.diff import in_order

from merklekv.engine.record import head_of, is_tombstone, make_record, show_version
from merklekv.exit_codes import EXIT_FORMAT, EXIT_LOCKED, EXIT_OK, EXIT_USAGE

VERSION = (1_700_000_000 * 10**9).to_bytes(8, "big") + bytes(16)


@pytest.fixture
def alike(tmp_path: Path) -> tuple[Path, Path]:
    filled(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    return tmp_path / "a", tmp_path / "b"


def changed(a: Path, b: Path) -> dict[bytes, str]:
    """Lets the two differ in every way; which keys then do, and how."""
    with opened(b) as engine:
        engine.set(b"plain", b"newer")
        engine.delete(b"number:0001")
        engine.set(b"\xff only", b"x")
    with opened(a) as engine:
        engine.set(b"number:0002", b"later")
        engine.set(b"here alone", b"")
        engine.delete(b"here alone")
    return {
        b"plain": "newer_b",
        b"number:0001": "newer_b",
        b"\xff only": "only_b",
        b"number:0002": "newer_a",
        b"here alone": "only_a",
    }


def lines(*arguments: str | Path, status: int = EXIT_PROBLEMS) -> list[dict[str, Any]]:
    done = run("diff", *arguments, "--json")
    assert done.returncode == status, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def key_of(line: dict[str, Any]) -> bytes:
    return base64.b64decode(line["key_base64"]) if "key_base64" in line else line["key"].encode()


def test_places_that_hold_the_same(alike: tuple[Path, Path]) -> None:
    assert succeeds("diff", *alike).decode() == "no key differs\n"
    assert lines(*alike, status=EXIT_OK) == [
        {"equal": True, **dict.fromkeys(DIFFERENCES, 0), "truncations_equal": True}
    ]


def test_every_key_that_differs_and_no_other(alike: tuple[Path, Path]) -> None:
    expected = changed(*alike)
    *found, counts = lines(*alike)
    assert {key_of(line): line["differs"] for line in found} == expected
    assert (counts["equal"], counts["newer_b"], counts["only_a"]) == (False, 2, 1)
    by_key = {key_of(line): line for line in found}
    with opened(alike[0]) as a, opened(alike[1]) as b:
        for key, line in by_key.items():
            for engine, side in ((a, "a"), (b, "b")):
                record = engine.record(key)
                assert line[side] == (record and {"version": show_version(record), "deleted": is_tombstone(record)})


def test_the_table_and_its_limit(alike: tuple[Path, Path]) -> None:
    changed(*alike)
    text = run("diff", *alike).stdout.decode()
    assert text.startswith(f"A is {alike[0]}\nB is {alike[1]}\n")
    assert "only B    -  " in text
    assert " deleted  number:0001\n" in text
    assert "  \\xff only\n" in text
    assert text.endswith("5 keys differ: 1 only A, 1 only B, 1 newer A, 2 newer B\n")
    for limit, shown in ((0, 1), (2, 7), (5, 10), (6, 10)):
        assert len(run("diff", *alike, "--limit", str(limit)).stdout.splitlines()) == shown
    assert len(lines(*alike, "--limit", "1")) == 2


def test_a_single_key(alike: tuple[Path, Path]) -> None:
    with opened(alike[1]) as engine:
        engine.set(b"one", b"x")
    assert run("diff", *alike).stdout.decode().endswith("\n1 key differs: 1 only B\n")


def test_a_node_and_a_directory_and_two_nodes(alike: tuple[Path, Path], node_factory: NodeFactory) -> None:
    expected = changed(*alike)
    a = node_factory(directory=alike[0])
    *found, _ = lines(address(a), alike[1])
    assert {key_of(line): line["differs"] for line in found} == expected
    b = node_factory(directory=alike[1])
    *found, _ = lines(address(b), address(a))
    swapped = {"a": "b", "b": "a"}
    assert {key_of(line): line["differs"] for line in found} == {
        key: kind[:-1] + swapped[kind[-1]] for key, kind in expected.items()
    }
    assert lines(address(a), address(a), status=EXIT_OK)[0]["equal"]


def test_an_empty_place_and_a_full_one(tmp_path: Path, node_factory: NodeFactory) -> None:
    filled(tmp_path / "full")
    *found, counts = lines(tmp_path / "full", address(node_factory()))
    assert len(found) == counts["only_a"] > 2500
    assert not counts["truncations_equal"]


def test_truncation_versions_that_differ_alone(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with opened(tmp_path / name) as engine:
            fill(engine, truncation=False)
            engine.truncate()
            engine.commit()
    (counts,) = lines(tmp_path / "a", tmp_path / "b")
    assert (counts["equal"], counts["truncations_equal"]) == (False, False)
    text = run("diff", tmp_path / "a", tmp_path / "b").stdout.decode()
    assert "the truncation versions differ: A was truncated at " in text
    assert text.endswith("no key differs\n")


def test_one_version_with_two_contents_is_a_conflict() -> None:
    heads = [head_of(make_record(b"k", VERSION, value)) for value in (b"1", b"2")]
    (difference,) = compare([(b"k", heads[0])], [(b"k", heads[1])])
    assert difference.kind == "conflict"
    assert list(compare([(b"k", heads[0])], [(b"k", heads[0])])) == []


def test_differences_come_by_key_unless_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [b"c", b"a", b"b"]
    found = [Difference("only_a", key, b"", None) for key in keys]
    assert [one.key for one in in_order(iter(found))] == sorted(keys)
    monkeypatch.setattr(diff, "SORTED_MAX", 2)
    assert [one.key for one in in_order(iter(found))] == keys


def test_times_for_people() -> None:
    assert re.fullmatch(r"2023-11-1\d \d\d:\d\d:20\.123456[+-]\d\d:\d\d", time_text(1_700_000_000_123_456_789))
    assert time_text((1 << 64) - 1).startswith("2554-07-")
    assert time_text(10**30) == str(10**30)


def test_a_directory_and_itself(alike: tuple[Path, Path]) -> None:
    again = alike[0] / ".." / alike[0].name
    fails(EXIT_USAGE, f"{again}: is the same directory as {alike[0]}", done=run("diff", alike[0], again))


def test_places_that_are_not_there(alike: tuple[Path, Path], tmp_path: Path) -> None:
    fails(EXIT_UNREACHABLE, "127.0.0.1:1", "refused", done=run("diff", alike[0], "127.0.0.1:1"))
    fails(EXIT_FORMAT, "neither a data directory", done=run("diff", tmp_path / "missing", alike[1]))
    with FakeNode() as other:
        other.knows_nothing = True
        fails(EXIT_NODE, other.address, "unknown command", done=run("diff", alike[0], other.address))


def test_a_directory_that_a_node_holds(alike: tuple[Path, Path], node_factory: NodeFactory) -> None:
    node_factory(directory=alike[0])
    fails(EXIT_LOCKED, str(alike[0]), "HOST:PORT", done=run("diff", *alike))


@pytest.mark.parametrize("verb", ["diff", "members", "forget"])
def test_help_has_examples(verb: str) -> None:
    text = succeeds(verb, "--help").decode()
    assert "Examples:" in text
    assert f"merklekv {verb} " in text
    assert "--json" in text


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        (b"plain", "plain"),
        ("grün".encode(), "grün"),
        (b"\xb0", "\\xb0"),
        (b"\\xb0", "\\\\xb0"),
        (b"b3\x1b[31m\xff", "b3\\x1b[31m\\xff"),
    ],
)
def test_a_key_is_shown_on_one_line_and_like_no_other(key: bytes, shown: str) -> None:
    assert text_of(key) == shown
