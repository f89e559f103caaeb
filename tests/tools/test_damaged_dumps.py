"""A dump that is cut, changed or no dump at all: one line that says where, and nothing but sound records taken in."""

from __future__ import annotations

import io
import json
import tracemalloc
from pathlib import Path

import cbor2
import pytest
from fixtures.tools import contents, fails, opened, run
from hypothesis import given, settings
from hypothesis import strategies as st
from merklekv_tool.errors import DumpError
from merklekv_tool.exit_codes import EXIT_DUMP
from merklekv_tool.formats.dump import FORMATS, FormatName, Reader, Writer
from merklekv_tool.formats.items import End, Head, checksum_of

from merklekv.engine.record import ZERO_VERSION, digest_of, make_record
from merklekv.exit_codes import EXIT_USAGE

VERSIONS = [(1_700_000_000 + number).to_bytes(8, "big") + bytes((number,)) * 16 for number in range(4)]
TRUNCATION = (1_600_000_000).to_bytes(8, "big") + bytes(16)
PAIRS = [
    (b"\xff", make_record(b"\xff", VERSIONS[0], b"\x80")),
    (b"gone", make_record(b"gone", VERSIONS[1], b"", tombstone=True)),
    (b"text", make_record(b"text", VERSIONS[2], b"v")),
    (b"until", make_record(b"until", VERSIONS[3], b"v", expiry=1 << 40)),
]


def dump_of(form: FormatName) -> bytes:
    file = io.BytesIO()
    writer = Writer(file, form, b"")
    writer.page(PAIRS)
    writer.end(TRUNCATION)
    return file.getvalue()


def read(dump: bytes) -> tuple[list[tuple[bytes, bytes]], bytes | None]:
    reader = Reader(io.BufferedReader(io.BytesIO(dump)), "file")
    return list(reader), reader.truncation


def says_the_same_or_complains(dump: bytes) -> bool:
    """JSON and CBOR can say one thing in several ways."""
    try:
        return read(dump) == (PAIRS, TRUNCATION)
    except DumpError as error:
        complaint = str(error)
    return complaint.startswith("file: ") and "\n" not in complaint


@pytest.mark.parametrize("form", FORMATS)
def test_whole(form: FormatName) -> None:
    assert read(dump_of(form)) == (PAIRS, TRUNCATION)


@pytest.mark.parametrize("form", FORMATS)
def test_cut_at_every_byte(form: FormatName) -> None:
    dump = dump_of(form)
    for cut in range(len(dump)):
        with pytest.raises(DumpError, match=r"^file: "):
            read(dump[:cut])


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("mask", [0x01, 0x20, 0x80])
def test_flipped_at_every_byte(form: FormatName, mask: int) -> None:
    dump = dump_of(form)
    for position in range(len(dump)):
        changed = dump[:position] + bytes((dump[position] ^ mask,)) + dump[position + 1 :]
        assert says_the_same_or_complains(changed), position


@given(st.sampled_from(list(FORMATS)), st.data())
@settings(max_examples=300, deadline=None)
def test_rewritten_at_random(form: FormatName, data: st.DataObject) -> None:
    dump = dump_of(form)
    begin = data.draw(st.integers(0, len(dump)))
    end = data.draw(st.integers(begin, len(dump)))
    changed = dump[:begin] + data.draw(st.binary(max_size=60)) + dump[end:]
    assert says_the_same_or_complains(changed)


