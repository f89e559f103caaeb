"""`python -m merklekv_tool`: the same as the command `merklekv-tool`."""

from merklekv_tool.cli import main

main()
