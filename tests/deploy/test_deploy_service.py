"""`deploy/merklekv.service` and `deploy/merklekv.toml` against what the node does and takes."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures.node import clean_environment

from merklekv import exit_codes
from merklekv.node import STOP_DEADLINE_S
from merklekv.settings import Settings

DEPLOY = Path(__file__).parent.parent.parent / "deploy"
MAY_PASS = {exit_codes.EXIT_FAILED, exit_codes.EXIT_STORAGE, exit_codes.EXIT_SLOW_STOP}


@pytest.fixture
def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, delimiters=("=",), comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(DEPLOY / "merklekv.service")
    return parser


def test_systemd_understands_the_unit(unit: configparser.ConfigParser, tmp_path: Path) -> None:
    """Where there is no systemd, at least its three sections are there."""
    assert unit.sections() == ["Unit", "Service", "Install"]
    if not (verify := shutil.which("systemd-analyze")):
        return
    program = shlex.split(unit["Service"]["ExecStart"])[0]
    file = tmp_path / "merklekv.service"
    file.write_text((DEPLOY / "merklekv.service").read_text().replace(program, sys.executable))
    done = subprocess.run([verify, "verify", "--man=no", file], capture_output=True, text=True, timeout=120)
    assert "merklekv.service" not in done.stderr
    assert done.returncode == 0, done.stderr


def test_it_is_restarted_after_what_may_pass_by_itself(unit: configparser.ConfigParser) -> None:
    service = unit["Service"]
    assert service["Restart"] == "on-failure"
    kept_down = {int(word) for word in service["RestartPreventExitStatus"].split()}
    of_commands = {exit_codes.EXIT_OK, exit_codes.EXIT_INTERRUPTED, exit_codes.EXIT_PIPE}
    assert kept_down == set(exit_codes.MEANINGS) - MAY_PASS - of_commands
    text = (DEPLOY.parent / "docs" / "operations.md").read_text()
    said = re.search(r"^Restart after ([\d, and]+) and after death by a signal", text, re.MULTILINE)
    assert said is not None
    assert {int(number) for number in re.findall(r"\d", said[1])} == MAY_PASS


def test_a_stop_and_the_clients_have_room(unit: configparser.ConfigParser) -> None:
    service = unit["Service"]
    assert float(service["TimeoutStopSec"]) > STOP_DEADLINE_S
    assert int(service["LimitNOFILE"]) > 2 * Settings().limits.max_connections
    memory = int(re.fullmatch(r"(\d+)G", service["MemoryMax"])[1]) << 30  # type: ignore[index]
    assert memory > 4 * 3 * Settings().memtable_size


def test_what_the_node_tells_is_asked_for(unit: configparser.ConfigParser) -> None:
    service = unit["Service"]
    assert (service["Type"], service["NotifyAccess"]) == ("notify", "main")
    assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert "AF_UNIX" in service["RestrictAddressFamilies"].split()


def test_the_watchdog_has_patience(unit: configparser.ConfigParser) -> None:
    """With a checkpoint that holds the disk up, a sync may take seconds."""
    minutes = re.fullmatch(r"(\d+)min", unit["Service"]["WatchdogSec"])
    assert minutes is not None
    assert 60 * int(minutes[1]) >= 4 * STOP_DEADLINE_S


def test_the_settings_are_ones_and_fit_the_unit_and_the_broker(unit: configparser.ConfigParser, tmp_path: Path) -> None:
    command = shlex.split(unit["Service"]["ExecStart"])
    assert command[1:] == ["run", "--config", "/etc/merklekv/merklekv.toml"]
    secret, file = tmp_path / "mqtt-password", tmp_path / "merklekv.toml"
    secret.write_text("secret\n")
    text = (DEPLOY / "merklekv.toml").read_text()
    assert "/etc/merklekv/mqtt-password" in text
    file.write_text(text.replace("/etc/merklekv/mqtt-password", str(secret)))
    done = subprocess.run(
        [sys.executable, "-m", "merklekv", "config", "--config", file, "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        env=clean_environment(),
    )
    assert done.returncode == 0, done.stderr
    shown = {key: row["value"] for key, row in json.loads(done.stdout).items()}
    assert shown["storage_path"] == f"/var/lib/{unit['Service']['StateDirectory']}"
    assert shown["replication.enabled"] is True
    topics = re.findall(r"^pattern \w+ (\w+)/", (DEPLOY / "merklekv.acl").read_text(), re.MULTILINE)
    assert set(topics) == {shown["replication.topic_prefix"]}
