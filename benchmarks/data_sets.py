"""What the benchmarks of the parts share: how big the data is, where it lives, and big data sets that are built once.

    pytest benchmarks/                        with 1,000,000 keys
    pytest benchmarks/ --keys 2000            to see whether they run at all
    pytest benchmarks/ --data-directory DIR   on another disk

A benchmark asserts that what it did was right, never how long it took.
"""

import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from merklekv.engine.engine import Engine

KEYS = 1_000_000
VALUE = b"x" * 100
BATCH = 1000
ROOMY = 1 << 30  # a memtable that is never frozen by itself


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--keys", type=int, default=KEYS, help=f"keys in a big data set [{KEYS}]")
    parser.addoption(
        "--data-directory", default="/var/tmp", help="where the data goes: on a disk, if syncs are to mean anything"
    )


def key_of(number: int) -> bytes:
    """The key that the benchmarks give to a number; a hundred numbers share all of it but the last two digits."""
    return b"key:%012d" % number


def fill(engine: Engine, numbers: list[int]) -> None:
    """Sets the keys of these numbers, without a checkpoint."""
    for at in range(0, len(numbers), BATCH):
        engine.mset([(key_of(number), VALUE) for number in numbers[at : at + BATCH]])
        engine.commit()


def manual_engine(path: Path) -> Engine:
    """An engine that makes a checkpoint only when told to."""
    return Engine(path, durability="never", memtable_size=ROOMY, checkpoint="manual")


@pytest.fixture(scope="session")
def keys(request: pytest.FixtureRequest) -> int:
    """How many keys a big data set has."""
    return int(request.config.getoption("--keys"))


@pytest.fixture(scope="session")
def disk(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory on a disk, gone at the end."""
    with tempfile.TemporaryDirectory(prefix="merklekv-", dir=request.config.getoption("--data-directory")) as path:
        yield Path(path)


@pytest.fixture(scope="session")
def data_set(disk: Path) -> Callable[[int], Path]:
    """A function: the directory with that many keys in its base and nothing in its log.  Not to be changed."""
    built: dict[int, Path] = {}

    def directory(size: int) -> Path:
        if size not in built:
            built[size] = disk / f"set-{size}"
            numbers = list(range(size))
            random.Random(size).shuffle(numbers)
            engine = manual_engine(built[size])
            step = 500_000  # bounds the memory of building
            for at in range(0, size, step):
                fill(engine, numbers[at : at + step])
                engine.checkpoint_now()
            engine.close()
        return built[size]

    return directory


@pytest.fixture
def copy_of(data_set: Callable[[int], Path], disk: Path) -> Iterator[Callable[[int], Engine]]:
    """A function: an engine over a copy of a data set, that may be changed."""
    engines: list[Engine] = []

    def opened(size: int) -> Engine:
        path = Path(tempfile.mkdtemp(dir=disk)) / "data"
        shutil.copytree(data_set(size), path)
        engines.append(manual_engine(path))
        return engines[-1]

    yield opened
    for engine in engines:
        engine.close()
        shutil.rmtree(engine.directory.path.parent)


@pytest.fixture(scope="session")
def big(data_set: Callable[[int], Path], disk: Path, keys: int) -> Iterator[Engine]:
    """An engine over a copy of the biggest data set, shared by all that leave its number of keys as it is."""
    shutil.copytree(data_set(keys), disk / "big")
    engine = manual_engine(disk / "big")
    yield engine
    engine.close()


@pytest.fixture
def small(disk: Path) -> Iterator[Engine]:
    """An empty engine."""
    path = Path(tempfile.mkdtemp(dir=disk))
    engine = manual_engine(path)
    yield engine
    engine.close()
    shutil.rmtree(path)
