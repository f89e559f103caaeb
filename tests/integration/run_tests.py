#!/usr/bin/env python3
"""Runs the integration suite by mode: turns a mode and options into a run of pytest, and ends it when its time is up.

    python run_tests.py --mode basic
    python run_tests.py --mode ci --report
    python run_tests.py --mode quick                 # under 2 minutes; `replication` under 5, `chaos` under 15
    MQTT_BROKER_HOST=10.0.0.5 python run_tests.py --mode replication    # use a running broker
    python run_tests.py --benchmark-only --verbose
    python run_tests.py --mode basic --host 127.0.0.1 --port 7379    # use a running server, which must be empty

`--report` writes report.html, junit.xml and, except for benchmarks, coverage.xml and htmlcov/ into this directory.
pytest, coverage, pytest-html and pytest-xdist do the work; `suite_plugin` adds what this suite reports beyond them.
The exit status is pytest's, or one of those below.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

EXIT_USAGE = 2  # the mode lacks a package or program; argparse uses it too
EXIT_NO_RESULT = 5  # pytest's for nothing collected; here also for a run that ended early
EXIT_NO_TESTS = (3, 4, EXIT_NO_RESULT)  # pytest's: internal error, usage error, nothing collected
EXIT_REGRESSION = 10  # every test passed, but a benchmark has become slower
EXIT_TIME_LIMIT = 124  # as of timeout(1)
EXIT_INTERRUPTED = 130  # as of shells

REQUIREMENTS = HERE / "requirements.txt"

if __name__ == "__main__":  # before the import that may fail
    wanted = ["merklekv", *re.findall(r"^[\w.-]+", REQUIREMENTS.read_text(), re.MULTILINE)]
    if lacking := [name for name in wanted if not any(importlib.metadata.distributions(name=name))]:
        install = f"pip install -r {REQUIREMENTS} and pip install -e {ROOT}"
        print(f"not installed for {sys.executable}: {', '.join(lacking)}; {install}", file=sys.stderr)
        sys.exit(EXIT_USAGE)

import psutil  # noqa: E402

PROGRAMS = f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin"
GRACE_S = 20.0  # for fixtures to clean up when the run is told to stop
ENDING_S = 1.0  # for processes that are ending by themselves
KILLED_S = 10.0  # for the kernel to end processes that were killed
COVERAGE_LIMIT_S = 600.0  # to write one kind of coverage's pages


@dataclass(frozen=True)
class Mode:
    """Test files, marker expression, time limit in seconds, and the programs needed beside Python's packages."""

    files: tuple[str, ...]
    markers: str
    limit_s: int
    needs: tuple[str, ...] = ()
    coverage: bool = False


REPLICATION = tuple(
    sorted(path.name for word in ("anti_entropy", "replication") for path in HERE.glob(f"test_{word}*"))
)
BROKER, ALL = ("mosquitto",), ("mosquitto", "faketime")

MODES = {
    "quick": Mode(("test_basic_operations.py", "test_replication_simple.py"), "not slow", 120, BROKER),
    "basic": Mode(("test_basic_operations.py",), "", 60),
    "replication": Mode(REPLICATION, "not slow", 300, ALL),
    "chaos": Mode((*REPLICATION, "test_error_handling.py"), "", 900, ALL),
    "concurrency": Mode(("test_concurrency.py",), "", 120),
    "benchmark": Mode(("test_benchmark.py", "test_replication_throughput_spike.py"), "benchmark", 600, BROKER),
    "error": Mode(("test_error_handling.py",), "", 180),
    "ci": Mode((".",), "not benchmark", 1200, ALL, coverage=True),
    "all": Mode((".",), "not benchmark", 1200, ALL),
}


