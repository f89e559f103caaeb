"""The parsers, fed as a server is: one request alone, a pipeline of sixteen, and one that is cut in the middle.

hiredis is in the comparison because it is what else one would take: it is faster at cutting up bytes, and needs a pass
in Python behind it that checks what came out.  resp.py checks while it cuts.
"""

from collections.abc import Sequence

import hiredis
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from merklekv.net.protocol import resp
from merklekv.net.protocol.resp import RespParser
from merklekv.net.protocol.text import TextParser

MIB = 1 << 20
PIPELINE = 16
VALUE = b"x" * 100
RESP_SET = b"*3\r\n$3\r\nSET\r\n$16\r\nkey:000000000042\r\n$100\r\n%b\r\n" % VALUE
RESP_GET = b"*2\r\n$3\r\nGET\r\n$16\r\nkey:000000000042\r\n"
TEXT_SET = b"SET key:000000000042 %b\r\n" % VALUE
SET_REQUEST = [b"SET", b"key:000000000042", VALUE]


def resp_parser() -> RespParser:
    return RespParser(bulk_bytes=16 * MIB, arguments=MIB, request_bytes=64 * MIB)


@pytest.mark.benchmark(group="RESP: one request")
@pytest.mark.parametrize("request_bytes", [RESP_SET, RESP_GET], ids=["SET", "GET"])
def test_parse_one(benchmark: BenchmarkFixture, request_bytes: bytes) -> None:
    parser = resp_parser()
    [request] = benchmark(parser.feed, request_bytes)
    assert request[1] == SET_REQUEST[1]


@pytest.mark.benchmark(group="RESP: 16 SETs")
def test_parse_a_pipeline(benchmark: BenchmarkFixture) -> None:
    parser = resp_parser()
    assert benchmark(parser.feed, RESP_SET * PIPELINE) == [SET_REQUEST] * PIPELINE


@pytest.mark.benchmark(group="RESP: 16 SETs")
def test_parse_a_pipeline_with_hiredis(benchmark: BenchmarkFixture) -> None:
    reader = hiredis.Reader()

    def parse() -> list[Sequence[bytes]]:
        reader.feed(RESP_SET * PIPELINE)
        requests: list[Sequence[bytes]] = []
        while (request := reader.gets()) is not False:
            if type(request) is not list or not all(type(word) is bytes for word in request):
                raise ValueError(request)
            requests.append(request)
        return requests

    assert benchmark(parse) == [SET_REQUEST] * PIPELINE


@pytest.mark.benchmark(group="RESP: 16 SETs")
def test_parse_a_pipeline_cut_in_the_middle(benchmark: BenchmarkFixture) -> None:
    parser = resp_parser()
    data = RESP_SET * PIPELINE
    middle = len(data) // 2 + 10

    def parse() -> list[Sequence[bytes]]:
        return [*parser.feed(data[:middle]), *parser.feed(data[middle:])]

    assert benchmark(parse) == [SET_REQUEST] * PIPELINE


@pytest.mark.benchmark(group="RESP: a value of 1 MiB")
def test_parse_a_large_value_in_chunks(benchmark: BenchmarkFixture) -> None:
    value = bytes(MIB)
    data = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$%d\r\n%b\r\n" % (len(value), value)
    chunks = [data[at : at + 65536] for at in range(0, len(data), 65536)]

    def parse() -> list[Sequence[bytes]]:
        parser = resp_parser()
        return [request for chunk in chunks for request in parser.feed(chunk)]

    [request] = benchmark(parse)
    assert request[2] == value


@pytest.mark.benchmark(group="text: lines")
@pytest.mark.parametrize("count", [1, PIPELINE])
def test_parse_lines(benchmark: BenchmarkFixture, count: int) -> None:
    parser = TextParser(MIB)
    assert benchmark(parser.feed, TEXT_SET * count) == [(b"SET", b"key:000000000042 " + VALUE)] * count


@pytest.mark.benchmark(group="RESP: replies")
def test_encode_a_value(benchmark: BenchmarkFixture) -> None:
    assert benchmark(resp.bulk, VALUE) == b"$100\r\n%b\r\n" % VALUE


@pytest.mark.benchmark(group="RESP: replies")
def test_encode_a_page_of_keys(benchmark: BenchmarkFixture) -> None:
    keys = [b"key:%012d" % number for number in range(1000)]
    assert benchmark(resp.bulk_array, keys).count(b"\r\n") == 1 + 2 * len(keys)
