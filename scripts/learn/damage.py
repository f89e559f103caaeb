"""Damages the newest log segment of a data directory that no node has open, to see how a start handles it.

python scripts/learn/damage.py tear DIR     cut into the last frame: what a power cut leaves of a write in progress
python scripts/learn/damage.py rot DIR      flip a bit of a frame in the middle: what a failing disk does
"""

import sys
from pathlib import Path

from merklekv.engine.format import SEGMENT_HEADER

TORN_BYTES = 5


def tear(data: bytearray) -> bytearray:
    """Cuts off the last bytes. The zeros behind them are room reserved for later frames."""
    return data.rstrip(b"\0")[:-TORN_BYTES]


def rot(data: bytearray) -> bytearray:
    """Flips one bit in the middle of the frames."""
    data[(SEGMENT_HEADER.size + len(data.rstrip(b"\0"))) // 2] ^= 1
    return data


def main() -> None:
    kinds = {"tear": tear, "rot": rot}
    if len(sys.argv) != 3 or sys.argv[1] not in kinds:
        sys.exit(__doc__)
    segments = sorted(Path(sys.argv[2], "log").glob("*.log"))
    if not segments:
        sys.exit(f"{sys.argv[2]} holds no log")
    segments[-1].write_bytes(kinds[sys.argv[1]](bytearray(segments[-1].read_bytes())))


if __name__ == "__main__":
    main()
