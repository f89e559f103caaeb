"""The command `merklekv-tool`, also as `python -m merklekv_tool`."""

from merklekv.interrupt import run_program


def main() -> None:
    """Entry point."""
    run_program("merklekv_tool.cli")


if __name__ == "__main__":
    main()
