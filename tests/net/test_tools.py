"""What tools ask of a server: its state, its settings, its commands. Where Redis has one answer, it is ours too."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from fixtures.handlers import pauses_of, run
from fixtures.servers import StartedServer
from fixtures.wire import Wire

from merklekv.net.errors import RequestError
from merklekv.net.limits import NAME_BYTES_MAX, Limits
from merklekv.net.protocol.resp import bulk
from merklekv.net.session import Session
from merklekv.net.syntax import Argument, parse

BOTH = """
SET a 5 / SET e hello / APPEND e xx / OBJECT ENCODING a / OBJECT ENCODING x / OBJECT FREQ a / OBJECT FREQ x
OBJECT IDLETIME e / OBJECT IDLETIME x / OBJECT REFCOUNT a / OBJECT REFCOUNT e / OBJECT REFCOUNT x / OBJECT FREQ
OBJECT / OBJECT FOO a / OBJECT ENCODING a b / MEMORY USAGE x / MEMORY USAGE a FOO 1 / MEMORY USAGE a SAMPLES
MEMORY USAGE a SAMPLES -1 / MEMORY USAGE a SAMPLES x / MEMORY PURGE / MEMORY FOO / MEMORY USAGE / ROLE / ROLE x
WAIT 0 0 / WAIT x 0 / WAIT 0 x / WAIT 0 -1 / WAIT 1 / MODULE LIST / MODULE FOO / MODULE / CLUSTER INFO / CLUSTER
CLUSTER SLOTS / READONLY / READWRITE / ASKING / ACL WHOAMI / ACL LIST / ACL USERS / ACL CAT / ACL CAT foo
ACL GETUSER default / ACL GETUSER x / ACL GENPASS x / ACL GENPASS 0 / ACL GENPASS 5000 / ACL LOG / ACL LOG RESET
ACL LOG x / ACL FOO / ACL DRYRUN default get a / ACL DRYRUN x get a / COMMAND GETKEYS get a / COMMAND GETKEYS get
COMMAND GETKEYS ping x / COMMAND GETKEYS get a b / COMMAND GETKEYS mset a 1 b 2 / COMMAND GETKEYS mset a
COMMAND GETKEYS foo x / COMMAND GETKEYS client list / COMMAND GETKEYSANDFLAGS get a
COMMAND GETKEYSANDFLAGS mget a b / COMMAND LIST FILTERBY PATTERN / COMMAND LIST FILTERBY PATTERN x y
COMMAND LIST FILTERBY PATTERN getdel / COMMAND LIST FILTERBY MODULE x / COMMAND LIST FILTERBY FOO x
COMMAND LIST foo / COMMAND LIST FILTERBY ACLCAT foo / COMMAND INFO get / COMMAND INFO foo / COMMAND INFO config|foo
COMMAND DOCS foo / CONFIG SET foo 1 / CONFIG SET maxclients / CONFIG SET maxclients x / CONFIG SET maxclients 0
CONFIG SET maxclients 100 maxclients 101 foo 1 / CONFIG SET maxclients 100 foo 1 / CONFIG GET maxclients
CONFIG SET maxclients 200 timeout 100 / CONFIG GET MAXCLIENTS
CONFIG SET timeout 0 maxclients 10000 / CONFIG SET timeout -1 / CONFIG GET timeout / CONFIG SET databases 3
CONFIG REWRITE / CONFIG RESETSTAT x / CONFIG GET save / CONFIG GET maxmemory-policy / CONFIG GET nosuch
CONFIG SET foo bar baz / CONFIG SET maxclients 10 timeout / ACL CAT a b / ACL GENPASS 1 2 / ACL LOG 1 2
ACL DRYRUN default get / ACL DRYRUN default get a b / ACL DRYRUN default nosuch / ACL DRYRUN nosuch get x
COMMAND GETKEYS eval x 1 a / COMMAND GETKEYS eval x 2 a / COMMAND GETKEYS eval x 0 a / COMMAND GETKEYS eval x -1 a
COMMAND GETKEYS object encoding a / COMMAND GETKEYS memory usage a / COMMAND GETKEYS rename a b
COMMAND GETKEYS copy a b / COMMAND GETKEYS bitop and a b c / COMMAND GETKEYS lcs a b / COMMAND GETKEYS watch a b
CONFIG SET maxmemory-policy noeviction / INFO nosuch / INFO modules / INFO cluster
"""


@pytest.mark.parametrize("protocol", ["2", "3"])
def test_answers_are_those_of_redis(protocol: str, server: StartedServer, redis_address: tuple[str, int]) -> None:
    with Wire(server.address) as ours, Wire(redis_address) as theirs:
        for wire in (ours, theirs):
            wire.call("HELLO", protocol)
            wire.call("FLUSHALL")
            wire.call("ACL", "LOG", "RESET")
        for request in BOTH.replace("\n", "/").split("/"):
            words = request.split()
            assert not words or ours.call(*words) == theirs.call(*words), request


@pytest.fixture(params=[2, 3])
def client(request: pytest.FixtureRequest, server: StartedServer) -> Iterator[Any]:
    host, port = server.address
    with redis.Redis(host=host, port=port, protocol=request.param, decode_responses=True) as connection:
        yield connection


FIELDS = """
run_id os arch_bits hz executable config_file used_memory_peak maxmemory maxmemory_policy mem_fragmentation_ratio
total_system_memory instantaneous_ops_per_sec total_net_input_bytes total_net_output_bytes keyspace_hits keyspace_misses
expired_keys evicted_keys pubsub_channels latest_fork_usec rdb_last_save_time rdb_changes_since_last_save
rdb_last_bgsave_status aof_last_write_status master_replid master_repl_offset used_cpu_sys used_cpu_user cluster_enabled
"""


def test_info_has_what_exporters_read(client: Any) -> None:
    client.set("k", "v")
    client.get("k")
    client.get("none")
    info = client.info("everything")
    assert set(FIELDS.split()) <= info.keys()
    assert (info["keyspace_hits"], info["keyspace_misses"]) == (1, 1)
    assert info["cmdstat_get"]["calls"] == 2
    assert info["total_net_input_bytes"] > 0 < info["total_net_output_bytes"]
    assert re.fullmatch("[0-9a-f]{40}", info["run_id"])
    assert 0 < info["used_memory"] <= info["used_memory_peak"] <= info["total_system_memory"]


def test_info_tells_what_scripts_take(client: Any) -> None:
    before = client.info("memory")
    assert before["number_of_cached_scripts"] == before["used_memory_lua"] == 0
    for number in range(3):
        client.script_load(f"return {number}")
    after = client.info("memory")
    assert after["number_of_cached_scripts"] == 3
    assert 100_000 < after["used_memory_lua"] < 10_000_000
    client.script_flush()
    assert client.info("memory")["number_of_cached_scripts"] == 0


def test_counters_of_info_begin_again_and_those_of_stats_do_not(client: Any) -> None:
    client.set("k", "v")
    assert client.config_resetstat()
    for _ in range(3):
        with pytest.raises(redis.ResponseError):
            client.execute_command("FOO")
    assert client.info("errorstats")["errorstat_ERR"] == {"count": 3}
    assert client.config_resetstat()
    info = client.info("everything")
    assert "errorstat_ERR" not in info
    assert "cmdstat_set" not in info
    assert info["total_commands_processed"] < 5
    assert "total_connections:1" in client.execute_command("STATS")
    assert "set_commands:1" in client.execute_command("STATS")


# Requests with what INFO then counts: calls of these commands, and errors. `|` separates the parts of one with spaces.
COUNTED = """
GET / FOO / SET k / SET k v / GET / SET k v EX 0 / INCR k / PING a b c / MSET a / EXEC / HELLO 9 / SELECT 99 / AUTH x y
MULTI / SET a b / INCR a / AUTH a / GET a / EXEC / MULTI / SET / EXEC / MULTI / WATCH a / EXEC / MULTI / EXEC x
MULTI / OBJECT NOSUCH / EXEC / MULTI / MULTI / DISCARD / DISCARD / SUBSCRIBE c / GET k / UNSUBSCRIBE / SUBSCRIBE
EVAL|return redis.call('incr', 'k')|0 / EVAL|return redis.pcall('incr', 'k')|0 / EVAL|redis.pcall('incr', 'k')|0
EVAL|return redis.call('nosuch')|0 / EVAL|redis.pcall('get') return 1|0 / EVAL|redis.pcall('multi') return 1|0
EVAL|return redis.error_reply('MYERR x')|0 / EVAL|error('x')|0 / EVAL|error({err='MY e'})|0 / EVAL|return 1 1|0
EVAL|return {err='a.b e'}|0 / EVALSHA x 0 / EVAL_RO|return redis.call('set', 'a', 'b')|0 / EVAL|return 1|x
EVAL|return redis.call('object', 'nosuch')|0 / MULTI / EVAL|return redis.call('incr', 'k')|0 / EXEC
"""
STATISTIC = re.compile(
    r"cmdstat_(\w+):calls=(\d+),.*,(rejected_calls=\d+,failed_calls=\d+)|errorstat_(\S+):(count=\d+)"
)


def counted(wire: Wire) -> dict[str, tuple[str, ...]]:
    text = wire.call("INFO", "everything").decode()
    found = {match[1] or match[4]: match.groups() for match in STATISTIC.finditer(text)}
    return {name: numbers for name, numbers in found.items() if name not in ("config", "object", "flushall", "info")}


def test_calls_and_errors_are_counted_as_by_redis(server: StartedServer, redis_address: tuple[str, int]) -> None:
    with Wire(server.address) as ours, Wire(redis_address) as theirs:
        for wire in (ours, theirs):
            wire.call("FLUSHALL")
            wire.call("CONFIG", "RESETSTAT")
        for line in COUNTED.replace("\n", "/").split("/"):
            words = line.strip().split("|") if "|" in line else line.split()
            if words:
                assert ours.call(*words)[:1] == theirs.call(*words)[:1], line
                assert counted(ours) == counted(theirs), line


def test_scripts_make_no_more_codes_of_errors_than_are_counted(client: Any) -> None:
    client.config_resetstat()  # a library may begin with what is an error here
    for number in range(200):
        with pytest.raises(redis.ResponseError):
            client.eval(f"return redis.error_reply('CODE{number} x')", 0)
    errors = client.info("errorstats")
    assert len(errors) <= 129
    assert sum(one["count"] for one in errors.values()) == client.info("stats")["total_error_replies"] == 200


def test_commands_describe_themselves(client: Any) -> None:
    """Every command and subcommand, as a client library reads them."""
    listed = client.execute_command("COMMAND LIST")
    assert {"get", "config", "config|get", "object|encoding"} <= set(listed)
    top = [name for name in listed if "|" not in name]
    assert client.command_count() == len(top)
    for entry in client.execute_command("COMMAND INFO", *listed):
        assert len(entry) == 10
        name, arity, _, first, last, step, categories = entry[:7]
        assert (first, last, step) == (0, 0, 0) or (first >= 1 and step >= 1 and (last == -1 or last >= first)), name
        assert arity != 0
        assert categories
    documents = client.execute_command("COMMAND DOCS", *listed)
    assert len(documents) == len(listed) * (1 if isinstance(documents, dict) else 2)
    assert set(client.command_list(category="string")) >= {"get", "set", "mget"}


@pytest.mark.parametrize(
    ("syntax", "arguments"),
    [
        ("GET key", [Argument("key", "key")]),
        ("DEL key [key ...]", [Argument("key", "key", multiple=True)]),
        ("SCAN cursor [MATCH pattern]", [Argument("cursor", "integer"), Argument("pattern", "pattern", "MATCH", True)]),
        ("KILL [ID client-id [client-id ...]]", [Argument("client-id", "integer", "ID", True, True)]),
        ("X [GET]", [Argument("get", "pure-token", "GET", optional=True)]),
        (
            "X [EX seconds | KEEPTTL]",
            [
                Argument(
                    "seconds_keepttl",
                    "oneof",
                    optional=True,
                    arguments=(Argument("seconds", "integer", "EX"), Argument("keepttl", "pure-token", "KEEPTTL")),
                )
            ],
        ),
        (
            "MSET key value [key value ...]",
            [Argument("key_value", "block", "", False, True, (Argument("key", "key"), Argument("value", "string")))],
        ),
    ],
)  # fmt: skip
def test_a_syntax_is_read_as_arguments(syntax: str, arguments: list[Argument]) -> None:
    assert list(parse(syntax)) == arguments


def test_sizes_of_memory(client: Any) -> None:
    client.set("k", "x" * 1000)
    assert 1000 < client.memory_usage("k") < 1100
    assert client.memory_usage("none") is None
    assert client.memory_stats()["keys.count"] == 1
    assert "MiB" in client.execute_command("MEMORY", "DOCTOR")
    assert len(client.acl_genpass(17)) == 5


def test_the_list_of_redis_commands_is_that_of_redis(redis_address: tuple[str, int]) -> None:
    """The one that docs/compatibility.md is made from."""
    path = Path(__file__).parents[2] / "scripts" / "redis_commands.json"
    listed = {name: fields[0] for name, fields in json.loads(path.read_text()).items()}
    host, port = redis_address
    with redis.Redis(host, port, protocol=3, decode_responses=True) as client:
        assert client.info("server")["redis_version"].startswith("7.0."), "write the file anew for this version"
        documents: Any = client.execute_command("COMMAND DOCS")
    found = {}
    for name, fields in documents.items():
        found[name] = fields["group"]
        found |= {sub: each["group"] for sub, each in fields.get("subcommands", {}).items()}
    assert listed == found


def test_what_describes_much_lets_others_run(session: Session) -> None:
    """A request may have a million names, of settings or commands."""
    assert pauses_of(session, [b"CONFIG", b"GET", *[b"save*%d" % number for number in range(100)]]) >= 5
    for name in (b"INFO", b"DOCS"):
        assert pauses_of(session, [b"COMMAND", name, *[b"get"] * 500]) == 10
    session.context.limits = Limits(output_hard_bytes=10_000)
    for name in (b"INFO", b"DOCS"):
        with pytest.raises(RequestError, match="reply larger than 10000 bytes"):
            run(session, [b"COMMAND", name, *[b"get"] * 500])


def test_names_are_bounded(resp: Wire) -> None:
    name = "x" * NAME_BYTES_MAX
    assert resp.call("CLIENT", "SETNAME", name) == b"+OK\r\n"
    for words in (("CLIENT", "SETNAME", "x" + name), ("HELLO", "3", "SETNAME", "x" + name)):
        assert resp.call(*words) == b"-ERR Client names cannot have more than 1024 bytes\r\n"
    assert resp.call("CLIENT", "SETINFO", "lib-name", "x" + name).startswith(b"-ERR lib-name cannot have more")
    assert resp.call("CLIENT", "GETNAME") == bulk(name.encode())
