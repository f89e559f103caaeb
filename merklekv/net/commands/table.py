"""The command table: everything a client may ask, in both protocols.

Each row says a command's name, the STATS counter it feeds, what it does in a line, and for each protocol that has it
the handler and the syntax. The handlers stand in modules by concern; the documentation and COMMAND are made from this
table, and a test holds `docs/protocol.md` to it.
"""

from __future__ import annotations

from merklekv.net.commands import (
    exchange,
    inspection,
    records,
    resp_admin,
    resp_data,
    scan,
    status,
    text_lines,
    transactions,
)
from merklekv.net.commands.registry import Command, Commands

_KEY = (1, 1, 1)
_KEYS = (1, -1, 1)
_PAIRS = (1, -1, 2)
_READ = ("readonly", "fast")
_WRITE = ("write", "fast")
_LONG = ("readonly", "long")
_ADMIN = ("admin",)
_FAST = ("fast",)

_r = resp_data
_t = text_lines

# fmt: off
DATA: tuple[Command, ...] = (
    Command("GET", "get", "The value of a key.", _t.get, "GET key", _r.get, "GET key", 2, _READ, _KEY,
            _r.get_batch),
    Command("SET", "set", "Sets the value of a key.", _t.set_, "SET key value", _r.set_,
            "SET key value [NX|XX] [GET] [KEEPTTL]", -3, _WRITE, _KEY, _r.set_batch),
    Command("DEL", "delete", "Deletes keys.", _t.delete("DEL"), "DEL key", _r.delete, "DEL key [key ...]", -2,
            ("write", "long"), _KEYS),
    Command("DELETE", "delete", "Deletes a key.", _t.delete("DELETE"), "DELETE key"),
    Command("UNLINK", "delete", "Deletes keys.", resp=_r.delete, resp_syntax="UNLINK key [key ...]", arity=-2,
            flags=("write", "long"), keys=_KEYS),
    Command("GETSET", "set", "Sets a key and returns its old value.", resp=_r.getset,
            resp_syntax="GETSET key value", arity=3, flags=_WRITE, keys=_KEY),
    Command("GETDEL", "delete", "Deletes a key and returns its value.", resp=_r.getdel, resp_syntax="GETDEL key",
            arity=2, flags=_WRITE, keys=_KEY),
    Command("SETNX", "set", "Sets a key that does not exist.", resp=_r.setnx, resp_syntax="SETNX key value",
            arity=3, flags=_WRITE, keys=_KEY),
    Command("EXISTS", "exists", "How many of the keys exist.", _t.exists, "EXISTS key [key ...]", _r.exists,
            "EXISTS key [key ...]", -2, _LONG, _KEYS),
    Command("TYPE", "get", "`string` for a key that exists, else `none`.", resp=_r.type_, resp_syntax="TYPE key",
            arity=2, flags=_READ, keys=_KEY),
    Command("STRLEN", "get", "The length of a value in bytes.", resp=_r.strlen, resp_syntax="STRLEN key", arity=2,
            flags=_READ, keys=_KEY),
    Command("GETRANGE", "get", "Part of a value.", resp=_r.getrange, resp_syntax="GETRANGE key start end", arity=4,
            flags=_READ, keys=_KEY),
    Command("SETRANGE", "set", "Overwrites part of a value.", resp=_r.setrange,
            resp_syntax="SETRANGE key offset value", arity=4, flags=_WRITE, keys=_KEY),
    Command("INC", "numeric", "Adds to a number.", _t.increment("INC", 1), "INC key [amount]"),
    Command("DEC", "numeric", "Subtracts from a number.", _t.increment("DEC", -1), "DEC key [amount]"),
    Command("INCR", "numeric", "Adds 1 to a number; the text form takes an amount.", _t.increment("INCR", 1),
            "INCR key [amount]", _r.incr, "INCR key", 2, _WRITE, _KEY),
    Command("DECR", "numeric", "Subtracts 1 from a number; the text form takes an amount.", _t.increment("DECR",
            -1), "DECR key [amount]", _r.decr, "DECR key", 2, _WRITE, _KEY),
    Command("INCRBY", "numeric", "Adds to a number.", resp=_r.incrby, resp_syntax="INCRBY key amount", arity=3,
            flags=_WRITE, keys=_KEY),
    Command("DECRBY", "numeric", "Subtracts from a number.", resp=_r.decrby, resp_syntax="DECRBY key amount",
            arity=3, flags=_WRITE, keys=_KEY),
    Command("APPEND", "string", "Adds to the end of a value.", _t.extend("APPEND"), "APPEND key value", _r.append,
            "APPEND key value", 3, _WRITE, _KEY),
    Command("PREPEND", "string", "Adds to the start of a value.", _t.extend("PREPEND"), "PREPEND key value",
            _r.prepend, "PREPEND key value", 3, _WRITE, _KEY),
    Command("MGET", "bulk", "The values of several keys.", _t.mget, "MGET key [key ...]", _r.mget,
            "MGET key [key ...]", -2, _LONG, _KEYS),
    Command("MSET", "bulk", "Sets several keys, all or none.", _t.mset, "MSET key value [key value ...]", _r.mset,
            "MSET key value [key value ...]", -3, ("write",), _PAIRS),
    Command("MSETNX", "bulk", "Sets several keys if none of them exists.", resp=_r.msetnx,
            resp_syntax="MSETNX key value [key value ...]", arity=-3, flags=("write",), keys=_PAIRS),
    Command("SCAN", "scan", "Keys in order: under a prefix (text), or a page at a time (RESP).", _t.scan,
            "SCAN [prefix]", scan.scan, "SCAN cursor [MATCH pattern] [COUNT count] [TYPE type]", -2, _LONG),
    Command("KEYS", "scan", "All keys that match a pattern, in order.", resp=scan.keys, resp_syntax="KEYS pattern",
            arity=2, flags=_LONG),
    Command("RANDOMKEY", "scan", "Some key.", resp=_r.randomkey, resp_syntax="RANDOMKEY", arity=1, flags=_READ),
    Command("DBSIZE", "dbsize", "How many keys there are.", _t.dbsize, "DBSIZE", _r.dbsize, "DBSIZE", 1, _READ),
    Command("TRUNCATE", "flushdb", "Deletes every key of the cluster.", _t.truncate("TRUNCATE"), "TRUNCATE",
            _r.truncate, "TRUNCATE", 1, ("write",)),
    Command("FLUSHDB", "flushdb", "Deletes every key of the cluster.", _t.truncate("FLUSHDB"), "FLUSHDB", _r.flush,
            "FLUSHDB [ASYNC|SYNC]", -1, ("write",)),
    Command("FLUSHALL", "flushdb", "Deletes every key of the cluster.", resp=_r.flush,
            resp_syntax="FLUSHALL [ASYNC|SYNC]", arity=-1, flags=("write",)),
    Command("FLUSH", "flushdb", "Deletes every key of the cluster.", _t.truncate("FLUSH"), "FLUSH"),
)

