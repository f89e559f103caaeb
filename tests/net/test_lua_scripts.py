"""EVAL and its kin: replies and errors as Redis's, a sandbox that holds, limits of time and memory, one moment."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from fixtures.node import NodeFactory
from fixtures.servers import Start, StartedServer
from fixtures.wire import Wire, encode, replace

from merklekv.engine.engine import Engine
from merklekv.errors import DiskFull
from merklekv.net import transaction
from merklekv.net.script import interpreter

Connect = Callable[..., Wire]

# Each runs on both servers, with the keys k and l and the arguments x and 10.
AS_REDIS = [
    # replies
    "return 1",
    "return -3.99",
    "return 0/0 ~= 0/0",
    "return 2^53",
    "return 'hello'",
    r"return 'a\0b\r\nc'",
    "return true",
    "return false",
    "return nil",
    "return",
    "return function() end",
    "return {}",
    "return {1,2,nil,3}",
    "return {1,'a',3.99,true,false,{ok='fine'},{err='ERR bad'},{1,{2,{3}}}}",
    "return {ok='status'}",
    "return {err='My error'}",
    "return {err='no code\\r\\nin two lines'}",
    "return {ok='in\\r\\ntwo lines'}",
    "return {double=3.5}",
    "return {double=1e100}",
    "return {map={a=1}}",
    "return {set={a=true}}",
    "return {big_number='12345678901234567890'}",
    "return {verbatim_string={format='txt',string='hi'}}",
    "return {a=1}",
    "return setmetatable({}, {__index=function() return 'x' end})",
    "return KEYS",
    "return ARGV",
    "return {#KEYS, #ARGV, KEYS[1], ARGV[2], KEYS[3], 1}",
    # calls
    "return redis.call('set', KEYS[1], ARGV[1])",
    "redis.call('SET', KEYS[1], ARGV[1]) return redis.call('Get', KEYS[1])",
    "return redis.call('get', 'nokey')",
    "return redis.call('get', 'nokey') == false",
    "return type(redis.call('set', 'a', 1))",
    "return redis.call('set', 'a', 1).ok",
    "return redis.call('incrby', 'n', ARGV[2]) + 0.5",
    "return redis.call('mget', 'nokey', 'n')",
    "redis.call('mset', 'a', 1, 'b', 2) return redis.call('mget', 'a', 'b', 'c')",
    "redis.call('set', 'a', 0.1) return redis.call('get', 'a')",
    "redis.call('set', 'a', 2^60) return redis.call('get', 'a')",
    "redis.call('set', 'a', 1e300) return redis.call('get', 'a')",
    "redis.call('set', 'a', 12345678) return redis.call('get', 'a')",
    "redis.call('del', 'a', 'b') return redis.call('exists', 'a')",
    "redis.call('set', 'a', 'v', 'EX', 100) return redis.call('ttl', 'a') > 90",
    "redis.call('set', 'a', string.rep('x', 100000)) return redis.call('strlen', 'a')",
    "redis.call('set', 'a', 'b\\r\\n\\0c') return redis.call('get', 'a')",
    "return redis.call('ping')",
    # what Redis's own tests of scripts ask, in our words
    "redis.call('set', KEYS[1], 9007199254740993) return redis.call('get', KEYS[1])",
    "redis.call('set', KEYS[1], '9007199254740993') return redis.call('get', KEYS[1])",
    "redis.call('set', 'a', 1) local n = redis.call('incr', 'a') redis.call('set', 'b', n) return n",
    "local v = cjson.decode('[0.0, -5e3, -1, 0.3e-3, -1023.2, 0e10]') return cjson.encode(v)",
    "return cjson.decode('[\"\\\\u0000\\\\u0001\"]')[1] == '\\0\\1'",
    "return {redis.call('set', 'a', 'b'), redis.call('append', 'a', 'c'), redis.call('get', 'a')}",
    "local t = {} for i = 1, 100 do t[i] = redis.call('set', 'k' .. i, i).ok end return #t",
    "for i = 1, 10 do redis.pcall('incr', 'none', 'too', 'many') end return 'still here'",
    "return redis.call('getrange', 'nokey', 0, -1)",
    "local a = {} for i = 1, 50 do a[i] = 'x' .. i end return redis.call('del', unpack(a))",
    "redis.call('set', 'a', 1) return redis.call('type', 'a').ok",
    "redis.call('setex', 'a', 100, 1) redis.call('persist', 'a') return redis.call('ttl', 'a')",
    "return #redis.call('time')",
    "return redis.call('object', 'help')[1].ok ~= nil",
    "return string.len(redis.call('randomkey') or '') >= 0",
    "math.randomseed(5) return math.random(1, 1)",
    "local f = function(...) return select('#', ...) end return f(nil, nil)",
    "return tostring(setmetatable({}, {__tostring = function() return 'own' end}))",
    "return table.getn({1, 2, 3})",
    "return redis.call('echo', 'x')",
    "redis.call('flushall') return redis.call('dbsize')",
    # errors
    "return redis.call('nosuch')",
    "return redis.pcall('nosuch')",
    "return redis.call('get')",
    "return redis.call()",
    "return redis.pcall()",
    "return redis.call({})",
    "return redis.call('set', 'a', nil)",
    "return redis.call('get', true)",
    "redis.call('set', 'a', 'x') return redis.call('incr', 'a')",
    "redis.call('set', 'a', 'x') return redis.pcall('incr', 'a')",
    "redis.call('set', 'a', 'x')\n\nlocal r = redis.call('incr', 'a') return r",
    "redis.call('set', 'a', 'x') return redis.pcall('incr', 'a').err",
    "local function f() return redis.call('incr', 'a') end redis.call('set', 'a', 'x') return f()",
    "return {pcall(redis.call, 'get')}",
    "local ok, e = pcall(redis.call, 'get') return {tostring(ok), type(e), e}",
    "local ok, e = pcall(error, 'x') return e",
    "local ok, e = pcall(error, {err='ERR y'}) return e",
    "local ok, e = pcall(function() error({1}) end) return type(e)",
    "return {pcall(function() return 1, 2 end)}",
    "error('x')",
    "error('x', 0)",
    "error()",
    "error({err='CODE text'})",
    "error(redis.error_reply('CODE text'))",
    "return 1 .. nil",
    "local a = nil; return a.b",
    "assert(false, 'no')",
    "return redis.error_reply('Oops')",
    "return redis.error_reply('Two words')",
    "return redis.error_reply('-CODE words')",
    "return redis.error_reply(1, 2)",
    "return redis.status_reply('fine')",
    "return redis.status_reply()",
    "foo = 1",
    "return foo",
    "local a = 1\nreturn foo",
    "retun 1",
    "x =",
    "return 'open",
    "string.x = 1",
    "redis.call = nil",
    "_G.x = 1",
    "rawset(_G, 'x', 1)",
    "setmetatable(_G, {})",
    "setmetatable(string, {})",
    "KEYS = {} return 1",
    "return print",
    "return require",
    "return io",
    "return debug",
    "return dofile",
    "return loadfile",
    "return package",
    # not allowed
    "return redis.call('multi')",
    "return redis.call('exec')",
    "return redis.call('watch', 'k')",
    "return redis.call('eval', 'return 1', 0)",
    "return redis.call('evalsha', 'x', 0)",
    "return redis.call('script', 'flush')",
    "return redis.call('client', 'id')",
    "return redis.call('config', 'get', '*')",
    "return redis.call('shutdown')",
    "return redis.call('subscribe', 'c')",
    "return redis.call('hello', '3')",
    "return redis.call('quit')",
    "return redis.call('reset')",
    # libraries
    "return redis.sha1hex('')",
    "return redis.sha1hex('hello')",
    "return redis.sha1hex(1)",
    "return redis.sha1hex()",
    "return redis.log(1)",
    "return redis.log(9, 'x')",
    "return redis.log(redis.LOG_DEBUG, 'x')",
    "return {redis.LOG_DEBUG, redis.LOG_VERBOSE, redis.LOG_NOTICE, redis.LOG_WARNING}",
    "return {redis.REDIS_VERSION_NUM > 0x070000, type(redis.REDIS_VERSION)}",
    "return redis.setresp(4)",
    "return redis.setresp()",
    "redis.setresp(3) return redis.call('get', 'nokey') == nil",
    "redis.setresp(3) return true",
    "redis.setresp(3) return {true, false}",
    "redis.setresp(3) return type(redis.call('command', 'docs', 'get').map)",
    "return redis.replicate_commands()",
    "return tostring(1/0)",
    "return 1/0",
    "return tostring(0.1)",
    "return string.format('%s %d %5.2f %q', 'a', 3, 2.5, 'q')",
    "return ('x'):rep(3)",
    "return {string.find('hello world', 'o w')}",
    "return {string.find('a.b', '.', 1, true)}",
    "return {string.match('key=value', '(%w+)=(%w+)')}",
    "return {string.gsub('hello', 'l', 'L')}",
    "local t = {} for w in string.gmatch('a b c', '%a') do t[#t + 1] = w end return t",
    "return {string.byte('abc', 1, -1)}",
    "local t = {3, 1, 2} table.sort(t) return t",
    "local t = {1, 2} table.insert(t, 1, 9) table.remove(t) return table.concat(t, ',')",
    "return {math.floor(2.7), math.max(1, 5), math.huge == 1/0}",
    "return {select('#', 1, 2, 3), select(2, 'a', 'b')}",
    "return {unpack({1, 2, 3})}",
    "return {tonumber('0x10'), tonumber('z', 36), tonumber('x') == nil}",
    "local s = 0 for k, v in pairs({1, 2, 3}) do s = s + v end return s",
    "local s = 0 for i, v in ipairs({1, 2, nil, 3}) do s = s + v end return s",
    "return type(os.clock())",
    "return {type(string), type(_G), type(redis), type(cjson), type(KEYS)}",
    "return rawget({a=1}, 'a')",
    "return getmetatable({}) == nil",
    # cjson
    "return cjson.encode({1, 2, a=3})",
    "return cjson.encode({})",
    "return cjson.encode({a='/x\\127\\1\"\\\\'})",
    "return cjson.encode({0.1, 1e20, 123456789012345678, -5})",
    "return cjson.encode({[1]=1, [3]=2})",
    "return cjson.encode({[1]=1, [100]=2})",
    "return cjson.encode(1/0)",
    "return cjson.encode(tostring)",
    "return cjson.encode({{{}}, true, false, cjson.null, 'x'})",
    "return cjson.encode({[2.5]='x'})",
    "return cjson.encode(cjson.decode('[1,2.5,\"a\",true,false,null,[],[1]]'))",
    'return cjson.decode(\'{"a":[1,null,"\\\\u00e9\\\\ud83d\\\\ude00\\\\n"]}\').a[3]',
    'return cjson.decode(\'{"a" : 1 , "b":[ ] }\').a',
    "return cjson.decode(' 3.5e1 ')",
    "return cjson.decode('null') == cjson.null",
    "return type(cjson.null)",
    "return cjson.decode('[1')",
    "return cjson.decode('nope')",
    "return cjson.decode('[1,]')",
    "return cjson.decode('{\"a\"}')",
    "return cjson.decode('')",
    "return cjson.decode('[1] x')",
    # the first line
    *[
        f"#!{head}\nreturn redis.call('set', 'a', 1)"
        for head in (
            *(
                "lua",
                "lua flags=no-writes",
                "lua flags=allow-oom,no-cluster",
                "lua flags=bad",
                "lua flags=",
                "lua flags",
            ),
            *("python", "lua name=x", " lua", "", "lua  flags=allow-stale flags=no-writes"),
        )
    ],
    "#!lua",
    "#!lua\nreturn redis.call('nosuch')",
    *[
        f"return {{select('#', unpack({{1, 2, 3}}, {bounds}))}}"
        for bounds in (
            "-2, 2147483647",
            "0, 2147483647",
            "-2147483648, -2",
            "-2147483648, 2147483647",
            "1, 8001",
            "-1, -2",
            "1, -1",
            "-1, 5",
            "'2', '3'",
            "2147483647",
        )
    ],
    "return {unpack({1, 2, 3}, 2), unpack({}), unpack({1, 2, 3}, 2, 2)}",
    "return {pcall(unpack, {}, 0, 2147483647)}",
    "local t = {1, 2, 3} table.insert(t, 0, 'x') return {t[0], unpack(t)}",
    "local t = {1, 2, 3} table.insert(t, '2', 'x') table.insert(t, 9, 'y') return {#t, t[2], t[9]}",
    "return unpack(1)",
    "return unpack({}, {})",
    "return cjson.encode()",
    "return cjson.decode()",
    "local x = cjson.decode({})",
    "local ok, problem = pcall(function() return cjson.decode({}) end) return problem",
    "return ('x'):find('%')",
    "return('x'):find('[')",
    "local x = 1\nreturn ('%a'):format(x)",
    # more than one value, and what is left for the next script
    "return 1, 2",
    "local t = {} t.x = 1 return t.x",
]


@pytest.mark.parametrize("protocol", ["2", "3"])
def test_as_redis(resp: Wire, redis_address: tuple[str, int], protocol: str) -> None:
    different = []
    with Wire(redis_address) as control:
        for wire in (resp, control):
            wire.call("FLUSHALL")
            wire.call("HELLO", protocol)
        for script in AS_REDIS:
            ours, theirs = (wire.call("EVAL", script, "2", "k", "l", "x", "10") for wire in (resp, control))
            if ours != theirs:
                different.append((script, ours, theirs))
    assert not different, "\n".join(map(repr, different))


@pytest.mark.parametrize(
    "words",
    [
        ("EVAL", "return 1"),
        ("EVAL", "return 1", "x"),
        ("EVAL", "return 1", "2", "a"),
        ("EVAL", "return 1", "-1"),
        ("EVAL", "return {#KEYS, #ARGV}", "1", "a", "b", "c"),
        ("EVALSHA", "x", "0"),
        ("EVALSHA", "e0e1f9fabfc9d4800c877a703b823ac0578ff8db", "0"),
        ("SCRIPT",),
        ("SCRIPT", "nosuch"),
        ("SCRIPT", "LOAD"),
        ("SCRIPT", "LOAD", "return 1"),
        ("SCRIPT", "LOAD", "x ="),
        ("EVALSHA", "E0E1F9FABFC9D4800C877A703B823AC0578FF8DB", "0"),
        ("EVALSHA_RO", "e0e1f9fabfc9d4800c877a703b823ac0578ff8db", "0"),
        ("SCRIPT", "EXISTS", "e0e1f9fabfc9d4800c877a703b823ac0578ff8db", "x"),
        ("SCRIPT", "FLUSH", "x"),
        ("SCRIPT", "KILL"),
        ("EVAL_RO", "return redis.call('publish', 'a', 'b')", "0"),
        ("EVAL_RO", "return redis.call('set', 'a', 1)", "0"),
        ("EVAL_RO", "return redis.pcall('set', 'a', 1)", "0"),
        ("EVAL_RO", "#!lua\nreturn 1", "0"),
        ("EVAL_RO", "#!lua flags=no-writes\nreturn 1", "0"),
        ("EVAL_RO", "return redis.call('get', 'a')", "0"),
        ("SCRIPT", "FLUSH"),
        ("SCRIPT", "EXISTS", "e0e1f9fabfc9d4800c877a703b823ac0578ff8db"),
        ("SCRIPT", "FLUSH", "ASYNC"),
    ],
)
def test_the_commands_as_redis(resp: Wire, redis_address: tuple[str, int], words: tuple[str, ...]) -> None:
    with Wire(redis_address) as control:
        for wire in (resp, control):
            wire.call("SCRIPT", "FLUSH")
            wire.call("FLUSHALL")
            if words[0] == "EVALSHA_RO" or words[1:2] in [("EXISTS",), ("E0E1F9FABFC9D4800C877A703B823AC0578FF8DB",)]:
                wire.call("EVAL", "return 1", "0")
        assert resp.call(*words) == control.call(*words)
        if words == ("SCRIPT", "FLUSH"):
            assert resp.call("SCRIPT", "EXISTS", "e0e1f9fabfc9d4800c877a703b823ac0578ff8db") == b"*1\r\n:0\r\n"


# -- the sandbox -------------------------------------------------------------------------------------------------------

# Each is tried, then the check below must still hold. `true` from one of them is an escape.
ATTACKS = [
    # to Python, files, modules
    "return python ~= nil",
    "return rawget(_G, 'python') ~= nil",
    "return rawget(_G, 'io') ~= nil or rawget(_G, 'package') ~= nil or rawget(_G, 'debug') ~= nil",
    "for k, v in pairs(_G) do if type(v) == 'userdata' then return true end end",
    "for k, v in pairs(redis) do if type(v) == 'userdata' then return true end end",
    "return os.execute ~= nil or os.getenv ~= nil or os.exit ~= nil or os.remove ~= nil",
    "return pcall(require, 'os')",
    "return redis.call.__globals__ ~= nil",
    "local ok, e = pcall(redis.call, 'nosuch') return type(e) == 'userdata'",
    "local ok, e = pcall(redis.call, string.rep('x', 100000)) return type(e) == 'userdata'",
    "return getmetatable(cjson.null) ~= nil",
    # other environments, bytecode
    "return getfenv ~= nil",
    "return setfenv ~= nil",
    "return loadstring('return 1')() == 1",
    "return load(function() return nil end) ~= nil",
    "return string.dump ~= nil",
    "return ('').dump ~= nil",
    "return getmetatable('').__index ~= nil",
    "return newproxy(true) ~= nil",
    "return coroutine ~= nil",
    "return module ~= nil",
    # to leave something for the next script
    "_G.leak = 1",
    "leak = 1",
    "rawset(_G, 'leak', 1)",
    "rawset(string, 'leak', 1)",
    "rawset(redis, 'call', function() return 'evil' end)",
    "string.rep = function() return 'evil' end",
    "redis.call = function() return 'evil' end",
    "table.insert(_G, 'leak')",
    "table.insert(redis, 'leak')",
    "table.sort(string, function() return true end)",
    "table.remove(_G, 1)",
    "setmetatable(_G, {__index = function() return 'evil' end})",
    "setmetatable(redis, nil)",
    "getmetatable(redis).__index = function() return 'evil' end",
    "getmetatable('').__index = function() return 'evil' end",
    "getmetatable('').__add = function() return 'evil' end",
    "for k, v in pairs(string) do string[k] = nil end",
    "local p, t, k = pairs(redis) t.leak = 1",
    "for _, t in pairs({_G, string, table, math, os, redis, cjson}) do local k = next(t) rawset(t, k, 'evil') end",
    "KEYS.leak = 1 ARGV.leak = 1 KEYS = {'leak'}",
    "collectgarbage('stop')",
    "collectgarbage('setpause', 1000000)",
    # to go on after the end, or to keep the thread
    "while true do end",
    "while true do pcall(function() while true do end end) end",
    "local function f() return pcall(f) or f() end while true do f() end",
    "pcall(function() while true do end end) while true do pcall(error) end",
    "xpcall(function() while true do end end, function() while true do end end)",
    "local t = setmetatable({}, {__tostring = function() while true do end end}) error(t)",
    "local t = setmetatable({}, {__index = function() while true do end end}) return t.x",
    "table.sort({1, 2, 3, 4}, function() while true do end end)",
    "string.gsub('x', 'x', function() while true do end end)",
    "for i = 1, 1e12 do redis.pcall('get', 'k') end",
    "repeat until false",
    "return string.rep('', 2147483647)",
    "return string.find(string.rep('a', 400), '.-.-.-.-.-b$') == nil",
    "return string.find(string.rep('a', 100000), '.-b.-c') ~= nil",
    "return string.match(string.rep('a', 3000), string.rep('a?', 3000) .. string.rep('a', 3000)) ~= nil",
    "return string.gsub(string.rep('a', 1000), string.rep('a*', 30) .. 'b', '') == ''",
    "return string.find(string.rep('(', 100000), '%b()') ~= nil and string.rep('x', 1e6):find('.-.-.-y') ~= nil",
    "local f = string.gmatch(string.rep('a', 5000), '.-.-.-b') return f() ~= nil",
    # memory, stacks
    "local t = 'x' while true do t = t .. t end",
    "return string.rep('x', 2000000000)",
    "local t = {} while true do t[#t + 1] = {} end",
    "local t = {} for i = 1, 1e9 do t[i] = i end",
    "while true do pcall(string.rep, 'x', 1e9) end",
    *[
        """local t, limit, size = {}, 64 * 1024, 1e6
        while size > 8 do
          while collectgarbage('count') < limit - size / 900 do t[#t + 1] = string.rep('x', size) .. #t end
          size = size / 4
        end
        """
        + end  # with next to nothing left
        for end in (
            "return 2",
            "error('x')",
            "redis.call('ping')",
            "return redis.pcall('get', 'k')",
            "pcall(string.rep, 'x', 1e6)",
            "local f = function() return {} end while true do pcall(f) end",
            "return redis.sha1hex('x')",
            "return cjson.encode({1})",
            "while true do end",
        )
    ],
    "local function f() return 1 + f() end return f()",
    "local function f() pcall(f) end f()",
    "local t = {} for i = 1, 200 do t = {t} end t[1] = t return t",
    "local t = {} t[1] = t return t",
    "local t = {} t.x = t return cjson.encode(t)",
    "return cjson.decode(string.rep('[', 100000))",
    "return cjson.encode(string.rep('x', 100000000))",
    "return {unpack({}, 1, 1e8)}",
    "return redis.call(unpack({}, 1, 1e7))",
    "local t = {} for i = 1, 100000 do t[i] = 'x' end return redis.call('mset', unpack(t))",
    "return string.format('%99.99f', 1e308)",
    "return #string.format('%s', string.rep('x', 1e8))",
    "return table.concat({}, 'x', 1, 2147483647)",
    "return tostring(" * 190 + "1" + ")" * 190,
    "return " + "(" * 10000 + "1" + ")" * 10000,
    "\x1bLuaQ\x00\x01\x04\x08\x04\x08\x00" + "\x00" * 200,
]
SOUND = """
for _, name in pairs({'leak', 'python', 'io'}) do if rawget(_G, name) ~= nil then return name end end
if rawget(redis, 'leak') or rawget(string, 'leak') or rawget(_G, 1) or #KEYS ~= 1 or KEYS.leak then return 'leak' end
if redis.call('set', KEYS[1], 'v').ok ~= 'OK' or redis.call('get', KEYS[1]) ~= 'v' then return 'call' end
local n = 0 for _ in pairs(string) do n = n + 1 end
return {('ab'):rep(2), string.upper('x'), n, cjson.encode({1}), collectgarbage('count') < 60000, tostring(1)}
"""
SOUND_REPLY = b"*6\r\n$4\r\nabab\r\n$1\r\nX\r\n:14\r\n$3\r\n[1]\r\n:1\r\n$1\r\n1\r\n"


Attack = Callable[[str], bytes]


@pytest.fixture
def attack(resp: Wire, monkeypatch: pytest.MonkeyPatch) -> Attack:
    """Runs a script that gets little time, unlike those after it, and as little memory as those."""
    monkeypatch.setattr(interpreter, "MEMORY_MAX", 16 << 20)

    def run(script: str) -> bytes:
        with monkeypatch.context() as patch:
            patch.setattr(interpreter, "SECONDS_MAX", 0.05)
            return resp.call("EVAL", script, "1", "k", "x")

    return run


def test_attacks(attack: Attack, resp: Wire) -> None:
    escaped = []
    for script in ATTACKS:
        reply = attack(script)
        if reply == b":1\r\n" or resp.call("EVAL", SOUND, "1", "k") != SOUND_REPLY:
            escaped.append((script, reply[:200]))
    assert not escaped, "\n".join(map(repr, escaped))


SLOW_IN_C = [
    # no hook runs inside of these: one call of some would last for minutes, or a thousand of them
    "return string.rep('a', 400000):match(string.rep('a', 200000) .. 'b')",
    "return string.rep('a', 400000):gsub(string.rep('a', 200000) .. 'b', '')",
    "local t = {} for i = 1, 200000 do t[i] = i end while true do table.insert(t, 1, 0) table.remove(t, 1) end",
    "local t = {} for i = 1, 50000 do t[i] = {} end while true do collectgarbage() end",
    "local s = string.rep('a', 3000000) while true do local x = s:upper() end",
    "local s = string.rep('a', 3000000) while true do local x = string.format('%q', s) end",
    "local s = string.rep('a', 3000000) while true do redis.sha1hex(s) end",
    "local s = string.rep('9', 5000000) while true do local x = s + 1 end",
    *[
        f"""
        local t, s = {{}}, string.rep('a', 5000000)
        for i = 1, 50000 do t[i] = i % 2 == 0 and s or s .. 'b' end
        table.sort(t{comparator})
        """
        for comparator in ("", ", nil")
    ],
]


@pytest.mark.parametrize("script", SLOW_IN_C, ids=range(len(SLOW_IN_C)))
def test_functions_in_c_do_not_go_on_after_the_time(attack: Attack, resp: Wire, script: str) -> None:
    assert attack(script).startswith(b"-ERR script stopped: it ran for more than ")
    assert resp.call("EVAL", SOUND, "1", "k") == SOUND_REPLY


def test_indexes_at_which_lua_itself_crashes_or_hangs_are_errors(resp: Wire) -> None:
    for bounds in (
        "0, 2^31 - 1",
        "-2, 2^31 - 1",
        "2^31, 2^31 - 1",
        "2^31",
        "-2^63",
        "1, 2^32",
        "1, 1/0",
        "0/0",
        "1, '2147483648'",
    ):
        reply = resp.call("EVAL", f"return {{unpack({{1, 2, 3}}, {bounds})}}", "0")
        assert reply.startswith(b"-ERR user_script:1: too many results to unpack script: "), bounds
    for index in ("-1", "-2^31", "2^31", "2^40", "-2^63", "1/0", "0/0", "'-2147483648'"):
        for value in ("1", "nil", "1, 2"):
            reply = resp.call("EVAL", f"table.insert({{}}, {index}, {value})", "0")
            assert b"bad argument #2 to 'insert' (position out of bounds)" in reply, index
    assert resp.call("EVAL", SOUND, "1", "k") == SOUND_REPLY


def test_a_table_with_holes_that_says_it_is_long_keeps_nobody_waiting(resp: Wire) -> None:
    table = "local t = {" + ", ".join(f"[{2**power}] = 1" for power in range(30)) + "}"
    for call in ("insert(t, 1, 0)", "remove(t, 1)", "foreachi(t, type)", "sort(t, rawequal)"):
        reply = resp.call("EVAL", f"{table} table.{call}", "0")
        assert reply.startswith(b"-ERR user_script:1: table too long script: "), call
    assert resp.call("EVAL", SOUND, "1", "k") == SOUND_REPLY


def test_errors_of_libraries_name_their_function_and_the_place_in_the_script(resp: Wire) -> None:
    for function, number in (("string.rep", 1), ("table.insert", 1), ("string.upper", 1), ("table.sort", 1)):
        name = function.partition(".")[2]
        kind = function.partition(".")[0]
        reply = resp.call("EVAL", f"local x = 1\n{function}()", "0")
        problem = f"bad argument #{number} to '{name}' ({kind} expected, got no value)"
        assert reply.startswith(f"-ERR user_script:2: {problem} script: ".encode())
        reply = resp.call("EVAL", f"local ok, problem = pcall({function}) return problem", "0")
        assert reply == f"${len(problem)}\r\n{problem}\r\n".encode()


def test_large_texts_are_found_in_little_time(resp: Wire) -> None:
    script = """
    local text, wanted = string.rep('a', 400000) .. 'b', string.rep('a', 200000) .. 'b'
    return {{text:find(wanted, 1, true)}, {text:find(wanted)}, {text:find(wanted, -200001)},
            {text:find(wanted, -200000)}, {text:find(wanted .. 'c', 1, true)}}
    """
    found = b"*2\r\n:200001\r\n:400001\r\n"
    assert resp.call("EVAL", script, "0") == b"*5\r\n" + found * 3 + b"*0\r\n" * 2


def test_a_script_that_takes_too_long_or_too_much_is_stopped_and_the_next_ones_run(
    server: StartedServer, resp: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    for module in (interpreter, transaction):
        monkeypatch.setattr(module, "monotonic", lambda: now[0])
    monkeypatch.setattr(interpreter, "MEMORY_MAX", 16 << 20)

    def pass_time(session: Any, request: Any) -> bytes:
        now[0] += transaction.SECONDS_MAX + 1
        return b"+later\r\n"

    replace(server, b"ECHO", pass_time)
    forever = "redis.call('incr', 'n') redis.call('echo', '') while true do end"
    stopped = b"; what it has written stands\r\n"
    sha = resp.call("SCRIPT", "LOAD", "return redis.call('get', 'n')")[5:45]
    for number in range(1, 4):
        assert resp.call("EVAL", forever, "0").endswith(stopped)
        assert resp.call("EVALSHA", sha, "0") == b"$1\r\n%d\r\n" % number
        assert resp.call("EVAL", "local t = {} while true do t[#t + 1] = 'x' .. #t end", "0").endswith(stopped)
        assert resp.call("EVAL", "return redis.call('get', 'n')", "0") == b"$1\r\n%d\r\n" % number


# -- one moment, all or nothing ----------------------------------------------------------------------------------------


def test_other_threads_see_a_script_whole(start: Start, connect: Connect) -> None:
    server = start(threads=3)
    writer, *readers = (connect(server) for _ in range(4))
    script = "redis.call('set', 'a', ARGV[1]) for i = 1, 300 do end redis.call('set', 'b', ARGV[1])"
    assert writer.call("MSET", "a", "0", "b", "0") == b"+OK\r\n"
    stop = threading.Event()
    torn: list[bytes] = []

    def read(wire: Wire) -> None:
        while not stop.is_set():
            first, second = wire.call("MGET", "a", "b")[4:].replace(b"\r\n", b" ").split(b"$")[1:]
            if first != second:
                torn.append(first + second)

    threads = [threading.Thread(target=read, args=(wire,)) for wire in readers]
    for thread in threads:
        thread.start()
    for number in range(300):
        assert writer.call("EVAL", script, "0", str(number)) == b"$-1\r\n"
    stop.set()
    for thread in threads:
        thread.join()
    assert not torn


def test_counting_in_scripts_of_several_threads(start: Start, connect: Connect) -> None:
    server = start(threads=3)
    script = "return redis.call('set', KEYS[1], (tonumber(redis.call('get', KEYS[1])) or 0) + 1)"
    wires = [connect(server) for _ in range(6)]

    def count(wire: Wire) -> None:
        for _ in range(50):
            assert wire.call("EVAL", script, "1", "n") == b"+OK\r\n"

    threads = [threading.Thread(target=count, args=(wire,)) for wire in wires]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wires[0].call("GET", "n") == b"$3\r\n300\r\n"


def raising(problem: Exception) -> Callable[..., Any]:
    def fail(*_: object) -> Any:
        raise problem

    return fail


@pytest.mark.parametrize("problem", [DiskFull("disk full, write not stored"), ZeroDivisionError("on purpose")])
def test_a_shortage_in_the_midst_takes_all_of_it_back(
    server: StartedServer, engine: Engine, connect: Connect, problem: Exception
) -> None:
    """Also if the script catches the error and goes on."""
    wire = connect()
    assert wire.call("SET", "a", "old") == b"+OK\r\n"
    before = engine.root()
    replace(server, b"APPEND", raising(problem))
    script = "redis.call('set', 'a', 'new') pcall(redis.call, 'append', 'a', 'x') redis.pcall('set', 'b', 1) return 1"
    assert wire.call("EVAL", script, "0").endswith(b"write not stored\r\n")
    assert connect().call("MGET", "a", "b") == b"*2\r\n$3\r\nold\r\n$-1\r\n"
    assert engine.root() == before
    assert connect().call("EVAL", "return redis.call('set', 'a', 'new')", "0") == b"+OK\r\n"


def test_an_error_of_the_script_takes_nothing_back(resp: Wire) -> None:
    assert resp.call("EVAL", "redis.call('set', 'a', 1) error('x')", "0").startswith(b"-ERR user_script:1: x")
    assert resp.call("GET", "a") == b"$1\r\n1\r\n"


def test_in_a_transaction(resp: Wire) -> None:
    lines = [
        ("MULTI",),
        ("SET", "a", "1"),
        ("EVAL", "return redis.call('incr', KEYS[1])", "1", "a"),
        ("EVAL", "return redis.call('nosuch')", "0"),
        ("MSET", "b", "1", "c", "2"),
        ("GET", "a"),
        ("EXEC",),
    ]
    resp.send(b"".join(encode(*line) for line in lines))
    reply = [resp.resp() for _ in lines][-1]
    assert reply.startswith(b"*5\r\n+OK\r\n:2\r\n-ERR Unknown Redis command")
    assert reply.endswith(b"+OK\r\n$1\r\n2\r\n")


def test_a_script_that_finds_writes_stalled_runs_later(start: Start, connect: Connect, tmp_path: Path) -> None:
    engine = Engine(tmp_path / "full", memtable_size=64 << 10, checkpoint="manual", durability="never")
    while not engine.gate.stalled:
        engine.set(b"filler:%d" % engine.live_count, bytes(1000))
        engine.commit()
    server = start(engine=engine)
    wire, other = connect(server), connect(server)
    wire.send(encode("EVAL", "redis.call('set', 'a', 1) return redis.call('incr', 'a')", "0"))
    assert other.call("EVAL", "return redis.call('get', 'a')", "0") == b"$-1\r\n"
    engine.checkpoint_now()
    assert wire.resp() == b":2\r\n"
    server.stop(deadline_s=5)
    engine.close()


def test_patterns_on_large_values_are_matched(resp: Wire) -> None:
    """C would be asked to do too much, so Lua does it."""
    script = """
    local text = string.rep('key = value; ', 8000)
    local names = {}
    for name, value in text:gmatch('(%w+)%s*=%s*(%w+)') do names[#names + 1] = name .. value end
    local changed, count = text:gsub('%s*;%s*', '|')
    return {#names, names[1], names[8000], #changed, count, text:find('v.-;.-v'), {text:match('^(%w+)%s+(=)')}}
    """
    reply = resp.call("EVAL", script, "0")
    assert (
        reply
        == b"*7\r\n:8000\r\n$8\r\nkeyvalue\r\n$8\r\nkeyvalue\r\n:96000\r\n:8000\r\n:7\r\n*2\r\n$3\r\nkey\r\n$1\r\n=\r\n"
    )


# -- which scripts are known -------------------------------------------------------------------------------------------


def test_so_many_scripts_are_kept_and_no_more(resp: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreter, "SCRIPTS_MAX", 3)
    scripts = [f"return {number}" for number in range(4)]
    shas = [hashlib.sha1(script.encode()).hexdigest() for script in scripts]
    for script in scripts[:3]:
        assert resp.call("EVAL", script, "0") == b":%d\r\n" % scripts.index(script)
    assert resp.call("EVALSHA", shas[0], "0") == b":0\r\n"  # the most recently used now
    assert resp.call("SCRIPT", "LOAD", scripts[3]) == b"$40\r\n%b\r\n" % shas[3].encode()
    assert resp.call("SCRIPT", "EXISTS", *shas) == b"*4\r\n:1\r\n:0\r\n:1\r\n:1\r\n"
    monkeypatch.setattr(interpreter, "SOURCE_BYTES_MAX", 20)
    assert resp.call("EVAL", "return 12345678901234", "0") == b":12345678901234\r\n"
    assert resp.call("SCRIPT", "EXISTS", *shas) == b"*4\r\n:0\r\n:0\r\n:0\r\n:0\r\n"
    assert resp.call("EVALSHA", shas[0], "0") == b"-NOSCRIPT No matching script. Please use EVAL.\r\n"


def test_a_script_takes_many_arguments_and_no_more(resp: Wire) -> None:
    words = [str(number) for number in range(interpreter.ARGUMENTS_MAX)]
    assert resp.call("EVAL", "return {#KEYS, #ARGV, ARGV[#ARGV]}", "10", *words).endswith(b":6990\r\n$4\r\n6999\r\n")
    assert resp.call("EVAL", "return 1", "0", *words, "x") == b"-ERR a script takes at most 7000 keys and arguments\r\n"


def test_a_restart_forgets_scripts_and_keeps_what_they_wrote(node_factory: NodeFactory) -> None:
    node = node_factory()
    with redis.Redis(port=node.port) as client:
        sha = client.script_load("redis.call('set', KEYS[1], ARGV[1]) return redis.call('incr', KEYS[1])")
        assert client.evalsha(sha, 1, "n", 5) == 6
    node.kill()
    node.start()
    with redis.Redis(port=node.port) as client:
        assert client.get("n") == b"6"
        with pytest.raises(redis.exceptions.NoScriptError):
            client.evalsha(sha, 1, "n", 5)


# -- clients -----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[2, 3])
def client(request: pytest.FixtureRequest, server: StartedServer) -> Iterator[Any]:
    host, port = server.address
    with redis.Redis(host=host, port=port, protocol=request.param) as one:
        yield one


def test_redis_py(client: Any) -> None:
    add = client.register_script("return redis.call('incrby', KEYS[1], ARGV[1])")
    assert [add(keys=["n"], args=[5]), add(keys=["n"], args=[5])] == [5, 10]
    client.script_flush()
    assert add(keys=["n"], args=[5]) == 15
    with client.pipeline() as pipeline:
        add(keys=["n"], args=[1], client=pipeline)
        assert pipeline.get("n").execute() == [16, b"16"]


def test_locks_of_redis_py(client: Any) -> None:
    with client.lock("job", timeout=1000) as lock:
        assert not client.lock("job", blocking=False).acquire()
        assert lock.owned()
        assert lock.extend(2000)
        assert lock.reacquire()
        assert 500_000 < client.pttl("job") <= 1_000_000
    assert client.get("job") is None
    lock = client.lock("job", timeout=1000)
    assert lock.acquire()
    client.delete("job")
    with pytest.raises(redis.exceptions.LockNotOwnedError):
        lock.release()
