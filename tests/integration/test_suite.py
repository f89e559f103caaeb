"""The suite keeps its own promises: what it covers, what it shows when something fails, what a new test may use."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import conftest
import pytest
import run_tests
import suite_figures
import yaml
from fixtures.broker import Broker, BrokerFactory
from fixtures.node import NodeFactory, NodeProcess
from fixtures.support import free_port, wait_until
from harness import BenchmarkResult, MerkleKVServer, PerformanceMonitor, Resources

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/integration.yml").read_text())
README = (HERE / "README.md").read_text()
# The modules of the known suite: the table names every test of theirs.
NOT_KNOWN = ("test_run_tests", "test_suite", "test_anti_entropy")
COVERED = [path for path in sorted(HERE.glob("test_*.py")) if not path.stem.startswith(NOT_KNOWN)]
REFERENCE = re.compile(r"`(test_\w+)(?:\.py)?((?:::\w+)*)`")
CLASSES = (
    *("MerkleKVServer", "MerkleKVClient", "PerformanceMonitor", "BenchmarkResult", "TestRunner"),
    *("ReplicationTestHarness", "NodeHandle"),
)


def names_in(module: Path) -> set[str]:
    """Every test of a module, as `::Class::test` or `::test`."""
    found = set()
    for node in ast.parse(module.read_text()).body:
        if isinstance(node, ast.ClassDef):
            found |= {f"::{node.name}::{name}" for name in functions(node.body)}
    return found | {f"::{name}" for name in functions(ast.parse(module.read_text()).body)}


def functions(body: list[ast.stmt]) -> set[str]:
    return {one.name for one in body if isinstance(one, ast.FunctionDef) and one.name.startswith("test_")}


def table() -> list[list[str]]:
    """The rows of `What is covered where`: section, scenario, tests."""
    section = README.partition("## What is covered where")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def named_tests() -> set[tuple[str, str]]:
    """Every (module, test) that the table names, itself or by its class or module."""
    named = set()
    for _, _, cell in table():
        for module, name in REFERENCE.findall(cell):
            file = HERE / f"{module}.py"
            assert file.exists(), f"the table names {module}, which does not exist"
            within = {test for test in names_in(file) if test == name or test.startswith(f"{name}::") or not name}
            assert within, f"the table names {module}.py{name}, which does not exist"
            named |= {(module, test) for test in within}
    return named


class TestTable:
    def test_every_row_names_a_test_that_exists(self) -> None:
        named_tests()
        assert [scenario for _, scenario, cell in table() if not REFERENCE.search(cell)] == []

    @pytest.mark.parametrize("module", COVERED, ids=lambda path: path.stem)
    def test_every_test_is_in_the_table(self, module: Path) -> None:
        named = {test for name, test in named_tests() if name == module.stem}
        assert names_in(module) - named == set()

    def test_every_section_of_the_known_suite_is_there(self) -> None:
        sections = {section for section, _, _ in table()}
        assert {"1", "2", "3", "4", "5.1", "5.2", "5.3", "5.4", "5.5", "5.6"} <= sections


class TestPage:
    """What the page says can be done can be done."""

    def test_every_mode_and_option_is_on_the_page_and_no_other(self) -> None:
        shown = subprocess.run([sys.executable, HERE / "run_tests.py", "--help"], capture_output=True, text=True)
        assert shown.returncode == 0
        options = set(re.findall(r"--[a-z-]+", shown.stdout)) - {"--help"}
        section = README.partition("## Modes")[2].partition("\n## ")[0]
        assert set(re.findall(r"`(--[a-z-]+)", section)) == options
        assert set(re.findall(r"^\| `(\w+)`", section, re.MULTILINE)) == set(run_tests.MODES)

    def test_the_example_of_a_new_test_runs(self, tmp_path: Path) -> None:
        (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
        done = run_pytest(tmp_path, example)
        assert done.returncode == 0, done.stdout
        assert "2 passed" in done.stdout

    @pytest.mark.parametrize("name", CLASSES)
    def test_the_classes_are_there_for_new_tests(self, name: str) -> None:
        assert getattr(conftest, name).__name__ == name

    @pytest.mark.parametrize("variable", sorted(set(re.findall(r"`([A-Z]+(?:_[A-Z]+)+)`", README))))
    def test_every_variable_of_the_page_is_read_somewhere(self, variable: str) -> None:
        sources = [*HERE.glob("*.py"), *(HERE.parent / "fixtures").glob("*.py")]
        assert any(f'"{variable}"' in source.read_text() for source in sources)


class TestInstallation:
    """What has to be installed, and the pipeline that does it."""

    def test_the_requirements_are_the_projects_own(self) -> None:
        with (ROOT / "pyproject.toml").open("rb") as file:
            extras = tomllib.load(file)["project"]["optional-dependencies"]
        lines = (HERE / "requirements.txt").read_text().splitlines()
        assert {line for line in lines if not line.startswith("#")} <= {*extras["test"], *extras["bench"]}

    @pytest.mark.parametrize("job", list(WORKFLOW["jobs"]))
    def test_every_command_of_the_workflow_exists(self, job: str) -> None:
        for step in WORKFLOW["jobs"][job]["steps"]:
            where = ROOT / step.get("working-directory", ".")
            for line in step.get("run", "").splitlines():
                match shlex.split(line):
                    case ["python", script, *arguments]:
                        assert (where / script).samefile(HERE / "run_tests.py")
                        run_tests.parse(arguments)
                    case ["pip", "install", "-r", requirements]:
                        assert (where / requirements).exists()
                    case ["pip", "install", "-e", "."]:
                        assert (where / "pyproject.toml").exists()
                    case ["sudo", "apt-get", "update"] | ["sudo", "apt-get", "install", *_, "mosquitto", "faketime"]:
                        pass
                    case _:
                        pytest.fail(f"not known to work: {line}")

    def test_the_workflow_runs_everything(self) -> None:
        commands = [step.get("run", "") for job in WORKFLOW["jobs"].values() for step in job["steps"]]
        for mode in ("ci", "replication", "chaos", "benchmark"):
            assert any(f"python run_tests.py --mode {mode}" in command for command in commands)

    def test_what_the_workflow_keeps_is_what_the_runner_writes(self) -> None:
        paths = [step["with"] for job in WORKFLOW["jobs"].values() for step in job["steps"] if "with" in step]
        kept = {path for one in paths for path in (one.get("path", "") + one.get("files", "")).split()}
        outputs = {"report.html", "junit.xml", "coverage.xml", "htmlcov"}
        assert {Path(path).name for path in kept} == outputs
        assert {Path(path).parent for path in kept} == {HERE.relative_to(ROOT)}


def run_pytest(tmp_path: Path, text: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a test module as if it stood in this directory: with the same fixtures, and nothing written here."""
    (tmp_path / "test_written.py").write_text(text)
    shutil.copy(HERE / "conftest.py", tmp_path)
    plugins = [f"-p{name}" for name in ("fixtures.node", "fixtures.broker", "fixtures.cluster", "no:cacheprovider")]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-c",
        str(ROOT / "pyproject.toml"),
        "--rootdir",
        str(tmp_path),
        *plugins,
        *options,
    ]
    path = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [*command, "-pno:benchmark", f"--basetemp={tmp_path / 'tests'}", tmp_path / "test_written.py"],
        cwd=HERE,
        env=os.environ | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


