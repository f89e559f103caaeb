"""Scripts for developers.

`scripts/need` installs what the machine lacks: it is quiet when nothing is missing, and clear when it cannot help.
`scripts/structure.py` finds each kind of place that it reports.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parent.parent / "scripts"
NEED = SCRIPTS / "need"


def need(*wanted: str, path: str = os.environ["PATH"]) -> subprocess.CompletedProcess[str]:
    command = ["/bin/sh", str(NEED), *wanted]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={"PATH": path}, check=False)


def test_nothing_is_said_or_done_when_nothing_is_missing() -> None:
    of_this_python = f"{sys.executable}:json=python3", f"{sys.executable}:Python.h=python3-dev"
    done = need("sh=dash", "python3:json=python3", *of_this_python, f"{NEED}=package")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_machine_without_apt_is_told_what_to_install(tmp_path: Path) -> None:
    # The script adds the sbin folders to its path, where no apt-get is.
    wanted = ["sh-of-no-kind=package-b", f"{sys.executable}:none.h=package-c", f"{tmp_path}/none=package-d"]
    done = need("no-such-program=package-a", *wanted, path=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.endswith("install these yourself and run again: package-a package-b package-c package-d\n")


def test_the_structure_report_finds_each_kind_of_place(tmp_path: Path) -> None:
    sources = {
        "merklekv/one.py": "from merklekv.engine.record import VALUE_AT\nfrom merklekv import two\n",
        "merklekv/two.py": "import os\nfrom merklekv.one import thing\nthing._held = thing.own._log\nos._exit(1)\n",
        "tools/three.py": "def count(entry):\n    entry.calls += 1\n    def later():\n        import three\n",
    }
    for name, source in sources.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source)
    command = [sys.executable, str(SCRIPTS / "structure.py"), str(tmp_path)]
    report = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    found = dict(line.rsplit(": ", 1) for line in report.splitlines() if not line.startswith(" "))
    assert found == {
        "modules that import record offsets, merklekv, tools": "1",
        "private accesses across modules, merklekv, tools": "2",
        "modules that import record offsets, tests, benchmarks, scripts": "0",
        "private accesses across modules, tests, benchmarks, scripts": "0",
        "import cycles": "1",
        "import cycles, with imports in functions and for type checking": "2",
        "places that keep request accounting": "1",
        "lines": "10",
    }
    assert "    merklekv/two.py 2\n" in report


def test_no_modules_import_each_other() -> None:
    command = [sys.executable, str(SCRIPTS / "structure.py")]
    report = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "import cycles: 0" in report.splitlines()
