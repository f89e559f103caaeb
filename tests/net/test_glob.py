"""Redis's glob patterns, against a plain port of the matcher that Redis documents."""

from __future__ import annotations

import pytest
from fixtures.handlers import run
from hypothesis import given
from hypothesis import strategies as st

from merklekv.engine.engine import Engine
from merklekv.net import glob
from merklekv.net.glob import compile_glob
from merklekv.net.session import Session


def matches(pattern: bytes, key: bytes) -> bool:
    prefix, predicate = compile_glob(pattern)
    return key.startswith(prefix) and bool(predicate(key))


def plain_match(pattern: bytes, key: bytes) -> bool:
    """The same by trying every way a star can be read."""
    if not pattern:
        return not key
    first = pattern[:1]
    if first == b"*":
        return any(plain_match(pattern[1:], key[skip:]) for skip in range(len(key) + 1))
    if first == b"[":
        members, after = plain_class(pattern[1:])
        return bool(key) and key[0] in members and plain_match(after, key[1:])
    if first == b"\\" and len(pattern) > 1:
        pattern = pattern[1:]
    elif first == b"?":
        return bool(key) and plain_match(pattern[1:], key[1:])
    return key[:1] == pattern[:1] and plain_match(pattern[1:], key[1:])


def plain_class(rest: bytes) -> tuple[set[int], bytes]:
    negated = rest.startswith(b"^")
    rest = rest.removeprefix(b"^")
    members: set[int] = set()
    while rest and rest[:1] != b"]":
        if rest[:1] == b"\\" and len(rest) > 1:
            members.add(rest[1])
            rest = rest[2:]
        elif rest[1:2] == b"-" and len(rest) > 2:
            low, high = min(rest[0], rest[2]), max(rest[0], rest[2])
            members |= set(range(low, high + 1))
            rest = rest[3:]
        else:
            members.add(rest[0])
            rest = rest[1:]
    return (set(range(256)) - members if negated else members), rest[1:]


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        (b"*", [b"", b"x", b"\n"], []),
        (b"h?llo", [b"hello", b"h\nllo"], [b"hllo", b"heello"]),
        (b"h*llo", [b"hllo", b"heeeello", b"hllollo"], [b"hello!"]),
        (b"h[ae]llo", [b"hello", b"hallo"], [b"hillo"]),
        (b"h[^e]llo", [b"hallo"], [b"hello"]),
        (b"h[a-b]llo", [b"hallo", b"hbllo"], [b"hcllo"]),
        (b"h[b-a]llo", [b"hallo"], [b"hcllo"]),
        (b"h\\*llo", [b"h*llo"], [b"hello"]),
        (b"a\\", [b"a\\"], [b"a"]),
        (b"[a", [b"a"], [b"b"]),
        (b"[]", [], [b"", b"]"]),
        (b"[^]", [b"x"], [b""]),
        (b"user:*:name", [b"user:7:name"], [b"user:7", b"xuser:7:name"]),
        (b"**a**", [b"a", b"bab"], [b"b"]),
        (b"", [b""], [b"a"]),
    ],
)
def test_patterns(pattern: bytes, matching: list[bytes], other: list[bytes]) -> None:
    assert [key for key in matching if not matches(pattern, key)] == []
    assert [key for key in other if matches(pattern, key)] == []


@pytest.mark.parametrize(
    ("pattern", "prefix"),
    [(b"user:*", b"user:"), (b"*", b""), (b"a?", b"a"), (b"a[b]", b"a"), (b"a\\*b*", b"a*b"), (b"plain", b"plain")],
)
def test_the_literal_start_is_where_a_scan_begins(pattern: bytes, prefix: bytes) -> None:
    assert compile_glob(pattern)[0] == prefix


def test_no_pattern_takes_exponential_time() -> None:
    """Backtracking would need more steps than there are atoms."""
    assert not matches(b"a*" * 60 + b"b", b"a" * 400)


@given(st.text("ab*?[]^-\\", max_size=8), st.text("ab-]\\*", max_size=6))
def test_like_the_plain_matcher(pattern: str, key: str) -> None:
    assert matches(pattern.encode(), key.encode()) == plain_match(pattern.encode(), key.encode())


def test_a_slow_pattern_lets_others_run(session: Session, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each key takes up to a ms, so a slice ends by the clock."""
    monkeypatch.setattr(glob, "SLICE_S", 0.0)
    for number in range(10 * glob.LOOK_KEYS):
        engine.set(b"%04d" % number + b"a" * 300, b"v")
    slow = b"*" + b"a" * 200 + b"[ab]?b"
    assert run(session, [b"KEYS", slow]) == (b"*0\r\n", 10)
    assert run(session, [b"SCAN", b"0", b"MATCH", slow, b"COUNT", b"1000"]) == (b"*2\r\n$1\r\n0\r\n*0\r\n", 10)
    assert run(session, [b"KEYS", b"0001*"])[0] == b"*1\r\n$304\r\n0001%b\r\n" % (b"a" * 300)
