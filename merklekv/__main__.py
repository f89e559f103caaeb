"""`python -m merklekv`: the same as the command `merklekv`."""

from merklekv.cli import main

main()
