"""What every input path is: a way on which something from outside reaches the product.

A module of this package lists its paths in `PATHS`; `find_paths` finds them all.

    class Dump(InputPath):
        name = "dump"

        def attack(self, chance: random.Random, inputs: int) -> None: ...

    PATHS = (Dump,)
"""

from __future__ import annotations

import importlib
import pkgutil
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

if TYPE_CHECKING:
    from .arena import Arena


SEED_BITS: Final = 48
SHOWN_MAX: Final = 20  # seeds of a finding


class Finding(AssertionError):
    """The product did what it never may; the text says what, and how to see it again."""


class Slow(Finding):
    """An honest client has waited for too long. On a busy machine that counts only if it comes again."""


class Scene:
    """Where the paths of one run work: a scratch directory, and real nodes and a broker, made when a path asks."""

    def __init__(
        self, scratch: Path, *, measures: bool = False, say: Callable[[str], None] = lambda text: None
    ) -> None:
        """`measures`: also measure how soon an honest client is answered, beside a node that nobody attacks.

        `say`: tells people what goes on.
        """
        self.say = say
        self.scratch = scratch
        self.measures = measures
        self.notes: list[str] = []  # for the report
        self._arenas = 0

    @cached_property
    def arena(self) -> Arena:
        from .arena import Arena  # a run over files alone starts no node

        self._arenas += 1
        return Arena(self.scratch / f"arena-{self._arenas}", measures=self.measures).start()

    @property
    def has_arena(self) -> bool:
        return "arena" in vars(self)

    def renew(self) -> None:
        """The next user of the arena gets a new one."""
        if self.has_arena:
            self.arena.close()
            del self.arena


class InputPath(ABC):
    """One input path. `inputs` counts what was attacked with so far; `share`: of a round's inputs, if it is slow."""

    name: ClassVar[str]
    share: ClassVar[float] = 1.0

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.inputs = 0

    @abstractmethod
    def attack(self, chance: random.Random, inputs: int) -> None:
        """Sends so many inputs, and checks what has to hold. Raises Finding."""

    def replay(self, seeds: Sequence[int]) -> None:
        """Sends the inputs of these seeds, which a finding has named, and checks. Raises Finding."""
        raise SystemExit(f"{self.name}: give it the seed of the campaign")

    def close(self) -> None:  # noqa: B027  most have nothing to end
        """Ends what the path has started itself."""


class SeededPath(InputPath):
    """A path whose inputs follow each from a seed of its own, so that any of them can be sent again alone.

    When a batch fails, the smallest part of it that still fails is looked for, each time from a fresh start (`renew`).
    """

    batch: ClassVar[int] = 500

    @abstractmethod
    def volley(self, seeds: Sequence[int]) -> None:
        """Sends the inputs of these seeds. Raises Finding."""

    @abstractmethod
    def check(self, *, whole: bool) -> None:
        """What has to hold after a batch, or, `whole`, after all. Raises Finding."""

    @abstractmethod
    def renew(self) -> None:
        """Makes a fresh start, after a failure."""

    def attack(self, chance: random.Random, inputs: int) -> None:
        sent: list[int] = []
        tried = sent
        try:
            for at in range(0, inputs, self.batch):
                seeds = [chance.getrandbits(SEED_BITS) for _ in range(min(self.batch, inputs - at))]
                tried = seeds
                self.volley(seeds)
                self.inputs += len(seeds)
                self.check(whole=False)
                sent += seeds
            tried = sent
            self.check(whole=True)
        except Finding as finding:
            self._explain(finding, tried)

    def replay(self, seeds: Sequence[int]) -> None:
        self.volley(seeds)
        self.inputs += len(seeds)
        self.check(whole=True)

    def _explain(self, finding: Finding, seeds: Sequence[int]) -> None:
        """Raises the finding with the fewest inputs that show it again."""
        self.scene.say(f"{self.name}: {finding}\n  looking for the fewest of {len(seeds)} inputs that show it")
        fewest = self._fewest(list(seeds), type(finding))
        if fewest:
            shown = ",".join(map(str, fewest[:SHOWN_MAX])) + (",..." if len(fewest) > SHOWN_MAX else "")
            inputs = "".join(f"\n  {self.show(seed)}" for seed in fewest[:3])
            raise Finding(f"{finding}\n  again: --path {self.name} --only {shown} ({len(fewest)} inputs){inputs}")
        text = f"{finding}\n  it did not come again with the same {len(seeds)} inputs from a fresh start"
        if not isinstance(finding, Slow):
            raise Finding(text)
        self.scene.notes.append(f"{self.name}: {text}")

    def _fewest(self, seeds: list[int], kind: type[Finding]) -> list[int]:
        if not self._fails(seeds, kind):
            return []
        while len(seeds) > 1:
            half = len(seeds) // 2
            for part in (seeds[:half], seeds[half:]):
                if self._fails(part, kind):
                    seeds = part
                    break
            else:
                break
        return seeds

    def _fails(self, seeds: Sequence[int], kind: type[Finding]) -> bool:
        """Whether these inputs show it from a fresh start: twice, if a busy machine may do so, too."""
        for _ in range(2 if kind is Slow else 1):
            self.renew()
            try:
                self.volley(seeds)
                self.check(whole=kind is not Slow)
            except kind:
                continue
            except Finding:
                return kind is not Slow
            return False
        return True

    def show(self, seed: int) -> str:
        """An input, for people."""
        return str(seed)


def find_paths() -> dict[str, type[InputPath]]:
    """All input paths by name."""
    package = importlib.import_module(__package__ or "")
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    modules = [
        importlib.import_module(f".{name}", __package__) for name in names if not name.startswith(("__", "test_"))
    ]
    return {path.name: path for module in modules for path in getattr(module, "PATHS", ())}
