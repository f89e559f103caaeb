"""Pauses of threads, also where the clock is faked."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from merklekv.pause import pause

SCRIPT = "from merklekv.pause import pause; pause(0); pause(0.001); print('paused')"


@pytest.mark.parametrize("seconds", [0, 0.001, 0.05])
def test_it_takes_its_time(seconds: float) -> None:
    began = time.monotonic()
    pause(seconds)
    assert time.monotonic() - began >= seconds


def test_it_works_where_the_clock_is_faked() -> None:
    libraries = list(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    assert libraries, "apt-get install faketime"
    fake = {"LD_PRELOAD": str(libraries[0]), "FAKETIME": "+9y", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=os.environ | fake, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.returncode) == ("paused\n", 0), done.stderr
