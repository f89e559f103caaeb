"""What clients send to the node's port: requests of both protocols, whole and broken, and what speaks neither."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import ClassVar, Final

from fixtures.grammar import WORDS, parse

import merklekv.net.commands  # noqa: F401  declares them
from merklekv.net.registry import CONTAINERS, LINE, RESP

from . import mutate
from .arena import ArenaPath, deliver, request

LOT: Final = 25  # requests on one connection
CONNECTIONS: Final = 40  # at once
# What any client may do, and after which all is rightly not as it was.
LAWFUL = re.compile(
    rb"(SHUTDOWN|FLUSHALL|FLUSHDB|FLUSH|TRUNCATE|MERGETRUNCATION|REPLICATE|FORGET"
    rb"|CLIENT (KILL|PAUSE)|CONFIG SET)\b.*",
    re.IGNORECASE | re.DOTALL,
)
SCRIPTS: Final = (
    *(b"return #KEYS", b"return redis.call(unpack(ARGV))", b"return redis.pcall(unpack(ARGV))", b"return {1,{2,{3}}}"),
    *(b"error({})", b"error(nil)", b"error(setmetatable({}, {__tostring = error}))", b"return redis.error_reply(nil)"),
    b"return redis.status_reply('a\\r\\nb')",
    *(b"local t = {} t.t = t return t", b"return {err = {}}"),
    *(b"local f f = function() return f() + 1 end return f()", b"return 0/0", b"return 2^63", b"return -2^63"),
    *(b"return loadstring('\\27Lua')", b"return loadstring(string.dump(function() end))()", b"return {[1e9] = 1}"),
    *(
        b"return cjson.decode(('['):rep(1e5))",
        b"return cjson.encode({[1] = 1, [1e8] = 2})",
        b"return cjson.decode('1e999')",
    ),
    *(
        b"return cmsgpack.unpack('\\219\\255\\255\\255\\255')",
        b"return struct.unpack('>I16', '')",
        b"return bit.tohex(1, -1e9)",
    ),
    *(
        b"return ('%99d'):format(1)",
        b"return ('%s'):rep(300):format()",
    ),
    *(
        b"return coroutine.wrap(function() return redis.call('PING') end)()",
        b"return collectgarbage('count')",
        b"return _G",
    ),
    *(
        b"_G.x = 1",
        b"rawset(_G, 'x', 1)",
        b"setmetatable(_G, nil)",
        b"redis = nil",
        b"return python",
        b"return redis.sha1hex()",
    ),
    *(
        b"return redis.call('EVAL', 'return 1', 0)",
        b"return redis.call('MULTI')",
        b"redis.setresp(9)",
        b"redis.setresp(3) return {map={}}",
    ),
    *(
        b"redis.replicate_commands()",
        b"redis.log(9, ('x'):rep(1e5))",
        b"#!lua flags=none\nreturn 1",
        b"#!",
        b"\0",
        b"return '\0'",
    ),
    *(
        b"return table.concat({}, 'x', 1, 1e6)",
        b"return unpack({}, 1, 1e6)",
        b"return select('#', unpack({}, 1, 7000))",
    ),
    *(
        b"return redis.call()",
        b"return redis.call({})",
        b"return redis.call('GET', {})",
        b"return redis.call('GET', 1.5)",
    ),
)
# Those that run until the node stops them, which is allowed to take seconds.
LONG_SCRIPTS: Final = (
    b"return string.rep('x', 1e9)",
    b"return ('x'):rep(1e6):rep(1e6)",
    b"return ('a'):rep(40):find(('a*'):rep(20) .. 'b')",
    b"local t = {} for i = 1, 1e5 do t = {t} end return t",
    b"while true do end",
    b"while true do pcall(function() while true do end end) end",
    b"local t = {} while true do t[#t + 1] = ('x'):rep(1e5) .. #t end",
    b"while true do redis.call('INCR', KEYS[1]) end",
    b"local function f() return pcall(f) end return f()",
    b"local s = 'x' while true do s = s .. s end",
    b"return {redis.call('MGET', unpack({}, 1, 5000))}",
)
KEYS: Final = (b"hostile:1", b"hostile:2", b"hostile:3", b"k\0\xff\r\n", b"x" * 511)


class Commands:
    """Makes requests from the syntax of these commands."""

    def __init__(self, syntaxes: Sequence[str]) -> None:
        self._trees = [parse(syntax) for syntax in syntaxes]

    def make(self, chance: random.Random) -> list[bytes]:
        made = self._words(chance, chance.choice(self._trees))
        for _ in range(chance.choice((0, 0, 0, 1, 1, 2))):
            at = chance.randrange(1, len(made) + 1)
            match chance.randrange(4):
                case 0:
                    del made[at:]
                case 1:
                    made.insert(at, mutate.word(chance))
                case 2:
                    made[at : at + 1] = [mutate.word(chance)]
                case _:
                    made[at:] = made[at:] * chance.choice((2, 2, 20))
        return made if not LAWFUL.match(b" ".join(made)) else [b"PING"]

    def _words(self, chance: random.Random, node: object) -> list[bytes]:
        if isinstance(node, str):
            if node.isupper() or not node.replace("-", "").isalnum():
                return [chance.choice(node.split("|")).encode()]
            if node in ("script", "sha1") and chance.random() < 0.7:
                return [chance.choice(SCRIPTS)]
            if node in WORDS and chance.random() < 0.6:
                return [WORDS[node](chance)]
            return [chance.choice(KEYS) if "key" in node and chance.random() < 0.7 else mutate.word(chance)]
        group = vars(node)
        times = chance.randint(1, 4) if group["repeats"] else 1
        if group["is_optional"] and chance.random() > 0.5:
            times = 0
        return [
            word
            for _ in range(times)
            for part in chance.choice(group["alternatives"])
            for word in self._words(chance, part)
        ]


RESP_COMMANDS: Final = Commands(
    [one.syntax for one in RESP.values() if one.name and not LAWFUL.match(one.name.encode())]
    + [f"{name} {one.syntax}" for name, container in CONTAINERS.items() for one in container.commands]
)
LINE_COMMANDS: Final = Commands(
    [one.syntax for one in LINE.values() if one.name and not LAWFUL.match(one.name.encode())]
)
HEADS: Final = (
    *(b"*-1\r\n", b"*0\r\n", b"*-2\r\n", b"*1048577\r\n", b"*99999999999999999999\r\n", b"*" + mutate.DIGITS + b"\r\n"),
    *(b"*\r\n", b"*+1\r\n", b"* 1\r\n", b"*1\n", b"*1\r", b"*01\r\n", b"*1\r\n*1\r\n*1\r\n", b"*1\r\n" * 1000),
    *(b"*1\r\n$-1\r\n", b"*1\r\n$-2\r\n", b"*1\r\n$1048600\r\n", b"*1\r\n$99999999999\r\n", b"*1\r\n$" + mutate.DIGITS),
    *(b"*1\r\n$+4\r\nPING\r\n", b"*1\r\n$4\r\nPINGxx", b"*1\r\n$4\nPING\n", b"*1\r\n:1\r\n", b"*1\r\n+PING\r\n"),
    *(
        b"%1\r\n+a\r\n+b\r\n",
        b"~1\r\n+a\r\n",
        b">1\r\n+a\r\n",
        b"#t\r\n",
        b"_\r\n",
        b",nan\r\n",
        b"(1\r\n",
        b"=8\r\ntxt:PING\r\n",
    ),
    *(
        b"|1\r\n+a\r\n+b\r\n",
        b"$?\r\n;4\r\nPING\r\n;0\r\n",
        b"*?\r\n",
        b"$4\r\nPING\r\n",
        b":1\r\n",
        b"-ERR\r\n",
        b"+OK\r\n",
    ),
    *(
        b'PING "',
        b"PING '",
        b'PING "\\x',
        b"x" * 70_000,
        b"\r\n" * 1000,
        b"\n",
        b"\0",
        b'SET "a"b c\r\n',
        b'"' * 100 + b"\n",
    ),
)


NAMES: Final = [one.name.encode() for one in RESP.values() if one.name and not LAWFUL.match(one.name.encode())]


class Resp(ArenaPath):
    """Requests of RESP: each of its own framing, arguments and pipeline."""

    name = "resp"
    quiet_s: ClassVar = 1.0

    def volley(self, seeds: Sequence[int]) -> None:
        size = LOT * CONNECTIONS
        for at in range(0, len(seeds), size):
            self._send(seeds[at : at + size])

    def _send(self, seeds: Sequence[int]) -> None:
        whole = [self.whole(random.Random(seed)) for seed in seeds if not self.is_broken(seed)]
        lots = [b"".join(whole[at : at + LOT]) for at in range(0, len(whole), LOT)]
        broken = [self.broken(random.Random(seed)) for seed in seeds if self.is_broken(seed)]
        for payloads in (lots, broken):
            for at in range(0, len(payloads), CONNECTIONS):
                some = payloads[at : at + CONNECTIONS]
                self.require_sound(deliver(self.scene.arena.victim.port, some, self.quiet_s))

    def is_broken(self, seed: int) -> bool:
        """Whether the connection ends with this input."""
        return seed % 5 == 0

    def whole(self, chance: random.Random) -> bytes:
        """A request that leaves the connection usable."""
        return request(*RESP_COMMANDS.make(chance))

    def broken(self, chance: random.Random) -> bytes:
        """What ends a connection, behind what begins one."""
        before = request(b"HELLO", chance.choice((b"2", b"3"))) if chance.random() < 0.5 else request(b"PING")
        before += b"".join(self.whole(chance) for _ in range(chance.randrange(3)))
        kind = chance.random()
        if kind < 0.5:
            return before + mutate.damaged(chance, self.whole(chance))
        if kind < 0.9:
            return before + chance.choice(HEADS) + chance.choice((b"", request(b"PING"), chance.randbytes(20)))
        return before + chance.randbytes(chance.choice((1, 10, 1000, 70_000)))

    def show(self, seed: int) -> str:
        made = (self.broken if self.is_broken(seed) else self.whole)(random.Random(seed))
        return repr(made[:1000])


class Dialogue(Resp):
    """Connections with a state: transactions, watches, subscriptions, scripts, replies that are switched off."""

    name = "dialogue"
    share = 0.5  # each has a connection of its own
    quiet_s = 0.15  # many wait for something that does not come
    STEPS: ClassVar = (
        *(
            [b"MULTI"],
            [b"EXEC"],
            [b"DISCARD"],
            [b"WATCH", b"hostile:1"],
            [b"UNWATCH"],
            [b"HELLO", b"3"],
            [b"HELLO", b"2"],
        ),
        *(
            [b"SUBSCRIBE", b"a", b"a"],
            [b"PSUBSCRIBE", b"*"],
            [b"PSUBSCRIBE", b"*" * 500],
            [b"UNSUBSCRIBE"],
            [b"PUNSUBSCRIBE"],
        ),
        *(
            [b"PUBLISH", b"a", b"x" * 1000],
            [b"CLIENT", b"REPLY", b"SKIP"],
            [b"CLIENT", b"REPLY", b"OFF"],
            [b"RESET"],
            [b"QUIT"],
        ),
        *(
            [b"CLIENT", b"REPLY", b"ON"],
            [b"MONITOR"],
            [b"CHANGES", b"$", b"BLOCK", b"1"],
            [b"CHANGES", b""],
            [b"SELECT", b"0"],
        ),
        *(
            [b"SET", b"hostile:1", b"x" * 10_000],
            [b"GET", b"hostile:1"],
            [b"SCAN", b"0"],
            [b"CLIENT", b"LIST"],
            [b"SLOWLOG", b"GET"],
        ),
        *(
            [b"CHANGES", b"$", b"BLOCK", b"0"],
            [b"CLIENT", b"UNBLOCK", b"1"],
            [b"ASKING"],
            [b"AUTH", b"x", b"y"],
            [b"WAIT", b"1", b"0"],
        ),
    )

    def is_broken(self, seed: int) -> bool:
        return True

    def broken(self, chance: random.Random) -> bytes:
        steps = [request(b"MULTI")] if chance.random() < 0.4 else []
        for _ in range(chance.randrange(2, 12)):
            if chance.random() < 0.6:
                steps.append(request(*chance.choice(self.STEPS)))
            elif chance.random() < 0.3:
                steps.append(request(chance.choice(NAMES), *[b"x"] * chance.choice((0, 0, 1))))
            elif chance.random() < 0.5:
                steps.append(request(b"EVAL", chance.choice(SCRIPTS), b"1", b"hostile:1", mutate.word(chance)))
            else:
                steps.append(self.whole(chance))
        whole = b"".join(steps)
        return whole if chance.random() < 0.7 else whole[: chance.randrange(len(whole))]


class Scripts(Resp):
    """Scripts, those that the node has to stop too. All others wait for a script, so how soon they are answered is no
    matter here.
    """

    name = "scripts"
    share = 0.5
    is_measured = False
    memory_room = 80 << 20  # a script may hold 64 MiB, which do not come back in one piece; the compiled ones stay

    def is_broken(self, seed: int) -> bool:
        return False

    def whole(self, chance: random.Random) -> bytes:
        script = chance.choice(LONG_SCRIPTS) if chance.random() < 0.005 else chance.choice(SCRIPTS)
        if chance.random() < 0.4:
            script = mutate.damaged(chance, script)
        words = [mutate.word(chance) for _ in range(chance.choice((0, 1, 3, 3)))]
        name = chance.choice((b"EVAL", b"EVAL", b"EVAL", b"EVAL_RO", b"SCRIPT"))
        if name == b"SCRIPT":
            return request(name, b"LOAD", script)
        made = [name, script, chance.choice((b"1", b"1", b"0", mutate.word(chance))), b"hostile:1", *words]
        return request(*made) if not LAWFUL.match(b" ".join(words)) else request(b"PING")


class Lines(Resp):
    """The line protocol."""

    name = "lines"

    def is_broken(self, seed: int) -> bool:
        return seed % 10 == 0

    def whole(self, chance: random.Random) -> bytes:
        line = b" ".join(LINE_COMMANDS.make(chance)).replace(b"\n", b"_").lstrip(b"*")
        if chance.random() < 0.2:
            line = mutate.damaged(chance, line).replace(b"\n", b"_").lstrip(b"*")
        if LAWFUL.match(line.strip()):
            line = b"PING"
        return line + chance.choice((b"\n", b"\r\n", b" \t\r\n"))

    def broken(self, chance: random.Random) -> bytes:
        begins = b"PING\n" + self.whole(chance)
        return begins + chance.choice(
            (
                *(
                    b"x" * 70_000,
                    b"\0" * 5000,
                    b"*1\r\n$4\r\nPING\r\n",
                    b"GET " + b"k" * 2_000_000,
                    b"POST / HTTP/1.1\r\n\r\nSET hostile:1 1\r\n",
                ),
                *(
                    b"Host: a\r\n",
                    b"SET hostile:1 " + b"v" * 1_100_000 + b"\n",
                    b"GET",
                    b"\r",
                    b"\x16\x03\x01",
                    chance.randbytes(500),
                ),
            )
        )


FOREIGN: Final = (
    bytes.fromhex("16030100c8010000c40303") + bytes(range(32)) + bytes(200),
    bytes.fromhex("101600044d5154540402003c000a6d6f737175697474") + b"ox",
    bytes.fromhex("103600064d514973647003c2003c") + bytes(60),
    b"SSH-2.0-OpenSSH_9.2\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 30\r\n\r\nSET hostile:1 x\r\nSET hostile:2 y\r\n",
    b"PUT /k HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nSET a\r\n0\r\n\r\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\nPING\r\n",
    b"\r\n\r\n\0\r\nQUIT\n" + bytes(20),
    b"set k 0 0 5\r\nhello\r\nget k\r\n",
    b"\x80\x0b\0\0\0\0\0\0\0\0\0\0" + bytes(20),
    bytes.fromhex("0000000804d2162f"),
    bytes.fromhex("000000540003000075736572") + bytes(70),
    b"\x4a\0\0\0\x0a5.5.5" + bytes(60),
    bytes.fromhex("3a000000a741000000000000d4070000") + bytes(42),
    b"EHLO localhost\r\nMAIL FROM:<a@b>\r\n",
    b"USER anonymous\r\nPASS x\r\n",
    b"REDIS0011\xfa\x09redis-ver\x057.0.0",
    b"*3\r\n$8\r\nREPLCONF\r\n$4\r\ncapa\r\n$3\r\neof\r\n*3\r\n$5\r\nPSYNC\r\n$1\r\n?\r\n$2\r\n-1\r\n",
    bytes.fromhex("0300001302e00800000000") + bytes(8),
    b"\0" * 1000,
    b"\xff" * 1000,
)


class Foreign(Resp):
    """What speaks another protocol."""

    name = "foreign"

    def is_broken(self, seed: int) -> bool:
        return True

    def broken(self, chance: random.Random) -> bytes:
        sample = chance.choice(FOREIGN)
        return mutate.damaged(chance, sample) if chance.random() < 0.8 else sample


PATHS = (Resp, Dialogue, Scripts, Lines, Foreign)
