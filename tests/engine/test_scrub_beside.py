"""The scrub beside writers and merges: whatever they do between its slices is not taken for damage."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from contextlib import suppress

import pytest
from fixtures import engines

from merklekv.engine.engine import Engine
from merklekv.engine.format import bucket_of
from merklekv.engine.options import MIN_MEMTABLE_SIZE
from merklekv.engine.verify import scrub as scrub_module
from merklekv.engine.verify.check import check_engine
from merklekv.engine.verify.scrub import Damage, Scrub
from merklekv.errors import Stalled

Make = Callable[..., Engine]


def found_in(engine: Engine) -> list[Damage]:
    return [damage for damage in Scrub(engine).steps() if damage is not None]


def test_writes_between_the_slices_are_no_damage(make_engine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrub_module, "PAGE_RECORDS", 7)
    monkeypatch.setattr(scrub_module, "COUNTED_KEYS", 5)
    chance = random.Random(20)
    engine = make_engine()
    acts: list[tuple[float, Callable[[], object]]] = [
        (1, lambda: engine.set(b"%d" % chance.randrange(300), b"v" * chance.randrange(20))),
        (1, lambda: engine.delete(b"%d" % chance.randrange(300))),
        (0.1, engine.commit),
        (0.05, lambda: engines.freeze(engine)),
        (0.05, engine.checkpoint_now),
        (0.05, lambda: engine.raise_gc_horizon(engine.clock.closing())),
        (0.05, lambda: engine.collect_tombstones(5)),
        (0.01, lambda: engine.repair(chance.randrange(65536))),
        (0.003, engine.truncate),
    ]
    weights = [weight for weight, _ in acts]
    for _ in range(3):
        for step in Scrub(engine).steps():
            assert step is None
            if chance.random() < 0.03:
                for _, act in chance.choices(acts, weights, k=3):
                    act()
        engines.checkpoint(engine)


def test_writers_and_merges_beside_it_are_no_damage() -> None:
    with engines.directory() as path:
        engine = engines.open_engine(path, checkpoint="process", memtable_size=MIN_MEMTABLE_SIZE)
        chance = random.Random(21)
        ended = threading.Event()

        def write() -> None:
            while not ended.is_set():
                try:
                    for _ in range(50):
                        key = b"key:%d" % chance.randrange(5000)
                        engine.set(key, b"v" * chance.randrange(100))
                        engine.delete(b"key:%d" % chance.randrange(5000))
                    if chance.random() < 0.02:
                        engine.truncate()
                    engine.commit()
                except Stalled:
                    engine.wait_for_room(1.0)

        writer = threading.Thread(target=write)
        writer.start()
        try:
            found = [damage for _ in range(20) for damage in found_in(engine)]
        finally:
            ended.set()
            writer.join()
        engine.close()
    assert found == []


def test_a_merge_cut_short_is_no_damage(make_engine: Make) -> None:
    engine = make_engine()
    for number in range(50):
        engine.set(b"k%d" % number, b"v")
    engines.checkpoint(engine)
    path = engine.directory.path
    for commits in range(1, 25):
        for number in range(30, 90):
            engine.set(b"k%d" % number, b"w%d" % commits)
        engine.delete(b"k%d" % commits)
        engine.repair(bucket_of(b"k%d" % commits))
        engines.freeze(engine)
        engine.close()
        with engines.small_transactions(10), engines.cut_after(commits), suppress(engines.Cut):
            engines.checkpoint_all(path)
        engine = engines.open_engine(path)
        assert found_in(engine) == []
        assert check_engine(engine) == []
        if commits % 3 == 0:
            engines.checkpoint(engine)