class TestFailures:
    """What a failing test shows."""

    def test_what_the_server_logged_is_shown(self, tmp_path: Path) -> None:
        text = "def test_it(own_server):\n    own_server.restart()\n    assert False\n"
        shown = run_pytest(tmp_path, text).stdout
        assert "log of the server teardown" in shown
        assert shown.count("merklekv.node: ready on 127.0.0.1:") == 2
        assert "stopping: SIGTERM" in shown

    def test_what_every_node_and_the_broker_logged_is_shown(self, tmp_path: Path) -> None:
        text = "def test_it(harness):\n    harness.create_nodes(2)\n    assert False\n"
        shown = run_pytest(tmp_path, text, MQTT_BROKER_HOST="", MQTT_BROKER_PORT="").stdout
        for part in ("log of the broker", "log of node-0", "log of node-1", "connected to the broker"):
            assert part in shown


class TestServerThatIsThere:
    """`--host` and `--port`, or the variables, name a server that the tests did not start."""

    SET = "def test_it(server, connected_client):\n    assert connected_client.set('k', 'v') == 'OK'\n"

    def test_it_is_used_and_left_empty(self, tmp_path: Path, node: NodeProcess) -> None:
        done = run_pytest(tmp_path, self.SET, MERKLEKV_TEST_PORT=str(node.port))
        assert done.returncode == 0, done.stdout
        with node.connect() as client:
            assert client.ask("DBSIZE") == "DBSIZE 0"
            assert "set_commands:1" in client.ask_lines("STATS")

    def test_one_that_holds_data_is_refused_and_keeps_it(self, tmp_path: Path, node: NodeProcess) -> None:
        with node.connect() as client:
            client.ask("SET precious 1")
            done = run_pytest(tmp_path, self.SET, MERKLEKV_TEST_PORT=str(node.port))
            assert done.returncode == 2
            assert f"127.0.0.1:{node.port} holds data (DBSIZE 1) and these tests erase it" in done.stdout + done.stderr
            assert client.ask("GET precious") == "VALUE 1"

    def test_when_no_server_answers_one_is_started_there(self, tmp_path: Path) -> None:
        port = free_port()
        text = self.SET + f"    assert server.port == {port}\n"
        assert run_pytest(tmp_path, text, MERKLEKV_TEST_PORT=str(port)).returncode == 0

    def test_its_memory_and_processor_time_are_watched_too(self, node_factory: NodeFactory) -> None:
        there = MerkleKVServer("127.0.0.1", node_factory().port)
        with PerformanceMonitor(there.pid) as monitor, there.client() as client:
            client.send_command("PING")
        assert monitor.resources.memory_peak_mib > 1


