"""What starts nodes and brokers for tests, the demo and benchmarks: the ports that it gives out."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from merklekv.harness import process
from merklekv.harness.process import HELD_MAX, HOST, free_port

FEW = range(20_000, 20_400)
ASK = """
import sys
from merklekv.harness import process
process.PORTS = range(*map(int, sys.argv[1:]))
print(*(process.free_port() for _ in range(process.HELD_MAX)), flush=True)
sys.stdin.read()
"""


def test_no_two_processes_are_given_the_same_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the answer and the start of a server that listens there, another process may ask."""
    monkeypatch.setattr(process, "PORTS", FEW)
    command = [sys.executable, "-c", ASK, str(FEW.start), str(FEW.stop)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        ours = {free_port() for _ in range(HELD_MAX // 2)}
        theirs = set(map(int, other.stdout.readline().split()))
        ours |= {free_port() for _ in range(HELD_MAX // 2)}
        other.communicate()
    assert (len(ours), len(theirs)) == (HELD_MAX, HELD_MAX)
    assert not ours & theirs


def test_a_server_may_listen_on_a_port_that_it_was_given_and_listen_again() -> None:
    port = free_port()
    for _ in range(2):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((HOST, port))
        with socket.create_server((HOST, port)), socket.create_connection((HOST, port)):
            pass


def test_so_many_ports_are_held_and_no_more() -> None:
    first = free_port()
    for _ in range(HELD_MAX - 1):
        free_port()
    assert (first in process._held, len(process._held)) == (True, HELD_MAX)
    free_port()
    assert (first in process._held, len(process._held)) == (False, HELD_MAX)
