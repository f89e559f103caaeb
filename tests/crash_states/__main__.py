"""Crash states from the system calls of real runs.

    python -m tests.crash_states --states 20000                     of all scenarios together
    python -m tests.crash_states --scenario outbox --states 500     of one
    python -m tests.crash_states --kept DIR --state first/123:none  one state of recordings that were kept

Each scenario (`programs.py`) runs under strace. `disk.py` says what a power cut may leave at each moment of it. Each
state is laid down, and judged (`judge.py`): what was acknowledged is there, and it is what some step of the story has
left; starting twice works, and the one checker finds nothing. Some of the starts are recorded, too, with some writes
behind them, and the power goes again: once after a power cut, when what was left is on disk, and once after the end of
the process alone, when what was not synced is still only in memory.

The status is 1 when a state is wrong; the recordings are kept, and the command that judges it alone is printed.
"""

from __future__ import annotations

import argparse
import logging
import pickle
import random
import secrets
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fixtures.engines import MEMORY

from merklekv.errors import MerkleKVError

from .disk import NEVER, Disk, State, choose, describe, is_same
from .judge import Case, Promises, promised
from .programs import SCENARIOS, Model
from .trace import Trace, read, record

ROOT: Final = Path(__file__).parents[2]
PROGRAM: Final = [sys.executable, "-m", "tests.crash_states.programs"]
STATES: Final = 3000
FAILURES_MAX: Final = 5
STATES_PER_START: Final = 10  # of a scenario's states; for each so many one start is recorded of either kind
OF_STARTS: Final = 0.4  # of the states are those that the recordings of starts leave
DATA: Final = {"first_start": "new/deep/data"}
DURABILITY: Final = {"everysec": "everysec", "outbox": "everysec", "killed": "never"}
NO_STARTS: Final = ("copies", "dumps")  # what they do to the data directory, others do more often


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory in memory, where there is one: a sync takes no time there."""
    place = Path(tempfile.mkdtemp(dir=MEMORY, prefix="merklekv-states-"))
    try:
        yield place
    finally:
        shutil.rmtree(place)


@dataclass
class Recording:
    """A disk with its marks, and what must hold of what it leaves."""

    name: str
    disk: Disk
    case: Case
    trace: Trace
    first: int  # event with which the trace begins

    def promises(self, state: State) -> Promises:
        """What was promised by then."""
        seconds = self.trace.time_at(max(0, state.event - self.first))
        return promised(self.disk.marks, state.event, seconds, self.case.durability, self.case.clock)

    def judge(self, state: State) -> list[str]:
        """What is wrong with a state."""
        with scratch() as place:
            root = place / "root"
            root.mkdir()
            stale = b"".join(each.data for each in self.disk.writes[:50]) if state.is_stale else b""
            self.disk.lay_down(root, state.event, state.choice(self.disk), stale)
            problems: list[str] = []
            try:
                problems += self.case.judge(root, self.promises(state), place / "scratch")
            except MerkleKVError as error:
                problems.append(f"{type(error).__name__}: {error}")
            except Exception:  # noqa: BLE001  whatever it is, the state is wrong
                problems.append(traceback.format_exc())
            return [problem.replace(str(place), "") for problem in problems]


class Scenario:
    """The recordings of one scenario, in the directory `kept`."""

    def __init__(self, name: str, kept: Path) -> None:
        self.name = name
        self.kept = kept
        self.data = DATA.get(name, "data")
        self.publishes = name == "outbox"

    def record(self, seed: str) -> None:
        """Runs the program."""
        with scratch() as place:
            root, out = _rooms(place)
            record([*PROGRAM, self.name, str(root), str(out), seed], out / "trace", ROOT)
            self._keep(place, "first")

    def first(self) -> Recording:
        """What the program did."""
        out = self.kept / "first"
        root = Path((out / "root").read_text())
        disk, trace = Disk(), read(out / "trace")
        disk.play(trace, root, root.parent / "out/marks")
        _require_same(disk, out / "end")
        case = Case(_story(out / "story"), self.data, DURABILITY.get(self.name, "always"), self.publishes)
        return Recording("first", disk, case, trace, 1)

    def record_starts(self, first: Recording, count: int, chance: random.Random) -> None:
        """Starts on so many states that a power cut leaves, and on as many that the end of the process leaves."""
        disk = first.disk
        states = choose(disk, count, chance)
        points = []  # of kills: most of them where a name is not on disk yet
        renamed = [each.entered for each in disk.renames if each.old and each.new]
        named = [each.entered for each in disk.renames]
        for events, share in ((renamed, count // 2), (named, count // 4), (disk.points, count // 4)):
            points += chance.sample(events, min(len(events), share))
        states += [State(point, "killed") for point in points]
        with scratch() as place:
            root, out = _rooms(place)
            for number, state in enumerate(states):
                (root / str(number)).mkdir()
                disk.lay_down(root / str(number), state.event, state.choice(disk))
            shutil.copytree(root, out / "begin")
            (out / "states").write_text("\n".join(map(str, states)))
            clock = first.promises(State(NEVER, "all")).clock
            words = (self.data, "yes" if self.publishes else "no", str(clock))
            record([*PROGRAM, "resume", str(root), str(out), *words], out / "trace", ROOT)
            self._keep(place, "starts")

    def starts(self, first: Recording) -> Iterator[Recording]:
        """What these starts did."""
        out = self.kept / "starts"
        root, trace = Path((out / "root").read_text()), read(out / "trace")
        for number, line in enumerate((out / "states").read_text().splitlines()):
            state, name = State.parse(line), str(number)
            is_kill = state.name == "killed"
            disk = first.disk.killed_at(state.event) if is_kill else Disk().scan(out / "begin" / name)
            begin = disk.last + 1
            disk.play(trace, root / name, root.parent / "out/marks", name)
            _require_same(disk, out / "end" / name)
            story, before = _story(out / f"story-{name}"), first.promises(state)
            clock = first.promises(State(NEVER, "all")).clock
            case = Case(story, self.data, "always", self.publishes, clock, first.case, before)
            yield Recording(f"starts/{name}", disk, case, trace, begin)

    def _keep(self, place: Path, name: str) -> None:
        (place / "out/root").write_text(str(place / "root"))
        shutil.copytree(place / "root", place / "out/end")
        shutil.copytree(place / "out", self.kept / name)

    def run(self, states: int, seed: str) -> int:
        """Records and judges; the number of states that are wrong."""
        chance = random.Random(seed)
        began = time.monotonic()
        self.record(seed)
        first = self.first()
        of_starts = 0 if self.name in NO_STARTS else int(states * OF_STARTS)
        todo = [(first, state) for state in choose(first.disk, states - of_starts, chance)]
        if of_starts:
            count = max(4, of_starts // STATES_PER_START)
            self.record_starts(first, count, chance)
            recordings = list(self.starts(first))
            for recording in recordings:
                share = max(1, of_starts // len(recordings))
                todo += [(recording, state) for state in choose(recording.disk, share, chance)]
        wrong = 0
        for recording, state in todo:
            name = f"{recording.name}/{state}"
            (self.kept / "current").write_text(name)
            if problems := recording.judge(state):
                wrong += 1
                tell(self, recording, state, problems)
                if wrong == FAILURES_MAX:
                    break
        seconds = time.monotonic() - began
        say(f"{self.name}: {len(todo)} states, {wrong} wrong, {seconds:.1f} s, seed {seed}")
        return wrong

    def find(self, name: str) -> Recording:
        """A recording by its name."""
        first = self.first()
        return first if name == first.name else next(each for each in self.starts(first) if each.name == name)


def tell(scenario: Scenario, recording: Recording, state: State, problems: list[str]) -> None:
    """Shows what is wrong."""
    say(
        f"\n{scenario.name}: WRONG after a power cut: python -m tests.crash_states --kept {scenario.kept} "
        f"--scenario {scenario.name} --state {recording.name}/{state}"
    )
    for problem in problems:
        say(f"  {problem}")
    say(f"promised: {recording.promises(state)}")
    say(f"what no sync covers:\n{describe(recording.disk, state)}")


def _rooms(place: Path) -> tuple[Path, Path]:
    for name in ("root", "out"):
        (place / name).mkdir()
    return place / "root", place / "out"


def _story(path: Path) -> list[Model]:
    story: list[Model] = pickle.loads(path.read_bytes())
    return story


def _require_same(disk: Disk, place: Path) -> None:
    if difference := is_same(disk, place):
        raise AssertionError(f"the trace and the directory differ: {difference}")


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash_states")
    parser.add_argument("--states", type=int, default=STATES, help=f"how many, of all scenarios together [{STATES}]")
    parser.add_argument("--scenario", choices=SCENARIOS, action="append", help="this one only")
    parser.add_argument("--seed", default="", help="of what the programs do and which states are judged")
    parser.add_argument("--kept", type=Path, help="where the recordings are kept")
    parser.add_argument("--state", default="", help="one state of the recordings that are there")
    options = parser.parse_args()
    logging.disable()
    names = options.scenario or list(SCENARIOS)
    kept: Path = options.kept or Path(tempfile.mkdtemp(prefix="merklekv-crash-"))
    if options.state:
        recording, _, state = options.state.rpartition("/")
        scenario = Scenario(names[0], kept)
        found = scenario.find(recording)
        problems = found.judge(State.parse(state))
        if problems:
            tell(scenario, found, State.parse(state), problems)
        say(f"{options.state}: {'wrong' if problems else 'nothing wrong'}")
        return int(bool(problems))
    seed = options.seed or secrets.token_hex(4)
    wrong = 0
    for name in names:
        place = kept / name
        place.mkdir(parents=True)
        wrong += (failures := Scenario(name, place).run(options.states // len(names), seed))
        if not failures:
            shutil.rmtree(place)
    if not wrong and not options.kept:
        kept.rmdir()
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
