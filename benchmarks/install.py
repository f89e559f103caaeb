"""How long it takes from `pip install` in an empty environment to the first answered request.

    python benchmarks/install.py                              builds the wheel, which is not counted, and measures
    python benchmarks/install.py --wheel FILE --directory DIR   measures that wheel; the environment stays in DIR/venv

What pip downloads, it takes from its cache if it has it there; `PIP_NO_CACHE_DIR=1` has it download everything.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from merklekv.harness.process import Node, wait_until
from merklekv.net.client import Client

ROOT = Path(__file__).parent.parent
BOUND_S = 20.0


def build(directory: Path) -> Path:
    """The wheel of this checkout."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(directory), str(ROOT)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = directory.glob("*.whl")
    return wheel


def measure(wheel: Path, directory: Path) -> tuple[float, float]:
    """Seconds from the start of pip to its end, and to the first answer of a node."""
    directory.mkdir(exist_ok=True)
    environment = directory / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    began = time.monotonic()
    subprocess.run([environment / "bin/pip", "install", "--quiet", str(wheel)], check=True)
    installed = time.monotonic() - began
    node = Node(directory / "data", directory / "log")
    node.program = [str(environment / "bin/merklekv")]
    node.environment = {name: value for name, value in node.environment.items() if name != "PYTHONPATH"}
    with node:
        with Client("127.0.0.1", node.port) as client:
            wait_until(lambda: client.call(b"SET", b"key", b"value") == b"OK")
        answered = time.monotonic() - began
    return installed, answered


def main() -> None:
    """Print both times, and whether the bound is reached."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--wheel", type=Path, metavar="FILE")
    parser.add_argument("--directory", type=Path, metavar="DIR", help="where it is installed")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="merklekv-install-") as scratch:
        directory = given.directory or Path(scratch)
        installed, answered = measure(given.wheel or build(Path(scratch)), directory)
    verdict = "reached" if answered <= BOUND_S else "missed"
    print(f"pip install: {installed:.1f} s; first answer after {answered:.1f} s (at most {BOUND_S:.0f} s: {verdict})")


if __name__ == "__main__":
    main()
