"""One rule for an address, the same for every way in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merklekv.address import ADDRESS_BYTES_MAX, format_address, is_address, parse_address
from merklekv.errors import InvalidArgument


@pytest.mark.parametrize(
    "address",
    [
        "a:1", "a.b.c:65535", "10.0.0.1:7379", "[::1]:1", "[fe80::1%eth0]:7379", "[fe80::1%eth0.100]:7379",
        "bücher.example:1", "a_b:1", "a.:1",
    ],
)  # fmt: skip
def test_an_address(address: str) -> None:
    assert is_address(address)


@pytest.mark.parametrize(
    "address",
    [
        "", "a", ":1", "a:", "a:0", "a:65536", "a:1 ", " a:1", "a b:1", "a..b:7379", ".a:1", "a" * 64 + ":1",
        ".".join(["a" * 60] * 5) + ":1", "::1:1", "[::1]", "[a]:1", "[::1%a b]:1", "[fe80::1%]:1", "a:\u0661",
        "a:+1", "a:1\n", "a\n:1",
        "\x1b[31m:1", "a\0:1", "\ud800:1", "a/b:1", "a:1,b:2", "a" * 100_000 + ":1",
    ],
    ids=lambda address: ascii(address)[:40],
)  # fmt: skip
def test_no_address(address: str) -> None:
    assert not is_address(address)


@given(
    st.text(max_size=20)
    | st.from_regex(r"(\[[^\[\]]+\]|[^\[\]/:\s]+):[0-9]{1,5}")
    | st.from_regex(r"\[[0-9a-f:]{1,9}(%[a-z.]*)?\]:[0-9]{1,5}")
)
def test_what_is_an_address_can_be_split_and_nothing_else(text: str) -> None:
    try:
        host, port = parse_address(text)
    except InvalidArgument:
        assert not is_address(text)
    else:
        assert is_address(text) == (len(text.encode()) <= ADDRESS_BYTES_MAX)
        written, _, digits = text.rpartition(":")
        assert written == (f"[{host}]" if ":" in host else host)
        assert int(digits) == port
        assert parse_address(format_address(host, port)) == (host, port)


@given(st.text(max_size=20), st.integers(0, 70_000))
def test_the_name_of_an_address_can_be_looked_up(host: str, port: int) -> None:
    if is_address(f"{host}:{port}"):
        host.strip("[]").partition("%")[0].encode("idna")  # what raises UnicodeError in a look-up


@pytest.mark.parametrize(
    ("address", "meant"),
    [
        ("h:1", ("h", 1)),
        ("[::1]:65535", ("::1", 65535)),
        ("10.0.0.1:7379", ("10.0.0.1", 7379)),
        ("[fe80::1%eth0]:1", ("fe80::1%eth0", 1)),
        ("under_score.:1", ("under_score.", 1)),
    ],
)
def test_an_address_has_two_parts(address: str, meant: tuple[str, int]) -> None:
    assert parse_address(address) == meant


NO_ADDRESSES = ["", "h", "h:", ":1", "h:0", "h:65536", "h:x", "h:-1", "h:1111111111111", "h:000001" + 5000 * "0"]
NO_ADDRESSES += ["::1:7379", "[::1]", "[::1:1", "[h]:1", "a b:1", "a/b:1", "h\0:1", "h:\u0663"]


@pytest.mark.parametrize("address", NO_ADDRESSES)
def test_no_address_is_read(address: str) -> None:
    with pytest.raises(InvalidArgument, match="is no address: "):
        parse_address(address)


@pytest.mark.parametrize("host", ["a..b", ".", ".a", "a" * 64, "\udcff"])
def test_what_is_no_host_name(host: str) -> None:
    with pytest.raises(InvalidArgument, match=r"is no address: .* is not a host name"):
        parse_address(f"{host}:1")
