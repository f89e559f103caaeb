"""redis-cli in those of its modes that make sense for a node; tests/net/test_clients.py has its reports."""

from __future__ import annotations

import subprocess
from pathlib import Path

from fixtures.node import NodeFactory, NodeProcess

RUN_S = 120


def cli(node: NodeProcess, *words: str, given: str = "") -> str:
    command = ["redis-cli", "-p", str(node.port), *words]
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=RUN_S, check=True)
    return done.stdout


def test_modes(node_factory: NodeFactory, tmp_path: Path) -> None:
    node = node_factory(environment={"MERKLEKV_TEXT_PROTOCOL": "false"})
    url = f"redis://127.0.0.1:{node.port}"
    assert "errors: 0, replies: 2" in cli(node, "--pipe", given='SET k "a b"\nSET n 1\n'), "plain lines"
    assert cli(node, "--no-raw", "-u", url, "get", "k") == '"a b"\n'
    assert cli(node, "-r", "3", "incr", "n") == "2\n3\n4\n"
    assert cli(node, "--csv", "mget", "k", "none") == '"a b",NULL\n'
    assert cli(node, "--json", "-3", "mget", "k", "none") == '["a b",null]\n'
    assert cli(node, "-x", "set", "k", given="of the input") == "OK\n"
    assert cli(node, "-X", "here", "mset", "k", "here", "l", "2", given="as a word") == "OK\n"
    assert cli(node, "--quoted-input", "get", r'"\x6b"') == "as a word\n"
    assert cli(node, "-a", "any", "--no-auth-warning", "dbsize") == "3\n"

    transaction = "multi\nset k 1\nincr k\nexec\n"
    assert cli(node, given=transaction).split() == ["OK", "QUEUED", "QUEUED", "OK", "2"]
    script = tmp_path / "script.lua"
    script.write_text("return {KEYS[1], ARGV[1], redis.call('GET', KEYS[1])}")
    assert cli(node, "--eval", str(script), "k", ",", "x").split() == ["k", "x", "2"]

    assert len(cli(node, "--latency", "--raw", "-i", "0.2").split()) == 4


def test_subscriptions(node: NodeProcess) -> None:
    for flags in ((), ("-3",)):
        command = ["redis-cli", "-p", str(node.port), *flags, "psubscribe", "n*"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as subscriber:
            assert subscriber.stdout is not None
            assert [subscriber.stdout.readline().strip() for _ in range(3)] == ["psubscribe", "n*", "1"]
            assert cli(node, "publish", "news", "hello") == "1\n"
            heard = [subscriber.stdout.readline().strip() for _ in range(4)]
            assert heard == ["pmessage", "n*", "news", "hello"]
            subscriber.terminate()
