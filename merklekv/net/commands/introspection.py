"""COMMAND: what the server can do, from the declarations of the commands.

Names, arity, flags, keys, documentation and arguments are in Redis's form, so that tools which read them from a Redis
can read them here. They describe what is here: `since` is a version of MerkleKV. A subcommand is `client|list`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from typing import Final

from merklekv.engine.integers import strict_integer
from merklekv.net.commands.arguments import SYNTAX_ERROR
from merklekv.net.errors import RequestError
from merklekv.net.glob import compile_glob
from merklekv.net.protocol import resp
from merklekv.net.protocol.resp import bulk, integer
from merklekv.net.protocol.text import Request, show
from merklekv.net.registry import CONTAINERS, RESP, Command, Long, Reply, Subcommands, command
from merklekv.net.session import Session, check_reply_size
from merklekv.net.syntax import Argument, parse

SINCE: Final = "0.1.0"
SLICE_COMMANDS: Final = 50  # that are described between two yields

# Redis's group of the commands of each module; `server` for the others.
_GROUPS: Final = {
    "keys": "generic",
    "scan": "generic",
    "expiry": "generic",
    "inspection": "generic",
    "dumps": "generic",
    "lcs": "string",
    "strings": "string",
    "bits": "bitmap",
    "connection": "connection",
    "clients": "connection",
    "pubsub": "pubsub",
    "transactions": "transactions",
    "scripts": "scripting",
    "constants": "cluster",
}
_OTHER_GROUPS: Final = {
    **dict.fromkeys(("SETEX", "PSETEX", "GETEX"), "string"),
    **dict.fromkeys(("DBSIZE", "FLUSHDB", "FLUSHALL", "TRUNCATE", "MEMORY", "ROLE", "LASTSAVE"), "server"),
    **dict.fromkeys(("MODULE", "ACL"), "server"),
    "WAIT": "generic",
}
# Redis's categories, in its order, and which groups are one.
CATEGORIES: Final = (
    *("keyspace", "read", "write", "set", "sortedset", "list", "hash", "string", "bitmap", "hyperloglog", "geo"),
    *("stream", "pubsub", "admin", "fast", "slow", "blocking", "dangerous", "connection", "transaction", "scripting"),
)
_CATEGORY_OF_GROUP: Final = {"generic": "keyspace", "transactions": "transaction"}
_CATEGORY_OF_FLAG: Final = {"readonly": "read"}

_command = Subcommands("COMMAND")


@command(
    "COMMAND [COUNT|LIST|INFO [name ...]|DOCS [name ...]|GETKEYS command ...|GETKEYSANDFLAGS command ...|HELP]",
    "Describes the commands.",
    arity=-1,
    note="made from this server's own table: `since` is a version of MerkleKV, and the flags of a key say only whether "
    "the command writes",
)
def command_(session: Session, request: Request) -> Reply:
    if len(request) == 1:
        return _command_info(session, ())
    return _command.run(session, request)


# -- what there is -----------------------------------------------------------------------------------------------------


def top_level() -> list[Command]:
    """The commands of RESP that a client can name, without subcommands."""
    return [one for one in RESP.values() if one.name]


def subcommands(one: Command) -> list[Command]:
    """The subcommands of a command, with names such as `CLIENT|LIST`."""
    container = CONTAINERS.get(one.name)
    found = container.commands if container else []
    return [
        replace(
            each,
            name=f"{one.name}|{each.name}",
            syntax=f"{one.name} {each.syntax}",
            flags=one.flags,
            group=one.group,
            arity=each.arity + (1 if each.arity > 0 else -1),
        )
        for each in found
    ]


def every_command() -> Iterator[Command]:
    for one in top_level():
        yield one
        yield from subcommands(one)


def _named(names: Sequence[bytes]) -> list[Command | None]:
    """The commands of these names, None for one that does not exist; the top level when no name is given."""
    if not names:
        return list(top_level())
    known = {one.name.encode(): one for one in every_command()}
    return [known.get(name.upper()) for name in names]


def group_of(one: Command) -> str:
    """Redis's group of a command."""
    name = one.name.partition("|")[0]
    container = CONTAINERS.get(name)
    handler = container.commands[-1].handler if container else one.handler
    return _OTHER_GROUPS.get(name) or _GROUPS.get(handler.__module__.rpartition(".")[2], "server")


