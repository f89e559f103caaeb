"""Worker threads: what a step may raise, and how the thread goes on."""

from __future__ import annotations

import logging
import threading

import pytest
from fixtures.support import WAIT_S, wait_until

from merklekv.errors import Corruption, MerkleKVError, Shortage, Stalled, StorageFailed
from merklekv.worker_thread import WorkerThread


def no_fatal(error: BaseException) -> None:
    raise AssertionError(f"fatal: {error}")


def test_steps_follow_each_other_until_the_stop() -> None:
    steps = threading.Semaphore(0)
    worker = WorkerThread("test", steps.release, no_fatal)
    assert worker.status == "idle"
    worker.start()
    for _ in range(10):
        steps.acquire()
    assert worker.status == "running"
    worker.stop()
    assert not worker.is_alive
    assert worker.status == "ended"


def test_a_stop_ends_a_wait() -> None:
    began = threading.Event()

    def step() -> None:
        began.set()
        worker.wait(1000)

    worker = WorkerThread("test", step, no_fatal)
    worker.start()
    began.wait()
    worker.stop()
    assert not worker.is_alive


def test_a_stop_wakes_what_waits_by_means_of_its_own() -> None:
    woken = threading.Event()
    worker = WorkerThread("test", lambda: assert_true(woken.wait(1000)), no_fatal, wake=woken.set)
    worker.start()
    worker.stop()
    assert not worker.is_alive


def assert_true(value: bool) -> None:
    assert value


def test_a_stop_before_the_start_is_harmless() -> None:
    WorkerThread("test", lambda: None, no_fatal).stop()


def test_a_stop_waits_no_longer_than_asked() -> None:
    release = threading.Event()
    worker = WorkerThread("test", lambda: assert_true(release.wait(1000)), no_fatal)
    worker.start()
    worker.stop(0.01)
    assert worker.is_alive
    release.set()
    wait_until(lambda: not worker.is_alive)


def test_a_failed_disk_is_fatal() -> None:
    errors: list[BaseException] = []

    def step() -> None:
        raise StorageFailed("the disk")

    worker = WorkerThread("test", step, errors.append)
    worker.start()
    wait_until(lambda: not worker.is_alive)
    assert [str(error) for error in errors] == ["the disk"]


@pytest.mark.parametrize("error", [Shortage("no room"), Stalled("behind")])
def test_what_passes_by_itself_is_tried_again_in_silence(
    error: MerkleKVError, caplog: pytest.LogCaptureFixture
) -> None:
    tries = 0
    seen = ""
    done = threading.Event()

    def step() -> None:
        nonlocal tries, seen
        tries += 1
        if tries == 1:
            raise error
        seen = worker.problem
        done.set()
        worker.wait(1000)

    worker = WorkerThread("test", step, no_fatal, retry_s=0)
    worker.start()
    assert done.wait(WAIT_S)
    worker.stop()
    assert seen == str(error)
    assert worker.problem == ""
    assert not caplog.records


def test_a_defect_is_logged_and_the_thread_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    done = threading.Event()
    tries = 0

    def step() -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise KeyError("defect")
        done.set()
        worker.wait(1000)

    worker = WorkerThread("test", step, no_fatal, retry_s=0)
    with caplog.at_level(logging.ERROR):
        worker.start()
        assert done.wait(WAIT_S)
        worker.stop()
    assert "test: a defect of this program; the thread goes on" in caplog.text
    assert "KeyError" in caplog.text


@pytest.mark.parametrize("error", [Corruption("damaged at byte 7"), MemoryError("no memory")])
def test_damage_or_a_lack_of_memory_is_logged_once_and_is_no_defect(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    tried = threading.Semaphore(0)

    def step() -> None:
        tried.release()
        raise error

    worker = WorkerThread("test", step, no_fatal, retry_s=0)
    worker.start()
    for _ in range(20):
        assert tried.acquire(timeout=WAIT_S)
    worker.stop()
    assert [record.getMessage() for record in caplog.records] == [f"test: {error}; the thread goes on"]


def test_what_a_cut_step_raises_ends_the_thread_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    cut = threading.Event()

    def step() -> None:
        cut.wait()
        raise ValueError("the socket is closed")

    worker = WorkerThread("test", step, no_fatal, wake=cut.set)
    worker.start()
    worker.stop()
    assert not worker.is_alive
    assert not caplog.records
