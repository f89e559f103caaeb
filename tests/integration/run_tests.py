#!/usr/bin/env python3
"""Runs the integration suite by mode.

    python run_tests.py --mode basic
    python run_tests.py --mode ci --report
    python run_tests.py --mode quick                 # under 2 minutes; `replication` under 5, `chaos` under 15
    MQTT_BROKER_HOST=10.0.0.5 python run_tests.py --mode replication    # at a broker that is already there
    python run_tests.py --benchmark-only --verbose
    python run_tests.py --mode basic --host 127.0.0.1 --port 7379    # a server that is already there, and empty

It shows how far it is, and the time that a mode may take; then it ends the run, and whatever of it is left. The exit
status is pytest's, or one of those below. `--report` leaves report.html (with plots, and the benchmarks' figures beside
the expected ones), junit.xml and, but for benchmarks, coverage.xml and htmlcov/ in this directory.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [path for path in (str(HERE), str(HERE.parent)) if path not in sys.path]  # what pytest does as well

EXIT_USAGE = 2  # something that the mode needs is missing; argparse's own as well
REQUIREMENTS = HERE / "requirements.txt"


def packages_missing() -> list[str]:
    """What of the requirements, the server among them, is not installed for this Python."""
    wanted = ["merklekv", *re.findall(r"^[\w.-]+", REQUIREMENTS.read_text(), re.MULTILINE)]
    return [name for name in wanted if not is_installed(name)]


def is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


if __name__ == "__main__" and (lacking := packages_missing()):  # before the imports, which need them
    install = f"pip install -r {REQUIREMENTS} and pip install -e {ROOT}"
    print(f"not installed for {sys.executable}: {', '.join(lacking)}; {install}", file=sys.stderr)
    sys.exit(EXIT_USAGE)

import suite_figures  # noqa: E402
from suite_figures import Figures  # noqa: E402
from suite_process import run_within  # noqa: E402
from suite_report import Outcome, read_cases, write_html  # noqa: E402

EXIT_NOTHING = 5  # pytest's own: no test was run
EXIT_REGRESSION = 10  # every test passed, but a benchmark has become slower
EXIT_TIME_LIMIT = 124  # as timeout(1) has it
EXIT_INTERRUPTED = 130  # as shells have it

HOST_VARIABLES = {"MERKLEKV_TEST_HOST", "MERKLEKV_TEST_PORT"}
PROGRAMS = f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin"
FIGURES = "benchmarks.jsonl"
BENCHMARK_OPERATIONS = 10_000
COVERAGE_S = 600  # to write the pages, beyond the limit of the mode, which is of the tests


@dataclass(frozen=True)
class Mode:
    """What a mode runs, how long it may take, and which programs it needs beside Python's packages."""

    files: tuple[str, ...]
    markers: str
    limit_s: int
    needs: tuple[str, ...] = ()
    coverage: bool = False


