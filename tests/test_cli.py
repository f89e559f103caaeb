"""The command line as a person or a supervisor meets it: real processes, their lines and their exit
statuses.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tomllib
from contextlib import suppress
from pathlib import Path

import pytest
from fixtures.node import NodeFactory, NodeProcess, clean_environment
from fixtures.patient_node import PATIENTLY
from fixtures.support import free_port, wait_until

import merklekv
from merklekv import __version__, about, core, exit_codes, signals
from merklekv.harness.process import READY


def run(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run `merklekv` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "merklekv", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=clean_environment() | (environment or {}),
        stdin=subprocess.DEVNULL,
    )


def fails(status: int, *words: str, done: subprocess.CompletedProcess[str]) -> None:
    """The run ended with the status and one line on stderr that has the words, and nothing else."""
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert re.fullmatch(r"merklekv: [^\n]+\n", done.stderr), done.stderr
    for word in words:
        assert word in done.stderr


def fails_to_start(node: NodeProcess, status: int, *words: str) -> None:
    """A node that is launched ends with the status and, beside its log, one error line that has the words."""
    node.launch()
    assert node.wait() == status, node.output()
    errors = [line for line in node.output().splitlines() if line.startswith("merklekv: ")]
    assert len(errors) == 1, node.output()
    assert "Traceback" not in node.output()
    for word in words:
        assert word in errors[0]


def test_version() -> None:
    assert run("version").stdout == f"merklekv {__version__} ({core.DESCRIPTION})\n"


def test_version_as_json() -> None:
    told = json.loads(run("version", "--json").stdout)
    assert (told["version"], told["implementation"]) == (__version__, core.IMPLEMENTATION)
    assert told["why_pure"] == (core.WHY_PURE or None)
    assert told["formats"].keys() == {"data", "members", "exchange", "events", "pubsub"}
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    required = [re.match(r"[\w-]+", line) for line in project["dependencies"]]
    assert [name[0] for name in required if name] == list(about.LIBRARIES)
    assert told["libraries"].keys() == {*about.LIBRARIES, "lmdb (C library)"}


def test_why_it_is_pure_is_part_of_the_version() -> None:
    told = json.loads(run("version", "--json", environment={"MERKLEKV_PURE": "1"}).stdout)
    assert (told["implementation"], told["why_pure"]) == ("pure", "MERKLEKV_PURE is set")


def test_the_package_shows_what_it_has() -> None:
    assert {"open", "Database", "MerkleKVError"} <= set(dir(merklekv))


@pytest.mark.parametrize("command", ["run", "config"])
def test_help_has_an_example_and_every_flag(command: str) -> None:
    text = run(command, "--help", environment={"COLUMNS": "200"}).stdout
    assert f"merklekv {command} --" in text
    for flag in (
        "--data-dir",
        "--config",
        "--host",
        "--port",
        "--durability",
        "--node-id",
        "--log-format",
        "--set",
    ):
        assert flag in text


HEAVY = """
import sys
from merklekv.cli import main
try:
    main()
except SystemExit:
    pass
