"""Pattern matching in Lua finds what Lua's own finds: the same places, captures and replacements, the same errors."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lupa import lua51

from merklekv.net.script import matcher

COMPARE = b"""
local find, match, gmatch, gsub = loadstring(...)()

local function show(...)
  local parts = {}
  for at = 1, select("#", ...) do parts[at] = type((select(at, ...))) .. ":" .. tostring((select(at, ...))) end
  return table.concat(parts, "|")
end

local function all(gmatch)
  return function(text, pattern)
    local parts = {}
    for a, b, c in gmatch(text, pattern) do parts[#parts + 1] = show(a, b, c) end
    return table.concat(parts, ";")
  end
end

local function outcome(run, ...)
  local shown = show(pcall(run, ...))
  return shown:find("^boolean:false") and "an error" or shown
end

local function change(a, b) return a and tostring(a) .. "!" end

return function(text, pattern, replacement, start, count)
  local own = {outcome(string.find, text, pattern, start), outcome(string.match, text, pattern, start),
               outcome(all(string.gmatch), text, pattern), outcome(string.gsub, text, pattern, replacement, count),
               outcome(string.gsub, text, pattern, change), outcome(string.gsub, text, pattern, {a = "x", b = false})}
  local ours = {outcome(find, text, pattern, start), outcome(match, text, pattern, start),
                outcome(all(gmatch), text, pattern), outcome(gsub, text, pattern, replacement, count),
                outcome(gsub, text, pattern, change), outcome(gsub, text, pattern, {a = "x", b = false})}
  for at = 1, #own do
    if own[at] ~= ours[at] then return at .. ": " .. own[at] .. " but " .. ours[at] end
  end
  return ""
end
"""
ATOMS = (
    *("a", "b", "x", ".", "-", "]", "^", "$", "%%", "%.", "%a", "%d", "%s", "%w", "%S", "[ab]", "[^a]", "[a-c]"),
    *("[%d_]", "[]a]", "[^]]", "[%]a]", "(", ")", "()", "%b()", "%f[%a]", "%1", "%2", "%", "["),
)
patterns = st.lists(st.tuples(st.sampled_from(ATOMS), st.sampled_from(("", "", "*", "+", "-", "?"))), max_size=6).map(
    lambda items: "".join(atom + suffix for atom, suffix in items)
)
captured = st.tuples(patterns, patterns, patterns).map(lambda parts: f"{parts[0]}({parts[1]}){parts[2]}")


@pytest.fixture(scope="module")
def compare() -> Any:
    lua = lua51.LuaRuntime(encoding=None, unpack_returned_tuples=True)
    return lua.execute(COMPARE, matcher.LUA)


@settings(max_examples=500, deadline=None)
@given(
    text=st.text("aab(c)1 _x.%]-", max_size=12),
    pattern=(patterns | captured).filter(
        lambda pattern: bool(set(pattern) & set("^$*+?.([%-"))
    ),  # else it is no pattern
    replacement=st.sampled_from(("", "<%0>", "%1-", "x%%", "%2")),
    start=st.integers(-15, 15),
    count=st.integers(0, 3) | st.just(1000),
)
def test_as_lua(compare: Any, text: str, pattern: str, replacement: str, start: int, count: int) -> None:
    words = (text.encode(), pattern.encode(), replacement.encode())
    assert compare(*words, start, count) == b""
