"""The Lua side of a runtime: what scripts find, what is kept from them, and how one runs.

The chunk gets five Python functions, the version of Redis and the chunk of `matcher.py`. It returns the Lua functions
that `interpreter.py` calls.

What keeps a script inside:

- It runs in an environment of its own, `_G` to it, whose entries and libraries are read-only, so no script leaves
  anything for the next one. `getmetatable` and `rawset` do not get past that.
- What reaches files, modules, bytecode, other environments or Python is not in the environment: `io`, `os` but for its
  clock, `package`, `require`, `debug`, `load` and its kin, `getfenv`, `setfenv`, `newproxy`, `string.dump`, `python`.
- No Python object reaches a script: the functions here get and return strings and numbers only, and never raise.
- A hook that counts instructions asks for the time. Once it is over, a hook at every line raises, so no `pcall` of the
  script goes on. Hooks do not run inside C functions and coroutines. So there are no coroutines; pattern matching that
  may take many steps is done in Lua, see `matcher.py`; sorting compares in Lua; and functions that may take some ms ask
  for the time themselves.
"""

from __future__ import annotations

from typing import Final

LUA: Final = rb"""
local server, speak, is_over, sha1, search, redis_version, matcher = ...

local error, getmetatable, ipairs, next, pcall, rawget, rawset, select, setmetatable, tonumber, tostring, type, unpack,
      xpcall =
      error, getmetatable, ipairs, next, pcall, rawget, rawset, select, setmetatable, tonumber, tostring, type, unpack,
      xpcall
local byte, char, find, format, gmatch, gsub, match, rep, sub = string.byte, string.char, string.find, string.format,
      string.gmatch, string.gsub, string.match, string.rep, string.sub
local concat, maxn, floor, huge, clock = table.concat, table.maxn, math.floor, math.huge, os.clock
local sethook, getinfo = debug.sethook, debug.getinfo
local setfenv, loadstring, newproxy, collectgarbage = setfenv, loadstring, newproxy, collectgarbage

local slow_find, slow_match, slow_gmatch, slow_gsub, place = loadstring(matcher, "=matcher")()

local READONLY = "Attempt to modify a readonly table"
local HOOK_INSTRUCTIONS = 200
local CHECK_HOOKS = 5  -- between two looks at the time, or one while the script holds CHECK_KIB
local CHECK_KIB = 4096
local CHECK_S = 0.001  -- of the processor, between two questions to Python
local LARGE = 1000  -- bytes of a string or entries of a table: to work on so many may take long
local SORTED_MAX = 100  -- entries of a table that is sorted in C
local ENTRIES_MAX = 2 ^ 22  -- of a table: they take 64 MiB
local DEPTH_MAX = 1000  -- of JSON
local REPLY_DEPTH_MAX = 128

-- read-only tables ------------------------------------------------------------------------------------------------

local protected = {}

local function refuse() error(READONLY, 2) end

local function readonly(content)
  local proxy = setmetatable({}, {__index = content, __newindex = refuse, __metatable = false})
  protected[proxy] = content
  return proxy
end

-- Calls `guard` before a C function, which keeps its name in errors.
local function guarded(name, run, guard)
  local text = "local NAME, guard = ... return function(...) guard(...) return NAME(...) end"
  return loadstring((gsub(text, "NAME", name)), '=[string "<python>"]')(run, guard)
end

local base = {}

function base.rawset(t, key, value)
  if protected[t] then error(READONLY, 0) end
  return rawset(t, key, value)
end

function base.rawget(t, key)
  return rawget(protected[t] or t, key)
end

function base.setmetatable(t, metatable)
  if protected[t] then error(READONLY, 0) end
  return setmetatable(t, metatable)
end

function base.next(t, key)
  return next(protected[t] or t, key)
end

function base.pairs(t)
  return base.next, t, nil
end

local NO_MEMORY = "not enough memory"

local function stop() error("script stopped", 0) end

-- Errors of C functions are those of the script, not of the functions here that call them.
local PLACE = '^%[string "<python>"%]:%d+: '

local check_at = 0  -- by the clock of the processor
local hooks = 0  -- since the last look at the time

local function check_time()
  local now = clock()
  if now < check_at then return end
  check_at = now + CHECK_S
  if is_over() then
    sethook(stop, "l")
    error("script stopped", 0)
  end
end

-- With long texts each operator may take long. Without, the clock would cost more than the script.
local function hook()
  hooks = hooks + 1
  if hooks < CHECK_HOOKS and collectgarbage("count") < CHECK_KIB then return end
  hooks = 0
  check_time()
end

local function watch(thing)
  local kind = type(thing)
  if (kind == "string" or kind == "table") and #thing > LARGE then check_time() end
end

-- An error that is a table with the field `err`, as those of redis.call, reaches the script as its text. A script that
-- has found no memory does not go on.
local function outcome(ok, problem, ...)
  if not ok and problem == NO_MEMORY then
    is_over()  -- it makes room for the end
    sethook(stop, "l")
    error(problem, 0)
  end
  if not ok and type(problem) == "table" and type(rawget(problem, "err")) == "string" then
    problem = problem.err
  end
  if not ok and type(problem) == "string" then problem = gsub(problem, PLACE, "") end
  return ok, problem, ...
end

function base.pcall(...)
  return outcome(pcall(...))
end

-- The handler runs behind the error, not in its midst: after a hook has raised, no hook would stop the handler.
function base.xpcall(run, handler)
  local results = {base.pcall(run)}
  if results[1] then return unpack(results, 1, maxn(results)) end
  return false, handler(results[2])
end

function base.collectgarbage(option)
  if option == nil or option == "collect" or option == "count" then
    check_time()
    return collectgarbage(option)
  end
  error("only 'collect' and 'count' are allowed", 2)
end

for _, name in ipairs{"assert", "error", "getmetatable", "ipairs", "rawequal", "select", "tostring", "type",
                      "_VERSION"} do
  base[name] = _G[name]
end
base.tonumber = guarded("tonumber", tonumber, watch)

-- C computes with 32 bits how many values that are, and ends the process where they do not suffice.
function base.unpack(...)
  local _, first, last = ...
  if first or last then
    first, last = tonumber(first) or 1, tonumber(last) or 0
    if not (first >= -2 ^ 31 and first < 2 ^ 31 and last >= -2 ^ 31 and last < 2 ^ 31 and last - first < 2 ^ 30) then
      error("too many results to unpack")
    end
  end
  return unpack(...)
end

-- pattern matching: in C where few steps suffice, else in Lua, where a hook can stop it ----------------------------

local STEPS_MAX = 2 ^ 22
local BYTES_MAX = 2 ^ 28  -- compared with each other, which is faster
local SPECIAL = "[%^%$%*%+%?%.%(%[%%%-]"
local PATTERN_MAX = 256  -- C needs stack for each byte

-- Whether matching may take many steps: at worst a power of the length, which each repetition in the pattern raises.
local function is_slow(subject, pattern)
  local subject_type, pattern_type = type(subject), type(pattern)
  if subject_type ~= "string" and subject_type ~= "number" or pattern_type ~= "string" and pattern_type ~= "number" then
    return false  -- the function itself refuses them
  end
  subject, pattern = tostring(subject), tostring(pattern)
  if not find(pattern, "[%*%+%-%?%%%[]") then
    check_time()
    return #subject * #pattern > BYTES_MAX
  end
  if #pattern > PATTERN_MAX then return true end
  local power, choices = 1, 0
  for at = 1, #pattern do
    local c = byte(pattern, at)
    if c == 42 or c == 43 or c == 45 then power = power + 1  -- * + -
    elseif c == 63 then choices = choices + 1                -- ?
    elseif c == 37 then                                      -- %b and %1 scan the subject, too
      local following = byte(pattern, at + 1) or 0
      if following == 98 or (following >= 48 and following <= 57) then power = power + 1 end
    end
  end
  if byte(pattern, 1) == 94 then power = power - 1 end
  return (#subject + 1) ^ power * 2 ^ choices > STEPS_MAX
end

local strings = {}
for _, name in ipairs{"byte", "char", "len", "sub"} do strings[name] = string[name] end
for _, name in ipairs{"format", "lower", "reverse", "upper"} do
  strings[name] = guarded(name, string[name], name == "format" and check_time or watch)
end

function strings.find(subject, pattern, start, plain)
  local slow = is_slow(subject, plain and "" or pattern)
  if slow and find(pattern, SPECIAL) then return slow_find(tostring(subject), tostring(pattern), start) end
  if slow or plain and type(subject) == "string" and type(pattern) == "string" and #subject * #pattern > BYTES_MAX then
    subject, pattern = tostring(subject), tostring(pattern)
    start = floor(place(start, #subject))
    local at = search(sub(subject, start), pattern)
    if at == 0 then return nil end
    return start + at - 1, start + at - 2 + #pattern
  end
  return find(subject, pattern, start, plain)
end

function strings.match(subject, pattern, start)
  if is_slow(subject, pattern) then return slow_match(tostring(subject), tostring(pattern), start) end
  return match(subject, pattern, start)
end

function strings.gmatch(subject, pattern)
  if is_slow(subject, pattern) then return slow_gmatch(tostring(subject), tostring(pattern)) end
  return gmatch(subject, pattern)
end
strings.gfind = strings.gmatch

function strings.gsub(subject, pattern, replacement, count)
  if is_slow(subject, pattern) then
    return slow_gsub(tostring(subject), tostring(pattern), replacement, count)
  end
  return gsub(subject, pattern, replacement, count)
end

local repeated = guarded("rep", rep, check_time)
function strings.rep(...)
  if ... == "" then return "" end
  return repeated(...)
end

local string_meta = getmetatable("")
string_meta.__index = strings
string_meta.__metatable = false

-- cjson ------------------------------------------------------------------------------------------------------------

local null = newproxy()
local ESCAPES = {["\b"] = "\\b", ["\t"] = "\\t", ["\n"] = "\\n", ["\f"] = "\\f", ["\r"] = "\\r", ['"'] = '\\"',
                 ["\\"] = "\\\\", ["/"] = "\\/"}
local UNESCAPES = {b = "\b", t = "\t", n = "\n", f = "\f", r = "\r", ['"'] = '"', ["\\"] = "\\", ["/"] = "/"}

local function escape(c) return ESCAPES[c] or format("\\u%04x", byte(c)) end

local function json_string(text)
  return '"' .. gsub(text, '[%z\1-\31"\\/\127]', escape) .. '"'
end

local function json_number(number)
  if number ~= number or number == huge or number == -huge then
    error("Cannot serialise number: must not be NaN or Inf", 0)
  end
  return format("%.14g", number)
end

-- How long a table is as an array; nil if it is none.
local function array_length(t)
  local last, count = 0, 0
  for key in next, t do
    if type(key) ~= "number" or key < 1 or floor(key) ~= key then return nil end
    if key > last then last = key end
    count = count + 1
  end
  if last > 10 and last > count * 2 then
    error("Cannot serialise table: excessively sparse array", 0)
  end
  return last
end

local function encode_json(value, depth)
  local kind = type(value)
  if kind == "string" then return json_string(value) end
  if kind == "number" then return json_number(value) end
  if kind == "boolean" then return tostring(value) end
  if kind == "nil" or value == null then return "null" end
  if kind ~= "table" then error("Cannot serialise " .. kind .. ": type not supported", 0) end
  if depth > DEPTH_MAX then error("Cannot serialise, excessive depth (" .. depth .. ")", 0) end
  value = protected[value] or value
  local length, parts = array_length(value), {}
  if length and length > 0 then
    for at = 1, length do parts[at] = encode_json(rawget(value, at), depth + 1) end
    return "[" .. concat(parts, ",") .. "]"
  end
  for key, item in next, value do
    if type(key) == "number" then
      key = '"' .. json_number(key) .. '"'
    elseif type(key) == "string" then
      key = json_string(key)
    else
      error("Cannot serialise table: table key must be a number or string", 0)
    end
    parts[#parts + 1] = key .. ":" .. encode_json(item, depth + 1)
  end
  return "{" .. concat(parts, ",") .. "}"
end

local function utf8(code)
  if code < 0x80 then return char(code) end
  if code < 0x800 then return char(0xC0 + floor(code / 64), 0x80 + code % 64) end
  if code < 0x10000 then
    return char(0xE0 + floor(code / 4096), 0x80 + floor(code / 64) % 64, 0x80 + code % 64)
  end
  return char(0xF0 + floor(code / 262144), 0x80 + floor(code / 4096) % 64, 0x80 + floor(code / 64) % 64,
              0x80 + code % 64)
end

local function expected(what, found, at)
  error("Expected " .. what .. " but found " .. found .. " at character " .. at, 0)
end

local function token(text, at)
  if at > #text then return "T_END" end
  local c = sub(text, at, at)
  local names = {["{"] = "T_OBJ_BEGIN", ["}"] = "T_OBJ_END", ["["] = "T_ARR_BEGIN", ["]"] = "T_ARR_END",
                 [","] = "T_COMMA", [":"] = "T_COLON", ['"'] = "T_STRING"}
  return names[c] or (find(c, "[%d%-]") and "T_NUMBER") or "invalid token"
end

local function skip(text, at) return find(text, "[^ \t\r\n]", at) or #text + 1 end

local function decode_string(text, at)
  local start, parts = at, {}
  at = at + 1
  while true do
    local stop = find(text, '["\\%z\1-\31]', at)
    if not stop then expected("value", "unexpected end of string", #text + 1) end
    parts[#parts + 1] = sub(text, at, stop - 1)
    local c = sub(text, stop, stop)
    if c == '"' then return concat(parts), stop + 1 end
    if c ~= "\\" then expected("value", "invalid token", stop) end
    c = sub(text, stop + 1, stop + 1)
    if c == "u" then
      local digits = match(text, "^%x%x%x%x", stop + 2)
      if not digits then expected("value", "invalid unicode escape code", stop) end
      local code = tonumber(digits, 16)
      at = stop + 6
      if code >= 0xD800 and code < 0xDC00 then
        local low = match(text, "^\\u(%x%x%x%x)", at)
        low = low and tonumber(low, 16)
        if not low or low < 0xDC00 or low > 0xDFFF then expected("value", "invalid unicode escape code", stop) end
        code = 0x10000 + (code - 0xD800) * 1024 + (low - 0xDC00)
        at = at + 6
      end
      parts[#parts + 1] = utf8(code)
    elseif UNESCAPES[c] then
      parts[#parts + 1] = UNESCAPES[c]
      at = stop + 2
    else
      expected("value", "invalid escape code", stop)
    end
  end
end

local function decode_json(text, at, depth)
  if depth > DEPTH_MAX then error("Found too many nested data structures (" .. depth .. ")", 0) end
  at = skip(text, at)
  local c = sub(text, at, at)
  if c == '"' then return decode_string(text, at) end
  if c == "{" then
    local object = {}
    at = skip(text, at + 1)
    if sub(text, at, at) == "}" then return object, at + 1 end
    while true do
      if sub(text, at, at) ~= '"' then expected("object key string", token(text, at), at) end
      local key, value
      key, at = decode_string(text, at)
      at = skip(text, at)
      if sub(text, at, at) ~= ":" then expected("colon", token(text, at), at) end
      value, at = decode_json(text, at + 1, depth + 1)
      object[key] = value
      at = skip(text, at)
      c = sub(text, at, at)
      if c == "}" then return object, at + 1 end
      if c ~= "," then expected("comma or object end", token(text, at), at) end
      at = skip(text, at + 1)
    end
  end
  if c == "[" then
    local array, count = {}, 0
    at = skip(text, at + 1)
    if sub(text, at, at) == "]" then return array, at + 1 end
    while true do
      count = count + 1
      array[count], at = decode_json(text, at, depth + 1)
      at = skip(text, at)
      c = sub(text, at, at)
      if c == "]" then return array, at + 1 end
      if c ~= "," then expected("comma or array end", token(text, at), at) end
      at = at + 1
    end
  end
  local word = match(text, "^%-?%d[%w%.%+%-]*", at) or match(text, "^%a+", at)
  if word == "true" then return true, at + 4 end
  if word == "false" then return false, at + 5 end
  if word == "null" then return null, at + 4 end
  local number = word and find(word, "^%-?%d") and tonumber(word)
  if not number then expected("value", token(text, at), at) end
  return number, at + #word
end

local script_line

-- Raises an error of a library with the position in the script, as those of C functions have.
local function complain(problem)
  local line = script_line()
  error(line and problem ~= NO_MEMORY and "user_script:" .. line .. ": " .. problem or problem, 0)
end

local function located(run, ...)
  local ok, result = pcall(run, ...)
  if ok then return result end
  complain(result)
end

local cjson = {null = null, _NAME = "cjson"}

function cjson.encode(...)
  if select("#", ...) ~= 1 then complain("bad argument #1 to 'encode' (expected 1 argument)") end
  return located(encode_json, ..., 1)
end

local function decode_all(text)
  local value, at = decode_json(text, 1, 1)
  at = skip(text, at)
  if at <= #text then expected("the end", token(text, at), at) end
  return value
end

function cjson.decode(...)
  if select("#", ...) ~= 1 then complain("bad argument #1 to 'decode' (expected 1 argument)") end
  local text = ...
  if type(text) == "number" then text = tostring(text) end
  if type(text) ~= "string" then
    complain("bad argument #1 to 'decode' (string expected, got " .. type(text) .. ")")
  end
  return located(decode_all, text)
end

-- replies: RESP to Lua and back ------------------------------------------------------------------------------------

local decode

local function decode_many(text, at, count)
  local items = {}
  for index = 1, count do items[index], at = decode(text, at) end
  return items, at
end

local function decode_pairs(text, at, count, set)
  local items, key, value = {}
  for _ = 1, count do
    key, at = decode(text, at)
    value = true
    if not set then value, at = decode(text, at) end
    if key ~= nil then items[key] = value end
  end
  return items, at
end

function decode(text, at)
  local kind = byte(text, at)
  local stop = find(text, "\r\n", at + 1, true)
  local line = sub(text, at + 1, stop - 1)
  local following = stop + 2
  if kind == 36 then  -- $
    local size = tonumber(line)
    if size < 0 then return false, following end
    return sub(text, following, following + size - 1), following + size + 2
  elseif kind == 58 then return tonumber(line), following                   -- :
  elseif kind == 43 then return {ok = line}, following                      -- +
  elseif kind == 45 then return {err = line}, following                     -- -
  elseif kind == 42 then                                                    -- *
    local count = tonumber(line)
    if count < 0 then return false, following end
    return decode_many(text, following, count)
  elseif kind == 95 then return nil, following                              -- _
  elseif kind == 37 then                                                    -- %
    local items
    items, at = decode_pairs(text, following, tonumber(line), false)
    return {map = items}, at
  elseif kind == 126 then                                                   -- ~
    local items
    items, at = decode_pairs(text, following, tonumber(line), true)
    return {set = items}, at
  elseif kind == 44 then return {double = tonumber(line)}, following        -- ,
  elseif kind == 35 then return line == "t", following                      -- #
  elseif kind == 40 then return {big_number = line}, following              -- (
  elseif kind == 61 then                                                    -- =
    local size = tonumber(line)
    local value = {format = sub(text, following, following + 2),
                   string = sub(text, following + 4, following + size - 1)}
    return {verbatim_string = value}, following + size + 2
  end
  return {err = "ERR a reply that a script cannot read"}, #text + 1
end

local protocol, script_protocol = 2, 2  -- of the client, and as the script has chosen for itself

local function one_line(text) return (gsub(text, "[\r\n]", " ")) end

local function integer(number) return ":" .. format("%d", number) .. "\r\n" end

local function bulk(text) return "$" .. #text .. "\r\n" .. text .. "\r\n" end

local function nothing() return protocol == 3 and "_\r\n" or "$-1\r\n" end

local encode

local function encode_items(items, keys, values, head, depth)
  local parts, count = {""}, 0
  for key, value in next, items do
    count = count + 1
    parts[#parts + 1] = encode(key, depth + 1)
    if values then parts[#parts + 1] = encode(value, depth + 1) end
  end
  local factor = values and protocol == 2 and 2 or 1
  parts[1] = (protocol == 3 and head or "*") .. count * factor .. "\r\n"
  return concat(parts)
end

function encode(value, depth)
  local kind = type(value)
  if kind == "string" then return bulk(value) end
  if kind == "number" then return integer(value) end
  if kind == "boolean" then
    if script_protocol == 3 and protocol == 3 then return value and "#t\r\n" or "#f\r\n" end
    if script_protocol == 3 then return value and ":1\r\n" or ":0\r\n" end
    return value and ":1\r\n" or nothing()
  end
  if kind ~= "table" then return nothing() end
  if depth > REPLY_DEPTH_MAX then return "-ERR reached lua stack limit\r\n" end
  value = protected[value] or value
  local field = rawget(value, "err")
  if type(field) == "string" then return "-" .. one_line(field) .. "\r\n" end
  field = rawget(value, "ok")
  if type(field) == "string" then return "+" .. one_line(field) .. "\r\n" end
  field = rawget(value, "double")
  if type(field) == "number" then
    local text = format("%.17g", field)
    return protocol == 3 and "," .. text .. "\r\n" or bulk(text)
  end
  field = rawget(value, "map")
  if type(field) == "table" then return encode_items(field, true, true, "%", depth) end
  field = rawget(value, "set")
  if type(field) == "table" then return encode_items(field, true, false, "~", depth) end
  field = rawget(value, "big_number")
  if type(field) == "string" then
    return protocol == 3 and "(" .. one_line(field) .. "\r\n" or bulk(one_line(field))
  end
  field = rawget(value, "verbatim_string")
  if type(field) == "table" and type(rawget(field, "string")) == "string" and type(rawget(field, "format")) == "string"
  then
    local text = rawget(field, "string")
    if protocol ~= 3 then return bulk(text) end
    return "=" .. #text + 4 .. "\r\n" .. sub(rawget(field, "format") .. "   ", 1, 3) .. ":" .. text .. "\r\n"
  end
  local parts, count = {""}, 0
  while true do
    local item = rawget(value, count + 1)
    if item == nil then break end
    count = count + 1
    parts[count + 1] = encode(item, depth + 1)
  end
  parts[1] = "*" .. count .. "\r\n"
  return concat(parts)
end

-- redis ------------------------------------------------------------------------------------------------------------

-- The error for a line of RESP without its first byte, or for a text without a code.
local function problem(text)
  if sub(text, 1, 1) ~= "-" then return {err = "ERR " .. text} end
  if not find(text, " ", 1, true) then return {err = "ERR " .. sub(text, 2)} end
  return {err = sub(text, 2)}
end

local function request_many(count, words)
  for at = 1, count do
    local kind = type(words[at])
    if kind == "number" then
      words[at] = format("%.17g", words[at])
    elseif kind ~= "string" then
      return problem("Lua redis lib command arguments must be strings or integers")
    end
  end
  return server(unpack(words, 1, count))
end

local function request(...)
  local count = select("#", ...)
  local reply
  local name, key, value = ...
  if count == 2 and type(name) == "string" and type(key) == "string" then  -- most of all calls
    reply = server(name, key)
  elseif count == 3 and type(name) == "string" and type(key) == "string" and type(value) == "string" then
    reply = server(name, key, value)
  elseif count == 0 then
    return problem("Please specify at least one argument for this redis lib call")
  else
    reply = request_many(count, {...})
    if type(reply) == "table" then return reply end
  end
  if reply == "+OK\r\n" then return {ok = "OK"} end
  local kind = byte(reply, 1)
  if kind == 36 and reply ~= "$-1\r\n" then  -- this and the above are what `decode` makes of them, and most replies
    return sub(reply, find(reply, "\n", 3, true) + 1, -3)
  end
  if kind == nil then  -- the script must not go on
    sethook(stop, "l")
    error("script stopped", 0)
  end
  return (decode(reply, 1))
end

local redis = {LOG_DEBUG = 0, LOG_VERBOSE = 1, LOG_NOTICE = 2, LOG_WARNING = 3, REDIS_VERSION = redis_version}
do
  local major, minor, patch = match(redis_version, "^(%d+)%.(%d+)%.(%d+)$")
  redis.REDIS_VERSION_NUM = major * 65536 + minor * 256 + patch
end

function redis.call(...)
  local reply = request(...)
  if type(reply) == "table" and reply.err then error(reply, 0) end
  return reply
end

redis.pcall = request

function redis.error_reply(...)
  local text = ...
  if select("#", ...) ~= 1 or type(text) ~= "string" then return problem("wrong number or type of arguments") end
  if sub(text, 1, 1) ~= "-" then text = "-" .. text end
  return problem(text)
end

function redis.status_reply(...)
  local text = ...
  if select("#", ...) ~= 1 or type(text) ~= "string" then return problem("wrong number or type of arguments") end
  return {ok = text}
end

function redis.sha1hex(...)
  local text = ...
  if select("#", ...) ~= 1 then error(problem("wrong number of arguments"), 0) end
  if type(text) == "number" then text = tostring(text) end
  return sha1(type(text) == "string" and text or "")
end

function redis.log(...)
  local level = ...
  if select("#", ...) < 2 then error(problem("redis.log() requires two arguments or more."), 0) end
  if type(level) ~= "number" then error(problem("First argument must be a number (log level)."), 0) end
  if level < 0 or level > 3 then error(problem("Invalid debug level."), 0) end
end

function redis.setresp(...)
  local version = ...
  if select("#", ...) ~= 1 then error(problem("redis.setresp() requires one argument."), 0) end
  if version ~= 2 and version ~= 3 then error(problem("RESP version must be 2 or 3."), 0) end
  script_protocol = version
  speak(version)
end

function redis.replicate_commands() return true end

-- the environment --------------------------------------------------------------------------------------------------

-- A table with holes may say that it is longer than memory has room for. C would go through all of that.
local function watch_length(t)
  if type(t) == "table" and #t > ENTRIES_MAX then error("table too long", 2) end
  check_time()
end

local tables = {getn = table.getn}
for _, name in ipairs{"concat", "foreach", "maxn"} do tables[name] = guarded(name, table[name], check_time) end
tables.foreachi = guarded("foreachi", table.foreachi, watch_length)
for _, name in ipairs{"insert", "remove", "sort"} do  -- these change a table without asking it
  tables[name] = guarded(name, table[name], function(t, ...)
    if protected[t] then error(READONLY, 0) end
    if type(t) == "table" and #t > LARGE then watch_length(t) end
    -- C takes a step for each index between the end and this one, which it reads with 32 bits.
    local at = name == "insert" and select("#", ...) > 1 and tonumber((...))
    if at and not (at >= 0 and at < 2 ^ 31) then error("bad argument #2 to 'insert' (position out of bounds)", 2) end
  end)
end

-- Sorting in C takes the square of the size at worst, and comparing texts takes as long as they are.
local sort = tables.sort
local function is_less(a, b) return a < b end
function tables.sort(...)
  local t, compare = ...
  if type(t) == "table" and #t > SORTED_MAX then
    if compare == nil then return sort(t, is_less) end
    if type(compare) == "function" and getinfo(compare, "S").what == "C" then
      return sort(t, function(a, b) return compare(a, b) end)
    end
  end
  return sort(...)
end

local function copy(library)
  local content = {}
  for name, value in next, library do content[name] = value end
  return content
end

base.string = readonly(strings)
base.table = readonly(tables)
base.math = readonly(copy(math))
base.cjson = readonly(cjson)
base.redis = readonly(redis)

setmetatable(base, {__index = function(_, name)
  if name ~= "KEYS" and name ~= "ARGV" then
    error("Script attempted to access nonexistent global variable '" .. tostring(name) .. "'", 2)
  end
end})
local environment = readonly(base)
base._G = environment

-- running ----------------------------------------------------------------------------------------------------------

local current, current_source

-- The line where the script is. A tail call leaves no trace of its caller: then the last line that may have one.
function script_line()
  local level, info = 2, getinfo(2, "Sl")
  while info and info.source ~= "@user_script" do
    level = level + 1
    info = getinfo(level, "Sl")
  end
  if info then return info.currentline end
  local line, last = 0, nil
  for text in gmatch(current_source .. "\n", "(.-)\n") do
    line = line + 1
    if find(text, "return%s+[%a_]") or find(text, "return%s*%(") then last = line end
  end
  return last
end

local function explain(found)
  local line = script_line()
  if type(found) ~= "table" then
    local text = gsub(tostring(found), PLACE, line and "user_script:" .. line .. ": " or "")
    found = {err = "ERR " .. text}
  end
  local text = rawget(found, "err")
  if type(text) ~= "string" then text = "ERR unknown error" end
  return {text = text, place = line and ", on @user_script:" .. line .. "."}
end

local compiled, sources = {}, {}

local function compile(sha, source)
  if byte(source, 1) == 27 then return "user_script: bytecode is not allowed" end
  local script, trouble = loadstring(source, "@user_script")
  if not script then return trouble end
  compiled[sha], sources[sha] = setfenv(script, environment), source
end

local function forget(sha) compiled[sha], sources[sha] = nil, nil end

-- All that a script makes memory for happens in a protected call: an error outside of one ends the process.
local function perform() return encode(current(), 1) end

local function split(key_count, first, ...)
  if key_count == 1 then return {first}, {...} end
  return {}, {first, ...}
end

local function run(sha, client_protocol, key_count, ...)
  if key_count < 2 then
    base.KEYS, base.ARGV = split(key_count, ...)
  else
    local words, count = {...}, select("#", ...)
    base.KEYS, base.ARGV = {unpack(words, 1, key_count)}, {unpack(words, key_count + 1, count)}
  end
  protocol, script_protocol = client_protocol, 2
  sethook(hook, "", HOOK_INSTRUCTIONS)
  current, current_source = compiled[sha], sources[sha]
  local ok, value = xpcall(perform, explain)
  base.KEYS, base.ARGV = nil, nil
  sethook()
  if ok then return value end
  if type(value) ~= "table" then  -- no memory was left even for the handler
    collectgarbage()
    return nil
  end
  return "-" .. one_line(value.text .. (value.place and " script: " .. sha .. value.place or "")) .. "\r\n"
end

return compile, forget, run
"""
