"""Hostile values, and changes of valid input: of bytes, and of plain structures."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any, Final

DRIFT_NS: Final = 600 * 10**9  # `max_clock_drift_seconds` of a node
INTEGERS: Final = (
    *(
        0,
        1,
        -1,
        2,
        23,
        24,
        127,
        128,
        255,
        256,
        511,
        512,
        65_535,
        65_536,
        1 << 31,
        (1 << 31) - 1,
        1 << 32,
        (1 << 32) - 1,
    ),
    *((1 << 63) - 1, 1 << 63, (1 << 63) + 1, (1 << 64) - 1, 1 << 64, -(1 << 63), -(1 << 63) - 1, -(1 << 64), 10**400),
)
TEXTS: Final = (
    *(
        "",
        " ",
        "+",
        "#",
        "/",
        "a/b",
        "$SYS",
        "\0",
        "a\0b",
        "\r\n",
        "x\r\nEND\r\nOK",
        "\x1b[31m",
        "\u202e",
        "\ufeff",
        "\U0010ffff",
    ),
    *(
        "n" * 128,
        "n" * 129,
        "n" * 5000,
        "é" * 64,
        "é" * 65,
        "..",
        "%s%n",
        "{}",
        '"',
        "\\",
        "a:b,c",
        "victim",
        "peer",
        "outsider",
    ),
)
DIGITS: Final = b"9" * 5000
WORDS: Final = (
    *(
        b"",
        b" ",
        b"\0",
        b"a\0b",
        b"\r\n",
        b"\xff\xfe",
        b"\x1b[31m",
        DIGITS,
        b"-" + DIGITS,
        b"0" * 5000 + b"1",
        b"1e" + DIGITS,
    ),
    *(
        b"nan",
        b"-nan",
        b"NaN",
        b"inf",
        b"-inf",
        b"-0",
        b"+0",
        b"0x",
        b"0x" + b"f" * 400,
        b"1e309",
        b"1e-5000",
        b"1_000",
        b"1" * 19,
    ),
    *(b"%d" % number for number in INTEGERS if abs(number) < 1 << 70),
    *(b"k" * size for size in (511, 512, 513, 65_536, 100_000)),
    *("\u0661\u0662".encode(), "é".encode() * 300, b"*", b"*" * 500, b"[" * 500, b"a*" * 200, b"\\", b"[^", b"?" * 511),
    *(
        b"*1\r\n$4\r\nPING\r\n",
        b"$5",
        b"END",
        b"OK",
        b"(",
        b'"',
        b"'",
        b'"\\x',
        b"#0",
        b"#" + DIGITS,
        b"0-0-0",
        b"$",
        b"-1",
    ),
)


def integer(chance: random.Random) -> int:
    """A number at a bound of something."""
    if chance.random() < 0.3:
        return chance.choice(INTEGERS) + chance.choice((-1, 1))
    return chance.choice(INTEGERS)


def moment(chance: random.Random) -> int:
    """A time, ns: at and beyond each bound, and never one at which an honest node may have written."""
    now = time.time_ns()
    beyond = (now + DRIFT_NS + 10**9, now + 2 * DRIFT_NS, now + 86_400 * 10**9, now + 10 * 365 * 86_400 * 10**9)
    return chance.choice((0, 1, 10**9, 10**18, *beyond, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, -1))


def word(chance: random.Random) -> bytes:
    """Bytes that some reader may choke on."""
    kind = chance.random()
    if kind < 0.7:
        return chance.choice(WORDS)
    if kind < 0.8:
        return b"%d" % integer(chance) if kind < 0.75 else b"%d" % moment(chance)
    return chance.randbytes(chance.choice((1, 2, 8, 16, 24, 32, 41, 100, 1000)))


def text(chance: random.Random) -> str:
    """Text that some reader may choke on."""
    if chance.random() < 0.8:
        return chance.choice(TEXTS)
    return chance.randbytes(chance.randrange(1, 40)).decode("latin-1")


def anything(chance: random.Random) -> Any:
    """A plain value of any type."""
    kinds: tuple[Callable[[], Any], ...] = (
        lambda: integer(chance),
        lambda: moment(chance),
        lambda: word(chance),
        lambda: text(chance),
        lambda: chance.choice((None, True, False, 0.0, -0.0, 1e308, float("inf"), float("nan"))),
        list,
        dict,
        lambda: [chance.choice((None, 0, b"", "", []))] * chance.choice((1, 2, 300)),
        lambda: nested(chance.choice((3, 8, 9, 40))),
        lambda: {text(chance): integer(chance)},
    )
    return chance.choice(kinds)()


def nested(depth: int) -> Any:
    """A list in a list in a list."""
    value: Any = 0
    for number in range(depth):
        value = [value] if number % 2 else {"a": value}
    return value


def structure(chance: random.Random, value: Any, times: int = 0) -> Any:
    """A copy of plain data with a few changes anywhere in it."""
    for _ in range(times or chance.choice((1, 1, 1, 2, 3))):
        value = _changed(chance, value)
    return value


def _changed(chance: random.Random, value: Any) -> Any:
    if isinstance(value, dict) and value and chance.random() < 0.95:
        copy = dict(value)
        name = chance.choice(list(copy))
        kind = chance.randrange(10)
        if kind == 0:
            del copy[name]
        elif kind == 1:
            copy[text(chance)] = anything(chance)
        elif kind == 2:
            copy[text(chance)] = copy.pop(name)
        else:
            copy[name] = _changed(chance, copy[name])
        return copy
    if isinstance(value, list | tuple) and value and chance.random() < 0.9:
        items = list(value)
        at = chance.randrange(len(items))
        kind = chance.randrange(10)
        if kind == 0:
            del items[at]
        elif kind == 1:
            items.insert(at, items[at])
        elif kind == 2:
            items.insert(at, anything(chance))
        elif kind == 3:
            items = items * chance.choice((0, 2, 50))
        else:
            items[at] = _changed(chance, items[at])
        return items
    if isinstance(value, bytes) and chance.random() < 0.7:
        return damaged(chance, value)
    if type(value) is int and chance.random() < 0.8:
        return chance.choice((integer(chance), moment(chance), value + 1, value - 1, -value))
    if isinstance(value, str) and chance.random() < 0.7:
        return text(chance)
    return anything(chance)


def damaged(chance: random.Random, data: bytes) -> bytes:
    """Bytes with one or a few of them changed, or cut, doubled, moved."""
    copy = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        at = chance.randrange(len(copy) + 1)
        match chance.randrange(7):
            case 0 if copy:
                at = chance.randrange(len(copy))
                copy[at] ^= 1 << chance.randrange(8)
            case 1:
                del copy[at:]
            case 2:
                del copy[at : at + chance.choice((1, 2, 8))]
            case 3:
                copy[at:at] = chance.randbytes(chance.choice((1, 2, 8)))
            case 4:
                copy[at:at] = copy[at : at + chance.choice((1, 8, 64))]
            case 5:
                copy[at : at + 1] = chance.choice((b"\0", b"\xff", b"\x7f", b"\x80", b"\n", b"\r\n"))
            case _:
                size = chance.choice((1, 2, 4, 8))
                copy[at : at + size] = chance.choice((0, (1 << 8 * size) - 1, 1 << (8 * size - 1))).to_bytes(
                    size, "big"
                )
    return bytes(copy)
