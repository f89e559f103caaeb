"""The canary, a process of its own: an honest client of two nodes, which measures how long each takes to answer.

    python canary.py VICTIM-PID VICTIM-PORT CONTROL-PORT

At each line of its input it says, in seconds, the longest wait of each since the last one, and the most processor time
that the victim has used during one of its answers: on a busy machine a wait alone says little.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

from merklekv.readiness import wait_readable

ASK = b"*3\r\n$3\r\nSET\r\n$13\r\nhonest:canary\r\n$1\r\nx\r\n"  # a write: both nodes wait for the same disk
EVERY_S = 0.005
TICKS = os.sysconf("SC_CLK_TCK")


def used_s(stat: Path) -> float:
    """The processor time that a process has used."""
    words = stat.read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / TICKS


def main() -> None:
    stat = Path(f"/proc/{sys.argv[1]}/stat")
    connections = [socket.create_connection(("127.0.0.1", int(port)), 60) for port in sys.argv[2:]]
    slowest = [0.0, 0.0, 0.0]
    while True:
        if wait_readable([sys.stdin.fileno()], EVERY_S):
            if not sys.stdin.readline():
                return
            sys.stdout.write(" ".join(map(str, slowest)) + "\n")
            sys.stdout.flush()
            slowest = [0.0, 0.0, 0.0]
        for number, connection in enumerate(connections):
            before = used_s(stat)
            began = time.monotonic()
            connection.sendall(ASK)
            if not connection.recv(4096):
                return
            slowest[number] = max(slowest[number], time.monotonic() - began)
            if not number:
                slowest[2] = max(slowest[2], used_s(stat) - before)


if __name__ == "__main__":
    main()
