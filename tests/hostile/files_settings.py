"""Settings by each way in, and files of settings of every sort: a node that works, or status 2 and a sentence.

A running node that is told to read them again goes on with those that it has, and says so.
"""

from __future__ import annotations

import os
import random
import re
import signal
import socket
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from fixtures.node import NodeProcess
from fixtures.wire import Wire

from merklekv import exit_codes
from merklekv.cli import FLAGS
from merklekv.harness.process import HOST, HarnessError, wait_until
from merklekv.settings import declarations, environment_name

from .arena import request
from .file_path import FilePath
from .files_directory import remove
from .input_path import Finding, Scene
from .mutate import TEXTS, damaged
from .trial import Outcome, require_clean

KEYS: Final = {key: declaration for key, declaration, _ in declarations()}
BOUNDS: Final = re.compile(r"from (\S+) to ([^\s,]+)")
UNITS: Final = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
ELSEWHERE: Final = ("storage_path", "host", "port", "http_port", "http_host", "allow_remote", "threads")
"""What a run keeps, so that it listens on this machine only, on a free port."""
TEXT_VALUES: Final = (
    *(
        "0",
        "1",
        "-1",
        "true",
        "false",
        "on",
        "none",
        "null",
        "nan",
        "1e9",
        "0x10",
        "1_000",
        "\u0663",
        "\uff19",
        "+5",
        " 5 ",
    ),
    *("64MiB", "64 mib", "1.5GiB", "999999999999GiB", "9" * 5000, "-" + "9" * 5000, "9" * 60_000, "MiB", "5 0"),
    *(
        "localhost",
        "::1",
        "[::1]",
        "a..b",
        "a" * 64,
        "host:1",
        "[::1]:65535",
        "a:0",
        "a:65536",
        ":1",
        "a:b:c",
        "fe80::1%lo",
    ),
    *(
        "always",
        "ALWAYS",
        "everysec",
        "never",
        "debug",
        "json",
        "5",
        "3.1.1",
        "KEA",
        "A" * 5000,
        "$SYS/x",
        "a/#",
        "a//b",
    ),
    *(
        "/",
        "/dev/null",
        "/dev/zero",
        "/nowhere/file",
        ".",
        "~",
        "~nobody-there/x",
        "\t",
        "\x7f",
        "a\\b",
        "é",
        "\U0001f9c0",
    ),
)
ENVIRONMENTS: Final[tuple[dict[str, str], ...]] = (
    {"HOME": ""},
    {"HOME": "/nowhere"},
    {"HOME": "\udcff"},
    {"TMPDIR": "/nowhere"},
    {"TMPDIR": "/dev/null"},
    {"PATH": ""},
    {"LANG": "C", "LC_ALL": "C"},
    {"LC_ALL": "xx_YY.nonsense"},
    {"TZ": "\udcff/nowhere"},
    {"COLUMNS": "0"},
    {"COLUMNS": "-1"},
    {"COLUMNS": "9" * 400},
    {"TERM": "\x1b[31m"},
    {"NO_COLOR": "1", "FORCE_COLOR": "1"},
    {"NOTIFY_SOCKET": "/nowhere"},
    {"NOTIFY_SOCKET": "@" + "x" * 300},
    {"NOTIFY_SOCKET": "\udcff"},
    {"WATCHDOG_USEC": "x"},
    {"WATCHDOG_USEC": "1"},
    {"WATCHDOG_USEC": "-5"},
    {"WATCHDOG_USEC": "9" * 400},
    {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "\udcff"},
    {"MERKLEKV_SERVICE_HOST": "10.0.0.1", "MERKLEKV_PORT": "tcp://10.0.0.1:7379", "MERKLEKV_SERVICE_PORT": "7379"},
    {"MERKLEKV_HEADLESS_PORT_7379_TCP_ADDR": "10.0.0.1"},
    {"MERKLEKV_": "x"},
    {"MERKLEKV_PORT": ""},
    {"MERKLEKV_\udcff": "x"},
    {"MERKLEKV_LIMITS": "x"},
    {"MERKLEKV_LIMITS__": "x"},
    {"MERKLEKV_LIMITS____MAX": "x"},
    {"MERKLEKV_CONFIG": "/nowhere"},
    {"MERKLEKV_CONFIG": "/dev/zero"},
    {"MERKLEKV_CONFIG": ""},
    {"MERKLEKV_CONFIG": "\udcff"},
    {"MERKLEKV_PURE": "1"},
    {"MERKLEKV_PURE": "\udcff"},
    {"merklekv_port": "1"},
)


