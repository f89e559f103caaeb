"""How soon an idle node returns the space of deleted data to the file system."""

import time

from figure import Figure, Settings
from nodes import bytes_on_disk, make_node

from merklekv.net.client import Client

VALUE = b"v" * 1000
KEYS_MIN = 8000  # less data is left where it is
BATCH = 500
POLL_S = 0.02
GIVE_UP_S = 120.0
BACK_MAX_S = 30.0


def measure(settings: Settings) -> list[Figure]:
    """Loads, truncates, and waits until half of the directory's space is back; 100 MB in full size."""
    keys = max(KEYS_MIN, settings.size.keys // 10)
    directory = settings.directory / "space"
    with make_node(directory, durability="everysec") as node, Client("127.0.0.1", node.port) as client:
        for first in range(0, keys, BATCH):
            client.send([(b"SET", b"key:%012d" % number, VALUE) for number in range(first, first + BATCH)])
            for _ in range(BATCH):
                assert client.receive() == b"OK"
        before = bytes_on_disk(directory)
        began = time.perf_counter()
        assert client.call(b"FLUSHALL") == b"OK"
        while (left := bytes_on_disk(directory)) > before / 2 and time.perf_counter() - began < GIVE_UP_S:
            time.sleep(POLL_S)
        seconds = time.perf_counter() - began
    work = f"FLUSHALL of {keys * len(VALUE) // 10**6} MB, half of the disk space is back"
    detail = f"{before / 1e6:.0f} MB on disk before, {left / 1e6:.0f} MB then"
    return [Figure("space", work, seconds, BACK_MAX_S, False, "s", detail, ["FLUSHALL"])]
