"""INCRBYFLOAT counts as Redis does, to the last of 17 digits: pairs of numbers of every kind, on both."""

from __future__ import annotations

from random import Random

from fixtures.wire import Wire, encode

from merklekv.net import long_double

PAIRS = 3_000
BATCH = 100
NOT_A_FLOAT = b"-ERR value is not a valid float\r\n"
INFINITE = b"-ERR increment would produce NaN or Infinity\r\n"

ODD = (
    *("inf", "-inf", "+Infinity", "INF", "infi", "nan", "nan(1)", "", " 1", "1 ", "1\0", "1_0", "1d3", "-", "+", "."),
    *("0x", "0x.p1", "0x1p", "0x1.", "0x.8", "0X1P3", "0x0p999999999999", "e1", "1e", "1e+", "+.5E+1", "-0", "-0.0"),
    *("0e99999999999", "1e99999999999999999999", "1e-99999999999999999999", "1e-5000", "9" * 5119, "9" * 5120),
    *(f"1e{power}" for power in (4931, 4932, 4933, -17, -18, -4931, -4932, -4949, -4950, -4951, -4952)),
    *(str(2**63 + more) for more in (-1, 0, 1)),
    *(str(2**64 + more) for more in (-1, 0, 1)),
    *(str(2**65 + more) for more in (1, 2, 3)),
    *("9" * size for size in (16, 17, 18, 19, 20, 21, 4900, 4932, 4933)),
)


def number(random: Random) -> bytes:
    def digits(most: int) -> int:
        return random.randint(0, 10 ** random.randint(1, most))

    sign = random.choice(("", "-"))
    match random.randrange(8):
        case 0:
            text = random.choice(ODD)
        case 1:
            text = sign + str(digits(30))
        case 2:
            text = repr(random.uniform(-1, 1) * 10 ** random.randint(-20, 20))
        case 3:
            text = f"{sign}{digits(6)}.{digits(25)}"
        case 4:
            text = f"{sign}{digits(3)}e{random.randint(-5000, 5000)}"
        case 5:
            text = f"{sign}0x{digits(30):x}.{digits(30):x}p{random.randint(-17000, 17000)}"
        case 6:
            text = "0." + "0" * random.choice((10, 16, 17, 18, 4930, 4940, 4951, 5000)) + str(digits(15))
        case _:
            text = "".join(random.choices("0123456789.e+-xp", k=random.randint(1, 8)))
    return text.encode()


def sum_of(first: bytes, second: bytes) -> bytes:
    """The reply to INCRBYFLOAT."""
    numbers = long_double.read(first), long_double.read(second)
    if numbers[0] is None or numbers[1] is None:
        return NOT_A_FLOAT
    total = long_double.add(numbers[0], numbers[1])
    if total is None:
        return INFINITE
    text = long_double.write(total)
    return b"$%d\r\n%b\r\n" % (len(text), text)


def test_sums_are_those_of_redis(redis_address: tuple[str, int]) -> None:
    random = Random(1)
    with Wire(redis_address) as redis:
        for _ in range(PAIRS // BATCH):
            pairs = [(number(random), number(random)) for _ in range(BATCH)]
            redis.send(b"".join([encode("SET", "k", one) + encode("INCRBYFLOAT", "k", two) for one, two in pairs]))
            for pair in pairs:
                assert redis.resp() == b"+OK\r\n"
                assert redis.resp() == sum_of(*pair), pair


def test_no_text_is_too_much() -> None:
    for text in (b"9" * 5118 + b"x", b"0x" + b"f" * 5000 + b".g", b"1e" + b"9" * 5000, b"9" * (1 << 20)):
        assert long_double.read(text) is None
