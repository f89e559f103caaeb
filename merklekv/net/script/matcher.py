"""Lua 5.1's pattern matching, in Lua: what C does, step by step, so that a hook can stop it.

C is faster, so it does the matching wherever few steps suffice. This does the rest: its time is that of the script.
The chunk returns find, match, gmatch and gsub, and the function that says where a search begins.
"""

from __future__ import annotations

from typing import Final

LUA: Final = rb"""
local byte, char, find, sub = string.byte, string.char, string.find, string.sub
local concat, error, tonumber, tostring, type, unpack = table.concat, error, tonumber, tostring, type, unpack
local huge = math.huge

local CAPTURES_MAX = 32
local UNFINISHED, POSITION = -1, -2

-- One matching: subject, pattern, and the captures so far.
local text, size, pattern, last, level, starts, lengths, items

local function begin(subject, wanted)
  local zero = find(wanted, "%z")
  text, size, pattern, last = subject, #subject, wanted, zero and zero - 1 or #wanted
  level, starts, lengths, items = 0, {}, {}, {}
end

-- Where the item of the pattern that begins here ends: the place behind it.
local function item_end(at)
  local c = byte(pattern, at)
  at = at + 1
  if c == 37 then  -- %
    if at > last then error("malformed pattern (ends with '%')", 0) end
    return at + 1
  end
  if c == 91 then  -- [
    if byte(pattern, at) == 94 then at = at + 1 end
    repeat
      if at > last then error("malformed pattern (missing ']')", 0) end
      c = byte(pattern, at)
      at = at + 1
      if c == 37 and at <= last then at = at + 1 end
    until at <= last and byte(pattern, at) == 93 or at > last
    if at > last then error("malformed pattern (missing ']')", 0) end
    return at + 1
  end
  return at
end

-- Whether a character of the subject is one that the item means.
local function is_item(c, at, following)
  if following == at + 1 then
    local wanted = byte(pattern, at)
    return wanted == 46 or wanted == c
  end
  local item = sub(pattern, at, following - 1)
  local known = items[item]
  if not known then
    known = {}
    items[item] = known
  end
  local answer = known[c]
  if answer == nil then
    answer = find(char(c), "^" .. item) ~= nil
    known[c] = answer
  end
  return answer
end

local function single(at, item, following)
  return at <= size and is_item(byte(text, at), item, following)
end

local step

local function expand(at, item, following)
  local count = 0
  while single(at + count, item, following) do count = count + 1 end
  while count >= 0 do
    local stop = step(at + count, following + 1)
    if stop then return stop end
    count = count - 1
  end
  return nil
end

local function expand_least(at, item, following)
  while true do
    local stop = step(at, following + 1)
    if stop then return stop end
    if not single(at, item, following) then return nil end
    at = at + 1
  end
end

local function open(at, item, kind)
  if level >= CAPTURES_MAX then error("too many captures", 0) end
  level = level + 1
  starts[level], lengths[level] = at, kind
  local stop = step(at, item)
  if not stop then level = level - 1 end
  return stop
end

local function close(at, item)
  local number = level
  while number > 0 and lengths[number] ~= UNFINISHED do number = number - 1 end
  if number == 0 then error("invalid pattern capture", 0) end
  lengths[number] = at - starts[number]
  local stop = step(at, item)
  if not stop then lengths[number] = UNFINISHED end
  return stop
end

local function same_again(at, digit)
  local number = digit - 48
  if number < 1 or number > level or lengths[number] == UNFINISHED then error("invalid capture index", 0) end
  local length = lengths[number]
  if length < 0 then return nil end
  if sub(text, at, at + length - 1) == sub(text, starts[number], starts[number] + length - 1) then
    return at + length
  end
  return nil
end

local function balance(at, item)
  if item + 1 > last then error("unbalanced pattern", 0) end
  local first, final = byte(pattern, item, item + 1)
  if at > size or byte(text, at) ~= first then return nil end
  local depth = 1
  for place = at + 1, size do
    local c = byte(text, place)
    if c == final then
      depth = depth - 1
      if depth == 0 then return place + 1 end
    elseif c == first then
      depth = depth + 1
    end
  end
  return nil
end

-- Matches the pattern from `item` on against the subject from `at` on: the place behind the match, or nil.
function step(at, item)
  while item <= last do
    local c = byte(pattern, item)
    local following = byte(pattern, item + 1)
    if c == 40 then                                                                       -- (
      if following == 41 then return open(at, item + 2, POSITION) end
      return open(at, item + 1, UNFINISHED)
    elseif c == 41 then return close(at, item + 1)                                        -- )
    elseif c == 36 and item == last then return at == size + 1 and at or nil              -- $
    elseif c == 37 and item < last and following == 98 then                               -- %b
      at = balance(at, item + 2)
      if not at then return nil end
      item = item + 4
    elseif c == 37 and item < last and following == 102 then                              -- %f
      item = item + 2
      if byte(pattern, item) ~= 91 then error("missing '[' after '%f' in pattern", 0) end
      local behind = item_end(item)
      local before = at > 1 and byte(text, at - 1) or 0
      if is_item(before, item, behind) or not is_item(byte(text, at) or 0, item, behind) then return nil end
      item = behind
    elseif c == 37 and item < last and following >= 48 and following <= 57 then           -- %1
      at = same_again(at, following)
      if not at then return nil end
      item = item + 2
    else
      local behind = item_end(item)
      local suffix = behind <= last and byte(pattern, behind) or 0
      if suffix == 42 then return expand(at, item, behind)                                -- *
      elseif suffix == 45 then return expand_least(at, item, behind)                      -- -
      elseif suffix == 43 then                                                            -- +
        return single(at, item, behind) and expand(at + 1, item, behind) or nil
      elseif suffix == 63 then                                                            -- ?
        if single(at, item, behind) then
          local stop = step(at + 1, behind + 1)
          if stop then return stop end
        end
        item = behind + 1
      else
        if not single(at, item, behind) then return nil end
        at, item = at + 1, behind
      end
    end
  end
  return at
end

local function capture(number, start, stop)
  if number > level then
    if number ~= 1 then error("invalid capture index", 0) end
    return sub(text, start, stop - 1)
  end
  local length = lengths[number]
  if length == UNFINISHED then error("unfinished capture", 0) end
  if length == POSITION then return starts[number] end
  return sub(text, starts[number], starts[number] + length - 1)
end

-- The captures of a match; the whole of it if the pattern has none and it is wanted.
local function captures(start, stop, whole)
  local found = {}
  local count = level == 0 and whole and 1 or level
  for number = 1, count do found[number] = capture(number, start, stop) end
  return found, count
end

local function place(start, length)
  start = tonumber(start) or 1
  if start < 0 then start = length + start + 1 end
  if start < 1 then return 1 end
  return start > length + 1 and length + 1 or start
end

local function search(subject, wanted, start, is_find)
  begin(subject, wanted)
  local at = place(start, size)
  local is_anchored = byte(pattern, 1) == 94
  local item = is_anchored and 2 or 1
  repeat
    level = 0
    local stop = step(at, item)
    if stop then
      local found, count = captures(at, stop, not is_find)
      if is_find then return at, stop - 1, unpack(found, 1, count) end
      return unpack(found, 1, count)
    end
    at = at + 1
  until is_anchored or at > size + 1
  return nil
end

local function slow_find(subject, wanted, start) return search(subject, wanted, start, true) end

local function slow_match(subject, wanted, start) return search(subject, wanted, start, false) end

local function slow_gmatch(subject, wanted)
  local at = 1
  return function()
    begin(subject, wanted)
    for start = at, size + 1 do
      level = 0
      local stop = step(start, 1)
      if stop then
        at = stop == start and stop + 1 or stop
        local found, count = captures(start, stop, true)
        return unpack(found, 1, count)
      end
    end
    at = size + 2
    return nil
  end
end

local function filled(replacement, start, stop)
  local parts, at = {}, 1
  while at <= #replacement do
    local c = byte(replacement, at)
    if c == 37 then
      at = at + 1
      local digit = byte(replacement, at)
      if digit == 48 then parts[#parts + 1] = sub(text, start, stop - 1)
      elseif digit and digit > 48 and digit <= 57 then
        parts[#parts + 1] = tostring(capture(digit - 48, start, stop))
      else parts[#parts + 1] = sub(replacement, at, at) end
    else
      parts[#parts + 1] = char(c)
    end
    at = at + 1
  end
  return concat(parts)
end

local function slow_gsub(subject, wanted, replacement, most)
  local kind = type(replacement)
  if kind == "number" then replacement, kind = tostring(replacement), "string" end
  if kind ~= "string" and kind ~= "function" and kind ~= "table" then
    error("bad argument #3 to 'gsub' (string/function/table expected)", 0)
  end
  most = tonumber(most) or huge
  begin(subject, wanted)
  local is_anchored = byte(pattern, 1) == 94
  local item = is_anchored and 2 or 1
  local parts, at, count = {}, 1, 0
  while count < most do
    level = 0
    local stop = step(at, item)
    if stop then
      count = count + 1
      local value
      if kind == "string" then
        value = filled(replacement, at, stop)
      else
        if kind == "table" then
          value = replacement[capture(1, at, stop)]
        else
          local found, number = captures(at, stop, true)
          value = replacement(unpack(found, 1, number))
          begin(subject, wanted)  -- the function may match, too
        end
        if not value then
          value = sub(text, at, stop - 1)
        elseif type(value) ~= "string" and type(value) ~= "number" then
          error("invalid replacement value (a " .. type(value) .. ")", 0)
        end
      end
      parts[#parts + 1] = value
    end
    if stop and stop > at then
      at = stop
    elseif at <= size then
      parts[#parts + 1] = sub(text, at, at)
      at = at + 1
    else
      break
    end
    if is_anchored then break end
  end
  parts[#parts + 1] = sub(text, at)
  return concat(parts), count
end

return slow_find, slow_match, slow_gmatch, slow_gsub, place
"""
