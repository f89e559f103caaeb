"""What a viewer can do, by name: the same for the keys, the buttons of the page, and the script of outages."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from merklekv.demo.cluster import Cluster
from merklekv.demo.health import State
from merklekv.demo.part import AnyPart, NodePart
from merklekv.demo.script import Script

SHOW_S: Final = 16.0
WAITING_MAX: Final = 8
KEYS: Final[Mapping[str, tuple[str, ...]]] = {  # a key does the first of these that makes sense
    "1": ("kill-node-1", "start-node-1"),
    "2": ("kill-node-2", "start-node-2"),
    "3": ("kill-node-3", "start-node-3"),
    "b": ("stop-broker", "start-broker"),
    "t": ("pause", "resume"),
    "s": ("show",),
}


@dataclass(frozen=True, slots=True)
class Control:
    label: str  # on its button
    part: str  # the process that it is for, or nothing
    makes_sense: Callable[[], bool]
    do: Callable[[], None]


class Controls:
    """Of a cluster. `press` may be called from any thread; all is done by `act`, in the thread of the cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._pressed: deque[str] = deque(maxlen=WAITING_MAX)
        self._script: Script | None = None
        self.all: Final = dict(self._make())

    def press(self, name: str) -> None:
        self._pressed.append(name)

    def press_key(self, key: str) -> None:
        """A key without a meaning does nothing."""
        for name in [name for name in KEYS.get(key, ()) if self.all[name].makes_sense()][:1]:
            self.press(name)
            self.act()

    def act(self) -> None:
        """Does what was pressed, and what the script has now; leaves out what makes no sense."""
        now = time.monotonic()
        names = [self._pressed.popleft() for _ in range(len(self._pressed))]
        if self._script is not None:
            names.append(self._script.next(now))
            if self._script.is_over(now):
                self._script = None
        for name in names:
            control = self.all.get(name)
            if control is not None and control.makes_sense():
                control.do()

    def begin(self, script: Script) -> None:
        """Follows a script from now on."""
        self._script = script

    @property
    def is_showing(self) -> bool:
        """Whether a script is under way."""
        return self._script is not None

    def _make(self) -> Iterator[tuple[str, Control]]:
        cluster = self._cluster
        for part in cluster.parts:
            yield from self._of(part)
        yield "pause", Control("pause writing", "", lambda: cluster.writing, lambda: cluster.write(False))
        yield "resume", Control("go on writing", "", lambda: not cluster.writing, lambda: cluster.write(True))
        yield "show", Control("run the show", "", self._can_show, self._show)

    def _of(self, part: AnyPart) -> Iterator[tuple[str, Control]]:
        word, label = ("kill", "kill -9") if isinstance(part, NodePart) else ("stop", "stop")
        name, cluster = part.name, self._cluster
        yield f"{word}-{name}", Control(label, name, lambda: part.is_there, lambda: cluster.stop(part))
        yield f"start-{name}", Control("start", name, lambda: not part.is_there, lambda: cluster.start(part))

    def _can_show(self) -> bool:
        return not self.is_showing and self._cluster.health.state is State.EQUAL

    def _show(self) -> None:
        if not self._cluster.writing:
            self._cluster.write(True)
        self.begin(Script(time.monotonic(), SHOW_S))
