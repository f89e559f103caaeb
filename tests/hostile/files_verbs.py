"""The verbs of `merklekv` with hostile arguments, and against a server that answers as a node does, but for one reply.

Each run ends soon, with a documented status; what comes from the other side does nothing to the terminal.
"""

from __future__ import annotations

import os
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Final

from fixtures.node import NodeProcess
from fixtures.wire import Wire
from merklekv_tool import exit_codes

from merklekv.harness.process import HOST
from merklekv.readiness import wait_readable

from .arena import request
from .file_path import FilePath
from .files_directory import remove
from .input_path import Finding
from .mutate import TEXTS, damaged
from .trial import require_clean

QUIET_S: Final = 0.5  # after a hostile reply: then the connection ends, or the verb would wait a minute for the rest
ENDLESS: Final = 80 << 20  # more than a client takes
RECEIVE: Final = 1 << 16
VERBS: Final = (
    *(("stats",), ("stats", "--json"), ("stats", "--all"), ("stats", "--watch", "--count", "2", "--interval", "0.1")),
    *(
        ("members",),
        ("members", "--json"),
        ("health",),
        ("health", "--json"),
        ("verify",),
        ("verify", "--json"),
        ("dump",),
    ),
    *(("dump", "--format", "cbor"), ("log",), ("log", "--values"), ("log", "--json"), ("tree",), ("tree", "--json")),
    *(("watch", "--once", "--from", ""), ("watch", "--once", "--from", "", "--json", "--values")),
    *(
        ("bench", "--seconds", "0.2", "--clients", "2"),
        ("backup",),
        ("diff",),
        ("sync",),
        ("forget", "x", "--at"),
        ("load",),
    ),
)
REPLIES: Final = (
    *(
        b"-ERR \x1b[31mred\x1b[0m\r\n",
        b"+\x1b]0;title\x07\r\n",
        b"-" + b"E" * 100_000 + b"\r\n",
        b"+" + b"x" * 100_000 + b"\r\n",
    ),
    *(
        b"$-1\r\n",
        b"*-1\r\n",
        b"_\r\n",
        b":9223372036854775807\r\n",
        b":-1\r\n",
        b":" + b"9" * 5000 + b"\r\n",
        b"*0\r\n",
    ),
    *(
        b"$5\r\n\x1b[31m\r\n",
        b"$4000000000\r\n",
        b"*4000000000\r\n",
        b"*1\r\n" * 100_000,
        b"%2\r\n+a\r\n:1\r\n+b\r\n:2\r\n",
    ),
    *(
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\0" * 1000,
        b"\r\n" * 1000,
        b"\xff" * 1000,
        b"OK\r\n",
        b"-MOVED 1 h:1\r\n",
        b"+OK\r\n",
    ),
    *(
        b"$20\r\ndb_keys:\x1b[31m99\r\nx:y\r\n",
        b"$3\r\na:b\r\n",
        b"*2\r\n$1\r\n\x1b\r\n$1\r\n\x07\r\n",
        b"*2\r\n$-1\r\n*1\r\n$1\r\nk\r\n",
    ),
    *(
        b"*2\r\n$1\r\n0\r\n*0\r\n",
        b"*2\r\n$3\r\n999\r\n*0\r\n",
        b"$64\r\n" + b"0" * 64 + b"\r\n",
        b"-LOADING x\r\n",
        b"-NOAUTH x\r\n",
    ),
)


