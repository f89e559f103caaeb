"""Stock Redis clients with their default settings: redis-py, redis-cli and redis-benchmark."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from fixtures.servers import Start, StartedServer
from fixtures.wire import encode

RUN_S = 120


@pytest.fixture(params=[2, 3])
def client(request: pytest.FixtureRequest, server: StartedServer) -> Iterator[redis.Redis]:
    host, port = server.address
    with redis.Redis(host=host, port=port, protocol=request.param) as connection:
        yield connection


def run(server: StartedServer, program: str, *words: str, given: bytes = b"") -> str:
    assert shutil.which(program), f"{program} is not installed: `make test` sees to that"
    host, port = server.address
    command = [program, "-h", host, "-p", str(port), *words]
    done = subprocess.run(command, input=given, capture_output=True, timeout=RUN_S, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def test_redis_py_by_default(server: StartedServer) -> None:
    host, port = server.address
    with redis.Redis(host=host, port=port) as client:
        assert client.ping()
        assert client.set("k", "v")
        assert client.get("k") == b"v"


def test_redis_py_data(client: redis.Redis) -> None:
    assert client.mset({"a": "1", "b": "2"})
    assert client.mget("a", "x", "b") == [b"1", None, b"2"]
    assert client.set("a", "3", nx=True) is None
    assert client.set("a", "3", xx=True, get=True) == b"1"
    assert client.incrby("a", 4) == 7
    assert client.decr("a") == 6
    assert client.append("a", "!") == 2
    assert client.getrange("a", 0, -1) == b"6!"
    assert client.setrange("a", 1, "??") == 3
    assert client.strlen("a") == 3
    assert client.getdel("a") == b"6??"
    assert client.getset("b", "x") == b"2"
    assert client.setnx("b", "y") is False
    assert client.msetnx({"b": "1", "c": "1"}) is False
    assert client.exists("a", "b") == 1
    assert client.type("b") == b"string"
    assert client.randomkey() == b"b"
    assert client.delete("a", "b") == 1
    assert client.dbsize() == 0
    assert client.flushdb()
    with pytest.raises(redis.ResponseError, match="value is not an integer or out of range"):
        client.set("word", "x") and client.incr("word")
    with pytest.raises(redis.ResponseError, match="unknown command 'LPUSH'"):
        client.lpush("list", "x")


def test_redis_py_pipelines_and_scans(client: redis.Redis) -> None:
    with client.pipeline(transaction=False) as pipeline:
        for number in range(500):
            pipeline.set(f"k{number:03}", number)
        assert pipeline.execute() == [True] * 500
    assert sorted(client.scan_iter(count=50)) == sorted(client.keys()) == [b"k%03d" % number for number in range(500)]
    assert list(client.scan_iter(match="k00*")) == [b"k%03d" % number for number in range(10)]


def test_redis_py_administration(client: redis.Redis) -> None:
    assert client.info()["redis_mode"] == "standalone"
    assert client.info("memory")["used_memory"] > 0
    assert client.config_get("save") == {"save": ""}
    assert client.client_setname("tester")
    assert client.client_getname() in ("tester", b"tester")
    assert [one["name"] for one in client.client_list()] == ["tester"]
    assert client.client_list()[0]["lib-name"] == "redis-py"
    assert client.client_info()["id"] == client.client_id()
    assert len(client.time()) == 2
    assert client.command_count() == len(client.command()) > 40
    assert client.echo("hello") == b"hello"
    assert client.select(0)


def test_redis_cli(server: StartedServer) -> None:
    assert run(server, "redis-cli", "set", "k", "a b") == "OK\n"
    assert run(server, "redis-cli", "get", "k") == "a b\n"
    assert run(server, "redis-cli", "-3", "get", "none") == "\n"
    assert run(server, "redis-cli", given=b"incr n\nget n\nfoo\n").split("\n")[:2] == ["1", "1"]


def test_redis_cli_mass_insertion(server: StartedServer) -> None:
    requests = b"".join(encode("SET", f"key:{number}", "v") for number in range(3000))
    assert "errors: 0, replies: 3000" in run(server, "redis-cli", "--pipe", given=requests)
    assert run(server, "redis-cli", "dbsize") == "3000\n"
    scanned = run(server, "redis-cli", "--scan", "--pattern", "key:29*")
    assert len(scanned.split()) == 111


def test_redis_cli_reports(server: StartedServer) -> None:
    run(server, "redis-cli", "set", "k", "x" * 100)
    assert "Biggest string found '\"k\"' has 100 bytes" in run(server, "redis-cli", "--bigkeys")
    assert "redis_version:7." in run(server, "redis-cli", "info", "server")


def test_redis_cli_sizes_and_passwords(server: StartedServer) -> None:
    run(server, "redis-cli", "set", "k", "x" * 100)
    assert "Biggest string found '\"k\"' has 1" in run(server, "redis-cli", "--memkeys")
    password = ("--user", "default", "--pass", "any", "--no-auth-warning")
    assert run(server, "redis-cli", *password, "get", "k") == "x" * 100 + "\n"
    assert run(server, "redis-cli", "--json", "-3", "command", "docs", "get").startswith('{"get":{"summary":')
    assert "set" in run(server, "redis-cli", given=b"help set\n").lower()


def test_redis_cli_monitor(server: StartedServer) -> None:
    host, port = server.address
    command = ["redis-cli", "-h", host, "-p", str(port), "monitor"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"OK\n"
        run(server, "redis-cli", "set", "k", "a b")
        lines = iter(process.stdout.readline, b"")
        assert next(line for line in lines if b'"set"' in line).endswith(b'"set" "k" "a b"\n')
        process.terminate()


def test_redis_cli_watches_the_server(server: StartedServer) -> None:
    """`--stat` never ends by itself."""
    run(server, "redis-cli", "mset", "a", "1", "b", "2")
    host, port = server.address
    command = ["redis-cli", "-h", host, "-p", str(port), "--stat", "-i", "0.01"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline().split() for _ in range(4)]
        process.terminate()
    assert lines[1][:2] == [b"keys", b"mem"]
    assert lines[3][0] == b"2"


def test_redis_benchmark(start: Start) -> None:
    """The tests that the page names."""
    page = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
    resp_alone, lines_too = re.findall(r"`redis-benchmark -t (\S+)`", page)
    for named, server in (resp_alone, start()), (lines_too, start(text_protocol=False)):
        report = run(server, "redis-benchmark", "-q", "-n", "2000", "-r", "100", "-d", "100", "-P", "4", "-t", named)
        assert report.count("requests per second") == len(named.split(",")) + ("ping," in named)
        assert "WARNING" not in report


def test_redis_benchmark_without_options_runs_up_to_the_first_other_data_type(start: Start) -> None:
    host, port = start(text_protocol=False).address
    command = ["redis-benchmark", "-h", host, "-p", str(port), "-q", "-n", "1000"]
    done = subprocess.run(command, capture_output=True, timeout=RUN_S, check=False)
    assert done.stdout.count(b"requests per second") == 5
    assert b"unknown command 'LPUSH'" in done.stderr
