"""The compiled core is optional: what is installed works with a compiler and without one.

Everything is built from the sdist, as by `pip install merklekv`, and without the network.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tomllib
import zipfile
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import pytest
import yaml
from fixtures.packages import BUILD_S, ROOT, Packages, builder_environment

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
HOOK = ROOT / "hatch_build.py"
BUILD_CORE = ROOT / "scripts" / "build_core.py"
NO_COMPILER = {"CC": "/nonexistent", "PATH": "/nonexistent"}
WHEEL = [sys.executable, "-m", "pip", "wheel", "--verbose", "--no-build-isolation", "--no-deps", "--no-index"]
USE = """
import merklekv
from merklekv import core
with merklekv.open("data") as db:
    db.set(b"key", b"value")
    print(merklekv.__file__, core.IMPLEMENTATION, db.get(b"key"))
"""


def run(command: list[str], directory: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = builder_environment() | variables
    return subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, timeout=BUILD_S, check=False
    )


def build(sources: Path, target: Path, **variables: str) -> tuple[Path, str]:
    """The wheel that pip makes, and what is said meanwhile."""
    done = run([*WHEEL, "--wheel-dir", str(target), str(sources)], target, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = target.glob("*.whl")
    return wheel, done.stdout + done.stderr


def unpacked(wheel: Path, target: Path) -> dict[str, str]:
    """Installs a wheel into a directory of its own; the environment in which it is found first."""
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(target)
    return {"PYTHONPATH": str(target)}


def cores(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as opened:
        return [name for name in opened.namelist() if name.startswith("merklekv/_core")]


@pytest.fixture(scope="module")
def sources(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, unpacked."""
    return packages.unpacked(tmp_path_factory.mktemp("sdist"))


def test_the_sdist_has_what_a_build_of_the_core_takes(sources: Path) -> None:
    names = {str(path.relative_to(sources)) for path in sources.rglob("*")}
    assert {"hatch_build.py", "merklekv/_core.pyx", "vendor/xxhash/xxhash.h", "vendor/xxhash/LICENSE"} <= names
    assert not [name for name in names if name.endswith((".so", "_core.c"))]


@pytest.mark.slow
def test_with_a_compiler_a_wheel_has_the_core(packages: Packages, tmp_path: Path) -> None:
    wheel = packages.wheel
    assert not wheel.name.endswith("-none-any.whl")
    assert cores(wheel) == [f"merklekv/_core{EXTENSION_SUFFIXES[0]}"]
    with zipfile.ZipFile(wheel) as opened:
        names = opened.namelist()
    assert [name for name in names if name.endswith("/licenses/vendor/xxhash/LICENSE")]
    assert not [name for name in names if name.endswith((".pyx", ".c", ".h", "hatch_build.py"))]
    place = unpacked(wheel, tmp_path / "site")
    assert run([sys.executable, "-c", USE], tmp_path, **place).stdout.split()[1:] == ["compiled", "b'value'"]
    pure = run([sys.executable, "-m", "merklekv", "version"], tmp_path, MERKLEKV_PURE="1", **place)
    assert pure.stdout.endswith("(pure Python, MERKLEKV_PURE is set)\n")
    done = run([sys.executable, str(BUILD_CORE), "stamp"], tmp_path, **NO_COMPILER, **place)
    assert (done.stdout, (tmp_path / "stamp").exists()) == ("", True), done.stderr


@pytest.mark.slow
def test_without_a_compiler_a_wheel_is_pure_and_works(sources: Path, tmp_path: Path) -> None:
    wheel, said = build(sources, tmp_path, **NO_COMPILER)
    assert wheel.name.endswith("-py3-none-any.whl")
    assert cores(wheel) == []
    assert said.count("merklekv: the compiled core cannot be built, so this is pure Python, which is slower: ") == 1
    place = unpacked(wheel, tmp_path / "site")
    file, *rest = run([sys.executable, "-c", USE], tmp_path, **place).stdout.split()
    assert (file, rest) == (str(tmp_path / "site/merklekv/__init__.py"), ["pure", "b'value'"])
    version = run([sys.executable, "-m", "merklekv", "version"], tmp_path, **place).stdout
    assert version.endswith("(pure Python, the core is not built)\n")
    done = run([sys.executable, str(BUILD_CORE), "stamp"], tmp_path, **NO_COMPILER, **place)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("apt-get install gcc python3-dev\n")
    assert done.stdout.count("\n") == 1
    assert not (tmp_path / "stamp").exists(), "the next make looks again"


def test_a_build_leaves_the_core_out_when_asked_to(sources: Path, tmp_path: Path) -> None:
    wheel, said = build(sources, tmp_path, MERKLEKV_PURE="1")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "MERKLEKV_PURE is set" in said


def test_a_build_that_requires_the_core_fails_without_it(sources: Path, tmp_path: Path) -> None:
    command = [*WHEEL, "--wheel-dir", str(tmp_path), str(sources)]
    done = run(command, tmp_path, MERKLEKV_REQUIRE_CORE="1", **NO_COMPILER)
    assert done.returncode != 0
    assert "/nonexistent" in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_editable_installation_keeps_no_core_of_other_sources(tmp_path: Path) -> None:
    """The new file is another one: what a process has loaded from the former one stays."""
    spec = importlib.util.spec_from_file_location("hatch_build", HOOK)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    hook = module.BuildHook(str(tmp_path), {}, None, None, "", "wheel")
    place = tmp_path / "merklekv"
    place.mkdir()
    installed = place / f"_core{EXTENSION_SUFFIXES[0]}"
    built = tmp_path / installed.name
    built.write_text("new")
    installed.write_text("old")
    with installed.open() as loaded:
        hook.place(built)
        assert (loaded.read(), installed.read_text()) == ("old", "new")
    hook.place(None)
    assert list(place.iterdir()) == []


def test_wheels_are_built_for_every_python_that_is_supported() -> None:
    prefix = "Programming Language :: Python :: 3."
    minors = [name.removeprefix(prefix) for name in PROJECT["project"]["classifiers"] if name.startswith(prefix)]
    assert PROJECT["tool"]["cibuildwheel"]["build"].split() == [f"cp3{minor}-*" for minor in minors]
    assert PROJECT["tool"]["cibuildwheel"]["environment"] == {"MERKLEKV_REQUIRE_CORE": "1"}
    workflow = yaml.safe_load((ROOT / ".github/workflows/wheels.yml").read_text())
    said = [step.get("run", "") for step in workflow["jobs"]["wheels"]["steps"]]
    assert any("cibuildwheel --output-dir dist" in words for words in said)


def test_only_a_tag_publishes_and_only_what_was_built() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/wheels.yml").read_text())
    jobs = workflow["jobs"]
    assert workflow[True]["push"] == {"tags": ["v*"]}  # to YAML the word `on` is a truth
    conditional = {name for name, job in jobs.items() if job.get("if") == "github.event_name == 'push'"}
    assert conditional == {"publish", "image"}
    assert jobs["publish"]["needs"] == ["wheels", "sdist"]
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert jobs["image"]["needs"] == "publish"
    may_write = [name for name, job in jobs.items() if "write" in job.get("permissions", {}).values()]
    assert may_write == ["publish", "image"]
