"""What a handler is, how a command is declared, and how a server finds the one for a name.

A handler is `handler(session, request) -> reply`. For RESP the request is the name and the arguments, for the line
protocol the word and the rest of the line. The reply is bytes, or for a command that may take long a generator, which
works for a few milliseconds between two yields and returns the bytes at its end. It yields

- None: others run now, and it goes on in the next tick;
- a function: it goes on once this returns True (the worker asks every few milliseconds);
- a `waiting.Signal`: it goes on once this is set or has expired, and nobody asks.

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
from dataclasses import dataclass, field, replace
from typing import Any, Final

from merklekv.errors import StorageFailed
from merklekv.histogram import Histogram
from merklekv.net.errors import Goodbye, Rejected, RequestError, wrong_count
from merklekv.net.protocol import resp
from merklekv.net.protocol.text import IN_TRANSACTION, REFUSED_SUBSCRIBED, UNKNOWN, Request, show
from merklekv.net.syntax import KEY_NAMES

Pause = Callable[[], bool] | None
Long = Generator[Pause, None, bytes]
Reply = bytes | Long
Handler = Callable[[Any, Request], Reply]  # gets a `session.Session`
# Sessions, the request of each, and how many bytes of replies suffice: the replies to as many as it runs.
BatchHandler = Callable[[Sequence[Any], Sequence[Request], int], list[bytes]]

LINE_PARTS: Final = 2  # the word and the rest of its line
ANY_NUMBER: Final = 1 << 62
# Of a command that takes options but no list. They are read at once, and may come twice, in a million arguments too.
OPTIONS_MAX: Final = 1000
SUBCOMMAND_MAX: Final = 100_000  # arguments of a subcommand: most go through them at once
QUEUED_MAX: Final = 100_000  # requests of one transaction
QUEUED_PARTS: Final = 8  # beside those that a command must have: requests of up to so many are queued several at once

# Redis's words for what a command does.
READ: Final = ("readonly", "fast")
SLOW_READ: Final = ("readonly",)
WRITE: Final = ("write", "fast")
SLOW_WRITE: Final = ("write",)
ADMIN: Final = ("admin",)
FAST: Final = ("fast",)
WRITES: Final = "write"  # one of them, for tests of what a command does
READS: Final = "readonly"
NOSCRIPT: Final = "noscript"  # not allowed in a script
NO_MULTI: Final = "no_multi"  # not allowed in a transaction: it may have to wait, or ends the connection
ALONE: Final = (*ADMIN, NOSCRIPT, NO_MULTI)

# What a client that has subscribed over RESP2 may run.
SUBSCRIBED: Final = frozenset(["SUBSCRIBE", "UNSUBSCRIBE", "PSUBSCRIBE", "PUNSUBSCRIBE", "PING", "QUIT", "RESET"])

# The counters of STATS, in its order.
GROUPS: Final = (
    *("get", "set", "delete", "exists", "numeric", "string", "bulk", "scan", "dbsize", "flushdb", "hash", "sync"),
    *("management", "replicate", "ping", "echo", "memory", "stat", "clientlist"),
)


@dataclass(frozen=True, slots=True)
class Command:
    """One name in one protocol. `name` and `syntax` are empty for what no client can name.

    `reply` and `note` are for docs/protocol.md, in Markdown: the reply where the page has to say it, and for a command
    of Redis what differs from there.
    `batches`: by number of parts, what runs plain requests of so many parts in one call. It ends before the first that
    is not plain: that one runs by itself.
    """

    name: str
    handler: Handler
    syntax: str = ""
    group: str = ""  # the STATS counter that it feeds, "" for none
    summary: str = ""
    arity: int = 0  # parts with the name: exactly so many, or at least so many when negative, as Redis counts
    flags: tuple[str, ...] = ()
    batches: Mapping[int, BatchHandler] = field(default_factory=dict)
    always: bool = False  # runs between MULTI and EXEC, too
    reply: str = ""
    note: str = ""

    def takes(self, parts: int) -> bool:
        """Whether a request may have so many parts."""
        return parts == self.arity if self.arity > 0 else -self.arity <= parts <= self.parts_max

    @property
    def parts_max(self) -> int:
        """How many parts a request may have, where there is no fixed number."""
        return OPTIONS_MAX if self.syntax and "..." not in self.syntax else ANY_NUMBER

    @property
    def keys(self) -> tuple[int, int, int]:
        """Where the keys stand in a RESP request: first, last (-1: at the end), step. Zeros: nowhere."""
        places = [at for at, word in enumerate(self.syntax.partition(" [")[0].split()) if word in KEY_NAMES]
        if not places or self.name in CONTAINERS:
            return 0, 0, 0
        return (places[0], -1 if "[key" in self.syntax else places[-1], 2 if "[key value" in self.syntax else 1)


CONTAINERS: Final[dict[str, Subcommands]] = {}  # the commands that have subcommands
RESP: Final[dict[bytes, Command]] = {}
LINE: Final[dict[bytes, Command]] = {}


def command(
    syntax: str,
    summary: str,
    *,
    arity: int = 0,
    group: str = "management",
    flags: tuple[str, ...] = (),
    batches: Mapping[int, BatchHandler] | None = None,
    always: bool = False,
    reply: str = "",
    note: str = "",
) -> Callable[[Handler], Handler]:
    """Declares a RESP command: the first word of `syntax` is its name. The syntax gives `arity`, unless it is given."""
    name = syntax.split()[0]

    def declare(handler: Handler) -> Handler:
        parts = arity or _arity(syntax)
        RESP[name.encode()] = Command(
            name, handler, syntax, group, summary, parts, flags, batches or {}, always, reply, note
        )
        return handler

    return declare


def _arity(syntax: str) -> int:
    """How many parts it has: `<...>` is one at least, `[...]` none."""
    required, *optional = syntax.split(" [")
    head, choice, _ = required.partition(" <")
    count = len(head.split()) + bool(choice)
    return -count if optional or choice else count


def line_command(
    syntax: str, *, group: str = "management", always: bool = False, reply: str = "", note: str = ""
) -> Callable[[Handler], Handler]:
    """Declares a command of the line protocol: the first word of `syntax` is its name."""
    name = syntax.split()[0]

    def declare(handler: Handler) -> Handler:
        LINE[name.encode()] = Command(
            name, handler, syntax, group, arity=LINE_PARTS, always=always, reply=reply, note=note
        )
        return handler

    return declare


def unnamed(*names: bytes, protocols: Sequence[dict[bytes, Command]] = (RESP, LINE)) -> Callable[[Handler], Handler]:
    """Declares what runs for requests that the parsers or the look-up name, see `protocol.text`."""

    def declare(handler: Handler) -> Handler:
        for commands in protocols:
            commands |= dict.fromkeys(names, Command("", handler, arity=-1, always=True))
        return handler

    return declare


def full_name(request: Request) -> str:
    """The command of a RESP request, with its subcommand: `client|list`."""
    known = RESP[request[0].upper()]
    subcommands = getattr(known.handler, "__self__", None)
    has_more = isinstance(subcommands, Subcommands) and len(request) > 1 and subcommands.has(request[1])
    return show(b"|".join(request[: 1 + has_more]).lower())


class Entry:
    """A command on one server."""

    __slots__ = (
        "_counted_by",
        "batches",
        "calls",
        "command",
        "failed",
        "grows",
        "handler",
        "high",
        "low",
        "rejected",
        "time",
        "waited",
        "writes",
    )

    def __init__(self, declared: Command, waited: Histogram, stands_for: Entry | None = None) -> None:
        self.command = declared
        self.handler = declared.handler
        self.batches = dict(declared.batches)
        self.low = abs(declared.arity)
        self.high = declared.arity if declared.arity > 0 else declared.parts_max
        self.writes = WRITES in declared.flags
        # Whether it may make the data grow. A deletion finds room also where that does not.
        self.grows = self.writes and declared.group not in ("delete", "flushdb")
        self.calls = 0
        self.failed = 0  # of these, how many were answered with an error
        self.rejected = 0  # requests that were no call: they had too few parts, or came where the command may not
        self.time = Histogram()  # that they took, without what they waited for
        self.waited = waited  # from reading a request to sending its reply, of the whole group
        self._counted_by = stands_for or self

    def count_failure(self, problem: Exception) -> None:
        """Counts a call, which is counted already, as one that ended in this error."""
        if isinstance(problem, Rejected):
            self.calls -= 1
            self._counted_by.rejected += 1
        elif not isinstance(problem, Goodbye):
            self.failed += 1

    def wrong_count(self, session: Any, name: bytes) -> RequestError:
        """The error for a request with too few or too many parts. No transaction with one may run."""
        problem = wrong_count(name, Rejected)
        if self.command.name == "EXEC":  # it ends the transaction, as in Redis
            session.watched.clear()
            session.use(None)
            return Rejected(f"Transaction discarded because of: {problem}", code="EXECABORT")
        if session.transaction is not None:
            session.transaction.fail()
        return problem

    def run_together(self, sessions: Sequence[Any], requests: Sequence[Request], room: int) -> list[bytes]:
        """Runs requests with as many parts in one call: the replies to as many of the first as their batch takes."""
        batch = self.batches.get(len(requests[0]))
        if batch is None:
            return []
        try:
            replies = batch(sessions, requests, room)
        except StorageFailed:
            raise
        except Exception:  # noqa: BLE001  each runs by itself then, in order, and the one that fails is told
            return []
        self.calls += len(replies)
        return replies


class Queueing(Entry):
    """What stands for a command between MULTI and EXEC: it puts requests into the transaction of the session."""

    __slots__ = ("_container", "_entry")

    def __init__(self, entry: Entry) -> None:
        super().__init__(entry.command, entry.waited, entry)
        self._entry = entry
        self._container = CONTAINERS.get(entry.command.name)
        self.handler = self._queue
        if NO_MULTI not in self.command.flags and self._container is None:
            self.batches = dict.fromkeys(range(self.low, min(self.high, self.low + QUEUED_PARTS) + 1), self._queue_all)

    def _queue(self, session: Any, request: Request) -> Reply:
        if NO_MULTI in self.command.flags:
            session.transaction.fail()
            raise Rejected("Command not allowed inside a transaction")
        if self._container is not None and len(request) > 1:  # COMMAND has a meaning of its own, too
            try:
                self._container.find(session, request)
            except Rejected:
                session.transaction.fail()
                raise
        transaction = session.transaction
        if not transaction.add(self._entry, (request,)):
            transaction.fail()
            limits = f"{QUEUED_MAX} commands or {transaction.bytes_max} bytes"
            raise Rejected(f"transaction of more than {limits}: split it into several")
        return resp.QUEUED

    def _queue_all(self, sessions: Sequence[Any], requests: Sequence[Request], room: int) -> list[bytes]:
        count = 0
        if sessions[0] is sessions[-1]:
            count = len(requests) if sessions[0].transaction.add(self._entry, requests) else 0
        else:
            for session, request in zip(sessions, requests, strict=True):
                if not session.transaction.add(self._entry, (request,)):
                    break
                count += 1
        return [resp.QUEUED] * count


class Lookup:
    """The commands of one protocol on one server, by name: as declared and in lower case."""

    def __init__(self, declared: Mapping[bytes, Command], waited: Mapping[str, Histogram]) -> None:
        self.all = {name: Entry(one, waited[one.group]) for name, one in declared.items()}
        self.unknown = self.all[UNKNOWN]
        self.entries = dict(self.all)
        self.entries |= {name.lower(): entry for name, entry in self.all.items() if entry.command.name}
        # What stands for them in a transaction.
        refused = self.all.get(IN_TRANSACTION)
        inside = {one: one if one.command.always else refused or Queueing(one) for one in self.all.values()}
        self.inside = {name: inside[one] for name, one in self.entries.items()}
        self.subscribed = {name: _for_subscriber(one) for name, one in self.entries.items()}


def _for_subscriber(entry: Entry) -> Entry:
    """What a subscriber of RESP2 finds: the same, or a refusal behind the check of the number of parts."""
    command = entry.command
    if not command.name or command.name in SUBSCRIBED:
        return entry
    return Entry(replace(command, handler=RESP[REFUSED_SUBSCRIBED].handler, batches={}), entry.waited, entry)


class Commands:
    """What one server runs."""

    def __init__(self) -> None:
        self.waited = {group: Histogram() for group in (*GROUPS, "")}  # see `Entry.waited`
        self.resp = Lookup(RESP, self.waited)
        self.line = Lookup(LINE, self.waited)

    def calls(self) -> dict[str, int]:
        """Calls since the start, by the STATS group of the command; "" stands for those without one."""
        calls = dict.fromkeys((*GROUPS, ""), 0)
        for entry in self.every():
            calls[entry.command.group] += entry.calls
        return calls

    def every(self) -> set[Entry]:
        """The commands of both protocols."""
        return {*self.resp.all.values(), *self.line.all.values()}


class Subcommands:
    """The subcommands of a command, as in CLIENT LIST. `run` is its handler, and prints HELP in Redis's form.

    _client = Subcommands("CLIENT")

    @_client.add("GETNAME", "The name of this connection.")
    def _client_getname(session: Session, arguments: Sequence[bytes]) -> bytes: ...
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._known: dict[bytes, Entry] = {}
        self._most: dict[bytes, int] = {}
        CONTAINERS[name] = self
        self.add("HELP", "Prints this help.")(self._help)

    def add(self, syntax: str, summary: str, *, most: int = SUBCOMMAND_MAX) -> Callable[[Handler], Handler]:
        """Declares one. Its handler gets what follows its name: what the syntax says, at most `most` arguments."""
        name = syntax.split()[0]
        self._most[name.encode()] = most

        def declare(handler: Handler) -> Handler:
            declared = Command(name, handler, syntax, summary=summary, arity=_arity(syntax))
            self._known[name.encode()] = Entry(declared, Histogram())
            return handler

        return declare

    @property
    def commands(self) -> list[Command]:
        """The subcommands, each under its own name: `LIST`."""
        return [entry.command for entry in self._known.values()]

    def find(self, session: Any, request: Request) -> Entry:
        """The subcommand of a request.  Raises Rejected: there is none, or not with so many arguments."""
        name = request[1]
        entry = self._known.get(name.upper())
        if entry is None:
            if session.is_script:
                raise Rejected("Unknown Redis command called from script")
            raise Rejected(f"unknown subcommand '{show(name)}'. Try {self._name} HELP.")
        if not entry.low <= len(request) - 1 <= entry.high:
            if session.is_script:
                raise Rejected("Wrong number of args calling Redis command from script")
            raise wrong_count(f"{self._name}|{show(name)}", Rejected)
        return entry

    def run(self, session: Any, request: Request) -> Reply:
        entry = self.find(session, request)
        name, *arguments = request[1:]
        if len(arguments) > self._most[name.upper()]:
            raise RequestError(
                f"unknown subcommand or wrong number of arguments for '{show(name)}'. Try {self._name} HELP."
            )
        return entry.handler(session, arguments)

    def has(self, name: bytes) -> bool:
        return name.upper() in self._known

    def _help(self, session: Any, arguments: Request) -> Reply:
        lines = [f"{self._name} <subcommand> [<arg> [value] [opt] ...]. Subcommands are:"]
        help_, *others = self._known.values()
        for one in (*others, help_):
            lines += [one.command.syntax, f"    {one.command.summary}"]
        return resp.array(list(map(resp.simple, lines)))
