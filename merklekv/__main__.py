"""The command `merklekv`, also as `python -m merklekv`."""

from merklekv.interrupt import run_program


def main() -> None:
    """Entry point."""
    run_program("merklekv.cli")


if __name__ == "__main__":
    main()