def flags_of(one: Command) -> list[str]:
    return [*one.flags, *(["movablekeys"] if "numkeys" in one.syntax.split() else [])]


def categories_of(one: Command) -> list[str]:
    """The categories of Redis's ACLs that a command is in, each without its `@`."""
    group = group_of(one)
    named = {_CATEGORY_OF_FLAG.get(flag, flag) for flag in one.flags} | {_CATEGORY_OF_GROUP.get(group, group)}
    named.add("fast" if "fast" in one.flags else "slow")
    if "admin" in named:
        named.add("dangerous")
    return [category for category in CATEGORIES if category in named]


# -- COUNT, LIST, INFO -------------------------------------------------------------------------------------------------


@_command.add("COUNT", "How many commands there are.")
def _command_count(session: Session, arguments: Sequence[bytes]) -> bytes:
    return integer(len(top_level()))


@_command.add("LIST [FILTERBY <MODULE name | ACLCAT category | PATTERN pattern>]", "The names of commands.")
def _command_list(session: Session, arguments: Sequence[bytes]) -> bytes:
    words = [word.upper() for word in arguments[:2]]
    if arguments and (len(arguments) != 3 or words[0] != b"FILTERBY"):
        raise RequestError(SYNTAX_ERROR)
    chosen = every_command()
    match words[1:]:
        case []:
            pass
        case [b"MODULE"]:
            chosen = iter(())
        case [b"ACLCAT"]:
            category = arguments[2].lower().decode(errors="replace")
            chosen = (one for one in chosen if category in categories_of(one))
        case [b"PATTERN"]:
            prefix, matches = compile_glob(arguments[2].lower())
            names = ((one, one.name.lower().encode()) for one in chosen)
            chosen = (one for one, name in names if name.startswith(prefix) and matches(name))
        case _:
            raise RequestError(SYNTAX_ERROR)
    return resp.bulk_array([one.name.lower().encode() for one in chosen])


@_command.add("INFO [name ...]", "Arity, flags and keys of commands, or of all.")
def _command_info(session: Session, arguments: Sequence[bytes]) -> Long:
    found = yield from _describe(session, _named(arguments), _info)
    return resp.array(found)


def _describe(
    session: Session, named: Sequence[Command | None], describe: Callable[[Command, Session], bytes]
) -> Generator[None, None, list[bytes]]:
    """Describes them in slices; nil stands for one that does not exist."""
    found: list[bytes] = []
    size = 0
    for at, one in enumerate(named):
        if at % SLICE_COMMANDS == SLICE_COMMANDS - 1:
            yield None
        found.append(describe(one, session) if one else session.nil)
        size += len(found[-1])
        check_reply_size(session, size)
    return found


def _info(one: Command, session: Session) -> bytes:
    protocol = session.protocol
    return resp.array(
        [
            bulk(one.name.lower().encode()),
            integer(one.arity),
            resp.flag_set(flags_of(one), protocol),
            *map(integer, one.keys),
            resp.flag_set([f"@{category}" for category in categories_of(one)], protocol),
            resp.flag_set((), protocol),  # hints for clients of a Redis Cluster
            _key_specs(one, protocol),
            resp.set_of([_info(each, session) for each in subcommands(one)], protocol),
        ]
    )


def _key_specs(one: Command, protocol: int) -> bytes:
    """A key specification of Redis 7: where the keys begin, and how many there are."""
    first, last, step = one.keys
    if not first:
        return resp.flag_set((), protocol)
    spec = _map({"index": integer(first)}, protocol)
    begin = _map({"type": bulk(b"index"), "spec": spec}, protocol)
    numbers = {"lastkey": last if last < 0 else last - first, "keystep": step, "limit": 0}
    keys = _map({name: integer(number) for name, number in numbers.items()}, protocol)
    find = _map({"type": bulk(b"range"), "spec": keys}, protocol)
    fields = {"flags": resp.flag_set(_key_flags(one), protocol), "begin_search": begin, "find_keys": find}
    return resp.set_of([_map(fields, protocol)], protocol)


