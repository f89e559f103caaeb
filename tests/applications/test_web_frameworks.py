"""Django's cache and sessions, Flask-Caching with cachelib, Flask-Session: each with its default settings."""

from __future__ import annotations

from importlib import import_module

import cachelib
import django.conf
import django.core.cache
import flask
import flask_caching
import flask_session
import pytest
import redis
from django.core.cache.backends.redis import RedisCache
from fixtures.node import NodeProcess


def lasts(node: NodeProcess, key: str, seconds: int) -> bool:
    """Whether the key was given that time, and lost no more of it than a slow machine takes for a test."""
    with redis.Redis(port=node.port) as client:
        return client.ttl(key) in range(seconds // 2, seconds + 1)


def test_cache_of_django(node: NodeProcess) -> None:
    cache = RedisCache(f"redis://127.0.0.1:{node.port}", {})
    cache.set("a", {"x": 1})
    assert cache.get("a") == {"x": 1}
    assert lasts(node, ":1:a", 300)
    assert cache.add("b", 1, timeout=50)
    assert not cache.add("b", 2)
    assert cache.set_many({"c": 5, "d": "z"}, timeout=50) == []
    assert cache.get_many(["c", "d", "none"]) == {"c": 5, "d": "z"}
    assert lasts(node, ":1:c", 50)
    assert cache.incr("c", 4) == 9
    assert cache.decr("c") == 8
    with pytest.raises(ValueError, match="not found"):
        cache.incr("none")
    assert cache.touch("c", None)
    assert not lasts(node, ":1:c", 50)
    assert not cache.touch("none")
    assert cache.get_or_set("e", lambda: 3, 50) == 3
    assert cache.incr_version("e") == 2
    assert cache.get("e", version=2) == 3
    cache.set("c", 1, timeout=0)
    assert not cache.has_key("c")
    cache.delete_many(["a", "b"])
    assert cache.get("a") is None
    assert cache.clear()
    cache.close()


def test_sessions_of_django(node: NodeProcess) -> None:
    caches = {"default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": []}}
    engine = "django.contrib.sessions.backends.cache"
    django.conf.settings.configure(CACHES=caches, SESSION_ENGINE=engine, SECRET_KEY="of this test")
    caches["default"]["LOCATION"] = f"redis://127.0.0.1:{node.port}"
    store = import_module(engine).SessionStore
    session = store()
    session["user"] = 7
    session.set_expiry(60)
    session.save()
    key = session.session_key
    assert lasts(node, f":1:django.contrib.sessions.cache{key}", 60)
    again = store(key)
    assert again["user"] == 7
    again.cycle_key()
    assert not store().exists(key)
    assert store(again.session_key)["user"] == 7
    again.flush()
    assert not store(again.session_key).get("user")


def test_flask_caching(node: NodeProcess) -> None:
    app = flask.Flask("of-this-test")
    url = f"redis://127.0.0.1:{node.port}"
    cache = flask_caching.Cache(app, config={"CACHE_TYPE": "RedisCache", "CACHE_REDIS_URL": url})
    computed: list[int] = []

    def double(number: int) -> int:
        computed.append(number)
        return 2 * number

    with app.app_context():
        memoized = cache.memoize(60)(double)
        assert memoized(2) == memoized(2) == 4
        assert computed == [2]
        cache.delete_memoized(memoized)
        assert memoized(2) == 4
        assert computed == [2, 2]
        assert cache.set("a", 1)
        assert lasts(node, "flask_cache_a", 300)
        assert cache.add("b", 2)
        assert not cache.add("b", 3)
        assert cache.set_many({"c": 1, "d": 2})
        assert cache.get_many("c", "d", "none") == [1, 2, None]
        assert cache.delete_many("c", "d")
        assert cache.clear()
        assert cache.get("a") is None


def test_cachelib(node: NodeProcess) -> None:
    cache = cachelib.RedisCache("127.0.0.1", node.port, key_prefix="mine:")
    assert cache.set("a", {"x": 1})
    assert lasts(node, "mine:a", 300)
    assert cache.add("b", 1, timeout=50)
    assert lasts(node, "mine:b", 50)
    assert not cache.add("b", 2)
    assert cache.inc("n", 3) == 3
    assert cache.dec("n") == 2
    assert cache.set_many({"c": 1, "d": 2}, timeout=50)
    assert cache.get_dict("a", "c") == {"a": {"x": 1}, "c": 1}
    assert cache.has("d")
    assert cache.delete("d")
    assert cache.clear()
    assert not cache.has("a")


def test_flask_session(node: NodeProcess) -> None:
    app = flask.Flask("of-this-test")
    with redis.Redis(port=node.port) as client:
        app.config.update(SESSION_TYPE="redis", SESSION_REDIS=client)
        flask_session.Session(app)

        def visit() -> str:
            flask.session["visits"] = flask.session.get("visits", 0) + 1
            return str(flask.session["visits"])

        def leave() -> str:
            flask.session.clear()
            return "left"

        app.add_url_rule("/visit", view_func=visit)
        app.add_url_rule("/leave", view_func=leave)
        browser = app.test_client()
        assert [browser.get(page).text for page in ("/visit", "/visit", "/leave", "/visit")] == ["1", "2", "left", "1"]
        (key,) = client.keys()
        assert client.ttl(key) > 30 * 86400
