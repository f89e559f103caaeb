"""The options that say when a value is set and how long it stays, read as Redis reads them.

Times are milliseconds since the epoch, as in a record. An option may come twice; another one of its kind may not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from merklekv.engine.engine import Engine
from merklekv.engine.integers import INT64_MAX, INT64_MIN
from merklekv.engine.record import EXPIRY_MAX
from merklekv.net.commands.arguments import SYNTAX_ERROR, integer
from merklekv.net.errors import RequestError
from merklekv.net.protocol.text import show

_CONDITIONS: Final = frozenset((b"NX", b"XX", b"IFEQ"))
_UNITS: Final = {b"EX": 1000, b"PX": 1, b"EXAT": 1000, b"PXAT": 1}  # milliseconds
_ABSOLUTE: Final = frozenset((b"EXAT", b"PXAT"))
_PLAIN_UNITS: Final = {word: unit for name, unit in _UNITS.items() for word in (name, name.lower())}
_PLAIN_DIGITS: Final = 12
_C_END: Final = b"\0"  # what is behind it is not in Redis's message, either
_SHOWN_MAX: Final = 1024
KEEP: Final = b"KEEPTTL"  # of SET alone
PERSIST: Final = b"PERSIST"  # of GETEX alone


def wall_ms(engine: Engine) -> int:
    """What the wall clock of the node shows."""
    return engine.time_gate.wall() // 10**6


class Options(NamedTuple):
    """The options of SET or GETEX."""

    condition: bytes = b""  # NX, XX or IFEQ; empty: none
    expected: bytes = b""  # of IFEQ
    gets: bool = False  # GET
    lifetime: bytes = b""  # EX, PX, EXAT, PXAT, KEEPTTL or PERSIST; empty: none
    amount: bytes = b""  # of one of the first four

    @property
    def reads(self) -> bool:
        """Whether what they do depends on what is there."""
        return self.gets or self.condition != b"" or self.lifetime == KEEP

    def is_met_by(self, old: bytes | None) -> bool:
        """Whether the condition lets a value take the place of the old one, None without one."""
        match self.condition:
            case b"NX":
                return old is None
            case b"XX":
                return old is not None
            case b"IFEQ":
                return old == self.expected
        return True

    @property
    def sets_expiry(self) -> bool:
        return self.lifetime in _UNITS

    @property
    def is_absolute(self) -> bool:
        return self.lifetime in _ABSOLUTE

    def expiry(self, now: int, name: str) -> int:
        """When the value expires, with `sets_expiry`. `name`: of the command. Raises RequestError."""
        return expiry_of_amount(self.lifetime, self.amount, now, name)


def read_options(words: Sequence[bytes], *, of_set: bool) -> Options:
    """The options behind the fixed arguments of SET or GETEX. Raises RequestError."""
    condition = expected = lifetime = amount = b""
    gets = False
    left = iter(words)
    for word in left:
        option = word.upper()
        argument: bytes | None = None
        if option in _UNITS or option == b"IFEQ":
            argument = next(left, None)
            if argument is None:
                raise RequestError(SYNTAX_ERROR)
        if option in _CONDITIONS and of_set and condition in (b"", option) and condition != b"IFEQ":
            condition, expected = option, argument or b""
        elif option == b"GET" and of_set:
            gets = True
        elif option in _UNITS and lifetime in (b"", option):
            lifetime, amount = option, argument or b""
        elif option == (KEEP if of_set else PERSIST) and lifetime in (b"", option):
            lifetime = option
        else:
            raise RequestError(SYNTAX_ERROR)
    return Options(condition, expected, gets, lifetime, amount)


def expiry_of_amount(option: bytes, word: bytes, now: int, name: str) -> int:
    """When something expires, by one of EX, PX, EXAT and PXAT and its argument. Raises RequestError."""
    amount = integer(word)
    expiry = amount * _UNITS[option] + (0 if option in _ABSOLUTE else now)
    if amount <= 0 or expiry > EXPIRY_MAX:
        raise _bad_time(name)
    return expiry


def plain_expiry(option: bytes, word: bytes, now: int) -> int:
    """Like `expiry_of_amount`, but a few times faster; 0 for what only that one can judge."""
    unit = _PLAIN_UNITS.get(option)
    if unit is None or not word.isdigit() or len(word) > _PLAIN_DIGITS or word[0] == 48:
        return 0
    return int(word) * unit + (now if len(option) == 2 else 0)


class ExpireOptions(NamedTuple):
    """The options of EXPIRE and its kin: which expiry of the key the new one may replace."""

    nx: bool
    xx: bool
    gt: bool
    lt: bool

    def allow(self, old: int | None, new: int) -> bool:
        """Whether they let an expiry take the place of the old one; None counts as the latest of all."""
        if old is None:
            return not self.xx and not self.gt
        return not self.nx and (not self.gt or new > old) and (not self.lt or new < old)


def read_expire_options(words: Sequence[bytes]) -> ExpireOptions:
    """Raises RequestError."""
    given = set[bytes]()
    for word in words:
        option = word.upper()
        if option not in (b"NX", b"XX", b"GT", b"LT"):
            raise RequestError(f"Unsupported option {show(word.partition(_C_END)[0], _SHOWN_MAX)}")
        given.add(option)
    if b"NX" in given and len(given) > 1:
        raise RequestError("NX and XX, GT or LT options at the same time are not compatible")
    if given >= {b"GT", b"LT"}:
        raise RequestError("GT and LT options at the same time are not compatible")
    return ExpireOptions(*(name in given for name in (b"NX", b"XX", b"GT", b"LT")))


def expire_time(word: bytes, unit: int, since: int, name: str) -> int:
    """When a key is to expire by EXPIRE or its kin; also in the past, for a key that is to go. Raises RequestError.

    `unit`: of the amount, in milliseconds; `since`: where it counts from.
    """
    amount = integer(word) * unit
    if not INT64_MIN <= amount <= INT64_MAX or amount + since > EXPIRY_MAX:
        raise _bad_time(name)
    return amount + since


def _bad_time(name: str) -> RequestError:
    return RequestError(f"invalid expire time in '{name}' command")
