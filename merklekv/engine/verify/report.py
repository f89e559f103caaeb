"""What the checker has found, and how far it has come.

`Report` gathers violations as sentences, bounded: a damaged directory of a million keys must not make a million lines.
`Stages` turns the steps of stages of unequal weight into one progress bar.
"""

from collections.abc import Callable, Iterator
from typing import Final

from merklekv.engine.verify.reference import KEY_SIZE_MAX, RECORD_SIZE_MIN, digest_of, is_tombstone, number, version_of
from merklekv.errors import shown
from merklekv.output import counted

VIOLATIONS_MAX: Final = 200  # sentences; what comes after is counted
STEPS_PER_REPORT: Final = 4096
SHOWN_KEY_SIZE: Final = 60
TIME_MAX: Final = (1 << 64) - 2  # ns, of a truncation
PURGE_MARKER_TAIL: Final = b"\x05" + bytes(16)  # flags and digest of a marker
DELETION_TIME_SIZE: Final = 8  # behind that, in one of a lone node's deletion

Progress = Callable[[int, int], None]
Note = Callable[[str], None]


class Stages:
    """Progress over stages, each of a known weight and number of steps."""

    def __init__(self, report: Progress | None, total: int) -> None:
        self._report = report
        self._total = total
        self._before = self._weight = self._steps = self._done = 0

    def begin(self, weight: int, steps: int) -> None:
        """Starts the next stage."""
        self.end()
        self._weight, self._steps, self._done = weight, max(steps, 1), 0

    def step(self, count: int = 1) -> None:
        """Reports now and then."""
        before = self._done // STEPS_PER_REPORT
        self._done += count
        if self._report is not None and self._done // STEPS_PER_REPORT > before:
            share = min(self._done, self._steps) * self._weight // self._steps
            self._report(self._before + share, self._total)

    def end(self) -> None:
        """The stage in hand is done."""
        self._before += self._weight
        self._weight = 0
        if self._report is not None:
            self._report(self._before, self._total)


class Report:
    """Violations, in the order in which they were found."""

    def __init__(self, note: Note, stages: Stages | None = None) -> None:
        self.note = note
        self.stages = stages or Stages(None, 0)
        self._sentences: list[str] = []
        self._more = 0

    def add(self, where: object, violation: str) -> None:
        """A violation, with the place where it is."""
        if len(self._sentences) < VIOLATIONS_MAX:
            self._sentences.append(f"{where}: {violation}")
        else:
            self._more += 1

    def expect(self, where: object, what: str, found: object, expected: object) -> None:
        """A violation unless `found` is what is expected."""
        if found != expected:
            self.add(where, f"{what} is {_shown(found)}, expected {_shown(expected)}")

    def sentences(self) -> list[str]:
        """All of them, and how many were left out."""
        return self._sentences + ([f"and {counted(self._more, 'more problem')}"] if self._more else [])


def record_violations(key: bytes, record: bytes, truncation: bytes) -> Iterator[str]:
    """What is wrong with a record by itself."""
    if not 1 <= len(key) <= KEY_SIZE_MAX:
        yield f"the key has {len(key)} bytes, expected 1 to {KEY_SIZE_MAX}"
    if len(record) < RECORD_SIZE_MIN:
        yield f"the record has {len(record)} bytes, expected {RECORD_SIZE_MIN} or more"
        return
    if record[24] not in (0, 1, 2):
        yield f"the flags are {record[24]}, expected 0, 1 (tombstone) or 2 (expiry)"
    elif record[24] == 2 and (len(record) < RECORD_SIZE_MIN + 8 or not 0 < number(record[41:49]) < 1 << 63):
        yield f"the expiry is {record[41:49].hex()}, expected 8 bytes, 1 to 2^63 - 1"
    if is_tombstone(record) and len(record) > RECORD_SIZE_MIN:
        yield f"the tombstone has a value of {len(record) - RECORD_SIZE_MIN} bytes, expected none"
    found, expected = record[25:41], digest_of(key, record)
    if found != expected:
        yield f"the digest is {found.hex()}, expected {expected.hex()}"
    yield from _version_violations(record, truncation)


def marker_violations(key: bytes, record: bytes, truncation: bytes) -> Iterator[str]:
    """What is wrong with a purge marker."""
    if not 1 <= len(key) <= KEY_SIZE_MAX:
        yield f"the key has {len(key)} bytes, expected 1 to {KEY_SIZE_MAX}"
    rest = record.removeprefix(version_of(record))
    if not rest.startswith(PURGE_MARKER_TAIL) or len(rest) - len(PURGE_MARKER_TAIL) not in (0, DELETION_TIME_SIZE):
        yield f"the marker ends in {rest.hex()}, expected {PURGE_MARKER_TAIL.hex()}, and maybe a time of 8 bytes"
    yield from _version_violations(record, truncation)


def time_violations(version: bytes) -> Iterator[str]:
    """What is wrong with the time of a version."""
    if number(version[:8]) > TIME_MAX:
        yield f"the version is {version_text(version)}, of a time that no clock shows"


def _version_violations(record: bytes, truncation: bytes) -> Iterator[str]:
    if version_of(record) < truncation:
        lowest = version_text(truncation)
        yield f"the version is {version_text(record)}, expected none below the truncation version {lowest}"


def show(key: bytes) -> str:
    """A key as it stands in a sentence."""
    return repr(key) if len(key) <= SHOWN_KEY_SIZE else f"{key[:SHOWN_KEY_SIZE]!r}... ({len(key)} bytes)"


def version_text(version: bytes) -> str:
    """A version as it stands in a sentence."""
    return f"{number(version[:8])}-{version_of(version)[8:].hex()}"


def _shown(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else shown(value) if isinstance(value, int) else str(value)
