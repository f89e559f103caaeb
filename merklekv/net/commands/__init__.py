"""The commands, in modules by group. Importing this package declares them all."""

from merklekv.net.commands import (
    cluster,
    connection,
    exchange,
    inspection,
    keys,
    numbers,
    records,
    scan,
    server,
    strings,
    transactions,
    unserved,
)

__all__ = [
    "cluster",
    "connection",
    "exchange",
    "inspection",
    "keys",
    "numbers",
    "records",
    "scan",
    "server",
    "strings",
    "transactions",
    "unserved",
]
