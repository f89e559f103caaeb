"""Reads the settings: from a flag of the command line, the environment (`MERKLEKV_PORT`,
`MERKLEKV_REPLICATION__MQTT_BROKER`), a TOML file, or the default in `settings`. The first that has a value wins.

An unknown key or a value that is not allowed raises ConfigError: one line with the key, the value, its source and what
is allowed. A secret may also be in a file, `client_password_file` for `client_password`, and is never shown.

It opens only the files named, resolves no host name, and touches no data directory.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TypeVar

from merklekv.core import PURE_VARIABLE
from merklekv.errors import InvalidArgument, shown
from merklekv.settings import ENVIRONMENT_PREFIX, SECTION_SEPARATOR, Declaration, Settings, declarations

T = TypeVar("T")

# Variables of the test suite, of the command line itself, and of builds of the compiled core, which share the prefix.
NOT_SETTINGS = ("MERKLEKV_TEST_", "MERKLEKV_CONFIG", PURE_VARIABLE, "MERKLEKV_REQUIRE_CORE")
# What Kubernetes gives each pod for the Services of its namespace: for one named `merklekv`, and for others whose names
# begin like that, such as `merklekv-headless`. A setting with such a name has another value.
_SERVICE = rf"{ENVIRONMENT_PREFIX[:-1]}(_[A-Z0-9]+)*"
SERVICE_VARIABLE = re.compile(
    rf"{_SERVICE}_SERVICE_(HOST|PORT(_[A-Z0-9_]+)?)=.*"
    rf"|{_SERVICE}_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?=.*"
    rf"|{_SERVICE}_PORT=(tcp|udp|sctp)://\S+:\d+",
    re.ASCII | re.DOTALL,
)
# Keys of older files without a meaning: there is one engine.
IGNORED_KEYS = frozenset({"engine"})
ALIASES = {"data_dir": "storage_path"}
SECRET_FILE_SUFFIX = "_file"
SECRET_MASK = "********"
SECRET_FILE_SIZE_MAX = 65_536
FILE_SIZE_MAX = 65_536  # the time that tomllib takes for a name grows with the square of its length
LINE_POINTS_MAX = 1000  # the memory that it takes for a name grows with the square of its parts
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
TLS_FILES = ("replication.tls_ca_file", "replication.tls_cert_file", "replication.tls_key_file")


class ConfigError(InvalidArgument):
    """A setting that does not exist, or a value that is not allowed."""


@dataclass(frozen=True, slots=True)
class Given:
    """A value as the user wrote it, and its source in words."""

    value: object
    source: str


Layer = dict[str, Given]


@dataclass(frozen=True, slots=True)
class Effective:
    """A setting in force, for `merklekv config`."""

    key: str
    value: object
    source: str
    declaration: Declaration

    def shown(self) -> str:
        """The value as people write it; a secret is masked."""
        if self.declaration.secret and self.value:
            return SECRET_MASK
        return self.declaration.type.show(self.value)

    def plain(self) -> object:
        """The value for JSON: sizes and numbers as numbers, the rest as people write it."""
        return self.value if isinstance(self.value, int) and not self.declaration.secret else self.shown()


@dataclass(frozen=True, slots=True)
class Loaded:
    """The settings, and the source of each."""

    settings: Settings
    effective: tuple[Effective, ...]


def load(flags: Mapping[str, tuple[str, object]], environment: Mapping[str, str], file: Path | None) -> Loaded:
    """Reads every setting. `flags` maps a key to the flag's spelling and value. Raises ConfigError."""
    layers = [_from_flags(flags), _from_environment(environment), _from_file(file) if file else {}]
    values: dict[str, Effective] = {}
    for key, declaration, default in declarations():
        given = next((layer[key] for layer in layers if key in layer), None)
        if given is not None:
            value = _parse(key, declaration, given)
            values[key] = Effective(key, value, given.source, declaration)
        elif declaration.inherits and values[declaration.inherits].source != "default":
            inherited = values[declaration.inherits]
            values[key] = Effective(key, inherited.value, f"{inherited.key}, {inherited.source}", declaration)
        else:
            values[key] = Effective(key, default, "default", declaration)
    _check_together(values)
    return Loaded(_build(Settings, "", values), tuple(values.values()))


def _build(of: type[T], section: str, values: Mapping[str, Effective]) -> T:
    arguments: dict[str, object] = {}
    for one in fields(of):  # type: ignore[arg-type]
        if is_dataclass(one.default):
            arguments[one.name] = _build(type(one.default), f"{one.name}.", values)
        else:
            arguments[one.name] = values[section + one.name].value
    return of(**arguments)


def _parse(key: str, declaration: Declaration, given: Given) -> object:
    try:
        return declaration.type.parse(given.value)
    except ValueError:
        value = "the value (hidden)" if declaration.secret else shown(given.value)
        raise ConfigError(f"{given.source}: {key} = {value} is not allowed; give {declaration.type.allowed}") from None


def _check_together(values: Mapping[str, Effective]) -> None:
    certificate, key = values["replication.tls_cert_file"], values["replication.tls_key_file"]
    if bool(certificate.value) != bool(key.value):
        there, lacking = (certificate, key) if certificate.value else (key, certificate)
        raise ConfigError(f"{there.source}: {there.key} is given without {lacking.key}; give both or neither")
    port, http_port = values["port"], values["http_port"]
    if port.value == http_port.value and port.value:
        source = next((one.source for one in (http_port, port) if one.source != "default"), "default")
        raise ConfigError(f"{source}: http_port = {port.value} is also the port for clients; give another one")
    broker_port = values["replication.mqtt_port"]
    broker = values["replication.mqtt_broker"].value
    for host, own in ((values["host"], port), (values["http_host"], http_port)):
        is_local = broker in LOOPBACK | {host.value}
        if values["replication.enabled"].value and is_local and own.value == broker_port.value:
            source = next((one.source for one in (own, broker_port) if one.source != "default"), "default")
            raise ConfigError(
                f"{source}: {own.key} = {own.value} is also the port of the broker on this machine; give another one"
            )


