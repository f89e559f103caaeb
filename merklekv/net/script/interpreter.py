"""Runs scripts: keeps them compiled, gives them the commands of the server, and stops those that take too much.

There is one interpreter for all clients, used with the engine's lock held: a script is one moment, as a transaction.
Its Lua runtime is made when the first script comes, so a node without scripts does not pay for Lua; and made anew when
a script was stopped, because nothing is known of what it has left.

A script that ends in an error keeps what it has written until then, as in Redis, also one that was stopped. Only a
shortage in its midst takes all of it back, as in a transaction.

Costs: 4 us for a script without calls, 2 us for each call beside its command. Memory: 1.2 MiB for Lua, and at most
MEMORY_MAX for what scripts hold.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from hashlib import sha1
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from merklekv.errors import MerkleKVError, Shortage
from merklekv.net.errors import Rejected, RequestError
from merklekv.net.protocol.resp import REDIS_VERSION
from merklekv.net.protocol.text import show
from merklekv.net.registry import NOSCRIPT, WRITES, Entry
from merklekv.net.script import matcher, prelude
from merklekv.net.session import Session
from merklekv.net.transaction import SECONDS_MAX, run_here

if TYPE_CHECKING:
    from merklekv.net.session import Context

# What scripts may hold, looked at about every millisecond and at each long reply: several of the largest values. A
# single allocation is checked against a multiple of it, which leaves Lua and lupa the room that they need to go on:
# where they find none, they end the process.
MEMORY_MAX: Final = 64 << 20
MEMORY_SHARE: Final = 4  # at most a fourth of the memory of all clients
ALLOCATION_FACTOR: Final = 4
REPLY_SMALL: Final = 4096  # bytes; a millisecond's worth of those fits behind MEMORY_MAX
MEMORY_KEPT: Final = 16 << 20  # garbage above this is collected after a script
ALSO_WRITES: Final = frozenset(("PUBLISH",))  # for a script, as in Redis
SCRIPTS_MAX: Final = 1000
SOURCE_MAX: Final = 1 << 20  # bytes of one script
SOURCE_BYTES_MAX: Final = 2 << 20  # of all scripts that are kept; compiled, they may take ten times as much
NAMES_MAX: Final = 1000  # of commands, in all the spellings that scripts use
SCRIPT_FLAGS: Final = frozenset((b"no-writes", b"allow-oom", b"allow-stale", b"no-cluster", b"allow-cross-slot-keys"))
SCRIPT_PROTOCOL: Final = 2  # of RESP, in which a script gets replies until it chooses
ARGUMENTS_MAX: Final = 7000  # of one script: what fits on Lua's stack

_TOO_LONG: Final = b"-ERR script stopped: it ran for more than %d seconds; what it has written stands\r\n" % SECONDS_MAX
_TOO_LARGE: Final = b"-ERR script stopped: it needs more than %d MiB; what it has written stands\r\n"


class Interpreter:
    """The scripts of one server.  The caller holds the engine's lock."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._sources: OrderedDict[bytes, bytes] = OrderedDict()  # by SHA-1 in hex, least recently used first
        self._shas: dict[bytes, bytes] = {}  # of the same, by source
        self._may_write: dict[bytes, bool] = {}  # of those that say so themselves
        self._bytes = 0  # of the sources
        self._lua: Any = None  # the runtime, when there is one
        self._compile: Callable[[bytes, bytes], bytes | None] = _no_runtime
        self._forget: Callable[[bytes], None] = _no_runtime
        self._run: Callable[..., bytes | None] = _no_runtime
        self._compiled: set[bytes] = set()
        self._session: Session  # in which the commands of scripts run
        self._all: dict[bytes, Entry] = {}  # the commands that scripts have called, under the names that these used
        self._reading: dict[bytes, Entry] = {}  # those that scripts which may not write have called
        self._commands = self._all  # of the script that runs
        self._deadline = 0.0
        self._stopped = b""  # why the script must not go on, as a reply
        self._abandoned: MerkleKVError | None = None  # what takes back all of the script
        self._checks_size = context.limits.request_bytes > self._memory_max
        context.memory.others.append(lambda: self.memory_bytes)

    # -- the scripts that are known ------------------------------------------------------------------------------------

    def load(self, source: bytes) -> bytes:
        """Keeps a script; its SHA-1.  Raises RequestError if it is no Lua."""
        sha = self._shas.get(source)
        if sha is None:
            if len(source) > SOURCE_MAX:
                raise RequestError(f"a script has at most {SOURCE_MAX} bytes")
            sha = sha1(source).hexdigest().encode()
            self._prepare(sha, source)
            self._sources[sha] = source
            self._shas[source] = sha
            self._bytes += len(source)
            while len(self._sources) > 1 and (len(self._sources) > SCRIPTS_MAX or self._bytes > SOURCE_BYTES_MAX):
                self._drop(*self._sources.popitem(last=False))
        return sha

    def knows(self, sha: bytes) -> bool:
        return sha in self._sources

    @property
    def count(self) -> int:
        """How many scripts it knows."""
        return len(self._sources)

    @property
    def memory_bytes(self) -> int:
        """Memory that Lua holds."""
        lua = self._lua
        return lua.get_memory_used() if lua is not None else 0

    @property
    def _memory_max(self) -> int:
        return min(MEMORY_MAX, self._context.memory.limit // MEMORY_SHARE)

    def may_write(self, script: bytes) -> bool:
        """Whether a script, named by its text or its SHA-1, does not say of itself that it only reads."""
        said = self._may_write.get(script.lower())
        if said is None:
            try:
                said = read_header(script)[1]
            except RequestError:
                return False  # it does not run
        return said is not False

    def flush(self) -> None:
        """Forgets all scripts."""
        self._sources.clear()
        self._shas.clear()
        self._may_write.clear()
        self._bytes = 0
        self._discard()

    def _drop(self, sha: bytes, source: bytes) -> None:
        self._bytes -= len(source)
        del self._shas[source]
        self._may_write.pop(sha, None)
        if sha in self._compiled:
            self._compiled.discard(sha)
            self._forget(sha)

    def _prepare(self, sha: bytes, source: bytes) -> None:
        """Compiles a script in the runtime there is."""
        body, may_write = read_header(source)
        if self._lua is None:
            self._start()
        try:
            problem = self._compile(sha, body)
        except Exception as error:
            self._discard()
            raise RequestError(f"Error compiling script (new function): {error}") from error
        if problem is not None:
            raise RequestError(f"Error compiling script (new function): {problem.decode(errors='replace')}")
        self._compiled.add(sha)
        if may_write is not None:
            self._may_write[sha] = may_write

    # -- running -------------------------------------------------------------------------------------------------------

    def run(self, session: Session, sha: bytes, keys: int, words: Sequence[bytes], readonly: bool) -> bytes:
        """The reply of a known script.  `words`: its keys, so many, then its arguments.

        Raises Shortage, Stalled, StorageFailed: the commands of the script must not be stored.  Raises RequestError.
        """
        if len(words) > ARGUMENTS_MAX:
            raise RequestError(f"a script takes at most {ARGUMENTS_MAX} keys and arguments")
        if self._checks_size and sum(map(len, words)) > self._memory_max:
            raise RequestError(f"a script takes at most {self._memory_max} bytes of keys and arguments")
        if sha not in self._compiled:
            self._prepare(sha, self._sources[sha])
        self._sources.move_to_end(sha)
        may_write = self._may_write.get(sha)
        if may_write and readonly:
            raise RequestError("Can not execute a script with write flag using *_ro command.")
        self._begin(session, readonly or may_write is False)
        try:
            reply = self._run(sha, session.protocol, keys, *words)
        except Exception as error:  # noqa: BLE001  Lua's, for each of which there is a reply
            reply = None
            if not self._stopped and "script stopped" not in str(error):
                self._context.report("script", "a script ended in an unforeseen way", error)
        if self._abandoned is not None:
            self._discard()
            raise self._abandoned
        if self._stopped or reply is None:
            self._discard()
            return self._stopped or _TOO_LARGE % (self._memory_max >> 20)
        lua = self._lua
        if lua is not None and lua.get_memory_used() > MEMORY_KEPT:
            lua.gccollect()
        return reply

    def _begin(self, session: Session, readonly: bool) -> None:
        self._commands = self._reading if readonly else self._all
        self._stopped, self._abandoned = b"", None
        self._deadline = monotonic() + SECONDS_MAX
        inner = self._session
        inner.worker = session.worker
        if inner.protocol != SCRIPT_PROTOCOL:
            inner.speak(SCRIPT_PROTOCOL)

    def _is_over(self) -> bool:
        """Whether the script must not go on: out of time, or of memory."""
        if self._has_room(0) and monotonic() > self._deadline:
            self._stopped = self._stopped or _TOO_LONG
        return self._stopped != b""

    def _has_room(self, size: int) -> bool:
        """Whether the script may have so many bytes more.  If not, there is room for it to end."""
        lua = self._lua
        if lua.get_memory_used() + size < self._memory_max:
            return True
        lua.gccollect()
        if lua.get_memory_used() + size < self._memory_max:
            return True
        lua.set_max_memory(2 * ALLOCATION_FACTOR * self._memory_max)
        self._stopped = self._stopped or _TOO_LARGE % (self._memory_max >> 20)
        return False

    def _serve(self, *request: bytes) -> bytes:
        """Runs one command of a script: its reply, empty if the script must not go on."""
        try:
            deadline = self._deadline
            if self._stopped or self._abandoned is not None or (monotonic() > deadline and self._is_over()):
                return b""
            entry = self._commands.get(request[0])
            if entry is None:
                found = self._admit(request[0])
                if isinstance(found, bytes):
                    return found
                entry = found
            if not entry.low <= len(request) <= entry.high:
                return self._reject("Wrong number of args calling Redis command from script", entry)
            reply = run_here(self._session, entry, request, deadline)
            if len(reply) < REPLY_SMALL or self._has_room(len(reply)):
                return reply
        except BaseException as problem:  # noqa: BLE001  none may reach the script, which could go on
            if not isinstance(problem, MerkleKVError):
                self._context.report("script", f"a command of a script failed: {problem!r}")
                problem = Shortage(f"a command of a script failed: {problem!r}")
            self._abandoned = problem
        return b""

    def _admit(self, name: bytes) -> Entry | bytes:
        """The command of this name, which a script may call from now on; or the error."""
        entry = self._context.commands.resp.entries.get(name.upper())
        if entry is None or not entry.command.name:
            return self._reject("Unknown Redis command called from script")
        if NOSCRIPT in entry.command.flags:
            return self._reject("This Redis command is not allowed from script", entry)
        if self._commands is self._reading and (WRITES in entry.command.flags or entry.command.name in ALSO_WRITES):
            return self._reject("Write commands are not allowed from read-only scripts.", entry)
        if len(self._commands) < NAMES_MAX:
            self._commands[name] = entry
        return entry

    def _reject(self, text: str, entry: Entry | None = None) -> bytes:
        """The reply for a command that a script may not call, or not with so many arguments."""
        if entry is not None:
            entry.rejected += 1
        problem = Rejected(text)
        self._context.traffic.count_error(problem)
        return self._session.explain(problem)

    def _sha1(self, text: bytes) -> bytes:
        return sha1(text).hexdigest().encode() if not self._is_over() else b""

    @staticmethod
    def _search(text: bytes, wanted: bytes) -> int:
        """Where it is found, from 1 on; 0: not at all, or no memory.  Its time is linear, other than that of C's."""
        try:
            return text.find(wanted) + 1
        except MemoryError:
            return 0

    # -- the runtime ---------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        """Makes a runtime.  Raises RequestError where Lua is not installed."""
        try:
            from lupa import lua51
        except ImportError as problem:
            raise RequestError(f"scripts need the package lupa: {problem}") from problem
        self._lua = lua51.LuaRuntime(
            encoding=None,
            unpack_returned_tuples=True,
            register_eval=False,
            register_builtins=False,
            attribute_filter=_refuse_attribute,
            max_memory=ALLOCATION_FACTOR * self._memory_max,
        )
        self._session = Session(self._context, 0, "script", "script", -1)
        self._compile, self._forget, self._run = self._lua.execute(
            prelude.LUA,
            self._serve,
            self._session.speak,
            self._is_over,
            self._sha1,
            self._search,
            REDIS_VERSION.encode(),
            matcher.LUA,
        )

    def _discard(self) -> None:
        """Lets go of the runtime, and of all that scripts have left in it."""
        self._lua = None
        self._compile = self._forget = self._run = _no_runtime
        self._compiled.clear()


def read_header(source: bytes) -> tuple[bytes, bool | None]:
    """The Lua behind the first line `#!lua flags=...`, and whether that lets it write; None without such a line."""
    if not source.startswith(b"#!"):
        return source, None
    line, newline, _ = source.partition(b"\n")
    if not newline:
        raise RequestError("Invalid script shebang")
    engine, *options = line.split()
    if engine != b"#!lua":
        raise RequestError(f"Unexpected engine in script shebang: {show(engine)}")
    flags: set[bytes] = set()
    for option in options:
        name, is_given, value = option.partition(b"=")
        if name != b"flags" or not is_given:
            raise RequestError(f"Unknown lua shebang option: {show(option)}")
        flags.update(flag for flag in value.split(b",") if flag)
    for flag in sorted(flags - SCRIPT_FLAGS):
        raise RequestError(f"Unexpected flag in script shebang: {show(flag)}")
    return source[len(line) :], b"no-writes" not in flags


def _no_runtime(*_: object) -> Any:
    raise AssertionError("there is no Lua runtime")


def _refuse_attribute(thing: object, name: object, setting: bool) -> object:
    raise AttributeError("not accessible from a script")