print("heavy:", sorted({"lmdb", "hiredis", "xxhash", "paho", "cbor2", "merklekv.node"} & set(sys.modules)))
"""


@pytest.mark.parametrize("arguments", [["version"], ["run", "--help"]])
def test_version_and_help_import_nothing_heavy(arguments: list[str]) -> None:
    command = [sys.executable, "-c", HEAVY, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.endswith("heavy: []\n")


def test_importing_the_package_imports_no_engine() -> None:
    code = "import merklekv, sys; print([name for name in sys.modules if name.startswith('merklekv.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--port", "abc"], ["flag --port", "'abc'", "an integer from 0 to 65535"]),
        (["run", "--prot", "1"], ["--prot", "--help"]),
        ([], ["merklekv: Missing command; 'merklekv --help' shows what there is"]),
        (["nosuch"], ["No such command 'nosuch'; 'merklekv --help' shows what there is"]),
        (["run", "extra"], ["extra"]),
        (["run", "--durability", "sometimes"], ["'sometimes'", "always, everysec, never"]),
        (["run", "--set", "nosuch=1"], ["flag --set", "unknown key 'nosuch'"]),
        (["run", "--set", "port"], ["'port'", "KEY=VALUE"]),
        (["demo", "--seconds", "nan"], ["nan is not a number"]),
        (["config", "--config", "/nonexistent.toml"], ["/nonexistent.toml", "No such file"]),
        (["config", "--config", ""], ["file .: cannot be read: Is a directory"]),
        (["run", "--host", "a..b"], ["flag --host: host = 'a..b' is not allowed; give a host name"]),
        (["run", "--node-id", "a+b"], ["flag --node-id: replication.client_id = 'a+b'", "without white space"]),
        (["run", "--set", "replication.topic_prefix=$SYS/kv"], ["flag --set", "'$SYS/kv'", "no '$' first"]),
        (["run", "--set", "replication.topic_prefix=$share/g"], ["flag --set", "'$share/g'", "no '$' first"]),
        (["run", "--set", "replication.mqtt_broker=mqtt://host:1883"], ["the port goes into replication.mqtt_port"]),
        (["run", "--set", "replication.peer_list=a..b:1"], ["flag --set", "'a..b:1'", 'a list of "host:port"']),
        (["run", "--set", "replication.tls_ca_file=/nonexistent"], ["'/nonexistent' cannot be read: No such file"]),
    ],
)
def test_a_wrong_flag_or_setting_is_one_line_and_the_usage_status(arguments: list[str], words: list[str]) -> None:
    fails(exit_codes.EXIT_USAGE, *words, done=run(*arguments))


def test_a_wrong_variable_is_one_line_and_the_usage_status() -> None:
    done = run("run", environment={"MERKLEKV_REPLICATION__MQTT_PORT": "0"})
    fails(exit_codes.EXIT_USAGE, "environment MERKLEKV_REPLICATION__MQTT_PORT", "'0'", done=done)


def test_a_setting_that_is_no_text_is_one_line_and_the_usage_status() -> None:
    command: list[str | bytes] = [sys.executable, "-m", "merklekv", "run", "--node-id", b"a\xff"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=clean_environment())
    fails(exit_codes.EXIT_USAGE, r"replication.client_id = 'a\udcff' is not allowed", done=done)


def test_config_shows_values_sources_and_no_secret(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text('threads = 3\n[replication]\nclient_password = "hush"\n')
    environment = {"MERKLEKV_CONFIG": str(file), "MERKLEKV_HOST": "::1"}
    done = run("config", "--port", "1234", environment=environment)
    assert re.search(r"^port +1234 +flag --port$", done.stdout, re.MULTILINE)
    assert re.search(r"^host +::1 +environment MERKLEKV_HOST$", done.stdout, re.MULTILINE)
    assert re.search(rf"^threads +3 +file {re.escape(str(file))}$", done.stdout, re.MULTILINE)
    assert re.search(r"^memtable_size +64MiB +default$", done.stdout, re.MULTILINE)
    assert "hush" not in done.stdout
    as_json = json.loads(run("config", "--port", "1234", "--json", environment=environment).stdout)
    assert as_json["port"] == {"value": 1234, "source": "flag --port"}
    assert as_json["replication.client_password"]["value"] == "********"


def test_config_ends_quietly_when_its_reader_has_gone() -> None:
    line = f"{sys.executable} -m merklekv config | head -1"
    done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=60, env=clean_environment())
    assert done.stdout.startswith("host")
    assert done.stderr == ""


def test_the_ready_line_says_address_directory_durability_and_keys(node: NodeProcess) -> None:
    with node.connect() as client:
        client.ask("SET a 1")
        client.ask("SET b 2")
    node.stop()
    node.start()
    ready = next(line for line in node.output().splitlines() if READY.match(line))
    where = f"127.0.0.1:{node.port}, data in {node.directory}"
    assert ready == f"merklekv {__version__} ready on {where}, durability always, 2 keys"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGXCPU, signal.SIGPWR])
def test_a_signal_stops_it_with_status_0_and_keeps_the_data(node: NodeProcess, number: int) -> None:
    with node.connect() as client:
        assert client.ask("SET key value") == "OK"
        assert node.stop(number) == exit_codes.EXIT_OK
        assert client.line() == ""
    node.start()
    with node.connect() as client:
        assert client.ask("GET key") == "VALUE value"


FAULTS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGTRAP, signal.SIGSYS}
HARMLESS = sorted(signal.valid_signals() - FAULTS - {signal.SIGKILL, signal.SIGSTOP} - signals.STOP_SIGNALS)


def test_other_signals_leave_it_running(node: NodeProcess) -> None:
    with node.connect() as client:
        for number in HARMLESS:
            os.kill(node.pid, number)
            os.kill(node.pid, signal.SIGCONT)  # some of them stop a process, as Ctrl-Z does
            assert client.ask("PING") == "PONG"
    for line in ("SIGHUP: nothing changed", "SIGUSR1: ignored", f"signal {signal.SIGRTMIN + 1}: ignored"):
        wait_until(lambda line=line: line in node.output(), what=line)
    assert node.stop() == exit_codes.EXIT_OK


def test_a_signal_again_and_again_is_a_line_and_a_count(node: NodeProcess) -> None:
    for _ in range(200):
        os.kill(node.pid, signal.SIGUSR2)
    wait_until(lambda: "SIGUSR2" in node.output())
    assert node.stop() == exit_codes.EXIT_OK
    assert 1 <= node.output().count("SIGUSR2") <= 3


def test_more_signals_while_it_stops_do_no_harm(node: NodeProcess) -> None:
    assert node.process is not None
    while node.process.poll() is None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            node.process.send_signal(number)
        with suppress(subprocess.TimeoutExpired):  # or it would have no time to stop in, where cores are few
            node.wait(0.001)
    assert node.wait() == exit_codes.EXIT_OK


def terminated_once_ready(code: str, tmp_path: Path) -> tuple[int, str]:
    """Run a node by this code, and stop it when it is ready: its exit status and its log."""
    command = [sys.executable, "-c", PATIENTLY + code, "run", "--port", "0", "--data-dir", str(tmp_path / "data")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert READY.match(process.stdout.readline())
        process.terminate()
        _, logged = process.communicate(timeout=60)
    return process.returncode, logged


SIGNALLED_WHILE_STARTING = """
import os
from merklekv import cli, node
engine = node.Engine
def start(*path, **options):
    for number in node.OTHER_SIGNALS:
        os.kill(os.getpid(), number)
    return engine(*path, **options)