@given(st.sampled_from([b"{", b"\xd9\xd9\xf7"]), st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_anything_at_all(start: bytes, rest: bytes) -> None:
    with pytest.raises(DumpError):
        read(start + rest)


@pytest.mark.parametrize(
    "dump",
    [
        b"",
        b"\n",
        b"hello\n",
        b"{",
        b"{}\n",
        b"[]\n",
        b"[" * 100_000 + b"\n",
        b"{" + b'"a":[' * 100_000,
        b"\x9f" * 100_000,
        b"\x5b" + b"\xff" * 8,
        b"\xa1\xa0\x00",
        b"\xd9\xd9\xf7" * 1000,
    ],
)
def test_no_dump(dump: bytes) -> None:
    with pytest.raises(DumpError, match=r"^file: "):
        read(dump)


def miscounted(form: FormatName) -> bytes:
    checksum = checksum_of(Head(b""))
    checksum.update(b"".join(digest_of(record) for _, record in PAIRS) + TRUNCATION)
    encoding = FORMATS[form]
    records = [encoding.record(key, record) for key, record in PAIRS]
    end = End(len(PAIRS) + 1, TRUNCATION, checksum.digest())
    return b"".join((encoding.head(Head(b"")), *records, encoding.end(end)))


@pytest.mark.parametrize("name", FORMATS)
def test_records_that_are_missing_doubled_or_in_another_order(name: FormatName) -> None:
    form = FORMATS[name]
    dump = dump_of(name)
    first, second, third, _ = (form.record(key, record) for key, record in PAIRS)
    for changed in (first + third, first + second + second, second + first + third):
        assert first + second + third in dump
        with pytest.raises(DumpError, match=r"checksum|the end tells of 4 records"):
            read(dump.replace(first + second + third, changed))
    with pytest.raises(DumpError, match="the end tells of 5 records, but there are 4"):
        read(miscounted(name))


@pytest.mark.parametrize("name", FORMATS)
def test_two_dumps_in_a_row(name: FormatName) -> None:
    dump = dump_of(name)
    with pytest.raises(DumpError, match="something follows this end"):
        read(dump + dump)
    head = FORMATS[name].head(Head(b""))
    with pytest.raises(DumpError, match="a second head"):
        read(head + dump)


def test_a_truncation_ahead_of_the_wall_clock(tmp_path: Path) -> None:
    """It comes last, so the records are in, and the message says so."""
    with (tmp_path / "dump").open("wb") as file:
        Writer(file, "jsonl", b"").end((1 << 62).to_bytes(8, "big") + bytes(16))
    done = run("load", tmp_path / "dump", tmp_path / "target")
    fails(EXIT_USAGE, f"{tmp_path / 'dump'}: a truncation version of 2116", "taken in before that: 0", done=done)


def test_a_later_format_is_named() -> None:
    with pytest.raises(DumpError, match="line 1: a dump of version 4: this release reads 3"):
        read(b'{"merklekv_dump":4,"prefix":""}\n')
    with pytest.raises(DumpError, match="byte 0: a dump of version 4: this release reads 3"):
        read(cbor2.dumps({"merklekv_dump": 4, "prefix": b""}))


def line(**changes: object) -> bytes:
    """The line of the text record, with fields changed, or left out where None."""
    fields = json.loads(dump_of("jsonl").splitlines()[3]) | changes
    return json.dumps({name: value for name, value in fields.items() if value is not None}).encode() + b"\n"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (line(value="w"), "does not match its digest: it was damaged or edited"),
        (line(key="other"), "does not match its digest"),
        (line(tombstone=True), "does not match its digest"),
        (line(key=None), "the field 'key_base64' is missing"),
        (line(version=None), "the field 'version' is missing"),
        (line(version="1-2"), "'1-2' is not a version"),
        (line(version=f"{1 << 64}-{'0' * 32}"), "is not a version"),
        (line(version=5), "5 is not a version"),
        (line(digest="xyz"), "non-hexadecimal"),
        (line(digest=1), "1 is not a digest"),
        (line(exp=5), "does not match its digest"),
        (line(exp=0), "0 is no expiry: it has 1 to"),
        (line(exp=1 << 63), "is no expiry"),
        (line(exp="5"), "'5' is no expiry"),
        (line(exp=True), "True is no expiry"),
        (line(exp=5, tombstone=True), "a tombstone with an expiry"),
        (line(value=None, value_base64="*"), "not base64"),
        (line(value=None, value_base64=1), "`value` is not text"),
        (line(value=7), "`value` is not text"),
        (line(key=""), "a key of 0 bytes: keys have 1 to 511"),
        (line(key="k" * 512), "a key of 512 bytes"),
        (line(value="\ud800"), "no valid Unicode"),
        (b'{"key": "\xff"}\n', "not UTF-8 at byte"),
        (b"{nonsense}\n", "not JSON: "),
        (b"[1]\n", "not a JSON object"),
        (b"\n", "not JSON: "),
    ],
)
def test_what_is_wrong_with_a_line(changed: bytes, words: str) -> None:
    dump = dump_of("jsonl").splitlines(keepends=True)
    dump[3] = changed
    with pytest.raises(DumpError) as caught:
        read(b"".join(dump))
    assert str(caught.value).startswith("file: line 4: ")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ([b"k", VERSIONS[0], False, bytes(16)], "a record of 4 fields: it has 5 or 6"),
        (["k", VERSIONS[0], False, bytes(16), b""], "'k' where bytes belong"),
        ([b"k", b"short", False, bytes(16), b""], "a version of 5 bytes"),
        ([b"k", VERSIONS[0], 0, bytes(16), b""], "tombstone"),
        ([b"k", VERSIONS[0], False, bytes(16), b"", None], "expiry"),
        ([b"k", VERSIONS[0], False, bytes(16), b"", b"5"], "is no expiry"),
        ([b"k", VERSIONS[0], False, bytes(16), b"", -1], "is no expiry"),
        ([b"k", VERSIONS[0], False, bytes(15), b""], "digest"),
        ([b"k", VERSIONS[0], False, bytes(16), b""], "does not match its digest"),
        (7, "neither a record nor the head nor the end"),
        ({"other": 1}, "the field 'end' is missing"),
        ({"end": True, "records": "3", "truncation": None, "checksum": b""}, "an end that is none"),
        ({"end": True, "records": 3, "truncation": b"", "checksum": b""}, "a truncation version that has not 24 bytes"),
    ],
)
def test_what_is_wrong_with_an_item(item: object, words: str) -> None:
    dump = dump_of("cbor")
    position = dump.index(FORMATS["cbor"].record(*PAIRS[2]))
    with pytest.raises(DumpError) as caught:
        read(dump[:position] + cbor2.dumps(item) + dump[position:])
    assert str(caught.value).startswith(f"file: byte {position}: ")
    assert words in str(caught.value)


