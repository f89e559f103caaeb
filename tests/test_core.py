"""Which implementation runs: the compiled core, or pure Python and why. tests/test_build.py builds real ones."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from fixtures.node import clean_environment

from merklekv import core

SOURCE = Path(core.__file__).with_name("_core.pyx")
CHOOSE = """
import sys
from types import SimpleNamespace
{given}
from merklekv import core
print(core.IMPLEMENTATION, core.WHY_PURE, sep=": ")
"""
PRESENT = f"sys.modules[{core.MODULE!r}] = SimpleNamespace(INTERFACE={core.INTERFACE})"
STALE = f"sys.modules[{core.MODULE!r}] = SimpleNamespace(INTERFACE={core.INTERFACE - 1})"
OF_NO_INTERFACE = f"sys.modules[{core.MODULE!r}] = SimpleNamespace()"
ABSENT = f"sys.modules[{core.MODULE!r}] = None"
UNLOADABLE = f"""
class Broken:
    def find_spec(self, name, *_):
        if name == {core.MODULE!r}:
            raise ImportError("undefined symbol: x", name=name)
sys.meta_path.insert(0, Broken())
"""


@pytest.mark.parametrize(
    ("given", "variable", "expected"),
    [
        (PRESENT, None, "compiled: "),
        (PRESENT, "", "compiled: "),
        (PRESENT, "0", "compiled: "),
        (PRESENT, "1", "pure: MERKLEKV_PURE is set"),
        (PRESENT, "no", "pure: MERKLEKV_PURE is set"),
        (STALE, None, "pure: the core was built from other sources"),
        (OF_NO_INTERFACE, None, "pure: the core was built from other sources"),
        (ABSENT, None, "pure: the core is not built"),
        (UNLOADABLE, None, "pure: the core cannot be loaded: undefined symbol: x"),
    ],
)
def test_the_core_runs_if_it_is_there_and_wanted(given: str, variable: str | None, expected: str) -> None:
    environment = clean_environment()
    environment.pop(core.PURE_VARIABLE, None)
    if variable is not None:
        environment[core.PURE_VARIABLE] = variable
    command = [sys.executable, "-c", CHOOSE.format(given=given)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == f"{expected}\n"


def test_these_tests_run_with_the_core_unless_it_is_unwanted() -> None:
    """Else the gate would test pure Python only. `make test` builds the core."""
    assert core.WHY_PURE in ("", "MERKLEKV_PURE is set")


def test_the_source_of_the_core_has_the_same_interface() -> None:
    assert re.findall(r"^INTERFACE = (\d+)$", SOURCE.read_text(), re.MULTILINE) == [str(core.INTERFACE)]


def double(number: int) -> int:
    return 2 * number


@pytest.fixture
def references(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    own: dict[str, object] = {}
    monkeypatch.setattr(core, "REFERENCES", own)
    return own


def test_a_definition_is_replaced_by_its_twin(monkeypatch: pytest.MonkeyPatch, references: dict[str, object]) -> None:
    def twin(number: int) -> int:
        return number + number

    monkeypatch.setattr(core, "_core", SimpleNamespace(double=twin))
    assert core.compiled(double) is twin
    assert references == {"double": double}


def test_without_the_core_a_definition_stays(monkeypatch: pytest.MonkeyPatch, references: dict[str, object]) -> None:
    monkeypatch.setattr(core, "_core", None)
    assert core.compiled(double) is double
    assert references == {"double": double}


def test_a_core_without_the_twin_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "REFERENCES", {})
    monkeypatch.setattr(core, "_core", SimpleNamespace())
    with pytest.raises(AttributeError, match="double"):
        core.compiled(double)