def bounds(allowed: str) -> list[str]:
    """Numbers at and past the bounds that a type names."""
    found = BOUNDS.search(allowed)
    if found is None:
        return []
    numbers = []
    for text in found.groups():
        digits = re.match(r"\d+", text)
        if digits is not None:
            number = int(digits[0]) * UNITS.get(text[digits.end() :], 1)
            numbers += [number - 1, number, number + 1]
    return [str(number) for number in numbers]


def value(chance: random.Random, key: str) -> str:
    """A value of a setting, at a bound of it or of something else."""
    own = bounds(KEYS[key].type.allowed) if key in KEYS else []
    text: str = chance.choice((*own, *own, *own, *own, *TEXT_VALUES, *TEXTS))
    return text


def toml(chance: random.Random) -> bytes:
    """A file of settings, of any sort."""
    kinds: tuple[Callable[[], bytes], ...] = (
        lambda: b"".join(line(chance) for _ in range(chance.choice((1, 1, 2, 5)))),
        lambda: b"".join(line(chance) for _ in range(3)),
        lambda: damaged(chance, b'port = 7380\n[limits]\nmax_connections = 5\n[replication]\npeer_list = ["a:1"]\n'),
        lambda: b"\xef\xbb\xbfport = 7380\n",
        lambda: "port = 7380\n".encode("utf-16"),
        lambda: b"port = 7380\0\n",
        lambda: b"port = " + b"[" * chance.choice((100, 1000, 30_000)) + b"\n",
        lambda: b"a = " + b"{b=" * 10_000,
        lambda: b"port = " + b"9" * 60_000,
        lambda: b"port = 0x" + b"f" * 60_000,
        lambda: b"port = 1e" + b"9" * 60_000,
        lambda: b".".join([b"a"] * 30_000) + b" = 1\n",
        lambda: b"[" + b".".join([b"a"] * 30_000) + b"]\n",
        lambda: b'"' + b"k" * 65_000 + b'" = 1\n',
        lambda: b"k" * 65_530 + b"=1\n",
        lambda: b"#" * chance.choice((65_535, 65_536, 65_537, 1 << 22)),
        lambda: b"".join(b"[a%d]\n" % number for number in range(9000)),
        lambda: b"".join(b"a.b%d = 1\n" % number for number in range(5000)),
        lambda: b'port = """' + b'"' * 60_000,
        lambda: b"port = 1979-05-27T07:32:00" + b"0" * 1000,
        lambda: b"port = 7380\rport = 1\n",
        lambda: b"[limits]\n[limits]\n",
        lambda: b"limits = 5\n",
        lambda: b"[port]\nx = 1\n",
        lambda: b"[[limits]]\nmax_connections = 5\n",
        lambda: b"[limits.max_connections]\nx = 1\n",
        lambda: chance.randbytes(chance.choice((0, 1, 100, 5000))),
        lambda: b"\x1b[31m = 1\n",
        lambda: "\u202eport = 1\n".encode(),
    )
    return chance.choice(kinds)()


def line(chance: random.Random) -> bytes:
    key = chance.choice(list(KEYS))
    literals = (
        "true",
        "false",
        "1",
        "-1",
        "0",
        "1.5",
        "inf",
        "nan",
        "[]",
        "{}",
        '[""]',
        '["a:1", 5]',
        "1979-05-27",
        "''",
    )
    text = value(chance, key)
    quoted = '"' + "".join(f"\\U{ord(one):08X}" if not 0xD800 <= ord(one) < 0xE000 else "?" for one in text) + '"'
    given = chance.choice((*literals, quoted, quoted, text, text))
    return f"{key} = {given}\n".encode(errors="replace")