def _key_flags(one: Command) -> tuple[str, ...]:
    return ("RW", "access", "update") if "write" in one.flags else ("RO", "access")


def _map(fields: dict[str, bytes], protocol: int) -> bytes:
    return resp.mapping([(bulk(name.encode()), value) for name, value in fields.items()], protocol)


# -- DOCS --------------------------------------------------------------------------------------------------------------


@_command.add("DOCS [name ...]", "What commands do, or all of them.")
def _command_docs(session: Session, arguments: Sequence[bytes]) -> Long:
    named = [one for one in _named(arguments) if one]
    documents = yield from _describe(session, named, _document)
    names = [bulk(one.name.lower().encode()) for one in named]
    return resp.mapping(list(zip(names, documents, strict=True)), session.protocol)


def _document(one: Command, session: Session) -> bytes:
    protocol = session.protocol
    texts = {"summary": one.summary, "since": SINCE, "group": group_of(one)}
    fields = {name: bulk(value.encode()) for name, value in texts.items()}
    parts = subcommands(one)
    if parts:
        documents = [(bulk(part.name.lower().encode()), _document(part, session)) for part in parts]
        fields["subcommands"] = resp.mapping(documents, protocol)
    elif arguments := parse(one.syntax.partition(" ")[2] if "|" in one.name else one.syntax):
        fields["arguments"] = resp.array([_argument(each, protocol) for each in arguments])
    return _map(fields, protocol)


def _argument(one: Argument, protocol: int) -> bytes:
    fields = {"name": bulk(one.name.encode()), "type": bulk(one.type.encode())}
    if one.type == "key":
        fields["key_spec_index"] = integer(0)
    if one.token:
        fields["token"] = bulk(one.token.encode())
    flags = [name for name, is_set in (("optional", one.optional), ("multiple", one.multiple)) if is_set]
    if flags:
        fields["flags"] = resp.flag_set(flags, protocol)
    if one.arguments:
        fields["arguments"] = resp.array([_argument(each, protocol) for each in one.arguments])
    return _map(fields, protocol)


# -- GETKEYS -----------------------------------------------------------------------------------------------------------


@_command.add("GETKEYS command argument [argument ...]", "The keys in a request.")
def _command_getkeys(session: Session, arguments: Sequence[bytes]) -> bytes:
    return resp.bulk_array(_keys_in(arguments)[1])


@_command.add("GETKEYSANDFLAGS command argument [argument ...]", "The keys in a request, and what it does with them.")
def _command_getkeys_and_flags(session: Session, arguments: Sequence[bytes]) -> bytes:
    one, keys = _keys_in(arguments)
    flags = resp.flag_set(_key_flags(one), session.protocol)
    return resp.array([resp.array([bulk(key), flags]) for key in keys])


def _keys_in(request: Sequence[bytes]) -> tuple[Command, Sequence[bytes]]:
    one = RESP.get(request[0].upper())
    if one is None or not one.name:
        raise RequestError("Invalid command specified")
    name = f"{one.name}|{show(request[1]).upper()}"
    one = next((each for each in subcommands(one) if each.name == name), one)
    words = one.syntax.split()
    if not one.keys[0] and "numkeys" not in words:
        raise RequestError("The command has no key arguments")
    if not one.takes(len(request)):
        raise RequestError("Invalid number of arguments specified for command")
    if "numkeys" in words:
        at = words.index("numkeys")
        count = strict_integer(request[at]) or 0
        return one, request[at + 1 : at + 1 + count] if 0 <= count < len(request) - at else ()
    first, last, step = one.keys
    return one, request[first : len(request) if last < 0 else last + 1 : step]
