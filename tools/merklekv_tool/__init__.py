"""`merklekv-tool`: looks after data, in a directory or behind the port of a running node.

One module for each verb, thin over `places` (where data is), `dumps` (what a dump file is) and the engine's own checks.
"""