class Between:
    """Stands between a verb and a node, and changes one of the node's replies."""

    def __init__(self, node: NodeProcess, chance: random.Random) -> None:
        self._node = node
        self._chance = chance
        self._left = chance.choice((0, 0, 0, 1, 1, 2, 3, 5, 10))  # replies before the hostile one
        self._server = socket.create_server((HOST, 0))
        self._server.settimeout(0.1)
        self.address = f"{HOST}:{self._server.getsockname()[1]}"
        self.sent = ""
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while not self._ended.is_set():
            with suppress(OSError):
                client, _ = self._server.accept()
                thread = threading.Thread(target=self._serve, args=(client,))
                self._threads.append(thread)
                thread.start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError), client, socket.create_connection((HOST, self._node.port)) as node:
            client.settimeout(10)
            while not self._ended.is_set():
                ready = wait_readable([client.fileno(), node.fileno()], QUIET_S if self.sent else 0.1)
                if not ready and self.sent:
                    return
                for one in (one for one in (client, node) if one.fileno() in ready):
                    data = one.recv(RECEIVE)
                    if not data:
                        return
                    if one is client:
                        node.sendall(data)
                    elif self._left or self.sent:
                        self._left = max(0, self._left - 1)
                        client.sendall(data)
                    else:
                        self._attack(client, data)

    def _attack(self, client: socket.socket, data: bytes) -> None:
        kind = self._chance.choice(("changed", "changed", "changed", "other", "other", "more", "endless", "cut"))
        if kind == "changed":
            data = damaged(self._chance, data)
        elif kind == "other":
            data = self._chance.choice(REPLIES)
        elif kind == "more":
            data += self._chance.choice(REPLIES)
        elif kind == "cut":
            data = data[: len(data) // 2]
        self.sent = f"{kind} {data[:100]!r}"
        if kind == "endless":
            head = self._chance.choice(
                (b"$4000000000\r\n", b"$70000000\r\n", b"*100000000\r\n", b"+", b"-", b"*1\r\n*1\r\n")
            )
            self.sent = f"endless {head!r}"
            client.sendall(head)
            filler = self._chance.choice((b"x" * RECEIVE, b":1\r\n" * (RECEIVE // 4), b"*1\r\n" * (RECEIVE // 4)))
            for _ in range(ENDLESS // RECEIVE):
                client.sendall(filler)
            return
        client.sendall(data)

    def close(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(30)
        self._server.close()


@contextmanager
def between(node: NodeProcess, chance: random.Random) -> Iterator[Between]:
    made = Between(node, chance)
    try:
        yield made
    finally:
        made.close()


class VerbsPath(FilePath):
    """Each input is a run of a verb."""

    name = "verbs"

    def close(self) -> None:
        if "node" in vars(self):
            self.node.end()
        super().close()

    @cached_property
    def node(self) -> NodeProcess:
        node = NodeProcess(self.root / "node", self.root / "node.log", "--node-id", "honest")
        node.start()
        with Wire((HOST, node.port)) as wire:
            for number in range(50):
                wire.send(request(b"SET", b"k%d \x1b[31m" % number, b"v\x1b[0m\r\n" * number))
                wire.resp()
            wire.send(request(b"DEL", b"k1 \x1b[31m"))
            wire.resp()
        return node

    def one(self, chance: random.Random) -> None:
        if chance.random() < 0.3:
            self._arguments(chance)
        else:
            self._server(chance)

    def _arguments(self, chance: random.Random) -> None:
        verb, *options = chance.choice(VERBS)
        words = [
            *options,
            *(
                chance.choice(
                    (
                        *TEXTS,
                        "-",
                        "--",
                        "--json",
                        "--nothing",
                        "localhost:1",
                        ":0",
                        "[::1]:1",
                        "a..b:1",
                        "/dev/null",
                        ".",
                    )
                )
                for _ in range(chance.choice((1, 1, 2, 3)))
            ),
        ]
        words = [word for word in words if "\0" not in word and word not in ("localhost", "127.0.0.1")]
        if verb in ("backup", "dump", "load", "sync", "bench"):  # it would write where the words say
            words = [
                word for word in words if not word.startswith((".", "/", "n", "v", "p", "o")) or word == "/dev/null"
            ]
        here = self.root / "here"
        here.mkdir(exist_ok=True)
        done = self.trials.run("merklekv_tool", verb, *words, directory=here)
        require_clean(done, "merklekv-tool", exit_codes.MEANINGS, f"{verb} {words}"[:300])

    def _server(self, chance: random.Random) -> None:
        verb, *options = chance.choice(VERBS)
        with between(self.node, chance) as server:
            target = self.root / "target"
            remove(target)
            words: list[str | Path] = [*options, server.address]
            if verb == "backup":
                words.append(target)
            elif verb in ("diff", "sync"):
                words.append(f"{HOST}:{self.node.port}")
            elif verb == "load":
                dump = self.root / "dump"
                dump.write_bytes(b'{"merklekv_dump":3,"prefix":""}\n')
                words.insert(0, dump)
            done = self.trials.run("merklekv_tool", verb, *words)
        what = f"{verb} {options} with {server.sent or 'nothing hostile'}"
        raw = verb == "dump"  # its output is the data
        require_clean(done._replace(stdout=b"") if raw else done, "merklekv-tool", exit_codes.MEANINGS, what)
        if done.status and not any(
            os.fsencode(str(word)) in done.stderr + done.stdout for word in words if str(word)[:1] in ("/", "1")
        ):
            raise Finding(f"{what}: does not name the node\n{done}")
        if verb == "backup" and not done.status:
            checked = self.trials.run("merklekv_tool", "restore", target, self.root / "back")
            remove(self.root / "back")
            if checked.status:
                raise Finding(f"{what}: a backup that does not come back\n{done}\n{checked}")


PATHS = (VerbsPath,)
