"""The syntax of a command, as it is declared, read as the arguments of COMMAND DOCS.

    parse("SET key value [NX | XX] [EX seconds | PX milliseconds]")

Words in small letters are arguments, words in capitals are sent as they are. `[...]` may be left out, `<...>` may not,
a bar between spaces separates alternatives in a group, `A|B` without spaces is one of these words, and `...` at the end
of a group repeats it. A word in capitals before an argument is the token of that argument, as in `EX seconds`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

KEY_NAMES: Final = frozenset(("key", "key1", "key2", "newkey", "destkey", "source", "destination"))
INTEGER_NAMES: Final = frozenset(
    (
        *("amount", "bit", "count", "cursor", "end", "increment", "milliseconds", "numkeys", "numreplicas", "offset"),
        *("port", "seconds", "start", "timeout", "client-id"),
    )
)
_TOKENS = re.compile(r"\[|\]|<|>|\.\.\.|\|(?=\s)|[^\s\[\]<>]+")


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of COMMAND DOCS, see Redis's documentation of that command."""

    name: str
    type: str
    token: str = ""
    optional: bool = False
    multiple: bool = False
    arguments: tuple[Argument, ...] = ()


@dataclass(slots=True)
class _Group:
    optional: bool = False
    repeats: bool = False
    alternatives: list[list[str | _Group]] = field(default_factory=lambda: [[]])


def parse(syntax: str) -> tuple[Argument, ...]:
    """The arguments behind the name of the command."""
    outer = _Group()
    stack = [outer]
    for token in _TOKENS.findall(syntax)[1:]:
        match token:
            case "[" | "<":
                stack.append(_Group(optional=token == "["))
                stack[-2].alternatives[-1].append(stack[-1])
            case "]" | ">":
                stack.pop()
            case "|":
                stack[-1].alternatives.append([])
            case "...":
                stack[-1].repeats = True
            case _:
                stack[-1].alternatives[-1].append(token)
    return _sequence(outer.alternatives[0]) if len(outer.alternatives) == 1 else (_group(outer),)


def _sequence(items: Sequence[str | _Group]) -> tuple[Argument, ...]:
    found: list[Argument] = []
    token = ""
    for item in items:
        if isinstance(item, str) and _is_token(item) and "|" not in item:
            found += [_pure(token)] if token else []
            token = item
            continue
        one = _group(item) if isinstance(item, _Group) else _word(item)
        if one.multiple and one.optional and not token:  # `key [key ...]` is one argument, once or more
            same = one.arguments if one.type == "block" else (replace(one, optional=False, multiple=False),)
            before = found[-len(same) :]
            if before and (replace(before[0], token=""), *before[1:]) == same:
                del found[-len(same) :]
                one = replace(one, optional=False, token=before[0].token)
        if token and one.optional:
            found.append(_pure(token))
        elif token:
            one = replace(one, token=token)
        token = ""
        found.append(one)
    return (*found, *([_pure(token)] if token else []))


def _group(group: _Group) -> Argument:
    choices = [_sequence(items) for items in group.alternatives]
    parts = [_block(choice) for choice in choices]
    one = parts[0] if len(parts) == 1 else Argument(_joined(parts), "oneof", arguments=tuple(parts))
    return replace(one, optional=group.optional or one.optional, multiple=group.repeats or one.multiple)


def _block(parts: tuple[Argument, ...]) -> Argument:
    return parts[0] if len(parts) == 1 else Argument(_joined(parts), "block", arguments=parts)


def _joined(parts: Sequence[Argument]) -> str:
    return "_".join(part.name for part in parts)


def _is_token(word: str) -> bool:
    return word.upper() == word and not word.isdigit()


def _pure(token: str) -> Argument:
    return Argument(token.lower(), "pure-token", token)


def _word(word: str) -> Argument:
    if "|" in word:
        parts = tuple(_pure(one) for one in word.split("|"))
        return Argument(_joined(parts), "oneof", arguments=parts)
    if word in KEY_NAMES:
        return Argument(word, "key")
    return Argument(word, "integer" if word in INTEGER_NAMES else "pattern" if word == "pattern" else "string")
