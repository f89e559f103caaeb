"""One node's data: versions, commit log, memtables, LMDB base and Merkle tree behind one door, `engine.Engine`.

Knows no socket, no MQTT, and no process but its own checkpoint process.
"""