class TestRunner:
    """One run: the options, pytest's command line and environment, and the files that the run leaves in `output`."""

    __test__ = False  # pytest collects classes of this name

    def __init__(self, options: argparse.Namespace, output: Path = HERE) -> None:
        self.options = options
        self.mode_name: str = "benchmark" if options.benchmark_only or options.save_baseline else options.mode
        self.mode = MODES[self.mode_name]
        self.covered = self.mode.coverage or (options.report and self.mode_name != "benchmark")
        self.keeps_results = options.report or self.mode.coverage
        self.report, self.junit, self.coverage_xml, self.coverage_pages = (
            output / name for name in ("report.html", "junit.xml", "coverage.xml", "htmlcov")
        )

    def run(self) -> int:
        """Run the tests and return the exit status."""
        if missing := self.missing():
            print(f"mode {self.mode_name}: {missing}", file=sys.stderr)
            return EXIT_USAGE
        outputs = [self.report, self.junit, self.coverage_xml, self.coverage_pages / "index.html"]
        if self.keeps_results:
            remove(outputs)  # of the run before
        with tempfile.TemporaryDirectory(prefix="merklekv-tests-") as name:
            scratch = Path(name)
            title = f"mode {self.mode_name}, at most {self.mode.limit_s} s"
            print(f"{title}: {' '.join(self.mode.files)}", flush=True)
            began = time.monotonic()
            command = [*self.command(scratch), f"--suite-title={title}"]
            status = run_within(self.mode.limit_s, command, self.environment(scratch))
            seconds = time.monotonic() - began
            if status in (0, 1) and not self.junit_file(scratch).exists():
                print("pytest ended early: it wrote no results", file=sys.stderr, flush=True)
                status = status or EXIT_NO_RESULT
            if status in EXIT_NO_TESTS:
                if self.keeps_results:
                    remove(outputs)
            elif self.covered:
                self.write_coverage(scratch)
        if self.options.report and self.report.exists():
            print(f"report: {self.report}")
        result = "passed" if status == 0 else f"failed, status {status}"
        print(f"mode {self.mode_name}: {result}; {seconds:.0f} s of at most {self.mode.limit_s} s", flush=True)
        return status

    def missing(self) -> str:
        """Which program the mode needs and this machine lacks, with the remedy; empty if none."""
        broker = os.environ.get("MQTT_BROKER_HOST") or os.environ.get("MQTT_BROKER_PORT")
        if "mosquitto" in self.mode.needs and not (shutil.which("mosquitto", path=PROGRAMS) or broker):
            return "no Mosquitto here: apt-get install mosquitto, or name a broker in MQTT_BROKER_HOST"
        if "faketime" in self.mode.needs and not list(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")):
            return "no libfaketime here, for clocks that differ: apt-get install faketime"
        return ""

    def command(self, scratch: Path) -> list[str]:
        """pytest's command line."""
        coverage = ["-m", "coverage", "run", f"--rcfile={ROOT / 'pyproject.toml'}"] if self.covered else []
        command = [sys.executable, *coverage, "-m", "pytest", *self.mode.files, f"--basetemp={scratch / 'tests'}"]
        command += [f"--junitxml={self.junit_file(scratch)}"]
        command += ["-p", "suite_plugin", "-p", "no:benchmark", "-p", "no:cacheprovider", "--durations=10"]
        if self.mode.markers:
            command += ["-m", self.mode.markers]
        if (workers := self.workers()) != "1":
            command += ["-n", workers]
        if self.options.verbose:
            command += ["-v", "-rfEP"]
        if self.options.report:
            command += [f"--html={self.report}", "--self-contained-html"]
        if self.mode_name == "benchmark":
            command += [f"--baseline={'save' if self.options.save_baseline else 'compare'}"]
        return command

    def junit_file(self, scratch: Path) -> Path:
        """Where pytest writes JUnit XML at its end: in every run, because without it the run ended early."""
        return self.junit if self.keeps_results else scratch / "junit.xml"

    def workers(self) -> str:
        """One on a named server, whose keys tests would erase for each other, and on named topics, which a person may
        watch; one for benchmarks unless asked for more, because parallel ones measure each other.
        """
        if {"MERKLEKV_TEST_HOST", "MERKLEKV_TEST_PORT"} & self.environment(HERE).keys():
            return "1"
        alone = self.mode_name == "benchmark" or "MQTT_TOPIC_PREFIX" in os.environ
        return self.options.workers or ("1" if alone else "auto")

    def environment(self, scratch: Path) -> dict[str, str]:
        environment = {"MERKLEKV_TEST_OPERATIONS": "10000", **os.environ}
        environment["MERKLEKV_TEST_BENCHMARKS"] = str(scratch / "benchmarks.jsonl")
        environment["COVERAGE_FILE"] = str(scratch / "coverage")  # the servers inherit it
        if self.options.host:
            environment["MERKLEKV_TEST_HOST"] = self.options.host
        if self.options.port:
            environment["MERKLEKV_TEST_PORT"] = str(self.options.port)
        return environment

    def write_coverage(self, scratch: Path) -> None:
        """Write coverage's pages; a failure is printed and does not change the status of the tests."""
        for words in (["xml", "-o", str(self.coverage_xml)], ["html", "-d", str(self.coverage_pages)]):
            command = [sys.executable, "-m", "coverage", *words, "-q", f"--rcfile={ROOT / 'pyproject.toml'}"]
            try:
                subprocess.run(command, cwd=HERE, env=self.environment(scratch), timeout=COVERAGE_LIMIT_S, check=True)
            except subprocess.SubprocessError as error:
                print(f"coverage's {words[0]} is not written: {error}", file=sys.stderr, flush=True)


def remove(paths: list[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def run_within(limit_s: float, command: list[str], environment: dict[str, str], grace_s: float = GRACE_S) -> int:
    """Run a command in a session of its own and return its status; stop it when its time is up or on Ctrl-C. No
    process of the session survives; the status is 1 if the command left some and would otherwise have passed.
    """
    process = subprocess.Popen(command, cwd=HERE, env=environment, start_new_session=True)
    try:
        status = process.wait(limit_s)
    except (subprocess.TimeoutExpired, KeyboardInterrupt) as reason:
        timed_out = isinstance(reason, subprocess.TimeoutExpired)
        if timed_out:
            print(f"the time limit of {limit_s} s has passed", file=sys.stderr, flush=True)
        process.send_signal(signal.SIGTERM if timed_out else signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
        status = EXIT_TIME_LIMIT if timed_out else EXIT_INTERRUPTED
    finally:
        left_behind = end_session(process.pid)
        process.wait()
    for line in left_behind:
        print(f"still running afterwards, and ended: {line}", file=sys.stderr, flush=True)
    return status or int(bool(left_behind))


def end_session(session: int) -> list[str]:
    """Kill what is still running in the session; return the command lines."""
    psutil.wait_procs(running_in(session), timeout=ENDING_S)
    left_behind = running_in(session)
    killed = []
    for process in left_behind:
        with contextlib.suppress(psutil.Error):
            killed.append(" ".join(process.cmdline()))
            process.kill()
    psutil.wait_procs(left_behind, timeout=KILLED_S)
    return killed


def running_in(session: int) -> list[psutil.Process]:
    """The processes of the session except this one."""
    found = []
    for process in psutil.process_iter(["status"]):
        with contextlib.suppress(ProcessLookupError):
            is_alive = process.info["status"] != psutil.STATUS_ZOMBIE and process.pid != os.getpid()
            if is_alive and os.getsid(process.pid) == session:
                found.append(process)
    return found


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run the integration suite by mode.")
    modes = f"which tests: {', '.join(MODES)} (default: basic)"
    parser.add_argument("--mode", choices=list(MODES), default="basic", metavar="MODE", help=modes)
    parser.add_argument("--host", help="a running, empty server (default: the tests start their own)")
    parser.add_argument("--port", type=int, help="its port (default: 7379); if none answers, one is started on it")
    parser.add_argument("--workers", metavar="N", help="parallel workers (default: auto; 1 for benchmarks)")
    parser.add_argument("--verbose", action="store_true", help="show each test, what it printed and its nodes logged")
    parser.add_argument("--report", action="store_true", help="write report.html, JUnit XML and coverage here")
    parser.add_argument("--benchmark-only", action="store_true", help="the same as --mode benchmark")
    parser.add_argument("--save-baseline", action="store_true", help="run benchmarks, and compare later runs with this")
    return parser.parse_args(arguments)


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops the run like Ctrl-C
    try:
        return TestRunner(parse(sys.argv[1:])).run()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
