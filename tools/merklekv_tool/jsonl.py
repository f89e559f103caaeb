"""Dumps as JSON lines: one object a line, for people, `jq` and `diff`.

    {"merklekv_dump":1,"prefix":""}
    {"key":"user:1","version":"1700000000000000000-4f6c...","digest":"9a3e...","value":"text"}
    {"key_base64":"/wA=","version":"...","digest":"...","value_base64":"AAEC"}
    {"key":"gone","version":"...","digest":"...","tombstone":true}
    {"end":true,"records":3,"floor":"0-00000000000000000000000000000000","checksum":"5b1f..."}

Bytes that are valid UTF-8 are text; others are base64 in a field with that ending.  Versions are the timestamp in
nanoseconds and the op id in hex.  A tombstone has no value.  Text is UTF-8; what JSON demands is escaped,
and what a terminal would obey.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, Final

from merklekv.engine.record import digest_of, make_version, show_version, value_of
from merklekv.output import printable_json
from merklekv_tool.dumps import DUMP_VERSION, MARK, End, Head, Item, Pair, build_record, check_flags

_VERSION: Final = re.compile(r"([0-9]{1,20})-([0-9a-f]{32})", re.ASCII)
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class JsonLines:
    """See `dumps.Format`."""

    def head(self, head: Head) -> bytes:
        return _line({MARK: DUMP_VERSION, **field("prefix", head.prefix)})

    def record(self, key: bytes, record: bytes) -> bytes:
        fields = field("key", key)
        fields["version"] = show_version(record)
        fields["digest"] = digest_of(record).hex()
        if check_flags(key, record):
            fields["tombstone"] = True
        value = value_of(record)
        if value or "tombstone" not in fields:
            fields.update(field("value", value))
        return _line(fields)

    def end(self, end: End) -> bytes:
        truncation = None if end.truncation is None else show_version(end.truncation)
        return _line({"end": True, "records": end.records, "truncation": truncation, "checksum": end.checksum.hex()})

    def read(self, file: BinaryIO) -> Iterator[tuple[str, Item]]:
        for number, line in enumerate(file, 1):
            where = f"line {number}"
            try:
                yield where, _item(line)
            except KeyError as error:
                raise ValueError(f"{where}: the field {error} is missing") from error
            except RecursionError as error:
                raise ValueError(f"{where}: nested too deeply") from error
            except ValueError as error:
                raise ValueError(f"{where}: {_said(error)}") from error


def _line(fields: dict[str, object]) -> bytes:
    return printable_json(_encode(fields)).encode() + b"\n"


def field(name: str, data: bytes) -> dict[str, object]:
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(data).decode()}


def _item(line: bytes) -> Item:
    if not line.endswith(b"\n"):
        raise ValueError("the line is cut short")
    fields = json.loads(line)
    if not isinstance(fields, dict):
        raise ValueError("not a JSON object")
    if MARK in fields:
        if fields[MARK] != DUMP_VERSION:
            raise ValueError(f"a dump of version {fields[MARK]!r}: this release reads {DUMP_VERSION}")
        return Head(_data(fields, "prefix"))
    if "end" in fields:
        records = fields["records"]
        if not isinstance(records, int):
            raise ValueError("`records` is not a number")
        return End(records, _floor(fields), _hex(fields["checksum"]))
    return _pair(fields)


def _pair(fields: dict[str, Any]) -> Pair:
    key = _data(fields, "key")
    tombstone = fields.get("tombstone") is True
    has_value = not tombstone or "value" in fields or "value_base64" in fields
    value = _data(fields, "value") if has_value else b""
    return key, build_record(key, _version(fields["version"]), tombstone, _hex(fields["digest"]), value)


def _data(fields: dict[str, Any], name: str) -> bytes:
    text = fields.get(name)
    if isinstance(text, str):
        return text.encode()
    encoded = fields[f"{name}_base64"] if text is None else None
    if not isinstance(encoded, str):
        raise ValueError(f"`{name}` is not text")
    return base64.b64decode(encoded, validate=True)


def _floor(fields: dict[str, Any]) -> bytes | None:
    return None if fields["truncation"] is None else _version(fields["truncation"])


def _version(text: object) -> bytes:
    match = _VERSION.fullmatch(text) if isinstance(text, str) else None
    if match is None or int(match[1]) >> 64:
        raise ValueError(f"{text!r} is not a version")
    return make_version(int(match[1]), bytes.fromhex(match[2]))


def _hex(text: object) -> bytes:
    if not isinstance(text, str):
        raise ValueError(f"{text!r} is not a digest")
    return bytes.fromhex(text)


def _said(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} at column {error.colno}"
    if isinstance(error, binascii.Error):
        return f"not base64: {error}"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 at byte {error.start} of the line"
    if isinstance(error, UnicodeEncodeError):
        return "text that is no valid Unicode"
    return str(error)
