"""The verbs of `merklekv`, also the program `merklekv-tool`: what looks after data, nodes and clusters.

verbs/       one module each: options, output, exit status
source/      where data is: a directory or a node
snapshot/    exact copies of a source, for backups
formats/     dumps, backups
"""