node.Engine = start
cli.main()
"""


def test_other_signals_while_it_starts_do_not_end_it(tmp_path: Path) -> None:
    status, logged = terminated_once_ready(SIGNALLED_WHILE_STARTING, tmp_path)
    assert status == exit_codes.EXIT_OK
    assert "SIGHUP: nothing changed" in logged


def test_a_signal_that_another_thread_gets_stops_it(node: NodeProcess) -> None:
    """It does not wake the main thread, as one that comes just before that one waits does not."""
    others = {int(path.name) for path in Path(f"/proc/{node.pid}/task").iterdir()} - {node.pid}
    assert ctypes.CDLL(None).tgkill(node.pid, min(others), signal.SIGTERM) == 0
    assert node.wait() == exit_codes.EXIT_OK


def test_shutdown_is_answered_and_stops_it_with_status_0(node: NodeProcess) -> None:
    with node.connect() as client:
        assert client.ask("SHUTDOWN") == "OK"
    assert node.wait() == exit_codes.EXIT_OK


def test_a_silent_client_does_not_hold_up_the_stop(node: NodeProcess) -> None:
    with node.connect() as silent:
        silent.send(b"SET half a requ")
        assert node.stop() == exit_codes.EXIT_OK


def test_a_second_process_on_the_directory_is_refused(node: NodeProcess, node_factory: NodeFactory) -> None:
    second = node_factory(start=False, directory=node.directory)
    fails_to_start(second, exit_codes.EXIT_LOCKED, str(node.directory), str(node.pid))
    with node.connect() as client:
        assert client.ask("PING") == "PONG"


def test_a_second_process_is_refused_without_the_lock_file(node: NodeProcess, node_factory: NodeFactory) -> None:
    (node.directory / "LOCK").unlink()
    second = node_factory(start=False, directory=node.directory)
    fails_to_start(second, exit_codes.EXIT_LOCKED, str(node.directory), f"in use by process {node.pid}")


def test_a_base_that_was_cut_off_is_refused_with_the_file_and_the_way_out(node_factory: NodeFactory) -> None:
    node = node_factory("--memtable-size", "64KiB", "--durability", "never")
    with node.connect() as client:
        for number in range(300):
            assert client.ask(f"SET k{number} {'v' * 1000}") == "OK"
    node.stop()
    os.truncate(node.directory / "base" / "data.mdb", 20_000)
    words = ("base/data.mdb: is 20000 bytes long", "it was cut off; keep the directory, and restore a backup")
    fails_to_start(node, exit_codes.EXIT_CORRUPT, *words)


def test_a_directory_that_others_may_read_is_said_once(node: NodeProcess) -> None:
    node.stop()
    assert "other users" not in node.output()
    node.directory.chmod(0o755)
    node.start()
    node.stop()
    assert node.output().count(f"{node.directory}: other users of this machine may read it: chmod -R go-rwx ") == 1


def test_an_occupied_port_is_refused_and_the_directory_is_free_again(node_factory: NodeFactory) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        node = node_factory(start=False)
        node.port = port
        fails_to_start(node, exit_codes.EXIT_ADDRESS, "127.0.0.1", str(port))
    node.port = free_port()
    node.start()


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
def test_an_address_that_is_not_ours_is_refused(node_factory: NodeFactory, host: str) -> None:
    fails_to_start(node_factory("--host", host, start=False), exit_codes.EXIT_ADDRESS, host)


def test_a_directory_that_cannot_be_made_is_refused(node_factory: NodeFactory, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    node = node_factory(start=False, directory=tmp_path / "file" / "data")
    fails_to_start(node, exit_codes.EXIT_UNWRITABLE, str(node.directory))


def test_a_directory_that_cannot_be_written_is_refused(node_factory: NodeFactory) -> None:
    # /proc takes no files, not even from root.
    node = node_factory(start=False, directory=Path("/proc/merklekv"))
    fails_to_start(node, exit_codes.EXIT_UNWRITABLE, "/proc/merklekv")


def test_a_directory_of_something_else_is_refused_and_left_alone(node_factory: NodeFactory, tmp_path: Path) -> None:
    directory = tmp_path / "photos"
    directory.mkdir()
    (directory / "holiday.jpg").write_bytes(b"not ours")
    fails_to_start(node_factory(start=False, directory=directory), exit_codes.EXIT_FORMAT, str(directory))
    assert [entry.name for entry in directory.iterdir()] == ["holiday.jpg"]


def test_a_format_of_a_later_release_is_refused_and_left_alone(node: NodeProcess) -> None:
    node.stop()
    mark = node.directory / "FORMAT"
    mark.write_text("MerkleKV data format 999\n")
    fails_to_start(node, exit_codes.EXIT_FORMAT, str(node.directory), "999")
    assert mark.read_text() == "MerkleKV data format 999\n"


def test_damaged_data_is_refused_with_the_file_and_the_way_out(node: NodeProcess) -> None:
    with node.connect() as client:
        for number in range(50):
            assert client.ask(f"SET key-{number} value") == "OK"
    node.kill()
    segment = max((node.directory / "log").glob("*.log"))
    content = bytearray(segment.read_bytes())
    content[300] ^= 0xFF
    segment.write_bytes(content)
    fails_to_start(node, exit_codes.EXIT_CORRUPT, segment.name, "merklekv verify")


STORAGE_FAILED = """
from merklekv import node
from merklekv.errors import StorageFailed
node.start_logging("info", "text")
node.end_at_once(StorageFailed("data/log/0.log: cannot sync: Input/output error"))
"""


def test_a_failed_disk_ends_the_process_at_once_with_what_failed() -> None:
    command = [sys.executable, "-c", PATIENTLY + STORAGE_FAILED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == exit_codes.EXIT_STORAGE
    assert "CRITICAL" in done.stderr
    assert "cannot sync: Input/output error" in done.stderr
    assert len(done.stderr.splitlines()) == 1


NEVER_STARTS = """
import os, signal, threading
from merklekv import cli, node
node.Engine = lambda *path, **options: (os.kill(os.getpid(), signal.SIGTERM), threading.Event().wait())
cli.main()
"""


def test_a_signal_while_recovering_ends_it_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", NEVER_STARTS, "run", "--port", "0", "--data-dir", str(tmp_path / "data")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (exit_codes.EXIT_OK, "")


NEVER_STOPS = """
import threading
from merklekv import cli, node
node.STOP_DEADLINE_S = 0.1
node.Node.stop = lambda self: threading.Event().wait()
cli.main()
"""


def test_a_stop_that_takes_too_long_is_cut_short(tmp_path: Path) -> None:
    status, logged = terminated_once_ready(NEVER_STOPS, tmp_path)
    assert status == exit_codes.EXIT_SLOW_STOP
    assert "leaving now" in logged


NO_THREAD_FOR_THE_STOP = """
import threading
from merklekv import cli, node
wait = node.StopRequests.wait
def wait_and_use_all_threads(self, *calls):
    reason = wait(self, *calls)
    def start(thread):
        raise RuntimeError("can't start new thread")
    threading.Thread.start = start
    return reason
