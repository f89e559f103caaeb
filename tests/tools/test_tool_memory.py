"""The tool streams: what it takes does not depend on how much there is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fixtures.node import NodeFactory, NodeProcess
from fixtures.tools import address, succeeds

from merklekv.net.client import Client

VALUE = bytes(range(256)) * 400
VALUES = 1000
DATA_BYTES = len(VALUE) * VALUES  # 100 MB
PEAK_BYTES_MAX = 64 << 20  # the interpreter with its modules takes half of that
# What the kernel says of a child after its end counts the process that it was forked from, so it has to say it itself.
WITH_PEAK = """
import atexit, re, sys
from merklekv_tool.cli import main
atexit.register(lambda: print(re.search("VmHWM.*", open("/proc/self/status").read())[0], file=sys.stderr))
main()
"""


@pytest.fixture
def node(node_factory: NodeFactory) -> NodeProcess:
    """A node with much more data than the tool may take memory."""
    node = node_factory("--durability", "never", "--memtable-size", "4MiB")
    with Client("127.0.0.1", node.port) as client:
        for number in range(VALUES):
            client.call(b"SET", b"key:%04d" % number, VALUE)
    return node


def peak_bytes(*arguments: str | Path) -> int:
    """The largest resident set of a run that succeeds."""
    command = [sys.executable, "-c", WITH_PEAK, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return int(done.stderr.split()[-2]) * 1024


def test_verify(node: NodeProcess) -> None:
    assert peak_bytes("verify", address(node)) < PEAK_BYTES_MAX < DATA_BYTES


@pytest.mark.parametrize("form", ["jsonl", "cbor"])
def test_dump_and_load(form: str, node: NodeProcess, node_factory: NodeFactory, tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    assert peak_bytes("dump", address(node), "--format", form, "--output", dump) < PEAK_BYTES_MAX
    assert dump.stat().st_size > DATA_BYTES
    other = node_factory("--durability", "never", "--memtable-size", "4MiB")
    assert peak_bytes("load", dump, address(other)) < PEAK_BYTES_MAX
    assert b"no problems" in succeeds("verify", address(other))
