"""Runs the compiled core under AddressSanitizer and UndefinedBehaviorSanitizer.

python -m tests.fuzz --seconds 600                  all targets in turn, from a new seed
python -m tests.fuzz --target parser --seed 7       one of them, from this seed
python -m tests.fuzz -- .venv/bin/pytest tests/net  a command, with the instrumented core in the Pythons that it starts

It needs clang with its runtime (libFuzzer), and a Python with a shared library. It builds in a scratch directory, and
leaves there what broke the core; the core of the checkout stays as it is. The status is not 0 after a finding.
"""

from __future__ import annotations

import argparse
import os
import random
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
HERE: Final = Path(__file__).parent
TARGETS: Final = ("parser", "records", "leaves", "put_and_get", "small_functions", "sockets")
FLAGS: Final = [
    *("-g", "-O1", "-fno-omit-frame-pointer", "-fno-sanitize-recover=undefined", "-fsanitize=address,undefined"),
    *("-I", sysconfig.get_path("include"), "-I", str(ROOT / "vendor/xxhash")),
]
# Loads the instrumented core in place of that of the checkout, in every Python with its directory in PYTHONPATH.
PRELUDE: Final = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("merklekv._core", {core!r})
sys.modules["merklekv._core"] = core = importlib.util.module_from_spec(spec)
spec.loader.exec_module(core)
"""
SEEDS: Final = (
    b"\0\0\0*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$5\r\nvalue\r\n*2\r\n$3\r\nGET\r\n$1\r\nk\r\n",
    b"\1\1\2\3\0\0\0\11\0\0\0*1\r\n$4\r\nPING\r\nPING\r\n*0\r\n*2\r\n$0\r\n\r\n$2\r\n\r\n\r\n*1\r\n$9999\r\n",
    bytes(range(256)),
    random.Random(0).randbytes(1000),
)


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def call(*command: object, **environment: str) -> int:
    words = [str(word) for word in command]
    say(shlex.join((*(f"{name}={value}" for name, value in environment.items()), *words)))
    return subprocess.run(words, env=os.environ | environment, check=False).returncode


def output(*command: object) -> str:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True).stdout.strip()


def build(scratch: Path) -> None:
    """The core and libFuzzer's program, in the scratch directory."""
    core = scratch / "core.so"
    library = Path(sysconfig.get_config_var("LIBDIR"))
    name = sysconfig.get_config_var("LDVERSION")
    program = ["clang", *FLAGS, HERE / "main.c", "-fsanitize=fuzzer", "-rdynamic", "-o", scratch / "fuzz"]
    for command in (
        [sys.executable, "-m", "cython", "-3", ROOT / "merklekv/_core.pyx", "-o", scratch / "core.c"],
        ["clang", *FLAGS, "-fsanitize=fuzzer-no-link", "-fPIC", "-shared", scratch / "core.c", "-o", core],
        [*program, f"-L{library}", f"-lpython{name}", f"-Wl,-rpath,{library}"],
    ):
        if call(*command):
            raise SystemExit("it cannot be built")
    (scratch / "sitecustomize.py").write_text(PRELUDE.format(core=str(core)))
    corpus = scratch / "corpus"
    for target in TARGETS:
        (corpus / target).mkdir(parents=True)
        for number, data in enumerate(SEEDS):
            (corpus / target / f"seed{number}").write_bytes(data)


def environment(scratch: Path) -> dict[str, str]:
    """PYTHONMALLOC: each object gets memory of its own, so that the sanitizer sees where it ends."""
    paths = [
        scratch,
        ROOT / "tests",
        *(path for path in sys.path if path.endswith("site-packages")),
        ROOT,
        ROOT / "tools",
    ]
    return {
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "PYTHONMALLOC": "malloc",
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:quarantine_size_mb=16",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


def fuzz(scratch: Path, targets: list[str], seconds: int, seed: int) -> int:
    """Each target for its share of the time; the status of the first that fails."""
    for target in targets:
        status = call(
            scratch / "fuzz",
            *(f"-seed={seed}", f"-max_total_time={max(1, seconds // len(targets))}", "-max_len=4096", "-timeout=60"),
            *(f"-artifact_prefix={scratch}/{target}-", "-print_final_stats=1", "-verbosity=1"),
            scratch / "corpus" / target,
            **environment(scratch),
            PYTHONHOME=sys.base_prefix,
            PYTHONHASHSEED=str(seed % (1 << 32)),
            FUZZ_TARGET=target,
        )
        if status:
            say(f"finding in {target}, seed {seed}: what led there is in {scratch}/{target}-*")
            return status
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=str(__doc__).split("\n")[0])
    parser.add_argument("--seconds", type=int, default=60, help="for all targets together (60)")
    parser.add_argument("--seed", type=int, default=0, help="1 or more (a new one)")
    parser.add_argument("--target", choices=TARGETS, action="append", help="instead of all")
    parser.add_argument("command", nargs="*", help="to run with the instrumented core, instead of fuzzing")
    given = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="merklekv-fuzz-"))
    build(scratch)
    if given.command:
        runtime = output("clang", "-print-file-name=libclang_rt.asan-x86_64.so")
        return call(*given.command, **environment(scratch), LD_PRELOAD=runtime)
    seed = given.seed or random.SystemRandom().randrange(1, 1 << 32)
    status = fuzz(scratch, given.target or list(TARGETS), given.seconds, seed)
    say(f"{given.seconds} s from seed {seed}: {'a finding' if status else 'nothing found'}")
    return status


if __name__ == "__main__":
    raise SystemExit(main())
