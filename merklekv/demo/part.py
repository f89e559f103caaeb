"""A process of the demo, and whether it should run."""

from __future__ import annotations

from typing import Generic, TypeVar

from merklekv.harness.broker import Broker
from merklekv.harness.process import Process

P = TypeVar("P", bound=Process)


class Part(Generic[P]):
    """A broker or a node. The viewer or the demo's script starts and stops it."""

    def __init__(self, name: str, process: P) -> None:
        self.name = name
        self.process = process
        self.is_wanted = False  # it was started after it was last stopped

    def start(self) -> None:
        self.is_wanted = True
        self.process.launch()

    @property
    def state(self) -> str:
        """down (stopped by the demo), dead (ended by itself), or the state in which it runs."""
        if not self.process.is_running:
            return "dead" if self.is_wanted else "down"
        return self.running_state()

    def running_state(self) -> str:
        """up, starting, or another state of the subclass."""
        raise NotImplementedError


class BrokerPart(Part[Broker]):
    """The broker, which keeps its clients' sessions while it is stopped."""

    def start(self) -> None:
        super().start()
        self._was_up = False

    def stop(self) -> None:
        self.is_wanted = False
        self.process.pause()

    def running_state(self) -> str:
        """up, starting, stopping or frozen."""
        if not self.is_wanted:
            return "frozen" if self.process.kind == "iotcore" else "stopping"
        self._was_up = self._was_up or self.process.is_up
        return "up" if self._was_up else "starting"
