"""`merklekv demo` as people run it: as a script, with keys in a terminal, and cut short. It leaves nothing behind."""

from __future__ import annotations

import re
import signal
import subprocess
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import psutil
import pytest
from fixtures.demo import END_S, LOOK_S, DemoTerminal, demo_command, demo_environment, workers
from fixtures.support import wait_until

from merklekv import exit_codes
from merklekv.demo import health as demo_health
from merklekv.demo import part as demo_part
from merklekv.demo import script as demo_script
from merklekv.demo import show as demo_show
from merklekv.demo.cluster import Cluster
from merklekv.demo.controls import Control, Controls
from merklekv.harness.process import HarnessError

BROKERS = ("mosquitto", "iotcore")


def run(demo_place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        demo_command(*arguments),
        capture_output=True,
        text=True,
        timeout=END_S,
        env=demo_environment(demo_place),
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.parametrize("broker", BROKERS)
def test_a_script_of_outages_ends_with_equal_nodes(demo_place: Path, broker: str) -> None:
    done = run(demo_place, "--seconds", "3", "--broker", broker)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    for told in ("node-2 is down", "node-2 is up", "stopping the broker", "broker is up", "writing is paused"):
        assert told in done.stdout
    last = done.stdout.splitlines()[-1]
    summary = re.fullmatch(r" +[\d.]+ s  All equal, 0 of ([\d,]+) acknowledged writes lost, healed in \d+\.\d s", last)
    assert summary, last
    assert int(summary[1].replace(",", "")) > 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_cut_short_it_ends_everything(demo_place: Path, number: signal.Signals) -> None:
    most = ["--seconds", str(86_400)] if number is signal.SIGTERM else []
    demo = subprocess.Popen(
        demo_command(*most),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=demo_environment(demo_place),
    )
    assert demo.stdout is not None
    for line in demo.stdout:
        if "node-3 is up" in line:
            assert len(workers(demo_place)) >= 4
            demo.send_signal(number)
            break
    rest, _ = demo.communicate(timeout=END_S)
    assert demo.returncode == exit_codes.EXIT_FAILED
    assert rest.endswith("interrupted\n")


def output_of(process: subprocess.Popen[str]) -> IO[str]:
    assert process.stdout is not None
    return process.stdout


@pytest.mark.parametrize("broker", BROKERS)
def test_killed_it_leaves_nothing_either(demo_place: Path, broker: str) -> None:
    with subprocess.Popen(
        demo_command("--broker", broker),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=demo_environment(demo_place),
    ) as demo:
        shown = output_of(demo)
        wait_until(lambda: "node-1 is up" in shown.readline(), seconds=LOOK_S)
        demo.kill()
    wait_until(lambda: workers(demo_place) == [], what="the guard to have ended everything")


def test_a_second_is_enough_and_without_its_guard_it_goes_on(demo_place: Path) -> None:
    with subprocess.Popen(
        demo_command("--seconds", "1"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        env=demo_environment(demo_place),
    ) as demo:
        shown = output_of(demo)
        wait_until(lambda: "broker is up" in shown.readline(), seconds=LOOK_S)
        (guard,) = (one for one in psutil.Process(demo.pid).children() if "merklekv.harness.guard" in one.cmdline())
        guard.kill()
        assert "All equal" in shown.read()
    assert demo.returncode == 0


@pytest.mark.parametrize("wrong", [("--seconds", "0"), ("--seconds", "86401"), ("--broker", "else")])
def test_wrong_arguments(demo_place: Path, wrong: tuple[str, str]) -> None:
    done = run(demo_place, *wrong)
    assert done.returncode == exit_codes.EXIT_USAGE
    assert re.fullmatch(r"merklekv: [^\n]*" + wrong[0] + r"[^\n]*\n", done.stderr)


# -- with keys ---------------------------------------------------------------------------------------------------------


def test_keys_stop_and_start_what_is_shown(demo_terminal: DemoTerminal) -> None:
    demo_terminal.wait_for(r"node-1 +up")
    demo_terminal.wait_for(r"All equal, 0 of [1-9]\d* acknowledged writes lost")
    demo_terminal.press("4x\x1b[A")  # without a meaning
    demo_terminal.press("1")
    demo_terminal.wait_for(r"node-1 +down")
    demo_terminal.wait_for(r"node-1 is down: [\d,]+ acknowledged writes so far")
    demo_terminal.press("b")
    demo_terminal.wait_for(r"broker +down +mosquitto on 127\.0\.0\.1:\d+")
    demo_terminal.wait_for(r"The broker and node-1 are down: [1-9][\d,]* of [\d,]+ writes wait in outboxes")
    demo_terminal.wait_for(r"node-2 +up .*█.* [1-9]\d*")  # its outbox fills
    demo_terminal.wait_for(r"node-2 [^\n]*\n[ ·░▒]*█")  # and it differs
    demo_terminal.press("1")
    demo_terminal.wait_for(r"node-1 +up")
    demo_terminal.press("b")
    demo_terminal.wait_for(r"broker +up")
    demo_terminal.press("t")
    demo_terminal.wait_for("t go on")
    demo_terminal.wait_for(r"All equal, 0 of [\d,]+ acknowledged writes lost, healed in \d+\.\d s")
    demo_terminal.press("s")  # the show, which goes on writing
    demo_terminal.wait_for("t pause")
    demo_terminal.wait_for(r"node-2 +down")
    demo_terminal.press("2")  # the viewer is faster than the script, which then leaves this out
    demo_terminal.wait_for(r"node-2 +up")
    demo_terminal.press("q")
    assert demo_terminal.demo.wait(END_S) == 0
    assert termios.tcgetattr(demo_terminal.slave) == demo_terminal.before


def test_a_terminal_that_is_closed_ends_it(demo_terminal: DemoTerminal) -> None:
    demo_terminal.wait_for("All equal")
    demo_terminal.hang_up()
    demo_terminal.demo.wait(END_S)


# -- what goes wrong ---------------------------------------------------------------------------------------------------


@pytest.fixture
def short(demo_place: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The demo in this process, in its place, with little patience."""
    monkeypatch.setattr("tempfile.tempdir", str(demo_place))
    monkeypatch.setattr(demo_show, "CONVERGE_S", 5.0)
    monkeypatch.setattr(demo_health, "STUCK_S", 0.5)
    monkeypatch.setattr(demo_part, "REPLY_S", LOOK_S)
    return monkeypatch


def act_at_half(patch: pytest.MonkeyPatch, act: Callable[[Cluster], None]) -> None:
    """The script has one act, this one."""
    usual = Controls._make

    def make(controls: Controls) -> Iterator[tuple[str, Control]]:
        yield from usual(controls)
        yield "act", Control("", "", lambda: True, lambda: act(controls._cluster))

    patch.setattr(Controls, "_make", make)
    patch.setattr(demo_show, "SCRIPT", ((0.5, "act"),))


def test_nodes_that_differ_in_the_end_are_told(short: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def deafen(cluster: Cluster) -> None:
        node = cluster.nodes[0]
        requests = [(b"REPLICATE", b"disable"), (b"REPLICATE", b"status")]
        wait_until(lambda: " state=disabled " in str(node.ask(requests)))
        wait_until(lambda: node.ask([(b"SET", b"only here", b"1")]))

    act_at_half(short, deafen)
    short.setitem(demo_part.SETTINGS, "anti_entropy.enabled", "false")  # or they would heal
    assert demo_show.show(1.0, "auto", False) == exit_codes.EXIT_FAILED
    last = capsys.readouterr().out.splitlines()[-1]
    assert "Diverged: node-1: " in last


def test_a_write_that_is_lost_is_told(short: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A key is deleted behind the demo's back, and all nodes agree that it is gone."""

    def delete(cluster: Cluster) -> None:
        writer = cluster.writers[0]
        key = writer.account.keys[-1]
        write = writer.account.next_write(key)
        assert cluster.nodes[0].ask([write.request]) == [b"OK"]
        writer.account.acknowledge(write)
        assert cluster.nodes[0].ask([(b"DEL", key)]) == [1]

    act_at_half(short, delete)
    short.setattr(demo_show, "CONVERGE_S", END_S)
    assert demo_show.show(1.0, "auto", False) == exit_codes.EXIT_FAILED
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.search(r"All equal, 1 of [\d,]+ acknowledged writes lost: node-1:199", last)


def test_all_that_the_script_does_is_seen(short: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """However late the script is: a look at the nodes may take longer than there is time between two of its steps."""
    (_, kill), (_, start) = demo_script.SCRIPT[:2]
    short.setattr(demo_show, "SCRIPT", ((0.2, kill), (0.2, start)))
    short.setattr(demo_show, "CONVERGE_S", END_S)
    assert demo_show.show(1.0, "auto", False) == exit_codes.EXIT_OK
    told = capsys.readouterr().out
    assert told.count("node-2 is down\n") == 1
    assert told.count("node-2 is up\n") == 2


def test_a_node_that_does_not_start_is_told_with_its_reason(short: pytest.MonkeyPatch) -> None:
    short.setitem(demo_part.SETTINGS, "replication.topic_prefix", "+")
    with pytest.raises(HarnessError, match=r"node-\d did not start: .*topic_prefix"):
        demo_show.show(1.0, "auto", False)


def test_a_broker_that_does_not_start_is_told_with_its_reason(short: pytest.MonkeyPatch) -> None:
    short.setattr("merklekv.harness.broker.OPEN", ("nonsense true",))
    with pytest.raises(HarnessError, match=r"broker did not start: .*nonsense"):
        demo_show.show(1.0, "mosquitto", False)


@pytest.mark.parametrize("kind", ["auto", *BROKERS])
def test_without_a_broker_it_says_what_to_install(short: pytest.MonkeyPatch, kind: str) -> None:
    short.setattr("shutil.which", lambda name, path: None)
    short.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(HarnessError, match=r"^no .* found: install .*apt-get install mosquitto.*pip install iotcore"):
        demo_show.show(1.0, kind, False)