class TestBrokerThatIsThere:
    """A broker that `MQTT_BROKER_HOST` and `MQTT_BROKER_PORT` name is used, and nothing is left there."""

    TEXT = "def test_it(harness):\n    a, b = harness.create_nodes(2)\n    a.set('k', 'v')\n    b.wait_for('k', 'v')\n"

    def test_sessions_and_statuses_are_removed(self, tmp_path: Path, broker_factory: BrokerFactory) -> None:
        broker = broker_factory()
        done = run_pytest(tmp_path, self.TEXT, **named(broker), MQTT_TOPIC_PREFIX="watched/topics")
        assert done.returncode == 0, done.stdout
        log = broker.log.read_text()
        assert "'watched/topics/node-0-" in log
        ids = set(re.findall(r"as (watched:topics:node-\d-\w+) \(p5, c0", log))
        assert len(ids) == 2
        assert {one for one in ids if re.search(rf"as {one} \(p5, c1", log)} == ids, (
            "every session is taken over and removed"
        )
        assert re.findall(r"Received PUBLISH from (\S+) \(d0, q1, r1, m\d+, '\S+/status', \.\.\. \(0 bytes\)\)", log)

    def test_one_that_does_not_answer_is_named(self, tmp_path: Path) -> None:
        port = str(free_port())
        done = run_pytest(tmp_path, self.TEXT, MQTT_BROKER_HOST="127.0.0.1", MQTT_BROKER_PORT=port)
        assert f"no MQTT broker lets us in at 127.0.0.1:{port}" in done.stdout


def named(broker: Broker) -> dict[str, str]:
    return {"MQTT_BROKER_HOST": broker.host, "MQTT_BROKER_PORT": str(broker.port), "PYTEST_XDIST_WORKER": ""}


class TestResult:
    def test_percentiles_are_by_nearest_rank(self) -> None:
        result = BenchmarkResult("x", 2.0, [n / 1000 for n in range(100, 0, -1)], Resources(10.0, 50.0))
        assert [round(result.percentile_ms(percent)) for percent in (50, 95, 99, 100)] == [50, 95, 99, 100]
        assert result.throughput == 50
        assert round(BenchmarkResult("x", 1.0, [0.007]).percentile_ms(50)) == 7

    def test_what_it_tells_is_what_was_measured(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("MERKLEKV_TEST_BENCHMARKS", str(tmp_path / "figures"))
        latencies = [n / 1000 for n in range(1, 101)]
        BenchmarkResult("x", 2.0, latencies, Resources(10.0, 50.0), 0.25).report()
        (told,) = suite_figures.read()
        assert told == {"name": "x", "operations": 100, "throughput_per_s": 50.0, "ratio": 0.25} | {
            **{f"p{percent}_ms": percent for percent in (50, 95, 99)},
            "memory_peak_mib": 10.0,
            "cpu_percent": 50.0,
        }
        assert capsys.readouterr().out == (
            "\nx: 50/s, p50 50.00 ms, p95 95.00 ms, p99 99.00 ms, memory 10 MiB, cpu 50 %, 0.25 of the reference\n"
        )

    def test_a_monitor_sees_memory_and_processor_time_of_all_its_blocks(self) -> None:
        script = "x = bytearray(50_000_000)\nprint(flush=True)\nwhile True: pass"
        parent = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {script!r}])"
        with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, start_new_session=True) as busy:
            assert busy.stdout is not None
            busy.stdout.readline()
            monitor = PerformanceMonitor(busy.pid)

            def sees_it() -> bool:  # which may not run during one block, where cores are few
                with monitor:
                    sum(range(3_000_000))
                return monitor.resources.cpu_percent > 0

            sees_it()
            wait_until(sees_it, what="processor time")
            os.killpg(busy.pid, signal.SIGKILL)
        assert monitor.resources.memory_peak_mib > 45
        assert monitor.resources.cpu_percent > 0
