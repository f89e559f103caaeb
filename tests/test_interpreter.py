"""Processes that the node and its tools start import what their parent imports, and nothing that merely lies about."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from fixtures.node import NodeFactory, clean_environment
from fixtures.support import wait_until

PARENT = """
import json, os, subprocess, sys
sys.path += {added!r}
from merklekv import interpreter
if {elsewhere!r}:
    os.chdir({elsewhere!r})
command = interpreter.command("probe", "one argument", "--two")
print(json.dumps(sys.path), flush=True)
print(json.dumps([list(sys.flags), sys.warnoptions, sys._xoptions]), flush=True)
sys.exit(subprocess.run(command, env=interpreter.environment()).returncode)
"""
PROBE = """
import json, sys
print(json.dumps(sys.path))
print(json.dumps([list(sys.flags), sys.warnoptions, sys._xoptions]))
print(json.dumps([__name__, sys.argv[1:], sys.argv[0].endswith("probe.py")]))
"""
# Of the standard library, of the packages that are needed, our own, and what Python imports by itself.
PLANTED = ("logging", "random", "struct", "runpy", "lmdb", "xxhash", "merklekv", "sitecustomize", "usercustomize")
SAFE_PATH = list(type(sys.flags).__match_args__).index("safe_path")


def plant(directory: Path) -> Path:
    """Puts modules in a directory that leave a trace when they are imported; the file of the traces."""
    directory.mkdir()
    for name in PLANTED:
        code = f"open({str(directory / 'traces')!r}, 'a').write('{name} ')\nraise SystemExit(3)\n"
        (directory / f"{name}.py").write_text(code)
    return directory / "traces"


def parent_and_child(command: list[str], **options: Any) -> tuple[list[Any], list[Any]]:
    """What the parent and its child say of themselves: path, and flags with options."""
    environment = clean_environment() | options.pop("environment", {})
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, **options)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines[4] == ["__main__", ["one argument", "--two"], True]
    for flags in (lines[1][0], lines[3][0]):
        flags[SAFE_PATH] = True
    return lines[:2], lines[2:4]


@pytest.fixture
def probes(tmp_path: Path) -> Path:
    """A directory with the module that the child runs."""
    (tmp_path / "probes").mkdir()
    (tmp_path / "probes" / "probe.py").write_text(PROBE)
    return tmp_path / "probes"


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["-P"],
        ["-I"],
        ["-E", "-s"],
        ["-B", "-O"],
        ["-X", "utf8", "-X", "faulthandler"],
        ["-X", "int_max_str_digits=5000"],
        ["-W", "error::UserWarning", "-b"],
    ],
)
def test_the_child_has_the_path_and_the_options_of_its_parent(tmp_path: Path, probes: Path, options: list[str]) -> None:
    traces = plant(tmp_path / "w")
    code = PARENT.format(added=[str(probes)], elsewhere=str(tmp_path / "w"))
    (tmp_path / "parent.py").write_text(code)
    parent, child = parent_and_child([sys.executable, *options, str(tmp_path / "parent.py")])
    assert child == parent
    assert not traces.exists()


def test_the_working_directory_is_on_the_path_where_the_parent_has_it(tmp_path: Path, probes: Path) -> None:
    code = PARENT.format(added=[], elsewhere="")
    (probes / "parent.py").write_text(code)
    parent, child = parent_and_child([sys.executable, "-m", "parent"], cwd=probes)
    assert child == parent
    assert child[0][0] == str(probes)
    parent, child = parent_and_child([sys.executable, "-c", code], cwd=probes)
    assert child == parent
    assert child[0][0] == ""


@pytest.mark.parametrize("relative", ["probes", "", "nowhere:probes"])
def test_a_relative_part_of_pythonpath_means_what_it_meant_at_the_start(
    tmp_path: Path, probes: Path, relative: str
) -> None:
    traces = plant(tmp_path / "w")
    (tmp_path / "w" / "probes").mkdir()
    (tmp_path / "w" / "probes" / "probe.py").write_text("raise SystemExit(4)")
    code = PARENT.format(added=[] if relative else [str(probes)], elsewhere=str(tmp_path / "w"))
    (tmp_path / "parent.py").write_text(code)
    command = [sys.executable, str(tmp_path / "parent.py")]
    parent, child = parent_and_child(command, cwd=tmp_path, environment={"PYTHONPATH": f"{relative}:"})
    assert child == parent
    assert not traces.exists()


def test_a_program_in_one_zip_file_starts_from_it(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "program.pyz", "w") as program:
        program.writestr("__main__.py", PARENT.format(added=[], elsewhere="/"))
        program.writestr("probe.py", PROBE)
    parent, child = parent_and_child([sys.executable, "program.pyz"], cwd=tmp_path)
    assert child == parent


def test_a_path_with_strange_entries(tmp_path: Path, probes: Path) -> None:
    strange = "it's \"\\ \n\udcff \u20ac"
    (tmp_path / "parent.py").write_text(PARENT.format(added=[strange, str(probes)], elsewhere=""))
    parent, child = parent_and_child([sys.executable, str(tmp_path / "parent.py")])
    assert child == parent
    assert strange in child[0]


def test_a_node_and_its_tool_run_nothing_of_the_working_directory(node_factory: NodeFactory, tmp_path: Path) -> None:
    traces = plant(tmp_path / "w")
    node = node_factory("--memtable-size", "64KiB", "--durability", "never", start=False)
    node.port = 0
    started = node.command()
    node.command = lambda: ["env", "-C", str(tmp_path / "w"), started[0], "-P", *started[1:]]  # type: ignore[method-assign]
    node.start()
    with node.connect() as client:
        for number in range(200):
            assert client.ask(f"SET k{number} {'v' * 10_000}") == "OK"
        checkpoint_lsn = "checkpoint_lsn:"

        def merged() -> bool:
            lines = client.ask_lines("STATS all")
            return any(int(line[len(checkpoint_lsn) :]) for line in lines if line.startswith(checkpoint_lsn))

        wait_until(merged, what="a merge")
    backup = [sys.executable, "-P", "-m", "merklekv_tool", "backup", str(node.directory), str(tmp_path / "backup")]
    done = subprocess.run(backup, capture_output=True, text=True, timeout=60, cwd=tmp_path / "w")
    assert done.returncode == 0, done.stderr
    assert node.stop() == 0
    assert "process died" not in node.output()
    assert not traces.exists(), traces.read_text()


def test_no_other_code_starts_python() -> None:
    root = Path(__file__).parent.parent
    users = [
        file.name
        for folder in ("merklekv", "tools")
        for file in (root / folder).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "executable"
    ]
    assert users == ["interpreter.py"]
    assert os.access(sys.executable, os.X_OK)
