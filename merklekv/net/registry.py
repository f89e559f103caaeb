"""What a handler is, how a command is declared, and how a server finds the one for a name.

A handler is `handler(session, request) -> reply`. For RESP the request is the name and the arguments, for the line
protocol the word and the rest of the line. The reply is bytes, or for a command that may take long a generator, which
works for a few milliseconds between two yields and returns the bytes at its end. It yields

- None: others run now, and it goes on in the next tick;
- a function: it goes on once this returns True (the worker asks every few milliseconds).

A handler raises `RequestError` or an error of the engine to refuse the request, and `Goodbye` to end the connection.
After `Stalled` the server runs the same request again later, so a handler lets it pass only while nothing has changed.

It is declared where it is defined, once for each protocol in which the command exists:

    @command("GETDEL key", "Deletes a key and returns its value.", group="delete", flags=WRITE)
    def getdel(session: Session, request: Request) -> Reply: ...

    @line_command("DELETE key", group="delete")
    def delete_line(session: Session, request: Request) -> Reply: ...

`RESP` and `LINE` hold the declarations; `COMMAND` and a test of the documentation read them. They have no state: a
server makes its own `Commands`, with the call counters, so that a request costs one look-up and no branch on its name.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from merklekv.net.errors import RequestError, wrong_count
from merklekv.net.protocol import resp
from merklekv.net.protocol.text import REFUSED_TRANSACTION, UNKNOWN, Request, show

Pause = Callable[[], bool] | None
Long = Generator[Pause, None, bytes]
Reply = bytes | Long
Handler = Callable[[Any, Request], Reply]  # gets a `session.Session`
# Sessions, the request of each, and how many bytes of replies suffice: the replies to as many as it runs.
BatchHandler = Callable[[Sequence[Any], Sequence[Request], int], list[bytes]]

LINE_PARTS: Final = 2  # the word and the rest of its line
ANY_NUMBER: Final = 1 << 62

# Redis's words for what a command does.
READ: Final = ("readonly", "fast")
SLOW_READ: Final = ("readonly",)
WRITE: Final = ("write", "fast")
SLOW_WRITE: Final = ("write",)
ADMIN: Final = ("admin",)
FAST: Final = ("fast",)

# The counters of STATS, in its order.
GROUPS: Final = (
    *("get", "set", "delete", "exists", "numeric", "string", "bulk", "scan", "dbsize", "flushdb", "hash", "sync"),
    *("management", "replicate", "ping", "echo", "memory", "stat", "clientlist"),
)


@dataclass(frozen=True, slots=True)
class Command:
    """One name in one protocol. `name` and `syntax` are empty for what no client can name."""

    name: str
    handler: Handler
    syntax: str = ""
    group: str = ""  # the STATS counter that it feeds, "" for none
    summary: str = ""
    arity: int = 0  # parts with the name: exactly so many, or at least so many when negative, as Redis counts
    flags: tuple[str, ...] = ()
    batch: BatchHandler | None = None  # runs plain requests, with the fewest parts allowed, several in one call
    always: bool = False  # runs also in a refused transaction, see `commands.refused`

    @property
    def keys(self) -> tuple[int, int, int]:
        """Where the keys stand in a RESP request: first, last (-1: at the end), step. Zeros: nowhere."""
        if self.syntax.split()[1:2] != ["key"]:
            return 0, 0, 0
        return (1, -1 if "[key" in self.syntax else 1, 2 if "[key value" in self.syntax else 1)


RESP: Final[dict[bytes, Command]] = {}
LINE: Final[dict[bytes, Command]] = {}


def command(
    syntax: str,
    summary: str,
    *,
    arity: int = 0,
    group: str = "management",
    flags: tuple[str, ...] = (),
    batch: BatchHandler | None = None,
    always: bool = False,
) -> Callable[[Handler], Handler]:
    """Declares a RESP command: the first word of `syntax` is its name. The syntax gives `arity`, unless it is given."""
    name = syntax.split()[0]

    def declare(handler: Handler) -> Handler:
        parts = arity or _arity(syntax)
        RESP[name.encode()] = Command(name, handler, syntax, group, summary, parts, flags, batch, always)
        return handler

    return declare


def _arity(syntax: str) -> int:
    required, *optional = syntax.split(" [")
    count = len(required.split())
    return -count if optional else count


def line_command(syntax: str, *, group: str = "management", always: bool = False) -> Callable[[Handler], Handler]:
    """Declares a command of the line protocol: the first word of `syntax` is its name."""
    name = syntax.split()[0]

    def declare(handler: Handler) -> Handler:
        LINE[name.encode()] = Command(name, handler, syntax, group, arity=LINE_PARTS, always=always)
        return handler

    return declare


def unnamed(*names: bytes, protocols: Sequence[dict[bytes, Command]] = (RESP, LINE)) -> Callable[[Handler], Handler]:
    """Declares what runs for requests that the parsers or the look-up name, see `protocol.text`."""

    def declare(handler: Handler) -> Handler:
        for commands in protocols:
            commands |= dict.fromkeys(names, Command("", handler, arity=-1, always=True))
        return handler

    return declare


class Entry:
    """A command on one server."""

    __slots__ = ("batch", "calls", "command", "handler", "high", "low")

    def __init__(self, declared: Command) -> None:
        self.command = declared
        self.handler = declared.handler
        self.batch = declared.batch
        self.low = abs(declared.arity)
        self.high = declared.arity if declared.arity > 0 else ANY_NUMBER
        self.calls = 0

    def count(self, calls: int) -> None:
        """Counts calls of the command: the one place that does."""
        self.calls += calls


class Lookup:
    """The commands of one protocol on one server, by name: as declared and in lower case."""

    def __init__(self, declared: Mapping[bytes, Command]) -> None:
        self.all = {name: Entry(one) for name, one in declared.items()}
        self.unknown = self.all[UNKNOWN]
        refused = self.all[REFUSED_TRANSACTION]
        self.entries = dict(self.all)
        self.entries |= {name.lower(): entry for name, entry in self.all.items() if entry.command.name}
        self.refusing = {name: one if one.command.always else refused for name, one in self.entries.items()}


class Commands:
    """What one server runs."""

    def __init__(self) -> None:
        self.resp = Lookup(RESP)
        self.line = Lookup(LINE)

    def calls(self) -> dict[str, int]:
        """Calls since the start, by the STATS group of the command; "" stands for those without one."""
        calls = dict.fromkeys((*GROUPS, ""), 0)
        for entry in {*self.resp.all.values(), *self.line.all.values()}:
            calls[entry.command.group] += entry.calls
        return calls


class Subcommands:
    """The subcommands of a command, as in CLIENT LIST. `run` is its handler, and prints HELP in Redis's form.

    _client = Subcommands("CLIENT")

    @_client.add("GETNAME", "The name of this connection.")
    def _client_getname(session: Session, arguments: Sequence[bytes]) -> bytes: ...
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._known: dict[bytes, Entry] = {}
        self.add("HELP", "Prints this help.")(self._help)

    def add(self, syntax: str, summary: str) -> Callable[[Handler], Handler]:
        """Declares one. Its handler gets what follows its name, as many arguments as the syntax says."""
        name = syntax.split()[0]

        def declare(handler: Handler) -> Handler:
            self._known[name.encode()] = Entry(Command(name, handler, syntax, summary=summary, arity=_arity(syntax)))
            return handler

        return declare

    def run(self, session: Any, request: Request) -> Reply:
        name, *arguments = request[1:]
        entry = self._known.get(name.upper())
        if entry is None:
            raise RequestError(f"unknown subcommand '{show(name)}'. Try {self._name} HELP.")
        if not entry.low <= 1 + len(arguments) <= entry.high:
            raise wrong_count(f"{self._name}|{show(name)}")
        return entry.handler(session, arguments)

    def _help(self, session: Any, arguments: Request) -> Reply:
        lines = [f"{self._name} <subcommand> [<arg> [value] [opt] ...]. Subcommands are:"]
        help_, *others = self._known.values()
        for one in (*others, help_):
            lines += [one.command.syntax, f"    {one.command.summary}"]
        return resp.array(list(map(resp.simple, lines)))
