"""A short soak with all faults: nothing acknowledged is lost, and the nodes are equal in the end. No curve counts."""

from __future__ import annotations

import csv
import os
import secrets
import subprocess
from pathlib import Path

from fixtures.support import wait_until

from merklekv import interpreter

from .curves import COLUMNS
from .faults import BROKER, STRANGERS
from .node_faults import LIVES_ON

SECONDS = 20
SEED_VARIABLE = "SOAK_SEED"  # runs the seed of a failure again


def command(place: Path, seconds: float, *words: str) -> list[str]:
    return [*interpreter.command("soak"), "--place", str(place), "--minutes", str(seconds / 60), *words]


def test_a_short_soak_with_all_faults(tmp_path: Path) -> None:
    seed = os.environ.get(SEED_VARIABLE) or secrets.token_hex(4)
    place = tmp_path / "soak"
    done = subprocess.run(
        command(place, SECONDS, "--seed", seed),
        capture_output=True,
        text=True,
        timeout=280,
        env=interpreter.environment(),
        check=False,
    )
    assert done.returncode == 0, f"seed {seed}:\n{done.stdout}{done.stderr}"
    assert "No problem." in done.stdout
    assert "All nodes were equal" in done.stdout
    page = (place / "report.md").read_text()
    assert page.startswith("# Soak: passed\n")
    for where, what in (
        *(("node-2", name) for name in ("killed", "killed in its start", "restarted", "wrong clock", "compact")),
        *((LIVES_ON, name) for name in ("frozen", "full disk", "few descriptors", "backup", "verify", "HUP")),
        *((BROKER, name) for name in ("stopped", "killed", "frozen")),
        *((STRANGERS, name) for name in ("garbage", "slow readers", "strange messages")),
    ):
        assert f"| {where} | {what} | " in page, f"seed {seed}: {page}"
    assert (place / "soak.png").read_bytes().startswith(b"\x89PNG")
    with (place / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["part"] for row in rows} == {"node-1", "node-2", "node-3", BROKER}
    for column in COLUMNS:
        assert any(row[column.name] for row in rows), column
    assert not (place / "data").exists()


def test_it_ends_early_with_its_report_and_leaves_nothing(tmp_path: Path) -> None:
    place = tmp_path / "soak"
    with subprocess.Popen(
        command(place, 3600), stdout=subprocess.PIPE, text=True, env=interpreter.environment()
    ) as soak:
        curves = place / "curves.csv"
        wait_until(lambda: curves.exists() and "node-3" in curves.read_text(), what="the first curves")
        soak.terminate()
        output, _ = soak.communicate(timeout=240)
    assert soak.returncode == 0, output
    assert "No problem." in output
    assert (place / "report.md").exists()
    assert not (place / "data").exists()
