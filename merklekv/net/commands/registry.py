"""How a command is described, and how a server finds the handler for a name.

`Command` is a row of the table in `commands`; it holds no state. `Commands` is what one server runs on: for each
protocol a dictionary from a name to an `Entry` with the handler, the bounds on the number of arguments and a call
counter, so that running a request costs one look-up and no branch on its name.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from merklekv.errors import MerkleKVError
from merklekv.net.protocol.text import BROKEN, FOREIGN, REFUSED
from merklekv.net.session import BatchHandler, Handler

ARGUMENTS_ANY = 1 << 62
TEXT_PARTS = 2  # the word and the rest of its line
# What runs between a MULTI and its end; "" is what ends a broken stream.
RUN_WHILE_REFUSING = frozenset(("MULTI", "EXEC", "DISCARD", "RESET", "QUIT", ""))


@dataclass(frozen=True, slots=True)
class Command:
    """One name that clients may use, in either or both protocols.

    `arity` counts the name, as Redis does: exactly that many parts, or at least its absolute value when negative.
    `flags` are Redis's words: `write`, `readonly`, `fast`, `admin`; `long` marks what works in slices.
    `keys` is (first, last, step): where the keys stand in a RESP request. `resp_row` is a faster way to run many
    plain requests of this name that a pipeline begins with: it replies to as many of them as it likes.
    """

    name: str
    group: str  # the STATS counter it feeds, "" for none
    summary: str
    text: Handler | None = None
    text_syntax: str = ""
    resp: Handler | None = None
    resp_syntax: str = ""
    arity: int = 0
    flags: tuple[str, ...] = ()
    keys: tuple[int, int, int] = (0, 0, 0)
    resp_row: BatchHandler | None = None


class Entry:
    """One name in one protocol, on one server."""

    __slots__ = ("calls", "command", "handler", "high", "low", "row")

    def __init__(self, command: Command, handler: Handler, low: int, high: int) -> None:
        self.command = command
        self.handler = handler
        self.low = low
        self.high = high
        self.calls = 0
        self.row: BatchHandler | None = None


class Commands:
    """The command table made ready for one server."""

    def __init__(
        self, table: Iterable[Command], broken: Command, foreign: Command, unknown: Command, refused: Command
    ) -> None:
        self.table = {command.name: command for command in table}
        self.text: dict[bytes, Entry] = {}
        self.resp: dict[bytes, Entry] = {}
        self._entries: list[Entry] = []
        for command in self.table.values():
            name = command.name.encode()
            self._enter(command, name, name.lower())
        self._enter(broken, BROKEN, REFUSED)
        self._enter(foreign, FOREIGN)
        self.text_unknown, self.resp_unknown = self._enter(unknown)
        text_refused, resp_refused = self._enter(refused)
        self.text_refusing = _refusing(self.text, text_refused)
        self.resp_refusing = _refusing(self.resp, resp_refused)

    def _enter(self, command: Command, *names: bytes) -> tuple[Entry, Entry]:
        low, high = abs(command.arity), command.arity if command.arity > 0 else ARGUMENTS_ANY
        text = Entry(command, command.text or _absent, TEXT_PARTS, TEXT_PARTS)
        resp = Entry(command, command.resp or _absent, low, high)
        resp.row = command.resp_row
        self._entries += (text, resp)
        if command.text:
            self.text |= dict.fromkeys(names, text)
        if command.resp:
            self.resp |= dict.fromkeys(names, resp)
        return text, resp

    def calls(self) -> dict[str, int]:
        """Calls since the start, by the STATS group of the command."""
        groups: dict[str, int] = {}
        for entry in self._entries:
            group = entry.command.group
            groups[group] = groups.get(group, 0) + entry.calls
        return groups


def _refusing(entries: dict[bytes, Entry], refused: Entry) -> dict[bytes, Entry]:
    """The table of a session that refuses its commands, see `transactions`."""
    return {name: entry if entry.command.name in RUN_WHILE_REFUSING else refused for name, entry in entries.items()}


def _absent(session: object, request: object) -> bytes:
    raise MerkleKVError("this command has no handler in this protocol")
