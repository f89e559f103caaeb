"""The film of the demo can be made anew."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from PIL import Image

from merklekv import interpreter

SCRIPT = Path(__file__).parents[2] / "scripts" / "record_demo.py"
FILM_S = 240
BYTES_MAX = 3_000_000  # GitHub shows larger ones late


def test_a_short_film(tmp_path: Path) -> None:
    path = tmp_path / "film.gif"
    command = [sys.executable, str(SCRIPT), str(path), "--pace", "0.01"]
    said = subprocess.run(command, env=interpreter.environment(), capture_output=True, text=True, timeout=FILM_S)
    assert said.returncode == 0, said.stderr
    with Image.open(path) as film:
        assert film.size == (900, 740)
        assert getattr(film, "n_frames", 1) > 2


def test_the_film_in_the_readme_is_light_enough() -> None:
    path = SCRIPT.parents[1] / "docs" / "pictures" / "demo.gif"
    assert path.stat().st_size < BYTES_MAX
    with Image.open(path) as film:
        film.seek(0)
        assert film.info["loop"] == 0
