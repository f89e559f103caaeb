"""An input path whose inputs are files: each is tried by itself, in trials of `trial.py`, and follows from its seed."""

from __future__ import annotations

import random
import tempfile
from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Final

from fixtures import engines

from .input_path import SEED_BITS, Finding, InputPath, Scene
from .trial import Trials

KIND_SIZE: Final = 60  # characters of a finding that tell whether it is a new one


class FilePath(InputPath):
    """Goes on after a finding, and raises all of them in the end, one of each kind."""

    share = 0.01  # each is a process or more

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._memory = tempfile.TemporaryDirectory(dir=engines.MEMORY, prefix="merklekv-hostile-")
        self.root = Path(self._memory.name)

    @abstractmethod
    def one(self, chance: random.Random) -> None:
        """Makes an input and tries it. Raises Finding."""

    @cached_property
    def trials(self) -> Trials:
        return Trials()

    def attack(self, chance: random.Random, inputs: int) -> None:
        found: dict[str, str] = {}
        for _ in range(inputs):
            seed = chance.getrandbits(SEED_BITS)
            try:
                self.replay([seed])
            except Finding as finding:
                text = f"{finding}\n  again: --path {self.name} --only {seed}"
                kind = str(finding).partition("\n")[0][-KIND_SIZE:]
                if kind not in found:
                    self.scene.say(text)
                found.setdefault(kind, text)
        if found:
            raise Finding("\n".join(found.values()))

    def replay(self, seeds: Sequence[int]) -> None:
        for seed in seeds:
            self.inputs += 1
            self.one(random.Random(seed))

    def close(self) -> None:
        if "trials" in vars(self):
            self.trials.close()
        self._memory.cleanup()