node.StopRequests.wait = wait_and_use_all_threads
cli.main()
"""


def test_a_stop_needs_no_other_thread(tmp_path: Path) -> None:
    status, logged = terminated_once_ready(NO_THREAD_FOR_THE_STOP, tmp_path)
    assert status == exit_codes.EXIT_OK, logged
    assert "stopped" in logged


NO_THREADS = """
import sys, threading
from merklekv import cli
start, left = threading.Thread.start, [None] * int(sys.argv.pop(1))
def start_if_allowed(thread):
    if not left:
        raise RuntimeError("can't start new thread")
    left.pop()
    start(thread)
threading.Thread.start = start_if_allowed
cli.main()
"""


@pytest.mark.parametrize("threads", [0, 1, 2, 4])
def test_a_start_that_gets_no_thread_ends_with_a_line(tmp_path: Path, threads: int) -> None:
    command = [sys.executable, "-c", PATIENTLY + NO_THREADS, str(threads), "run", "--port", "0", "--data-dir", "data"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, env=clean_environment())
    assert done.returncode == exit_codes.EXIT_UNWRITABLE, done.stderr
    assert done.stdout == ""
    assert done.stderr.splitlines() == ["merklekv: the node cannot start: can't start new thread"]


def logged_node_id(node: NodeProcess) -> str:
    """The node id in the log of this start, where the ready line may come before it."""
    found: list[str] = wait_until(lambda: re.findall(r"node (\S+), process", node.output()), what="the node id")
    return found[0]


def test_the_node_id_is_made_once_and_kept(node: NodeProcess) -> None:
    made = logged_node_id(node)
    assert made.startswith(socket.gethostname())
    node.stop()
    node.start()
    assert logged_node_id(node) == made


def test_a_given_node_id_is_used_and_not_kept(node_factory: NodeFactory) -> None:
    node = node_factory("--node-id", "node-7")
    assert logged_node_id(node) == "node-7"
    assert not (node.directory / "node-id").exists()


def test_log_lines_are_json_when_asked_for(node_factory: NodeFactory) -> None:
    node = node_factory("--log-format", "json")
    node.stop()
    lines = [line for line in node.output().splitlines() if not READY.match(line)]
    assert lines
    for line in lines:
        assert set(json.loads(line)) >= {"time", "level", "logger", "message"}


def test_the_log_level_is_obeyed(node_factory: NodeFactory) -> None:
    node = node_factory("--log-level", "error")
    node.stop()
    assert [line for line in node.output().splitlines() if not READY.match(line)] == []


def test_a_flag_beats_the_environment_for_a_real_node(node_factory: NodeFactory) -> None:
    node = node_factory("--durability", "never", environment={"MERKLEKV_DURABILITY": "everysec"})
    assert "durability never" in node.output()


def test_every_exit_status_has_a_meaning_of_its_own() -> None:
    statuses = [value for name, value in vars(exit_codes).items() if name.startswith("EXIT_")]
    assert sorted(statuses) == sorted(exit_codes.MEANINGS)
    assert len(set(statuses)) == len(statuses)


def test_too_little_address_space_is_said(node_factory: NodeFactory) -> None:
    node = node_factory(start=False)
    node.wrapper = ["sh", "-c", 'ulimit -v 4000000; exec "$@"', "sh"]
    fails_to_start(node, exit_codes.EXIT_UNWRITABLE, "base: needs 256 GiB of address space", "ulimit -v")


def test_too_few_open_files_are_said(node_factory: NodeFactory) -> None:
    node = node_factory("--set", "limits.max_connections=1000000", start=False)
    node.wrapper = ["sh", "-c", 'ulimit -n 256; exec "$@"', "sh"]
    node.start()
    wait_until(lambda: "allows 256 open files" in node.output())
