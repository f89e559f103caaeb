"""The command `merklekv`, also as `python -m merklekv`.

Ctrl-C is provided for before the imports, which take a while: Python alone would show a traceback.
"""

from merklekv.interrupt import leave_on_interrupt


def main() -> None:
    """Entry point."""
    leave_on_interrupt()
    from merklekv import cli

    cli.main()


if __name__ == "__main__":
    main()
