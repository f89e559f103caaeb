"""The canary, a process of its own: an honest client of two nodes, which measures how long each takes to answer.

    python canary.py VICTIM-PORT CONTROL-PORT

At each line of its input it says the longest waits since the last one, in seconds.
"""

from __future__ import annotations

import select
import socket
import sys
import time

ASK = b"*2\r\n$3\r\nGET\r\n$11\r\nhonest:0000\r\n"
EVERY_S = 0.005


def main() -> None:
    connections = [socket.create_connection(("127.0.0.1", int(port)), 60) for port in sys.argv[1:]]
    slowest = [0.0, 0.0]
    while True:
        if select.select([sys.stdin], [], [], EVERY_S)[0]:
            if not sys.stdin.readline():
                return
            sys.stdout.write(" ".join(map(str, slowest)) + "\n")
            sys.stdout.flush()
            slowest = [0.0, 0.0]
        for number, connection in enumerate(connections):
            began = time.monotonic()
            connection.sendall(ASK)
            if not connection.recv(4096):
                return
            slowest[number] = max(slowest[number], time.monotonic() - began)


if __name__ == "__main__":
    main()
