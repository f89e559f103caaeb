"""What a release publishes, as people install it: the wheel in an empty environment, and what is in the sdist."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from fixtures.node import NodeFactory, clean_environment
from fixtures.packages import ROOT, Installed, Packages

from merklekv import __version__
from merklekv.net.client import Client

INSTALL_S = 250
CODE = ("merklekv", "tools/merklekv_tool")
NO_DATA = {".py", ".pyx", ".pyc", ".so"}
FOLDERS = {
    ".github", "benchmarks", "deploy", "docs", "merklekv", "scripts", "tests", "tools", "vendor",
}  # fmt: skip
FILES = {
    ".dockerignore", ".gitignore", "CHANGELOG.md", "CONTRIBUTING.md", "Containerfile", "LICENSE", "Makefile",
    "PKG-INFO", "README.md", "compose.yaml", "hatch_build.py", "pyproject.toml",
}  # fmt: skip
# Imports every module of both programs, and prints where those are from that are not of Python itself.
IMPORT_ALL = """
import importlib, pkgutil, sys
for name in ("merklekv", "merklekv_tool"):
    for module in pkgutil.walk_packages(importlib.import_module(name).__path__, name + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
for module in list(sys.modules.values()):
    file = getattr(module, "__file__", None)
    if file and not file.startswith((sys.base_prefix + "/", sys.prefix + "/")):
        print(file)
"""


def run(*command: str | Path, directory: Path) -> str:
    environment = {name: value for name, value in clean_environment().items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, timeout=INSTALL_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_index_would_take_both(packages: Packages) -> None:
    command = [sys.executable, "-m", "twine", "check", "--strict", str(packages.sdist), str(packages.wheel)]
    subprocess.run(command, check=True, timeout=INSTALL_S)
    assert packages.sdist.name == f"merklekv-{__version__}.tar.gz"
    assert packages.wheel.name.startswith(f"merklekv-{__version__}-cp3")


def test_the_wheel_has_the_code_and_its_data_and_nothing_else(packages: Packages) -> None:
    with zipfile.ZipFile(packages.wheel) as opened:
        names = {name for name in opened.namelist() if ".dist-info/" not in name}
    sources = [path for part in CODE for path in (ROOT / part).rglob("*") if path.is_file()]
    data = {path for path in sources if path.suffix not in NO_DATA}
    expected = data | {path for path in sources if path.suffix == ".py"}
    found = {ROOT / "tools" / name if name.startswith("merklekv_tool/") else ROOT / name for name in names}
    extra = {path.name for path in found - expected}
    assert expected - found == set()
    assert {name for name in extra if not name.startswith("_core.")} <= {"COMMIT"}
    assert ROOT / "merklekv/py.typed" in found


def test_the_sdist_has_what_tests_and_builds_need_and_nothing_else(packages: Packages) -> None:
    with tarfile.open(packages.sdist) as opened:
        paths = [Path(*Path(member.name).parts[1:]) for member in opened.getmembers() if member.isfile()]
    assert {path.parts[0] for path in paths if len(path.parts) > 1} == FOLDERS
    assert {str(path) for path in paths if len(path.parts) == 1} == FILES
    assert not [path for path in paths if path.suffix in (".so", ".pyc", ".o")]
    assert not [path for path in paths if "results" in path.parts or "node_modules" in path.parts]


def test_the_installed_node_serves_and_its_tool_checks(
    installed: Installed, node_factory: NodeFactory, tmp_path: Path
) -> None:
    node = node_factory(start=False)
    node.program = [str(installed.programs / "merklekv")]
    node.start()
    with Client("127.0.0.1", node.port) as client:
        assert client.call(b"SET", b"key", b"value") == b"OK"
        assert client.call(b"GET", b"key") == b"value"
    assert node.stop() == 0
    verified = run(installed.programs / "merklekv-tool", "verify", node.directory, directory=tmp_path)
    assert verified.endswith(": no problems found\n")


def test_the_time_to_the_first_answer_is_measured(installed: Installed) -> None:
    """It says nothing here, where much else runs."""
    figures = r"pip install: [\d.]+ s; first answer after [\d.]+ s \(at most 20 s: (reached|missed)\)\n"
    assert re.fullmatch(figures, installed.output)


def test_the_installation_is_complete_and_from_nowhere_else(installed: Installed, tmp_path: Path) -> None:
    version = run(installed.programs / "merklekv", "version", directory=tmp_path)
    assert version == f"merklekv {__version__} (compiled core)\n"
    assert run(installed.programs / "pip", "check", directory=tmp_path) == "No broken requirements found.\n"
    assert run(installed.programs / "python", "-c", IMPORT_ALL, directory=tmp_path) == ""


def test_the_packages_name_their_commit(packages: Packages, installed: Installed, tmp_path: Path) -> None:
    """That of the checkout, also in the wheel, which is built from the sdist."""
    file = packages.unpacked(tmp_path) / "merklekv/COMMIT"
    with zipfile.ZipFile(packages.wheel) as opened:
        in_wheel = opened.read("merklekv/COMMIT") if "merklekv/COMMIT" in opened.namelist() else b""
    if shutil.which("git") and (ROOT / ".git").exists():
        assert re.fullmatch(rb"[0-9a-f]{40}(-dirty)?\n", in_wheel)
    assert (file.read_bytes() if file.exists() else b"") == in_wheel


def test_the_changes_begin_with_this_version() -> None:
    heading = re.search(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heading is not None
    assert re.fullmatch(rf"{re.escape(__version__)} - (unreleased|\d{{4}}-\d\d-\d\d)", heading[1])
