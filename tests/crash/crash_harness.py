"""A node that is written to, killed, started again and held to what it acknowledged.

    victim = Victim(node, seed, tmp_path)
    victim.start()
    victim.write(acknowledgements=500, kill=[node.pid])
    victim.recover()            # checks the directory, starts, checks every key

A failure names the seed and the copy of the directory as the crash left it.
"""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
from crash_model import CLIENTS, Client, Model, check_shared, difference, survivor
from crash_writers import Job
from fix_node import NodeProcess
from support import wait_until

from merklekv.engine.check import check_directory
from merklekv.engine.format import VERSION_SIZE
from merklekv.net.client import Client as Connection
from merklekv.net.client import Reply

HERE = Path(__file__).parent
WRITERS = [sys.executable, "-c", "import crash_writers; crash_writers.main()"]
WRITERS_S = 60.0
KEYS_AT_ONCE = 1000
SMALL_MEMTABLE = ("--memtable-size", "64KiB")


class Victim:
    """A node and what must be in it."""

    def __init__(self, node: NodeProcess, seed: str, keep: Path) -> None:
        node.wrapper = ["setsid", *node.wrapper]  # a process group of its own, so that all of it can be killed
        self.node = node
        self.seed = seed
        self.keep = keep
        self.models: list[Model] = [{} for _ in range(CLIENTS)]
        self.shared: Model = {}
        self.clients: list[Client] = []
        self.acknowledged = 0
        self._starts = self._writes = 0

    def start(self) -> None:
        self._starts += 1
        try:
            self.node.start()
        except AssertionError as failure:
            self.require(False, "the node did not start", str(failure))

    def write(
        self, acknowledgements: int, kill: list[int] | None = None, refusals: int = 0, clients: int = CLIENTS
    ) -> list[Client]:
        """Lets clients write until so much is acknowledged (or refused), or the node is gone."""
        self._writes += 1
        seed = f"{self.seed}/{self._writes}"
        job = Job(self.node.port, seed, self.models, clients, acknowledgements, kill or [], refusals)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
        done = subprocess.run(
            WRITERS, input=pickle.dumps(job), capture_output=True, timeout=WRITERS_S, env=environment, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
        self.clients = pickle.loads(done.stdout)
        self.acknowledged += sum(client.acknowledged for client in self.clients)
        self.require(not any(client.wrong for client in self.clients), *(w for c in self.clients for w in c.wrong))
        return self.clients

    def gone(self) -> int:
        """Waits for the end of the node; its exit status, negative for a signal."""
        return self.node.wait()

    def recover(self) -> None:
        """Checks what the crash has left, starts the node again, and checks every key."""
        problems = check_directory(self.node.directory)
        copy = self.keep / "as-the-crash-left-it"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.node.directory, copy)
        self.require(not problems, *problems)
        self.start()
        self.check_keys()

    def check_keys(self) -> None:
        """Holds the running node to every acknowledged write, and takes what is there for known from now on."""
        found = self.read_all()
        parts: list[Model] = [{} for _ in range(CLIENTS)]
        shared = {key: found.pop(key) for key in list(found) if key.startswith(b"shared:")}
        for key, value in found.items():
            parts[int(key[1 : key.index(b":")])][key] = value
        for number, client in enumerate(self.clients):
            model = survivor(client, parts[number])
            self.require(model is not None, f"client {number}:", difference(client, parts[number]))
        if self.clients:
            problems = check_shared(self.shared, shared, self.clients)
            self.require(not problems, *problems)
        self.models, self.shared, self.clients = parts, shared, []

    def read_all(self) -> Model:
        """All keys of the running node."""
        with self.connect() as connection:
            keys = connection.call(b"KEYS", b"*")
            assert isinstance(keys, list)
            found: Model = {}
            for start in range(0, len(keys), KEYS_AT_ONCE):
                some = keys[start : start + KEYS_AT_ONCE]
                values = connection.call(b"MGET", *some)  # type: ignore[arg-type]
                found |= zip(some, values, strict=True)  # type: ignore[arg-type, call-overload]
            return found

    def connect(self) -> Connection:
        return Connection("127.0.0.1", self.node.port)

    def truncate(self) -> None:
        """Removes every key of the running node."""
        with self.connect() as connection:
            assert connection.call(b"TRUNCATE") == b"OK"
        self.models, self.shared = [{} for _ in self.models], {}

    def raise_floor(self) -> None:
        """Removes the older half of the running node's keys, as a truncate does that comes from another node late."""
        with self.connect() as connection:
            records: dict[bytes, bytes] = {}
            after: Reply = b""
            while isinstance(after, bytes):
                after, parts = connection.call(b"RECORDS", after, b"1000")  # type: ignore[misc]
                records |= zip(parts[::3], parts[1::3], strict=True)  # type: ignore[arg-type, call-overload, index]
            floor = sorted(records.values())[len(records) // 2][:VERSION_SIZE]
            assert connection.call(b"MERGEFLOOR", b"elsewhere", floor) == 1
        for model in (*self.models, self.shared):
            for key in [key for key in model if records[key] < floor]:
                del model[key]

    def children(self) -> list[int]:
        """The absorbing child of this directory, also that of a node that is gone."""
        base = str(self.node.directory / "base")
        running = psutil.process_iter(["cmdline", "status"])
        return [one.pid for one in running if base in (one.info["cmdline"] or ()) and one.info["status"] != "zombie"]

    def kill_while_starting(self, seconds: float) -> None:
        """Starts the node and kills it after some time, which may be before or after it is ready."""
        self._starts += 1
        self.node.launch()
        self.kill_after(seconds)

    def kill_after(self, seconds: float) -> None:
        """Kills the node some time from now."""
        assert self.node.process is not None
        try:
            self.node.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.node.kill()
        else:
            self.require(False, "the node ended by itself", self.node.output())

    def stop(self) -> None:
        """A clean end, and a last check."""
        assert self.node.stop() == 0
        problems = check_directory(self.node.directory)
        self.require(not problems, *problems)

    def require(self, holds: bool, *problems: str) -> None:
        if not holds:
            where = f"seed {self.seed}, start {self._starts}, writing {self._writes}, {self.acknowledged} acknowledged"
            directory = self.keep / "as-the-crash-left-it"
            raise AssertionError("\n".join((where, f"directory as the last crash left it: {directory}", *problems)))


def is_gone(pid: int) -> bool:
    """Whether a process has ended, if nobody has looked at its end yet included."""
    try:
        return psutil.Process(pid).status() == "zombie"
    except psutil.NoSuchProcess:
        return True


def wait_gone(pids: list[int]) -> None:
    """Waits for processes that are to end by themselves."""
    wait_until(lambda: all(map(is_gone, pids)), what=f"the end of {pids}")
