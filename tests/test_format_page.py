"""The page about the format on disk shows what the engine writes, and has the sizes that it writes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from merklekv.engine import format as form

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "format.md").read_text()


def test_the_worked_example_is_what_the_engine_makes() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "write_format_example.py", "--check"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_the_page_has_the_sizes_and_names_of_the_code() -> None:
    assert f"**Segment header**, {form.SEGMENT_HEADER.size} bytes" in PAGE
    assert f"A frame's header has {form.FRAME_HEADER.size} bytes" in PAGE
    assert f"1 to {form.MAX_KEY_SIZE} bytes" in PAGE
    assert f"{form.FORMAT_LINE}{form.FORMAT_VERSION}" in PAGE
    assert {form.SEGMENT_MAGIC.decode(), form.FRAME_MAGIC.decode()} <= set(re.findall(r"`(MKV\w+)`", PAGE))


def test_the_page_has_every_op_with_its_number() -> None:
    row = next(line for line in PAGE.splitlines() if line.startswith("| op | 1 |"))
    named = {name: int(number) for number, name in re.findall(r"(\d+) `(\w+)`", row)}
    ops = {op.name: number for number, op in form.OPS.items()}
    assert named == ops | {"origin": 8, "metadata": 9, "purge": 10, "repair": 11}
