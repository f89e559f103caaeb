"""`merklekv-tool`: inspects, copies and repairs data, in a data directory or through the port of a running node.

verbs/       one module each: options, output, exit status
source/      where data is: a directory or a node
snapshot/    exact copies of a source, for backups
formats/     dumps, backups
"""