@pytest.mark.parametrize("form", FORMATS)
def test_loading_a_damaged_dump(form: FormatName, tmp_path: Path) -> None:
    """What was read before the damage is in, the truncation version is not; the message says where and how much."""
    dump = tmp_path / "dump"
    dump.write_bytes(dump_of(form)[:-3])
    done = run("load", dump, tmp_path / "target")
    where = "line 6" if form == "jsonl" else "byte "
    fails(EXIT_DUMP, str(dump), where, "taken in before that: 4 records", done=done)
    assert done.stdout == b""
    with opened(tmp_path / "target") as engine:
        assert engine.record(b"text") == PAIRS[2][1]
    assert contents(tmp_path / "target")[1] == ZERO_VERSION


def test_loading_what_is_no_dump_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"SET k v\n")
    done = run("load", tmp_path / "file", tmp_path / "target")
    fails(EXIT_DUMP, "file: not a dump, or damaged where it begins: byte 0: ", done=done)
    fails(EXIT_DUMP, "-: empty, not a dump", done=run("load", "-", tmp_path / "target", stdin=b""))
    assert not (tmp_path / "target").exists()


HEAD = cbor2.dumps(cbor2.CBORTag(55799, {"merklekv_dump": 3, "prefix": b""}))


@pytest.mark.parametrize(
    ("bomb", "words"),
    [
        (b"\x9a\x03\xc0\x00\x00" + b"\xa0" * (4 << 20), "an item of too many parts"),
        (b"\x85\x9a\x03\xc0\x00\x00" + b"\x80" * (4 << 20), "an item of too many parts"),
        (b"\xba\x03\xc0\x00\x00" + b"\x41a\x00\x41b\x00" * 1000, "an item of too many parts|duplicate|Duplicate"),
        (b"\x5f" + b"\x41a" * 1000 + b"\xff", "not CBOR"),
        (b"\xc4\x82\x1b" + b"\x7f" * 8 + b"\x01", "tag 4"),
        (b"\xc2\x5a\x00\x40\x00\x00" + b"\xff" * (4 << 20), "tag 2"),
        (b"\x81" * 100_000, "nesting depth"),
        (b"\x5b" + b"\x7f" * 8 + b"abc", "cut short"),
    ],
    ids=["maps", "lists", "a map", "pieces", "a decimal", "a bignum", "deep", "a length"],
)
def test_an_item_that_would_take_all_memory_is_refused(bomb: bytes, words: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(DumpError, match=words):
            read(HEAD + bomb)
        assert tracemalloc.get_traced_memory()[1] < 5 * len(bomb) + (1 << 20)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [0, 100, (1 << 16) - 1, 1 << 16, 3 << 20])
def test_a_record_of_any_size_is_read(size: int) -> None:
    pairs = [(b"k" * 511, make_record(b"k" * 511, VERSIONS[0], b"v" * size))]
    file = io.BytesIO()
    writer = Writer(file, "cbor", b"p" * 511)
    writer.page(pairs)
    writer.end(None)
    assert read(file.getvalue()) == (pairs, None)