NODE: tuple[Command, ...] = (
    Command("HASH", "hash", "The hash over all records, or those under a prefix; equal on nodes that agree.",
            _t.hash_, "HASH [prefix]", _r.hash_, "HASH [prefix]", -1, _LONG),
    Command("SYNC", "sync", "Exchanges records with another node, both ways, now.", _t.sync,
            "SYNC host port [--full] [--verify]", _r.sync, "SYNC host port [--full] [--verify]", -3, ("admin",
            "long")),
    Command("RECORDS", "sync", "A page of records as they are stored, in key order, deleted keys too.",
            resp=records.records, resp_syntax="RECORDS after count [PREFIX prefix]", arity=-3, flags=_LONG),
    Command("BUCKET", "sync", "The keys of a bucket of the Merkle tree, with versions and digests.",
            resp=records.bucket, resp_syntax="BUCKET number", arity=2, flags=_LONG),
    Command("TRUNCATION", "sync", "The version below which every record is dead.", resp=records.truncation,
            resp_syntax="TRUNCATION", arity=1, flags=_READ),
    Command("MERGE", "sync", "Takes in records of another node; the larger version stands.", resp=records.merge,
            resp_syntax="MERGE origin key head value [key head value ...]", arity=-5,
            flags=("write", "admin", "long")),
    Command("MERGETRUNCATION", "sync", "Takes in the floor of another node; the larger one stands.",
            resp=records.merge_truncation, resp_syntax="MERGETRUNCATION origin version", arity=3,
            flags=("write", "admin")),
    Command("EXCHANGE", "sync", "One step of an exchange with another node.", resp=exchange.exchange,
            resp_syntax="EXCHANGE part [part ...]", arity=-2, flags=("write", "admin", "long")),
    Command("MEMBERS", "management", "The nodes that this one knows, and how far each is.",
            resp=exchange.members, resp_syntax="MEMBERS", arity=1, flags=_ADMIN),
    Command("FORGET", "management", "Takes a node that is gone for good out of the members.",
            resp=exchange.forget, resp_syntax="FORGET node [birth]", arity=-2, flags=_ADMIN),
    Command("LOG", "sync", "The commit log as it is on disk: its segments, and bytes of one.", resp=inspection.log,
            resp_syntax="LOG LIST|READ segment position size", arity=-2, flags=("readonly", "admin")),
    Command("TREE", "sync", "The leaves below an inner node of the Merkle tree.", resp=inspection.tree,
            resp_syntax="TREE inner", arity=2, flags=("readonly", "long")),
    Command("METADATA", "sync", "The small facts that the node keeps with its data.", resp=inspection.metadata,
            resp_syntax="METADATA", arity=1, flags=("readonly",)),
    Command("REPLICATE", "replicate", "Switches replication on or off, or shows its state.", _t.replicate_,
            "REPLICATE enable|disable|status", _r.replicate_, "REPLICATE enable|disable|status", -2, _ADMIN),
    Command("PING", "ping", "Shows that the server answers.", _t.ping, "PING [text]", resp_admin.ping,
            "PING [message]", -1, _FAST),
    Command("ECHO", "echo", "Returns its argument.", _t.echo, "ECHO text", resp_admin.echo, "ECHO message", 2,
            _FAST),
    Command("VERSION", "management", "The version of MerkleKV.", status.text_version, "VERSION",
            status.resp_version, "VERSION", 1, _FAST),
    Command("MEMORY", "memory", "The server's memory without mapped files, in bytes.", status.text_memory, "MEMORY"),
    Command("STATS", "stat", "Counters since the start.", status.text_stats, "STATS [all]", status.resp_stats, "STATS",
            1),
    Command("INFO", "stat", "The state of the server.", status.text_info, "INFO", status.resp_info,
            "INFO [section ...]", -1),
    Command("CLIENT", "clientlist", "The connected clients, and what this one says of itself.", status.text_client,
            "CLIENT LIST", resp_admin.client,
            "CLIENT ID|LIST|INFO|SETNAME name|GETNAME|SETINFO field value|NO-EVICT ON|OFF|HELP", -2),
    Command("SHUTDOWN", "management", "Stops the server.", _t.shutdown, "SHUTDOWN", resp_admin.shutdown,
            "SHUTDOWN [NOSAVE|SAVE] [NOW] [FORCE]", -1, _ADMIN),
    Command("HELLO", "management", "Chooses the version of RESP.", resp=resp_admin.hello,
            resp_syntax="HELLO [2|3] [AUTH default password] [SETNAME name]", arity=-1, flags=_FAST),
    Command("AUTH", "management", "Accepts the user `default` with any password: none is set.", resp=resp_admin.auth,
            resp_syntax="AUTH default password", arity=-2, flags=_FAST),
    Command("SELECT", "management", "Database 0 is the only one.", resp=resp_admin.select, resp_syntax="SELECT 0",
            arity=2, flags=_FAST),
    Command("COMMAND", "management", "Describes the commands.", resp=resp_admin.command,
            resp_syntax="COMMAND [COUNT|LIST|INFO [name ...]|DOCS [name ...]|HELP]", arity=-1),
    Command("CONFIG", "management", "Settings, under the names they have in Redis.", resp=resp_admin.config,
            resp_syntax="CONFIG GET pattern [pattern ...]|HELP", arity=-2, flags=_ADMIN),
    Command("TIME", "management", "The clock of the server: seconds and microseconds.", resp=resp_admin.time_,
            resp_syntax="TIME", arity=1, flags=_FAST),
    Command("QUIT", "management", "Ends the connection.", resp=resp_admin.quit_, resp_syntax="QUIT", arity=-1,
            flags=_FAST),
    Command("MULTI", "management", "Refused, with what follows: transactions are not supported yet.",
            transactions.multi, "MULTI", transactions.multi, "MULTI", 1, _FAST),
    Command("EXEC", "management", "Ends a refused transaction.", transactions.exec_, "EXEC", transactions.exec_,
            "EXEC", 1, _FAST),
    Command("DISCARD", "management", "Ends a refused transaction.", transactions.discard, "DISCARD",
            transactions.discard, "DISCARD", 1, _FAST),
    Command("RESET", "management", "Forgets what the connection has chosen.", resp=resp_admin.reset,
            resp_syntax="RESET", arity=1, flags=_FAST),
)

# fmt: on

TABLE = DATA + NODE

BROKEN = Command("", "", "A stream that cannot be understood.", _t.broken, "", resp_admin.broken, "", 2)
FOREIGN = Command("", "", "A client of another protocol.", _t.foreign, "")
UNKNOWN = Command("", "", "A name that is not in the table.", _t.unknown, "", resp_admin.unknown, "", -1)
REFUSED = Command("", "", "A command of a transaction.", transactions.refused, "", transactions.refused, "", -1)


def commands() -> Commands:
    """The table made ready for one server."""
    return Commands(TABLE, BROKEN, FOREIGN, UNKNOWN, REFUSED)
