"""Builds the compiled core, `merklekv/_core.pyx`, when a wheel is made or the project is installed.

The core is optional: where it cannot be built, without a compiler or the headers of Python, a line says so, and what is
installed is pure Python. MERKLEKV_PURE=1 leaves the core out; with MERKLEKV_REQUIRE_CORE=1 a failure is an error.

An editable installation gets the core beside its source. A server that runs keeps the one that it has loaded.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path("merklekv/_core.pyx")
INCLUDED = Path("vendor/xxhash")
COMPILER_FLAGS = ["-O3", "-g0"]


class CoreHook(BuildHookInterface[Any]):
    """Adds the core to a wheel, and gives it the tag of its platform."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before a build; `version` is "editable" or "standard"."""
        self.scratch = Path(tempfile.mkdtemp(prefix="merklekv-core-"))
        try:
            core = self.built()
        except BaseException:
            shutil.rmtree(self.scratch)
            raise
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