OF_REPLICATION = ("test_anti_entropy*.py", "test_replication*.py")
REPLICATION = tuple(sorted(path.name for pattern in OF_REPLICATION for path in HERE.glob(pattern)))
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
    """Turns the options into a run of pytest, and what it left into figures and a report."""

    __test__ = False  # by its name pytest would take it for a test class

    def __init__(self, options: argparse.Namespace, output: Path = HERE) -> None:
        self.mode_name: str = "benchmark" if options.benchmark_only or options.save_baseline else options.mode
        self.mode = MODES[self.mode_name]
        self.options = options
        self.named_server = bool(options.host or options.port or HOST_VARIABLES & set(os.environ))
        self.output = output  # where the reports go
        self.covered = self.mode.coverage or (options.report and self.mode_name != "benchmark")

    def run(self) -> int:
        """Run the tests, show what came of it; the exit status."""
        if missing := self.missing():
            print(f"mode {self.mode_name}: {missing}", file=sys.stderr)
            return EXIT_USAGE
        with tempfile.TemporaryDirectory(prefix="merklekv-tests-") as scratch:
            return self.run_in(Path(scratch))

    def run_in(self, scratch: Path) -> int:
        """The same, with what nobody needs afterwards in the directory."""
        if self.options.report or self.covered:
            for path in (self.junit(scratch), *self.pages()):
                path.unlink(missing_ok=True)  # or those of the run before would be taken for this one's
        began = time.monotonic()
        command = self.command(scratch)
        print(f"mode {self.mode_name}, at most {self.mode.limit_s} s: {' '.join(self.mode.files)}", flush=True)
        ended = run_within(self.mode.limit_s, command, cwd=HERE, environment=self.environment(scratch))
        seconds = time.monotonic() - began
        status = EXIT_TIME_LIMIT if ended.status is None else ended.status
        metadata = [f"still running afterwards, and ended: {line}" for line in ended.left_behind]
        if ended.status is None:
            metadata.append(f"the time limit of mode {self.mode_name}, {self.mode.limit_s} s, has passed")
        figures = suite_figures.read(scratch / FIGURES)
        kept = suite_figures.read_baseline()
        if status == 0 and self.mode_name == "benchmark":
            status = self.judge(figures, kept, metadata)
        status = status or int(bool(ended.left_behind))
        cases = read_cases(self.junit(scratch))
        if not cases and status != EXIT_TIME_LIMIT:
            metadata.append("no test was run; what pytest said above tells why")
            status = status or EXIT_NOTHING
        if cases and self.covered:
            metadata += self.write_coverage(scratch)
        self.tell(Outcome(self.mode_name, status, seconds, self.mode.limit_s, cases, figures, kept, metadata))
        return status

    def judge(self, figures: Figures, kept: dict[str, float], metadata: list[str]) -> int:
        """Compare with the kept ratios, or keep these; the exit status. Tells in the notes what has become slower."""
        if self.options.save_baseline:
            suite_figures.keep(figures)
            print(f"kept for later runs: {suite_figures.BASELINE}")
            return 0
        slower = suite_figures.regressions(figures, kept)
        metadata += [f"slower than before: {line}" for line in slower]
        return EXIT_REGRESSION if slower else 0

    def tell(self, outcome: Outcome) -> None:
        """To the terminal, and with --report to a page."""
        if outcome.figures:
            rows = suite_figures.rows(outcome.figures, outcome.kept)
            print(f"\n{suite_figures.markdown(suite_figures.HEADER, rows)}\n")
        for note in outcome.metadata:
            print(note, file=sys.stderr)
        if self.options.report and outcome.cases:
            report, coverage, _ = self.pages()
            write_html(outcome, report, coverage if self.covered else None)
            print(f"report: {report}")
        print(outcome, flush=True)

    def missing(self) -> str:
        """What the mode needs and this machine has not, and what to do; empty when nothing is missing."""
        broker = os.environ.get("MQTT_BROKER_HOST") or os.environ.get("MQTT_BROKER_PORT")
        if "mosquitto" in self.mode.needs and not (shutil.which("mosquitto", path=PROGRAMS) or broker):
            return "no Mosquitto here: apt-get install mosquitto, or name a broker in MQTT_BROKER_HOST"
        if "faketime" in self.mode.needs and not list(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")):
            return "no libfaketime here, for clocks that differ: apt-get install faketime"
        return ""

    def write_coverage(self, scratch: Path) -> list[str]:
        """The pages of the lines that ran; what went wrong."""
        _, xml, pages = self.pages()
        for words in (["xml", "-o", str(xml)], ["html", "-d", str(pages.parent)]):
            command = [sys.executable, "-m", "coverage", *words, "-q", f"--rcfile={ROOT / 'pyproject.toml'}"]
            ended = run_within(COVERAGE_S, command, cwd=HERE, environment=self.environment(scratch))
            if ended.status != 0:
                return [f"no {words[0]} of the coverage: coverage ended with status {ended.status}"]
        return []

    def pages(self) -> tuple[Path, Path, Path]:
        """The report, the coverage as XML, and its first page."""
        return self.output / "report.html", self.output / "coverage.xml", self.output / "htmlcov" / "index.html"

    def junit(self, scratch: Path) -> Path:
        return (self.output if self.options.report or self.mode.coverage else scratch) / "junit.xml"

    def command(self, scratch: Path) -> list[str]:
        """pytest's command line."""
        command = [sys.executable, "-m", "pytest", *self.mode.files, "-q", "-p", "suite_progress"]
        command += ["-p", "no:benchmark", "-p", "no:cacheprovider"]
        command += [f"--basetemp={scratch / 'tests'}", f"--junitxml={self.junit(scratch)}"]
        if self.mode.markers:
            command += ["-m", self.mode.markers]
        if (workers := self.workers()) != "1":
            command += ["-n", workers]
        if self.covered:
            command += [f"--cov-config={ROOT / 'pyproject.toml'}", "--cov", "--cov-report="]
        return command

    def workers(self) -> str:
        """One for tests that share a server, and would erase each other's keys; one for benchmarks, which would measure
        each other, unless asked for more; one where somebody listens to the topics that they named.
        """
        if self.named_server:
            return "1"
        alone = self.mode_name == "benchmark" or "MQTT_TOPIC_PREFIX" in os.environ
        return self.options.workers or ("1" if alone else "auto")

    def environment(self, scratch: Path) -> dict[str, str]:
        environment = dict(os.environ)
        environment["MERKLEKV_TEST_BENCHMARKS"] = str(scratch / FIGURES)
        environment["MERKLEKV_TEST_LIMIT_S"] = str(self.mode.limit_s)
        environment.setdefault("MERKLEKV_TEST_OPERATIONS", str(BENCHMARK_OPERATIONS))
        if self.covered:
            environment["COVERAGE_FILE"] = str(scratch / "coverage")  # of the servers as well, which inherit it
        if self.options.verbose:
            environment["MERKLEKV_TEST_VERBOSE"] = "1"
        if self.options.host:
            environment["MERKLEKV_TEST_HOST"] = self.options.host
        if self.options.port:
            environment["MERKLEKV_TEST_PORT"] = str(self.options.port)
        return environment


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run the integration suite by mode.")
    modes = f"which tests: {', '.join(MODES)} (default: basic)"
    parser.add_argument("--mode", choices=list(MODES), default="basic", metavar="MODE", help=modes)
    parser.add_argument("--host", help="a server that is already there, and empty (default: the tests start their own)")
    parser.add_argument("--port", type=int, help="its port (default: 7379); when nobody answers, one is started on it")
    parser.add_argument("--workers", metavar="N", help="parallel workers (default: auto; 1 for benchmarks)")
    parser.add_argument("--verbose", action="store_true", help="show each test, what it printed and its nodes logged")
    parser.add_argument("--report", action="store_true", help="write report.html, JUnit XML and coverage here")
    parser.add_argument("--benchmark-only", action="store_true", help="the same as --mode benchmark")
    parser.add_argument("--save-baseline", action="store_true", help="run benchmarks, and compare later runs with this")
    return parser.parse_args(arguments)


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what is running is put away as for Ctrl-C
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a script
        signal.signal(signal.SIGINT, lambda number, frame: None)  # or pytest would, and not stop when its time is up
    try:
        return TestRunner(parse(sys.argv[1:])).run()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