def require_tls_files(loaded: Loaded) -> None:
    """Checks the files for TLS; later, a wrong one would fail at each connect. Raises ConfigError."""
    given = {one.key: one for one in loaded.effective if one.key in TLS_FILES and one.value}
    if not given:
        return
    from merklekv.tls import BadTlsFile, client_context  # slow to import, and few need it

    try:
        client_context(*(str(given[name].value) if name in given else "" for name in TLS_FILES))
    except BadTlsFile as error:
        blamed = next(one for one in reversed(given.values()) if one.value == error.file)
        raise ConfigError(f"{blamed.source}: {blamed.key} = {error.file!r} {error.reason}") from None


def _from_flags(flags: Mapping[str, tuple[str, object]]) -> Layer:
    layer: Layer = {}
    for key, (spelling, value) in flags.items():
        _place(layer, key, Given(value, f"flag {spelling}"))
    return layer


def _from_environment(environment: Mapping[str, str]) -> Layer:
    layer: Layer = {}
    for name, value in sorted(environment.items()):
        is_ours = name.startswith(ENVIRONMENT_PREFIX) and not name.startswith(NOT_SETTINGS)
        if is_ours and not SERVICE_VARIABLE.fullmatch(f"{name}={value}"):
            key = name.removeprefix(ENVIRONMENT_PREFIX).lower().replace(SECTION_SEPARATOR, ".")
            _place(layer, key, Given(value, f"environment {name}"))
    return layer


def _from_file(file: Path) -> Layer:
    try:
        content = _content(file, FILE_SIZE_MAX)
        if len(content) > FILE_SIZE_MAX:
            raise ConfigError(f"file {file}: is larger than {FILE_SIZE_MAX} bytes")
        if any(line.count(b".") > LINE_POINTS_MAX for line in content.splitlines()):
            raise ConfigError(f"file {file}: has more than {LINE_POINTS_MAX} points in a line")
        document = tomllib.loads(content.decode("utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"file {file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"file {file}: is not UTF-8 text, as TOML has to be") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"file {file}: is not TOML: {error}") from None
    except ValueError:
        raise ConfigError(f"file {file}: has a number of thousands of digits") from None
    except RecursionError:
        raise ConfigError(f"file {file}: has too many brackets within brackets") from None
    layer: Layer = {}
    sections = {key.partition(".")[0] for key, _, _ in declarations() if "." in key}
    for name, value in document.items():
        if name not in sections:
            _place(layer, name, Given(value, f"file {file}"))
            continue
        if not isinstance(value, dict):
            raise ConfigError(f"file {file}: {name} = {shown(value)} is not allowed; give a section [{name}]")
        for inner, inner_value in value.items():
            _place(layer, f"{name}.{inner}", Given(inner_value, f"file {file}"))
    return layer


def _place(layer: Layer, key: str, given: Given) -> None:
    """Puts a value under its key. Resolves aliases and files of secrets. Raises ConfigError for an unknown key."""
    known = {name: declaration for name, declaration, _ in declarations()}
    key = ALIASES.get(key, key)
    if key in IGNORED_KEYS:
        return
    secret = key.removesuffix(SECRET_FILE_SUFFIX)
    if key not in known and secret in known and known[secret].secret:
        key, given = secret, _read_secret(key, given)
    if key not in known:
        raise ConfigError(f"{given.source}: unknown key {shown(key)}{_suggestion(key, list(known))}")
    if key in layer:
        raise ConfigError(f"{given.source}: {key} is given twice, also by {layer[key].source}; give it once")
    layer[key] = given


def _read_secret(key: str, given: Given) -> Given:
    path = Path(str(given.value))
    try:
        content = _content(path, SECRET_FILE_SIZE_MAX)
        if len(content) > SECRET_FILE_SIZE_MAX:
            raise ConfigError(f"{given.source}: {key} = {str(path)!r} is larger than {SECRET_FILE_SIZE_MAX} bytes")
        secret = content.decode("utf-8-sig").rstrip("\r\n")
        if not secret:
            raise ConfigError(f"{given.source}: {key} = {str(path)!r} is empty")
        return Given(secret, f"{given.source}, file {path}")
    except OSError as error:
        raise ConfigError(f"{given.source}: {key} = {str(path)!r} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{given.source}: {key} = {str(path)!r} is not UTF-8 text") from None
    except ValueError:
        raise ConfigError(f"{given.source}: {key} = {str(path)!r} is not the name of a file") from None


def _content(path: Path, size_max: int) -> bytes:
    """The content of a file, at most a byte more than `size_max`.

    Raises OSError, also for a pipe or a device: a reload would wait for its writer, and the node would hear no signal.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        return file.read(size_max + 1)


def _suggestion(key: str, known: list[str]) -> str:
    sections = sorted({name.partition(".")[0] for name in known if "." in name})
    close = difflib.get_close_matches(key, [*known, *sections], n=1)
    if not close:  # the right name in the wrong section is the next likely slip
        close = [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]]
    return f"; did you mean '{close[0]}'?" if close else "; 'merklekv config' lists every key"
