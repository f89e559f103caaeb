"""The types of settings: how a value is parsed and shown, and the words that say what is allowed.

A type gets a string from a flag or the environment, or a TOML value from a file, and returns the value or raises
ValueError. It knows no key and no source; `config` adds those to the message.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from merklekv.address import is_address, is_host, is_ipv6, is_unspecified, parse_address
from merklekv.node_id import NODE_ID_RULE, is_node_id

T_co = TypeVar("T_co", covariant=True)

KiB = 1024
MiB = 1024 * KiB
GiB = 1024 * MiB

_UNITS = {"": 1, "b": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3, "kib": KiB, "mib": MiB, "gib": GiB}
_SIZE = re.compile(r"(\d+)\s*([a-z]*)", re.IGNORECASE | re.ASCII)
_INTEGER = re.compile(r"[+-]?\d+", re.ASCII)
_TOPIC = re.compile(r"(?!\$)[^\s/+#]+(/[^\s/+#]+)*")
_LINE = re.compile(r"[^\x00\r\n]*")
_PATH = re.compile(r"[^\x00-\x1f\x7f]+")
_TOPIC_SIZE_MAX = 512
_FLAGS = dict.fromkeys(("true", "yes", "on", "1"), True) | dict.fromkeys(("false", "no", "off", "0"), False)


@dataclass(frozen=True, slots=True)
class SettingType(Generic[T_co]):
    allowed: str
    parse: Callable[[object], T_co]
    show: Callable[[Any], str] = str


def integer(lowest: int, highest: int) -> SettingType[int]:
    def parse(given: object) -> int:
        if isinstance(given, str) and _INTEGER.fullmatch(given.strip()):
            given = int(given)
        return _within(given, lowest, highest)

    return SettingType(f"an integer from {lowest} to {highest}", parse)


def size(lowest: int, highest: int) -> SettingType[int]:
    def parse(given: object) -> int:
        if isinstance(given, str):
            match = _SIZE.fullmatch(given.strip())
            if match is None or match[2].lower() not in _UNITS:
                raise ValueError(given)
            given = int(match[1]) * _UNITS[match[2].lower()]
        return _within(given, lowest, highest)

    allowed = f"a size from {show_size(lowest)} to {show_size(highest)}, such as 64MiB or 67108864"
    return SettingType(allowed, parse, show_size)


def _within(given: object, lowest: int, highest: int) -> int:
    # TOML's true is an int in Python.
    if not isinstance(given, int) or isinstance(given, bool) or not lowest <= given <= highest:
        raise ValueError(given)
    return given


def show_size(count: int) -> str:
    """An exact size as people write it: 64MiB, 1000."""
    for unit, name in ((GiB, "GiB"), (MiB, "MiB"), (KiB, "KiB")):
        if count and count % unit == 0:
            return f"{count // unit}{name}"
    return str(count)


def choice(*names: str) -> SettingType[Any]:
    def parse(given: object) -> str:
        if str(given).lower() not in names or isinstance(given, bool):
            raise ValueError(given)
        return str(given).lower()

    return SettingType("one of " + ", ".join(names), parse)


def _parse_flag(given: object) -> bool:
    word = str(given).strip().lower()
    if not isinstance(given, bool | str) or word not in _FLAGS:
        raise ValueError(given)
    return _FLAGS[word]


def _parse_path(given: object) -> Path:
    if not isinstance(given, str | Path) or not _PATH.fullmatch(str(given)):
        raise ValueError(given)
    try:
        return Path(given).expanduser()
    except RuntimeError as error:  # ~user, without such a user
        raise ValueError(given) from error


def _parse_addresses(given: object) -> tuple[str, ...]:
    if isinstance(given, str):
        given = [part.strip() for part in given.split(",") if part.strip()]
    if not isinstance(given, list):
        raise ValueError(given)
    return tuple(_parse_address(address) for address in given)


def _checked(allows: Callable[[str], bool]) -> Callable[[object], str]:
    """The parser of strings that `allows` accepts."""

    def parse(given: object) -> str:
        if not isinstance(given, str) or not allows(given):
            raise ValueError(given)
        return given

    return parse


def _matches(text: str, pattern: re.Pattern[str], size_max: int) -> bool:
    """Whether it matches, with at most `size_max` bytes. `encode` raises a ValueError for what is no UTF-8."""
    return len(text.encode()) <= size_max and pattern.fullmatch(text) is not None


_parse_address = _checked(is_address)
_parse_host = _checked(lambda text: is_host(text) or is_ipv6(text))

FLAG = SettingType("true or false", _parse_flag, lambda value: str(value).lower())
PATH = SettingType("a path without control characters", _parse_path)
ADDRESS = SettingType(
    '"host:port" that others can reach, so not 0.0.0.0, or nothing',
    _checked(lambda text: not text or (is_address(text) and not is_unspecified(parse_address(text)[0]))),
)
ADDRESSES = SettingType('a list of "host:port" (in the environment separated by commas)', _parse_addresses, ",".join)
TEXT = SettingType("one line of text, at most 65535 bytes", _checked(lambda text: _matches(text, _LINE, 65_535)))
EVENT_CLASSES = SettingType(
    "letters of AKEg$lshzxetdmn, such as KEA", _checked(lambda text: not set(text) - set("AKEg$lshzxetdmn"))
)
HOST = SettingType("a host name or an address, without a port", _parse_host)
BROKER_HOST = SettingType(
    "a host name or an address, such as broker.example; the port goes into replication.mqtt_port", _parse_host
)
NODE_ID = SettingType(NODE_ID_RULE, _checked(lambda text: not text or is_node_id(text)))
TOPIC = SettingType(
    f"topic levels separated by '/', without white space, '+' and '#', no '$' first, at most {_TOPIC_SIZE_MAX} bytes",
    # Brokers disconnect clients that send control characters.
    _checked(lambda text: _matches(text, _TOPIC, _TOPIC_SIZE_MAX) and text.isprintable()),
)
