"""A data directory with files of another user, as a command run by root leaves them: an error that says what to do."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fixtures import engines

from merklekv.engine.engine import Engine
from merklekv.errors import DirectoryUnwritable
from merklekv.exit_codes import EXIT_UNWRITABLE, status_of

IS_ROOT = os.geteuid() == 0
NOBODY = 65534
FILES = ["log/00000000000000000000.log", "log", "base/data.mdb", "base/lock.mdb", "base", "LOCK", "outbox"]


@pytest.fixture
def data() -> Iterator[Path]:
    """A data directory of the user nobody; of the user who runs the tests, unless that is root."""
    with engines.directory() as path:
        path.parent.chmod(0o755)
        engine = engines.open_engine(path)
        engine.set(b"k", b"v")
        engine.commit()
        engine.retention.subscribe()
        engine.close()
        if IS_ROOT:
            for file in (path, *path.rglob("*")):
                os.chown(file, NOBODY, NOBODY)
        yield path


@contextmanager
def user(number: int) -> Iterator[None]:
    """As another user, in this process, if it is root's."""
    if not IS_ROOT:
        yield
        return
    groups = os.getgroups()
    os.setgroups([])
    os.seteuid(number)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setgroups(groups)


@pytest.mark.parametrize("mode", [0o600, 0o444])
@pytest.mark.parametrize("name", FILES)
def test_what_belongs_to_root_is_named(data: Path, name: str, mode: int) -> None:
    if not IS_ROOT or (name, mode) == ("outbox", 0o444):
        return  # only root can make files of another user; the outbox is replaced as a whole
    file = data / name
    os.chown(file, 0, 0)
    file.chmod(mode | (0o111 if file.is_dir() and mode == 0o444 else 0))
    nobody = pwd.getpwuid(NOBODY).pw_name
    with user(NOBODY):
        with pytest.raises(DirectoryUnwritable) as caught:
            engines.open_engine(data)
        assert str(caught.value) == f"{file}: belongs to root, this process to {nobody}; chown -R {nobody} {data}"
    assert status_of(caught.value) == EXIT_UNWRITABLE
    for path in data.rglob("*"):
        os.chown(path, NOBODY, NOBODY)
        path.chmod(0o755 if path.is_dir() else 0o644)
    with user(NOBODY):
        engine: Engine = engines.open_engine(data)
        assert engine.get(b"k") == b"v"
        engine.close()


def test_what_its_own_user_may_not_use_is_named(data: Path) -> None:
    file = data / FILES[0]
    file.chmod(0)
    with user(NOBODY), pytest.raises(DirectoryUnwritable, match=f"{file}: no permission to use it; chmod -R u.rwX"):
        engines.open_engine(data)