class SettingsPath(FilePath):
    """Values by flag, environment and file; files by `--config` and by SIGHUP; CONFIG SET; what surrounds a process."""

    name = "settings"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._kinds: tuple[Callable[[random.Random], None], ...] = (
            *(self._value, self._value, self._value, self._file, self._file, self._odd_file),
            *(self._environment, self._reload, self._reload, self._config_set, self._node_id),
        )

    def one(self, chance: random.Random) -> None:
        chance.choice(self._kinds)(chance)

    def close(self) -> None:
        if "node" in vars(self):
            self.node.end()
        super().close()

    # -- one setting ---------------------------------------------------------------------------------------------------

    def _value(self, chance: random.Random) -> None:
        key = chance.choice(list(KEYS))
        text = value(chance, key)
        way = chance.choice(("flag", "set", "environment"))
        arguments: list[str] = []
        environment: dict[str, str] = {}
        if way == "environment":
            if "\0" in text:
                return
            environment = {environment_name(key): text}
        elif way == "flag" and key in FLAGS and FLAGS[key][1]:
            arguments = [f"{FLAGS[key][0]}={text}"]
        else:
            arguments = ["--set", f"{key}={text}"]
        if any("\0" in one for one in arguments):
            return
        self._try(f"{key} = {text[:80]!r} by {way}", arguments, environment, key, runs=chance.random() < 0.3)

    def _try(
        self, what: str, arguments: list[str], environment: Mapping[str, str], key: str = "", *, runs: bool = False
    ) -> None:
        shown = self.trials.run("merklekv", "config", *arguments, environment=environment)
        self._require(what, shown, key)
        if shown.status or not runs or key in ELSEWHERE:
            return
        directory = self.root / "data"
        remove(directory)
        words: list[str | Path] = ["run", "--data-dir", directory, "--port", "0", *arguments]
        ran = self.trials.run("tests.hostile.use_node", *words, environment=environment)
        self._require(f"{what}, run", ran, "")
        if not ran.status and b"SERVES" not in ran.stdout and "max_connections" not in key:
            raise Finding(f"{what}: the node does not answer\n{ran}")

    def _require(self, what: str, outcome: Outcome, named: str) -> None:
        ours = outcome._replace(stderr=outcome.stderr if outcome.status else b"")
        require_clean(ours, "merklekv", exit_codes.MEANINGS, what)
        if outcome.status in (1, exit_codes.EXIT_CORRUPT, exit_codes.EXIT_STORAGE, exit_codes.EXIT_SLOW_STOP):
            raise Finding(f"{what}: a status that no setting may cause\n{outcome}")
        if not outcome.status:
            return
        lines = outcome.stderr.decode(errors="replace").splitlines()
        errors = [one for one in lines if one.startswith("merklekv: ")]
        if len(errors) != 1 or len(errors[0]) > 1500:
            raise Finding(f"{what}: not one line\n{outcome}")
        flag = FLAGS[named][0] if named in FLAGS else named
        if named and named not in errors[0] and flag not in errors[0]:
            raise Finding(f"{what}: does not name the setting\n{outcome}")

    # -- files ---------------------------------------------------------------------------------------------------------

    def _file(self, chance: random.Random) -> None:
        file = self.root / "settings.toml"
        remove(file)
        content = toml(chance)
        file.write_bytes(content)
        what = f"a file of {len(content)} bytes, {content[:80]!r}"
        shown = self.trials.run("merklekv", "config", "--config", file)
        self._require(what, shown, "")
        if shown.status and str(file) not in shown.stderr.decode(errors="replace"):
            raise Finding(f"{what}: does not name the file\n{shown}")

    def _place(self, chance: random.Random, file: Path) -> str:
        """Puts something else than a file there."""
        remove(file)
        kind = chance.choice(
            ("missing", "directory", "pipe", "socket", "zero", "full", "loop", "sparse", "nobody's", "deep")
        )
        match kind:
            case "directory":
                file.mkdir()
            case "pipe":
                os.mkfifo(file)
            case "socket":
                with socket.socket(socket.AF_UNIX) as bound:
                    bound.bind(str(file))
            case "zero" | "full":
                file.symlink_to(f"/dev/{kind}")
            case "loop":
                file.symlink_to(file.name)
            case "sparse":
                file.touch()
                os.truncate(file, 1 << 40)
            case "nobody's":
                file.write_text("port = 1\n")
                file.chmod(0)
            case "deep":
                file.symlink_to("a/" * 2000 if os.name == "nt" else "a/" * 1000)
        return kind

    def _odd_file(self, chance: random.Random) -> None:
        file = self.root / "settings.toml"
        kind = self._place(chance, file)
        key = chance.choice(
            ("", "", "replication.client_password_file", "replication.tls_ca_file", "replication.tls_cert_file")
        )
        arguments = ["--set", f"{key}={file}"] if key else ["--config", str(file)]
        self._try(f"{kind} as {key or 'settings'}", arguments, {}, runs=bool(key))

    def _environment(self, chance: random.Random) -> None:
        environment = dict(chance.choice(ENVIRONMENTS))
        if chance.random() < 0.3:
            environment |= chance.choice(ENVIRONMENTS)
        self._try(f"environment {environment}"[:300], [], environment, runs=True)

    def _node_id(self, chance: random.Random) -> None:
        directory = self.root / "data"
        remove(directory)
        directory.mkdir()
        made = self.trials.run("tests.hostile.use_node", "run", "--data-dir", directory, "--port", "0")
        if made.status:
            raise Finding(f"a new directory does not serve\n{made}")
        text = chance.choice((*TEXTS, *TEXT_VALUES)).encode(errors="surrogateescape")
        (directory / "node-id").write_bytes(chance.choice((text, text + b"\n", b"\xff" + text, text * 100)))
        ran = self.trials.run("tests.hostile.use_node", "run", "--data-dir", directory, "--port", "0")
        what = f"node-id {text[:80]!r}"
        require_clean(ran._replace(stderr=ran.stderr if ran.status else b""), "merklekv", exit_codes.MEANINGS, what)
        checked = self.trials.run("merklekv_tool", "verify", directory)
        if ran.status not in (0, exit_codes.EXIT_CORRUPT) or bool(ran.status) != bool(checked.status):
            raise Finding(f"{what}: start and verify differ\n{ran}\n{checked}")

    # -- a node that runs ----------------------------------------------------------------------------------------------

    @cached_property
    def node(self) -> NodeProcess:
        file = self.root / "node.toml"
        file.write_text("")
        node = NodeProcess(self.root / "node", self.root / "node.log", "--config", str(file))
        node.start()
        return node

    def _reload(self, chance: random.Random) -> None:
        file = self.node.directory.with_name("node.toml")
        if chance.random() < 0.3:
            what = self._place(chance, file)
        else:
            content = toml(chance)
            remove(file)
            file.write_bytes(content)
            what = repr(content[:80])
        before = self.node.output().count("SIGHUP: ")
        os.kill(self.node.pid, signal.SIGHUP)
        try:
            wait_until(lambda: self.node.output().count("SIGHUP: ") > before, seconds=30)
        except HarnessError:
            said = self.node.output()[-2000:]
            self._renew()
            raise Finding(f"SIGHUP with {what}: the node says nothing\n{said}") from None
        self._require_alive(f"SIGHUP with {what}")

    def _config_set(self, chance: random.Random) -> None:
        names = (b"loglevel", b"maxclients", b"timeout", b"notify-keyspace-events", b"slowlog-log-slower-than", b"port")
        name = chance.choice(
            (*names, b"maxmemory", b"save", b"appendonly", b"*", b"slowlog-max-len", b"latency-monitor-threshold")
        )
        text = value(chance, chance.choice(list(KEYS))).encode(errors="surrogateescape")
        self._ask(b"CONFIG", b"SET", name, text)
        self._ask(b"CONFIG", b"SET", b"maxclients", b"1000")
        self._ask(b"CONFIG", b"SET", b"timeout", b"0")
        self._require_alive(f"CONFIG SET {name.decode()} {text[:80]!r}")

    def _renew(self) -> None:
        """The next input gets a new node."""
        self.node.end()
        self.node.log.unlink()
        del self.node

    def _ask(self, *words: bytes) -> bytes:
        try:
            with Wire((HOST, self.node.port)) as wire:
                wire.send(request(*words))
                return wire.resp()
        except OSError as error:
            return str(error).encode()

    def _require_alive(self, what: str) -> None:
        assert self.node.process is not None
        if self.node.process.poll() is not None:
            text = f"{what}: the node ends\n{self.node.output()[-2000:]}"
            self._renew()
            raise Finding(text)
        if "Traceback" in self.node.output():
            text = f"{what}: a traceback\n{self.node.output()[-3000:]}"
            self._renew()
            raise Finding(text)
        if (answer := self._ask(b"PING")) != b"+PONG\r\n":
            raise Finding(f"{what}: the node answers {answer[:200]!r}")


PATHS: Final[tuple[type[Any], ...]] = (SettingsPath,)
