"""Draws the pictures of docs/learn from runs of real nodes with a real Mosquitto; a minute for all.

    python scripts/learn/draw.py outbox skew merkle       # only these
    python scripts/learn/draw.py merkle --small --output /tmp

Each picture is drawn from a measured run: its numbers differ from run to run, its story does not. --small makes a short
run, to try it out.
"""

import argparse
from pathlib import Path
from typing import Any

import matplotlib as mpl
import merkle_picture
import outbox_picture
import skew_picture
from matplotlib.figure import Figure

PICTURES = {"outbox": outbox_picture.draw, "skew": skew_picture.draw, "merkle": merkle_picture.draw}
OUTPUT = Path(__file__).parent.parent.parent / "docs" / "learn"
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "svg.hashsalt": "merklekv",  # the same drawing gives the same file
}


def save(drawing: Figure, path: Path) -> None:
    """As SVG, without a date."""
    drawing.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="+", choices=PICTURES, metavar="PICTURE", help=", ".join(PICTURES))
    parser.add_argument("--small", action="store_true", help="less of everything")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="where the pictures go [docs/learn]")
    given = parser.parse_args()
    mpl.rcParams.update(STYLE)
    for name in dict.fromkeys(given.pictures):
        path = given.output / f"{name}.svg"
        save(PICTURES[name](given.small), path)
        print(path)


if __name__ == "__main__":
    main()
