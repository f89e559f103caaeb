"""Builds the compiled core, `merklekv/_core.pyx`, when a wheel is made or the project is installed; names the commit.

The core is optional: where it cannot be built, without a compiler or the headers of Python, a line says so, and what is
installed is pure Python. MERKLEKV_PURE=1 leaves the core out; with MERKLEKV_REQUIRE_CORE=1 a failure is an error.

What is built in a git checkout has a file `merklekv/COMMIT` with the commit's name. A wheel that is built from an sdist
has that of the sdist.

An editable installation gets the core beside its source. A server that runs keeps the one that it has loaded.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path("merklekv/_core.pyx")
INCLUDED = Path("vendor/xxhash")
COMMIT = Path("merklekv/COMMIT")
# In the containers that build wheels the files belong to another user.
DESCRIBE = ["git", "-c", "safe.directory=*", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
COMPILER_FLAGS = ["-O3", "-g0"]


class BuildHook(BuildHookInterface[Any]):
    """Adds the core to a wheel, and gives it the tag of its platform; adds the commit to wheels and sdists."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before a build; `version` is "editable" or "standard"."""
        self.scratch = Path(tempfile.mkdtemp(prefix="merklekv-build-"))
        try:
            if version != "editable":
                self.add_commit(build_data)
            if self.target_name == "wheel":
                self.add_core(version, build_data)
        except BaseException:
            shutil.rmtree(self.scratch)
            raise

    def add_commit(self, build_data: dict[str, Any]) -> None:
        """Add the file that names the commit, if this is a checkout and git can tell."""
        if commit := commit_of(Path(self.root)):
            file = self.scratch / COMMIT.name
            file.write_text(commit)
            build_data["force_include"][str(file)] = str(COMMIT)

    def add_core(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the core, and add it to the wheel or place it beside its source."""
        core = self.built()
        if version == "editable":
            self.place(core)
        elif core is not None:
            build_data["pure_python"] = False
            build_data["infer_tag"] = True
            build_data["force_include"][str(core)] = str(SOURCE.parent / core.name)

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Called after a build."""
        shutil.rmtree(self.scratch)

    def built(self) -> Path | None:
        """The core, in the scratch directory; None if it is not wanted or cannot be built, which a line says."""
        if is_set("MERKLEKV_PURE"):
            self.app.display_info("merklekv: MERKLEKV_PURE is set, so this is pure Python, without the compiled core")
            return None
        try:
            return build(Path(self.root), self.scratch)
        except Exception as error:
            if is_set("MERKLEKV_REQUIRE_CORE"):
                raise
            reason = " ".join(str(error).split()) or type(error).__name__
            self.app.display_warning(
                f"merklekv: the compiled core cannot be built, so this is pure Python, which is slower: {reason}"
            )
            return None

    def place(self, core: Path | None) -> None:
        """Put the core beside its source, or nothing there: what an earlier build left is of other sources."""
        from importlib.machinery import EXTENSION_SUFFIXES

        target = Path(self.root, SOURCE.parent)
        for suffix in EXTENSION_SUFFIXES:
            Path(target, SOURCE.stem + suffix).unlink(missing_ok=True)  # overwritten, it would break who runs it
        if core is not None:
            shutil.copy(core, target)


def commit_of(root: Path) -> str:
    """The commit that is checked out, with `-dirty` behind it if files differ from it; empty if it is not known."""
    if not (root / ".git").exists():  # a parent directory may be a checkout of something else
        return ""
    try:
        done = subprocess.run(DESCRIBE, cwd=root, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout if done.returncode == 0 else ""


def build(root: Path, scratch: Path) -> Path:
    """Compile the core into the scratch directory. Raises whatever goes wrong."""
    from Cython.Build import cythonize
    from setuptools import Distribution, Extension
    from setuptools.command.build_ext import build_ext

    name = ".".join(SOURCE.with_suffix("").parts)
    extension = Extension(name, [str(SOURCE)], include_dirs=[str(root / INCLUDED)], extra_compile_args=COMPILER_FLAGS)
    modules = cythonize([extension], build_dir=str(scratch / "c"), quiet=True)
    command = build_ext(Distribution({"name": "merklekv", "ext_modules": modules}))
    command.build_lib = str(scratch / "lib")
    command.build_temp = str(scratch / "objects")
    command.ensure_finalized()
    command.run()
    built: str = command.get_ext_filename(name)
    return scratch / "lib" / built


def is_set(variable: str) -> bool:
    """Whether a variable of the environment is neither empty nor 0."""
    return os.environ.get(variable, "") not in ("", "0")
