"""What clients did to a server, and what must therefore be there after it died.

Each client owns keys that nobody else writes, so what they must hold is known exactly: everything acknowledged, and of
what was sent and not answered some first part, since a connection's commands run in order. `survivor` finds that part,
and with it shows that no acknowledged write is missing and that no command, MSET with its many keys included, is half
done.

Keys that all clients write are checked by what must hold whatever the order (`Shared`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

CLIENTS = 20
COUNTER = b"shared:count"
SET_TOGETHER = [b"shared:set:%d" % number for number in range(4)]

Model = dict[bytes, bytes]
Reply = bytes | int | list[object] | None


class Command(NamedTuple):
    """One request: its words, the first of them the name."""

    words: tuple[bytes, ...]

    @property
    def shared(self) -> bool:
        return self.words[1].startswith(b"shared:")

    def apply(self, model: Model) -> Reply:
        """Does to the model what the server does to its data; the reply that the server must give."""
        name, key, *rest = self.words
        match name:
            case b"SET":
                model[key] = rest[0]
                return b"OK"
            case b"DEL":
                return 0 if model.pop(key, None) is None else 1
            case b"INCR":
                model[key] = b"%d" % (int(model.get(key, b"0")) + 1)
                return int(model[key])
            case b"APPEND":
                model[key] = model.get(key, b"") + rest[0]
                return len(model[key])
            case b"MSET":
                model.update(zip(self.words[1::2], self.words[2::2], strict=True))
                return b"OK"
            case b"MERGE":
                model[rest[0]] = rest[2]
                return [1, 0, []]
        raise AssertionError(name)


@dataclass
class Write:
    """One MSET of the keys that all clients set together."""

    token: bytes
    sent: float  # monotonic seconds
    acknowledged: float | None = None


@dataclass
class Shared:
    """What one client did to the keys that all write, and what it read of them."""

    counted: int = 0  # increments acknowledged
    counting: int = 0  # increments sent and not answered
    count_seen: int = 0  # the largest value in any reply
    writes: list[Write] = field(default_factory=list)


@dataclass
class Client:
    """What one client knows."""

    model: Model  # everything acknowledged
    unanswered: list[Command] = field(default_factory=list)  # on its own keys, oldest first
    acknowledged: int = 0
    refused: list[str] = field(default_factory=list)  # errors in reply to commands: those must have changed nothing
    wrong: list[str] = field(default_factory=list)  # replies that do not fit the model
    shared: Shared = field(default_factory=Shared)


def survivor(client: Client, found: Model) -> Model | None:
    """The model after everything acknowledged and some first part of the rest, if that is what was found."""
    model = dict(client.model)
    for command in [None, *client.unanswered]:
        if command is not None:
            command.apply(model)
        if model == found:
            return model
    return None


def difference(client: Client, found: Model) -> str:
    """For a failure: the keys that are not as acknowledged, and what was under way for them."""
    lines = []
    for key in sorted(client.model.keys() | found.keys()):
        if client.model.get(key) != found.get(key):
            pending = [command.words for command in client.unanswered if key in command.words]
            known, there = repr(client.model.get(key)), repr(found.get(key))
            lines.append(f"{key!r}: acknowledged {known:.80}, found {there:.80}, pending {pending!r:.200}")
    return "\n".join(lines)


def check_shared(before: Model, found: Model, clients: list[Client]) -> list[str]:
    """What is wrong with the keys that all clients write."""
    problems = []
    count_before, count = int(before.get(COUNTER, b"0")), int(found.get(COUNTER, b"0"))
    least = count_before + sum(client.shared.counted for client in clients)
    most = least + sum(client.shared.counting for client in clients)
    if not least <= count <= most:
        problems.append(f"the counter is {count}, but {least} to {most} were counted")
    seen = max(client.shared.count_seen for client in clients)
    if count < seen:
        problems.append(f"the counter is {count}, but a client has read {seen}")
    tokens = {found.get(key) for key in SET_TOGETHER}
    if len(tokens) > 1:
        problems.append(f"keys that are only ever set together differ: {tokens}")
    return problems + _lost_write(before.get(SET_TOGETHER[0]), tokens.pop(), clients)


def _lost_write(before: bytes | None, token: bytes | None, clients: list[Client]) -> list[str]:
    """A write is lost when one is found that had been answered before the other was sent."""
    writes = [write for client in clients for write in client.shared.writes]
    stands = next((write for write in writes if write.token == token), None)
    if stands is None and token != before:
        return [f"nobody ever set {token!r}"]
    answered = float("-inf") if stands is None else stands.acknowledged
    if answered is None:
        return []
    return [
        f"{write.token!r} was acknowledged and is later than {token!r}, which is there"
        for write in writes
        if write.acknowledged is not None and write.sent > answered
    ]
