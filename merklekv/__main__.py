"""The command `merklekv`, also as `python -m merklekv`."""

import sys

from merklekv.interrupt import run_program

SERVER = ("run", "config", "demo", "version")  # the commands of merklekv.cli


def main() -> None:
    """Entry point. Commands of the server start without the rest of the program."""
    run_program("merklekv.cli" if sys.argv[1:2] and sys.argv[1] in SERVER else "merklekv.program")


if __name__ == "__main__":
    main()
