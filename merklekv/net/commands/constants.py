"""Commands of Redis that have one answer on every node: it has no Redis replicas, modules, slots, or further users.

Tools and client libraries ask them to find out what they talk to. Replication between nodes is no business of theirs:
see REPLICATE, MEMBERS and SYNC.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Final, NoReturn

from merklekv.engine.integers import strict_integer
from merklekv.net.commands.arguments import integer
from merklekv.net.commands.introspection import CATEGORIES, categories_of, every_command
from merklekv.net.errors import RequestError, wrong_count
from merklekv.net.protocol import resp
from merklekv.net.protocol.resp import bulk
from merklekv.net.protocol.text import Request, show
from merklekv.net.registry import FAST, RESP, Reply, Subcommands, command
from merklekv.net.session import Session

PASSWORD_BITS: Final = 256
PASSWORD_BITS_MAX: Final = 4096
_USER: Final = b"user default on nopass ~* &* +@all"
_NO_USERS: Final = "users are not supported: there is one, default, without a password"
_ADMIN: Final = ("admin", "noscript")


@command("ROLE", "`master`, with no Redis replicas.", flags=("noscript", *FAST), note="always a master")
def role(session: Session, request: Request) -> Reply:
    return resp.array([bulk(b"master"), resp.ZERO, resp.EMPTY_ARRAY])


@command("LASTSAVE", "When the process started.", flags=FAST, note="every write is saved before its reply")
def lastsave(session: Session, request: Request) -> Reply:
    return resp.integer(session.context.started_at)


@command("WAIT numreplicas timeout", "How many Redis replicas have all writes.", flags=("noscript",), note="0 at once")
def wait(session: Session, request: Request) -> Reply:
    integer(request[1])
    require_timeout(request[2])
    return resp.ZERO


def require_timeout(word: bytes) -> int:
    """A time in milliseconds."""
    timeout_ms = strict_integer(word)
    if timeout_ms is None:
        raise RequestError("timeout is not an integer or out of range")
    if timeout_ms < 0:
        raise RequestError("timeout is negative")
    return timeout_ms


# -- modules and slots -------------------------------------------------------------------------------------------------

_module = Subcommands("MODULE")
command("MODULE LIST|HELP", "The modules: none.", arity=-2, flags=_ADMIN)(_module.run)


@_module.add("LIST", "No module.")
def _module_list(session: Session, arguments: Sequence[bytes]) -> bytes:
    return resp.EMPTY_ARRAY


@command("CLUSTER subcommand [argument ...]", "An error: a node is no part of a Redis Cluster.")
@command("READONLY", "An error: a node is no part of a Redis Cluster.", flags=FAST)
@command("READWRITE", "An error: a node is no part of a Redis Cluster.", flags=FAST)
@command("ASKING", "An error: a node is no part of a Redis Cluster.", flags=FAST)
def cluster(session: Session, request: Request) -> Reply:
    raise RequestError("This instance has cluster support disabled")


# -- ACL ---------------------------------------------------------------------------------------------------------------

_acl = Subcommands("ACL")
command(
    "ACL WHOAMI|LIST|USERS|GETUSER user|CAT [category]|GENPASS [bits]|DRYRUN user command ...|LOG|HELP",
    "The users: `default`, who may do everything.",
    arity=-2,
    flags=_ADMIN,
    note="there is one user, `default`, who may do everything",
)(_acl.run)


@_acl.add("WHOAMI", "The user of this connection.")
def _acl_whoami(session: Session, arguments: Sequence[bytes]) -> bytes:
    return bulk(b"default")


@_acl.add("LIST", "The users with their rights.")
def _acl_list(session: Session, arguments: Sequence[bytes]) -> bytes:
    return resp.bulk_array([_USER])


@_acl.add("USERS", "The names of the users.")
def _acl_users(session: Session, arguments: Sequence[bytes]) -> bytes:
    return resp.bulk_array([b"default"])


@_acl.add("GETUSER user", "What a user may do.")
def _acl_getuser(session: Session, arguments: Sequence[bytes]) -> bytes:
    if arguments[0] != b"default":
        return session.nil
    fields = {
        b"flags": resp.set_of([bulk(b"on"), bulk(b"nopass")], session.protocol),
        b"passwords": resp.EMPTY_ARRAY,
        b"commands": bulk(b"+@all"),
        b"keys": bulk(b"~*"),
        b"channels": bulk(b"&*"),
        b"selectors": resp.EMPTY_ARRAY,
    }
    return resp.mapping([(bulk(name), value) for name, value in fields.items()], session.protocol)


@_acl.add("CAT [category]", "The categories of commands, or the commands of one.", most=1)
def _acl_cat(session: Session, arguments: Sequence[bytes]) -> bytes:
    if not arguments:
        return resp.bulk_array([name.encode() for name in CATEGORIES])
    category = show(arguments[0]).lower()
    if category not in CATEGORIES:
        raise RequestError(f"Unknown category '{show(arguments[0])}'")
    return resp.bulk_array([one.name.lower().encode() for one in every_command() if category in categories_of(one)])


@_acl.add("GENPASS [bits]", "A random password, in hex digits.", most=1)
def _acl_genpass(session: Session, arguments: Sequence[bytes]) -> bytes:
    bits = integer(arguments[0]) if arguments else PASSWORD_BITS
    if not 1 <= bits <= PASSWORD_BITS_MAX:
        raise RequestError(
            "ACL GENPASS argument must be the number of bits for the output password, a positive number up to "
            f"{PASSWORD_BITS_MAX}"
        )
    digits = (bits + 3) // 4
    return bulk(secrets.token_hex((digits + 1) // 2)[:digits].encode())


@_acl.add("DRYRUN user command [argument ...]", "Whether a user may run a command.")
def _acl_dryrun(session: Session, arguments: Sequence[bytes]) -> bytes:
    if arguments[0] != b"default":
        raise RequestError(f"User '{show(arguments[0])}' not found")
    one = RESP.get(arguments[1].upper())
    if one is None:
        raise RequestError(f"Command '{show(arguments[1])}' not found")
    if not one.takes(len(arguments) - 1):
        raise wrong_count(arguments[1])
    return resp.OK


@_acl.add("LOG [count | RESET]", "What was refused: nothing, as there is nothing to refuse.", most=1)
def _acl_log(session: Session, arguments: Sequence[bytes]) -> bytes:
    if arguments and arguments[0].upper() == b"RESET":
        return resp.OK
    if arguments:
        integer(arguments[0])
    return resp.EMPTY_ARRAY


@_acl.add("SETUSER user [rule ...]", "Refused: there is one user.")
@_acl.add("DELUSER user [user ...]", "Refused: there is one user.")
@_acl.add("LOAD", "Refused: there is one user.")
@_acl.add("SAVE", "Refused: there is one user.")
def _acl_fixed(session: Session, arguments: Sequence[bytes]) -> NoReturn:
    raise RequestError(_NO_USERS)
