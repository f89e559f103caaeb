"""redis-py with its default settings, its fork, and libraries on them for caches and limits: each unmodified."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from threading import Event
from typing import Any

import dogpile.cache
import limits
import pytest
import redis
import redis.asyncio
import valkey
from fixtures.node import NodeProcess

WAIT_S = 60


def answers(client: Any) -> None:
    """Transactions, scripts, locks and messages: what redis-py and its fork have in common."""
    with client.pipeline() as pipeline:
        *replies, ttl = pipeline.set("a", 50, ex=1000).incrby("b", 5).get("a").ttl("a").execute()
        assert replies == [True, 5, b"50"]
        assert ttl in range(900, 1001)

    def double(pipeline: Any) -> None:
        number = int(pipeline.get("a"))
        pipeline.multi()
        pipeline.set("a", 2 * number)

    assert client.transaction(double, "a") == [True]
    script = client.register_script("return redis.call('INCRBY', KEYS[1], ARGV[1])")
    assert script(keys=["a"], args=[1]) == 101
    client.script_flush()
    assert script(keys=["a"], args=[1]) == 102

    with client.lock("job", timeout=1000) as lock:
        assert lock.owned()
        assert not client.lock("job", timeout=1000).acquire(blocking=False)
        assert lock.extend(1000, replace_ttl=True)
        assert lock.reacquire()
    assert client.lock("job").acquire(blocking=False)

    heard: list[bytes] = []
    both = Event()

    def hear(message: dict[str, bytes]) -> None:
        heard.append(message["data"])
        if len(heard) == 2:
            both.set()

    with client.pubsub(ignore_subscribe_messages=True) as subscriber:
        subscriber.subscribe(news=hear)
        subscriber.psubscribe(**{"n*": hear})
        while client.pubsub_numpat() < 1:  # what was subscribed before it is there as well
            subscriber.get_message(timeout=0.1)
        assert client.publish("news", "hello") == 2
        thread = subscriber.run_in_thread(sleep_time=0.05)
        assert both.wait(WAIT_S)
        thread.stop()
        thread.join(WAIT_S)
    assert heard == [b"hello", b"hello"]
    client.flushall()


@pytest.mark.parametrize("make", [redis.Redis, valkey.Valkey], ids=["redis-py", "valkey-py"])
def test_clients(make: Callable[..., Any], node: NodeProcess) -> None:
    for protocol in (2, 3):
        with make(port=node.port, protocol=protocol) as client:
            answers(client)


def test_a_client_retries_after_a_restart_of_the_node(node: NodeProcess) -> None:
    with redis.Redis(port=node.port) as client:
        client.set("k", "v")
        with client.pipeline() as pipeline:
            pipeline.watch("k")
            node.kill()
            node.start()
            pipeline.multi()
            pipeline.set("k", "w")
            with pytest.raises(redis.WatchError):
                pipeline.execute()
        assert client.get("k") == b"v"


def test_redis_py_with_asyncio(node: NodeProcess) -> None:
    async def use() -> None:
        client: Any
        async with redis.asyncio.Redis(port=node.port) as client:
            async with client.pipeline() as pipeline:
                assert await pipeline.set("a", 1).incr("a").execute() == [True, 2]
            async with client.lock("job", timeout=1000) as lock:
                assert await lock.owned()
            async with client.pubsub() as subscriber:
                await subscriber.subscribe("news")
                kinds = []
                async with asyncio.timeout(WAIT_S):
                    async for message in subscriber.listen():
                        kinds.append(message["type"])
                        if kinds == ["subscribe"]:
                            await client.publish("news", "hello")
                        else:
                            break
                assert kinds == ["subscribe", "message"]
            assert sorted(await asyncio.gather(*(client.incr("n") for _ in range(50)))) == list(range(1, 51))

    asyncio.run(use())


@pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")
@pytest.mark.parametrize("backend", ["redis", "valkey"])
def test_dogpile_cache(backend: str, node: NodeProcess) -> None:
    settings = {"host": "127.0.0.1", "port": node.port, "distributed_lock": True, "thread_local_lock": False}
    region = dogpile.cache.make_region().configure(
        f"dogpile.cache.{backend}", arguments=settings | {f"{backend}_expiration_time": 60}
    )
    made: list[str] = []

    def make() -> str:
        made.append("v")
        return "v"

    assert region.get_or_create("k", make) == region.get_or_create("k", make) == "v"
    assert made == ["v"]
    region.set_multi({"a": 1, "b": [2]})
    assert region.get_multi(["a", "b"]) == [1, [2]]
    region.delete_multi(["a", "b"])
    assert not region.get("a")
    with redis.Redis(port=node.port) as client:
        (key,) = client.keys()  # no lock is left
        assert client.ttl(key) in range(1, 61)


@pytest.mark.parametrize("strategy", ["FixedWindowRateLimiter", "SlidingWindowCounterRateLimiter"])
def test_limits(strategy: str, node: NodeProcess) -> None:
    storage = limits.storage.storage_from_string(f"redis://127.0.0.1:{node.port}")
    limiter = getattr(limits.strategies, strategy)(storage)
    twice = limits.parse("2/hour")
    assert [limiter.hit(twice, "user") for _ in range(3)] == [True, True, False]
    assert limiter.hit(twice, "other")
    assert limiter.get_window_stats(twice, "user").remaining == 0
    assert storage.reset() > 0
    assert limiter.hit(twice, "user")
