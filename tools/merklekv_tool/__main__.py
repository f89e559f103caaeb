from merklekv_tool.cli import main

main()
