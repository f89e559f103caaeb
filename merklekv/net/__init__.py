"""The network side of a node: one TCP port that speaks a line protocol and RESP.

Read in this order: `text` and `resp` turn bytes into requests and know no socket; `commands` is the table of
everything a client may ask, with the handlers beside it; `worker` runs connections, a tick at a time; `server`
owns the port. Data is reached through `merklekv.engine` only, and nothing here knows about MQTT: what a command
needs from the rest of the node comes through `session.Services`.
"""
