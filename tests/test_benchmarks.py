"""The benchmarks run: each once and on next to nothing, so that none rots. What they measure then means nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"
KEYS = 2000
COMPILERS = ("cc", "gcc", "clang")


def run(*command: str | Path, path: str | None = None) -> str:
    environment = os.environ | {"PATH": path} if path else None
    command = (sys.executable, *command)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_benchmarks_of_the_parts_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--keys", str(KEYS), "--data-directory", str(tmp_path), "--benchmark-disable", "-p", "no:cacheprovider"]
    output = run("-m", "pytest", BENCHMARKS, "-v", *options)
    monkeypatch.setenv("MERKLEKV_PURE", "1")
    assert "test_share_of_upkeep" in run("-m", "pytest", BENCHMARKS / "test_merkle.py", "-v", *options)
    assert [module.name for module in BENCHMARKS.glob("test_*.py") if module.name not in output] == []


def test_the_delivery_of_changes_is_measured(tmp_path: Path) -> None:
    words = ("--writes", "20", "--idle", "3", "--readers", "0", "--readers", "3")
    figures = json.loads(run(BENCHMARKS / "changes.py", *words, "--directory", tmp_path))
    costs = figures.pop("CPU us of a commit")
    assert set(costs) == {"0 idle readers", "3 idle readers"}
    assert all(cost > 0 for cost in costs.values())
    assert set(figures) == {"always", "everysec", "never"}
    assert all(figure["delivery: p99 ms"] > 0 for figure in figures.values())


def test_the_churn_runs(tmp_path: Path) -> None:
    words = ("--keys", str(KEYS), "--nodes", "1", "--nodes", "2", "--calm", "1")
    output = run(BENCHMARKS / "churn.py", *words, "--directory", tmp_path, "--results", tmp_path)
    assert [run["last"]["keys"] for run in json.loads((tmp_path / "churn.json").read_text())] == [KEYS, KEYS]
    assert output.count("tombstones: ") == 2
    assert (tmp_path / "churn.png").read_bytes().startswith(b"\x89PNG")


def test_the_comparison_runs_and_writes_its_results(tmp_path: Path) -> None:
    compared = ("get-50-p16", "mset-50", "incr-50", "del-50", "multi-50", "eval-50")
    names = (*compared, "million", "idle", "space", "publish", "checkpoint-everysec")
    rows = [word for name in names for word in ("--only", name)]
    output = run(BENCHMARKS / "compare.py", "--size", "tiny", *rows, "--directory", tmp_path, "--results", tmp_path)
    figures = json.loads((tmp_path / "figures.json").read_text())["figures"]
    assert {figure["name"] for figure in figures} == {
        *compared,
        *("get-50-p16-cpu", "mset-50-cpu", "incr-50-cpu", "del-50-cpu"),
        *("start", "hash", "scan", "memory-idle", "space", "publish"),
        *("checkpoint-p99-everysec", "checkpoint-worst-everysec"),
    }
    assert all(figure["value"] > 0 for figure in figures)
    servers = {figure["name"]: figure["servers"] for figure in figures if figure["servers"]}
    assert tuple(servers) == compared
    for medians in servers.values():
        assert {"Redis", "pure"} <= set(medians) <= {"Redis", "pure", "compiled", "null"}
        assert ("null" in medians) == any(map(shutil.which, COMPILERS))
        assert all(figure > 0 for one in medians.values() for figure in one.values())
        assert medians["Redis"]["cpu_ratio"] == medians["Redis"]["per_s_ratio"] == 1
    assert "redis-benchmark -p PORT -c 50" in output
    for plot in ("figures.png", "servers.png"):
        assert (tmp_path / plot).read_bytes().startswith(b"\x89PNG")


def test_what_is_not_there_is_left_out_and_named(tmp_path: Path) -> None:
    """No C compiler, no NATS, no etcd: that is one line in the report for each."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("redis-server", "redis-benchmark"):
        (programs / name).symlink_to(shutil.which(name) or "")
    results = tmp_path / "results"
    words = ("--size", "tiny", "--directory", tmp_path, "--results", results)
    run(BENCHMARKS / "compare.py", "--only", "get-50", *words, path=str(programs))
    run(BENCHMARKS / "rivals.py", *words, path=str(programs))
    servers = json.loads((results / "figures.json").read_text())["figures"][0]["servers"]
    assert "null" not in servers
    found = json.loads((results / "rivals.json").read_text())
    assert [row["row"] for row in found["rows"]] == [
        f"{work}-{durability}" for durability in ("always", "everysec") for work in ("put", "get", "put-p16")
    ]
    assert all(figures["per_s"] > 0 < figures["cpu_us"] for row in found["rows"] for figures in row["servers"].values())
    write = f"import joined, pathlib; joined.write(pathlib.Path({str(results)!r}), pathlib.Path('/'), 0, [])"
    run("-c", f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); {write}")
    page = (results / "report.md").read_text()
    assert "There is no C compiler: no column for the null server." in page
    assert [line for line in page.splitlines() if line in found["missing"]] == found["missing"]


@pytest.mark.slow
def test_a_long_load_is_measured_by_windows(tmp_path: Path) -> None:
    keys = ["--keys", "100000", "--directory", tmp_path, "--json", tmp_path / "load.json"]
    run(BENCHMARKS / "load.py", *map(str, keys))
    summary = json.loads((tmp_path / "load.json").read_text())
    assert summary["keys"] == 100_000
    assert len(summary["windows"]) == 1


def test_the_rows_are_listed(tmp_path: Path) -> None:
    rows = run(BENCHMARKS / "compare.py", "--list").split()
    page = (BENCHMARKS / "README.md").read_text()
    assert [row for row in rows if f"`{row}`" not in page] == []


@pytest.mark.replication
def test_replication_and_exchanges_are_measured_and_reported(tmp_path: Path) -> None:
    results = tmp_path / "results"
    parts = ["--part", "replication", "--part", "exchange"]
    run(BENCHMARKS / "everything.py", *parts, "--size", "tiny", "--directory", tmp_path, "--results", results)

    measured = json.loads((results / "replication.json").read_text())
    assert measured["sustained"]["events_per_s"] > 0
    assert measured["backlog"]["waiting"] == measured["backlog"]["events"] == 400
    assert measured["latency"]["p50_ms"] > 0

    measured = json.loads((results / "exchange.json").read_text())
    figures = {figure["name"]: figure["value"] for figure in measured["figures"]}
    assert figures["equal-rounds"] == 1
    assert 0 < figures["equal-bytes"] <= figures["restarts-bytes"]
    assert figures["equal-bytes"] < figures["one-bytes"] < figures["thousand-bytes"]
    assert [point["differing"] for point in measured["curves"]["differing"]] == [1, 10, 100, 1000]
    page = (BENCHMARKS / "README.md").read_text()
    assert [name for name in figures if f"`{name}`" not in page] == []

    page = (results / "report.md").read_text()
    assert "## Replication" in page
    assert "`bootstrap`" in page
    assert "Redis, and" not in page  # was not measured
    plots = [line.removeprefix("![](").removesuffix(")") for line in page.splitlines() if line.startswith("![")]
    assert plots == ["replication.png", "exchange.png"]
    assert all((results / plot).read_bytes().startswith(b"\x89PNG") for plot in plots)


def test_a_part_that_does_not_work_is_named(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "everything.py"), "--part", "exchange", "--size", "tiny"]
    command += ["--directory", str(tmp_path / "missing"), "--results", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1
    assert done.stderr.endswith("did not work, see above: exchange\n")
    assert "**Did not work: exchange.**" in (tmp_path / "report.md").read_text()
