"""The rules of the code as tests: who may import whom, what is never called.

Read from the source with `ast`, so that nothing is imported and a rule costs milliseconds.
"""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# What a part may import of the package, beside itself. The bottom is what everybody may.
HELPERS = ("log_throttle", "interpreter", "interrupt", "address", "node_id", "output", "private", "shortage")
BOTTOM = {"merklekv", "merklekv.errors", *(f"merklekv.{name}" for name in HELPERS)}
LAYERS = {
    "merklekv/errors.py": set(),
    **{f"merklekv/{name}.py": set() for name in HELPERS},
    "merklekv/setting_types.py": set(),
    "merklekv/settings.py": {"merklekv.setting_types"},
    "merklekv/config.py": {"merklekv.settings"},
    "merklekv/exit_codes.py": set(),
    "merklekv/logging_setup.py": set(),
    "merklekv/engine/": {"merklekv.engine"},
    "merklekv/net/": {"merklekv.engine", "merklekv.net"},
    "merklekv/replication/": {"merklekv.engine", "merklekv.replication"},
    "merklekv/demo/": {"merklekv.net", "merklekv.exit_codes", "merklekv.demo"},
    "tools/merklekv_tool/": {
        "merklekv.engine",
        "merklekv.net",
        "merklekv.replication.sync.transport",
        "merklekv.replication.sync.local_endpoint",
        "merklekv.replication.cluster.member_rows",
        "merklekv.exit_codes",
        "merklekv_tool",
    },
}
# The command line imports the node when it needs it; nobody imports these two.
TOP = {"merklekv.cli", "merklekv.node"}


def tracked() -> list[Path]:
    """The Python files of the repository, those not yet committed as well."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    return [ROOT / name for name in sorted(set(listed)) if (ROOT / name).exists()]


FILES = tracked()
SOURCES = [file for file in FILES if file.relative_to(ROOT).parts[0] in ("merklekv", "tools")]
TESTS = [file for file in FILES if file.relative_to(ROOT).parts[0] == "tests"]


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module that a file imports, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def calls(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every call by its dotted name, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node.lineno


def within(module: str, allowed: set[str]) -> bool:
    return any(module == one or module.startswith(f"{one}.") for one in allowed)


@pytest.mark.parametrize("file", SOURCES, ids=name_of)
def test_imports_point_down(file: Path) -> None:
    name = name_of(file)
    layer = next((layer for layer in LAYERS if name == layer or name.startswith(layer)), None)
    for module in imported(ast.parse(file.read_text())):
        if not module.startswith(("merklekv", "merklekv_tool")) or module in BOTTOM:
            continue
        if layer is not None:
            own = within(module, {*BOTTOM - {"merklekv"}, "merklekv.__version__"})
            assert own or within(module, LAYERS[layer]), f"{name} imports {module}"
        assert not within(module, TOP) or name in ("merklekv/cli.py", "merklekv/__main__.py"), f"{name}: {module}"


def test_test_modules_have_names_of_their_own() -> None:
    """Or pytest takes one for the other, and runs only the first."""
    names = [file.name for file in TESTS if file.name.startswith("test_")]
    assert sorted(set(names)) == sorted(names)


def test_every_layer_that_is_named_exists() -> None:
    for layer in LAYERS:
        assert (ROOT / layer).exists(), layer


@pytest.mark.parametrize("file", SOURCES, ids=name_of)
def test_a_module_opens_with_prose(file: Path) -> None:
    assert ast.get_docstring(ast.parse(file.read_text()))


@pytest.mark.parametrize("file", TESTS, ids=name_of)
def test_tests_do_not_sleep(file: Path) -> None:
    if file.name == "support.py":  # `wait_until`, the one that may
        return
    assert [line for name, line in calls(ast.parse(file.read_text())) if name in ("time.sleep", "sleep")] == []


@pytest.mark.parametrize("file", SOURCES, ids=name_of)
def test_only_command_lines_print(file: Path) -> None:
    if name_of(file) == "merklekv/cli.py" or name_of(file).startswith("tools/"):
        return
    assert [line for name, line in calls(ast.parse(file.read_text())) if name == "print"] == []


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_nothing_is_left_for_later(file: Path) -> None:
    words = ["TO" + "DO", "FIX" + "ME", "X" * 3]  # in pieces, or this line would be found
    assert [word for word in words if word in file.read_text()] == []


@pytest.mark.parametrize("file", SOURCES, ids=name_of)
def test_nothing_is_swallowed_unnamed(file: Path) -> None:
    """An `except` that catches everything has to do something with it, and one that passes has to name what it
    passes.
    """
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"line {node.lineno}"
            broad = ast.unparse(node.type) in ("Exception", "BaseException")
            assert not (broad and isinstance(node.body[0], ast.Pass)), f"line {node.lineno}"
