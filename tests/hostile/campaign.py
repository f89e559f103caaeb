"""A campaign: rounds of attacks over input paths, from one seed, and the report at its end."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Self

from .input_path import Finding, InputPath, Scene

FIRST_INPUTS: Final = 2000  # of a path, before it is the turn of the next
ROUND_INPUTS: Final = 20_000  # likewise, when all had their first turn


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


class Campaign:
    """Attacks these paths. After a finding it goes on with new nodes."""

    def __init__(self, paths: Iterable[type[InputPath]], seed: int, scratch: Path, *, measures: bool = True) -> None:
        self.seed = seed
        self.findings: list[str] = []
        self._slowest_s = 0.0
        self._memory: dict[str, str] = {}  # of the victim, in the last attack on each path
        self.scene = Scene(scratch, measures=measures, say=say)
        self._paths = [path(self.scene) for path in paths]
        self._seconds: dict[str, float] = dict.fromkeys((path.name for path in self._paths), 0.0)

    def run(self, inputs: int = 0, seconds: float = 0) -> None:
        """Each path with so many inputs, or rounds of all until the time is over."""
        end = time.monotonic() + seconds
        number = 0
        while True:
            for path in self._paths:
                if seconds and time.monotonic() > end:
                    return
                chance = random.Random(f"{self.seed}:{path.name}:{number}")
                many = inputs or (FIRST_INPUTS if not number else ROUND_INPUTS)
                self._attack(path, chance, many if len(self._paths) == 1 else int(many * path.share))
            number += 1
            if not seconds:
                return

    def replay(self, seeds: Sequence[int]) -> None:
        """These inputs alone, of the one path."""
        for path in self._paths:
            self._watched(path, partial(path.replay, seeds))

    def _attack(self, path: InputPath, chance: random.Random, inputs: int) -> None:
        self._watched(path, partial(path.attack, chance, inputs))

    def _watched(self, path: InputPath, attack: Callable[[], None]) -> None:
        began, before = time.monotonic(), path.inputs
        try:
            attack()
        except Finding as finding:
            again = f"python -m tests.hostile --path {path.name} --seed {self.seed}"
            self.findings.append(f"{path.name}: {finding}")
            say(f"FINDING in {path.name}: {finding}\n  the campaign: {again}")
            self.scene.renew()
        if self.scene.has_arena:
            self._slowest_s = max(self._slowest_s, self.scene.arena.slowest_s)
            self._memory[path.name] = self.scene.arena.memory
        took = time.monotonic() - began
        self._seconds[path.name] += took
        say(f"{path.name}: {path.inputs - before:,} inputs in {took:.1f} s")

    def report(self) -> str:
        """What was done, for people."""
        lines = [
            f"seed {self.seed}: {sum(path.inputs for path in self._paths):,} inputs, {len(self.findings)} findings"
        ]
        for path in self._paths:
            rate = path.inputs / max(self._seconds[path.name], 1e-9)
            memory = f"; memory: {self._memory[path.name]}" if self._memory.get(path.name) else ""
            lines.append(f"  {path.name:<10} {path.inputs:>9,} inputs, {rate:,.0f} a second with all checks{memory}")
        if self._slowest_s:
            lines.append(
                f"  the slowest answer to an honest client took {self._slowest_s * 1000:.0f} ms of processor time"
            )
        lines += [f"  {line}" for line in self.scene.notes]
        return "\n".join([*lines, *(f"FINDING in {finding}" for finding in self.findings)])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for path in self._paths:
            path.close()
        self.scene.renew()
