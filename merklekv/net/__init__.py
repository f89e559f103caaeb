"""The network side of a node: one TCP port that speaks a line protocol and RESP.

Read in this order: `protocol` turns bytes into requests and knows no socket; `commands` declares everything that a
client can ask; `connection` has the states of a client's connection; `executor` runs requests; `worker` reads, commits
and sends, a tick at a time; `server` owns the port. Data is reached through `merklekv.engine` only, and nothing here
knows MQTT: what a command needs from the rest of the node comes through `session.Services`.
"""
