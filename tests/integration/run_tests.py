#!/usr/bin/env python3
"""Runs the integration suite by mode.

    python run_tests.py --mode basic
    python run_tests.py --mode ci --report
    python run_tests.py --mode quick                 # under 2 minutes; `replication` under 5, `chaos` under 15
    MQTT_BROKER_HOST=10.0.0.5 python run_tests.py --mode replication    # at a broker that is already there
    python run_tests.py --benchmark-only --verbose
    python run_tests.py --mode basic --host 127.0.0.1 --port 7379    # a server that is already there, and empty

The exit status is pytest's, 124 when the mode's time limit passed. `--report` leaves junit.xml, report.md (with the
benchmarks' figures beside the expected ones) and, but for benchmarks, coverage.xml and htmlcov/ in this directory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
EXIT_TIME_LIMIT = 124


@dataclass(frozen=True)
class Mode:
    """What a mode runs, and how long it may take."""

    files: tuple[str, ...]
    markers: str
    limit_s: int
    coverage: bool = False


REPLICATION = (
    "test_replication.py",
    "test_replication_simple.py",
    "test_replication_ordering.py",
    "test_replication_clock_skew.py",
    "test_replication_malformed_payloads.py",
    "test_replication_throughput_spike.py",
)
OUTAGE = "test_replication_broker_outage.py"

MODES = {
    "quick": Mode(("test_basic_operations.py", "test_replication_simple.py"), "not slow", 120),
    "basic": Mode(("test_basic_operations.py",), "", 60),
    "replication": Mode((*REPLICATION, OUTAGE), "not slow", 300),
    "chaos": Mode((*REPLICATION, OUTAGE, "test_error_handling.py"), "", 900),
    "concurrency": Mode(("test_concurrency.py",), "", 120),
    "error": Mode(("test_error_handling.py",), "", 180),
    "benchmark": Mode(("test_benchmark.py",), "benchmark", 600),
    "ci": Mode((".",), "not benchmark", 1200, coverage=True),
    "all": Mode((".",), "not benchmark", 1200),
}

# What users of MerkleKV are told to expect: operations a second, and P95 in milliseconds, of each benchmark.
EXPECTED = {"SET": (1_000, 100), "GET": (2_000, 50), "Mixed": (800, 80), "Connections": (50, 1_000)}
BENCHMARK_OPERATIONS = 10_000


class TestRunner:
    """Turns the options into a run of pytest, and what it left into a report."""

    __test__ = False  # by its name pytest would take it for a test class

    def __init__(self, options: argparse.Namespace) -> None:
        self.mode_name: str = "benchmark" if options.benchmark_only else options.mode
        self.mode = MODES[self.mode_name]
        self.options = options
        self.named_server = bool(options.host or options.port)
        self.figures = Path(tempfile.mkdtemp(prefix="merklekv-figures-")) / "benchmarks.jsonl"

    def run(self) -> int:
        began = time.monotonic()
        print(f"mode {self.mode_name}, at most {self.mode.limit_s} s: {' '.join(self.command()[2:])}", flush=True)
        try:
            status = subprocess.run(
                self.command(), cwd=HERE, env=self.environment(), timeout=self.mode.limit_s, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            print(f"the time limit of mode {self.mode_name}, {self.mode.limit_s} s, has passed", file=sys.stderr)
            status = EXIT_TIME_LIMIT
        if self.mode_name == "benchmark" and self.figures.exists():
            print("\n" + self.benchmark_table())
        if self.options.report:
            self.write_report(status, time.monotonic() - began)
        return status

    def command(self) -> list[str]:
        command = [sys.executable, "-m", "pytest", *self.mode.files]
        if self.mode.markers:
            command += ["-m", self.mode.markers]
        # Benchmarks one after the other, unless asked otherwise: they would measure each other. And tests that share
        # one server erase each other's keys.
        alone = self.named_server or self.mode_name == "benchmark"
        workers = self.options.workers if not self.named_server else None
        if workers not in (None, "1") or (workers is None and not alone):
            command += ["-n", workers or "auto", "-p", "no:benchmark"]
        if self.options.verbose:
            command += ["-v", "-s"]
        if self.options.report or self.mode.coverage:
            command += [f"--junitxml={HERE / 'junit.xml'}"]
        if self.mode.coverage or (self.options.report and self.mode_name != "benchmark"):
            command += [f"--cov-config={ROOT / 'pyproject.toml'}", "--cov", "--cov-report=term:skip-covered"]
            command += [f"--cov-report=xml:{HERE / 'coverage.xml'}", f"--cov-report=html:{HERE / 'htmlcov'}"]
        return command

    def environment(self) -> dict[str, str]:
        environment = dict(os.environ)
        environment["MERKLEKV_TEST_BENCHMARKS"] = str(self.figures)
        environment.setdefault("MERKLEKV_TEST_OPERATIONS", str(BENCHMARK_OPERATIONS))
        if self.options.host:
            environment["MERKLEKV_TEST_HOST"] = self.options.host
        if self.options.port:
            environment["MERKLEKV_TEST_PORT"] = str(self.options.port)
        return environment

    def benchmark_table(self) -> str:
        lines = [
            "| benchmark | operations/s | expected | P50 ms | P95 ms | expected | P99 ms | memory MiB | CPU % |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for line in self.figures.read_text().splitlines():
            one = json.loads(line)
            rate, latency = EXPECTED.get(one["name"], ("", ""))
            figures = (one["name"], one["throughput_per_s"], rate and f"> {rate}", one["p50_ms"], one["p95_ms"])
            rest = (latency and f"< {latency}", one["p99_ms"], one["memory_peak_mib"], one["cpu_percent"])
            lines.append("| " + " | ".join(str(cell) for cell in figures + rest) + " |")
        return "\n".join(lines)

    def write_report(self, status: int, seconds: float) -> None:
        result = "passed" if status == 0 else f"failed, status {status}"
        parts = [f"# Integration tests, mode {self.mode_name}: {result} in {seconds:.0f} s", self.outcomes()]
        if self.figures.exists():
            parts += ["## Benchmarks", self.benchmark_table()]
        report = HERE / "report.md"
        report.write_text("\n\n".join(part for part in parts if part) + "\n")
        print(f"report: {report}")

    def outcomes(self) -> str:
        """A table of the modules, and the tests that failed."""
        junit = HERE / "junit.xml"
        if not junit.exists():
            return ""
        modules: dict[str, list[int]] = {}
        failed = []
        for case in ElementTree.parse(junit).iter("testcase"):
            module = case.get("classname", "").split(".Test")[0]
            counts = modules.setdefault(module, [0, 0])
            broken = case.find("failure") is not None or case.find("error") is not None
            counts[broken] += 1
            if broken:
                failed.append(f"- {case.get('classname')}::{case.get('name')}")
        rows = [f"| {name} | {good} | {bad} |" for name, (good, bad) in sorted(modules.items())]
        table = "\n".join(["| module | passed | failed |", "|---|---|---|", *rows])
        return "\n\n".join([table, *(["## Failed", "\n".join(failed)] if failed else [])])


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run the integration suite by mode.")
    parser.add_argument("--mode", choices=list(MODES), default="basic", help="which tests (default: basic)")
    parser.add_argument("--host", help="a server that is already there, empty (default: a new one for the tests)")
    parser.add_argument("--port", type=int, help="its port; when nobody answers there, one is started on it")
    parser.add_argument("--workers", metavar="N", help="parallel workers (default: auto; benchmarks: 1)")
    parser.add_argument("--verbose", action="store_true", help="show each test, and what it prints")
    parser.add_argument("--report", action="store_true", help="write JUnit XML, coverage and report.md here")
    parser.add_argument("--benchmark-only", action="store_true", help="the same as --mode benchmark")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(TestRunner(parse(sys.argv[1:])).run())
