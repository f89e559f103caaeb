"""Settings: precedence, every kind of value at and past its limits, and errors that say what to do."""

from __future__ import annotations

import datetime
import subprocess
from pathlib import Path

import pytest

from merklekv import config, setting_types
from merklekv.settings import Settings, declarations, environment_name

GOOD: dict[str, list[tuple[object, object]]] = {  # for each kind of value: what may be written, and what it means
    "port": [("0", 0), (65_535, 65_535), (" 7380 ", 7380)],
    "memtable_size": [
        ("64MiB", 64 << 20),
        (65_536, 65_536),
        ("64 kib", 65_536),
        ("4GiB", 4 << 30),
        ("70000", 70_000),
    ],
    "max_value_size": [("1", 1), ("512MiB", 512 << 20), ("1kB", 1000), ("2mb", 2_000_000), ("3B", 3)],
    "durability": [("always", "always"), ("EverySec", "everysec"), ("never", "never")],
    "text_protocol": [("true", True), ("no", False), (False, False), ("0", False)],
    "notify_keyspace_events": [(one, one) for one in ("", "KEA", "Kg$xn")],
    "allow_remote": [("true", True), ("No", False), (True, True), ("1", True), ("off", False)],
    "storage_path": [("/var/lib/merklekv", Path("/var/lib/merklekv")), ("~", Path.home())],
    "host": [(one, one) for one in ("::1", "fe80::1%lo", "localhost", "0.0.0.0", "my_host.", "b\u00fccher.example")],
    "replication.mqtt_broker": [(one, one) for one in ("::1", "broker.example", "10.0.0.1")],
    "replication.client_id": [
        (one, one) for one in ("n" * 128, "", "node-1.example", "k\u00e4se", "$a", "\U0001f9c0" * 32)
    ],
    "replication.topic_prefix": [(one, one) for one in ("a/b", "merkle_kv", "a/$b", "t" * 512, "k\u00e4se")],
    "replication.username": [("u" * 65_535, "u" * 65_535), ("", "")],
    "replication.peer_list": [("a:1, [::1]:65535", ("a:1", "[::1]:65535")), (["a:1"], ("a:1",)), ("", ())],
    "replication.advertise_address": [
        (one, one)
        for one in (
            *("a:1", "[::1]:65535", "[fe80::1%eth0]:1", "b\u00fccher.example:1", "a_b-c.:1", ""),
            *("a" * 63 + ":1", ".".join(["a" * 63] * 3) + ":1"),
        )
    ],
    "anti_entropy.share_percent": [("1", 1), (100, 100)],
    "scrub.interval_seconds": [("0", 0), (31_536_000, 31_536_000)],
    "scrub.share_percent": [("1", 1), (100, 100)],
    "replication.mqtt_version": [("3.1.1", "3.1.1"), (5, "5")],
}
NO_HOSTS: list[object] = [
    *("", "a b", "a..b", ".a", "a" * 64, "a" * 256, "mqtt://host:1883", "mqtt://host", "host:1883", "[::1]", "a/b"),
    *("u@host", "a\0b", "a\nb", "::g", "\udcff", 5, True, ["a"]),
]
BAD: dict[str, list[object]] = {
    "port": ["-1", 65_536, "abc", "", 1.5, True, None, ["7379"]],
    "memtable_size": [65_535, "4194305KiB", "64XiB", "MiB", "-1", 1.5, True],
    "max_value_size": [0, "513MiB"],
    "durability": ["sometimes", "", True],
    "text_protocol": ["maybe", "", 2],
    "notify_keyspace_events": ["K E", "q", 1],
    "allow_remote": ["maybe", "", 2],
    "storage_path": ["", "a\0b", "a\nb", "~nobody-at-all/x", 5],
    "host": NO_HOSTS,
    "replication.mqtt_broker": NO_HOSTS,
    "replication.client_id": [
        "a/b",
        "a+b",
        "a#b",
        "a b",
        "n" * 129,
        "\U0001f9c0" * 33,
        "a\0",
        "a\nb",
        "a\x80",
        "\udcff",
        "+",
        "#",
    ],
    "replication.topic_prefix": [
        *("", "/a", "a/", "a//b", "a/+/b", "t" * 513, "\u00e4" * 257, "$SYS/kv", "$share/g", "$", "+", "#", "a/#", "/"),
        *("a\0b", "a\nb", "a b", "a\u00a0b", "a\x80b", "a\ufffeb", "a\udcff"),
    ],
    "replication.username": ["u" * 65_536, "\u00e4" * 32_768, "a\nb", "a\0b", "\udcff", 5],
    "replication.peer_list": [
        "a",
        "a:0",
        "a:65536",
        [5],
        ":1",
        "a:b",
        5,
        "a..b:1",
        ["a:1", "a..b:1"],
        "http://a:1",
        "a/b:1",
    ],
    "replication.advertise_address": [
        *("a", "a:0", "a:65536", ":1", "a:b", "a:1,b:2", "a" * 256 + ":1", ["a:1"], 5),
        *("0.0.0.0:7379", "[::]:7379", "[::%eth0]:1"),
        *("a..b:1", "a" * 64 + ":1", "::1:1", "[]:1", "[a]:1", "[1.2.3.4]:1", "[::1:1", "a:1\n", "a b:1", "a:\u0661"),
    ],
    "anti_entropy.share_percent": [0, 101],
    "scrub.interval_seconds": [-1, 31_536_001],
    "scrub.share_percent": [0, 101],
    "replication.mqtt_port": [0],
}


def load_flags(**flags: object) -> Settings:
    return config.load({key: ("--set", value) for key, value in flags.items()}, {}, None).settings


def value_of(loaded: config.Loaded, key: str) -> tuple[object, str]:
    return next((one.value, one.source) for one in loaded.effective if one.key == key)


@pytest.mark.parametrize(("key", "given", "meant"), [(key, *pair) for key, pairs in GOOD.items() for pair in pairs])
def test_a_value_that_is_allowed_is_read(key: str, given: object, meant: object) -> None:
    loaded = config.load({key: ("--set", given)}, {}, None)
    assert value_of(loaded, key) == (meant, "flag --set")


@pytest.mark.parametrize(("key", "given"), [(key, one) for key, values in BAD.items() for one in values])
def test_a_value_that_is_not_allowed_names_key_value_source_and_what_is(key: str, given: object) -> None:
    with pytest.raises(config.ConfigError) as caught:
        config.load({key: ("--set", given)}, {}, None)
    allowed = next(declaration.type.allowed for name, declaration, _ in declarations() if name == key)
    shown = repr(given) if len(repr(given)) <= 400 else f"{repr(given)[:400]}..."
    assert str(caught.value) == f"flag --set: {key} = {shown} is not allowed; give {allowed}"


def test_the_defaults_are_those_of_the_declarations() -> None:
    assert config.load({}, {}, None).settings == Settings()


def test_a_flag_beats_the_environment_which_beats_the_file_which_beats_the_default(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text('port = 1\nhost = "a"\nthreads = 2\n')
    environment = {"MERKLEKV_PORT": "10", "MERKLEKV_HOST": "b", "PATH": "/bin"}
    loaded = config.load({"port": ("--port", "100")}, environment, file)
    assert value_of(loaded, "port") == (100, "flag --port")
    assert value_of(loaded, "host") == ("b", "environment MERKLEKV_HOST")
    assert value_of(loaded, "threads") == (2, f"file {file}")
    assert value_of(loaded, "log_level") == ("info", "default")


@pytest.mark.parametrize(("key", "default"), [(key, default) for key, _, default in declarations()])
def test_every_setting_is_reached_by_its_variable_and_reads_what_it_shows(key: str, default: object) -> None:
    declaration = next(one for name, one, _ in declarations() if name == key)
    loaded = config.load({}, {environment_name(key): declaration.type.show(default)}, None)
    assert value_of(loaded, key) == (default, f"environment {environment_name(key)}")


def test_the_file_of_the_wire_specification_is_understood(tmp_path: Path) -> None:
    file = tmp_path / "old.toml"
    file.write_text(
        """
        host = "127.0.0.1"
        port = 7379
        storage_path = "data"
        engine = "rwlock"
        sync_interval_seconds = 30
        [replication]
        enabled = true
        mqtt_broker = "localhost"
        mqtt_port = 1883
        topic_prefix = "merkle_kv"
        client_id = "node1"
        client_password = "hush"
        peer_list = ["other:7379"]
        [anti_entropy]
        enabled = true
        """
    )
    settings = config.load({}, {}, file).settings
    assert settings.replication.enabled
    assert settings.replication.client_id == "node1"
    assert settings.anti_entropy.interval_seconds == 30
    assert settings.anti_entropy.peer_list == ("other:7379",)


def test_what_anti_entropy_says_itself_beats_what_it_inherits(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text('sync_interval_seconds = 30\n[anti_entropy]\ninterval_seconds = 7\npeer_list = ["a:1"]\n')
    loaded = config.load({"replication.peer_list": ("--set", "b:2")}, {}, file)
    assert loaded.settings.anti_entropy.interval_seconds == 7
    assert loaded.settings.anti_entropy.peer_list == ("a:1",)


def test_an_inherited_value_says_where_it_was_given() -> None:
    loaded = config.load({}, {"MERKLEKV_SYNC_INTERVAL_SECONDS": "9"}, None)
    source = "sync_interval_seconds, environment MERKLEKV_SYNC_INTERVAL_SECONDS"
    assert value_of(loaded, "anti_entropy.interval_seconds") == (9, source)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("prot = 1", "unknown key 'prot'; did you mean 'port'?"),
        (
            "[replication]\nbroker = 1",
            "unknown key 'replication.broker'; did you mean 'replication.mqtt_broker'?",
        ),
        ("mqtt_broker = 'x'", "unknown key 'mqtt_broker'; did you mean 'replication.mqtt_broker'?"),
        ("[replicaton]\nenabled = true", "unknown key 'replicaton'; did you mean 'replication'?"),
        ("xyzzy = 1", "unknown key 'xyzzy'; 'merklekv config' lists every key"),
        ("[nosuch]\nport = 1", "unknown key 'nosuch'; 'merklekv config' lists every key"),
        ("replication = 5", "replication = 5 is not allowed; give a section [replication]"),
        ("port = 1\ndata_dir = 'a'\nstorage_path = 'b'", "storage_path is given twice"),
        ("port = ", "is not TOML"),
        ("[limits.max_connections]\nx = 1", "limits.max_connections = {'x': 1} is not allowed"),
    ],
)
def test_a_file_with_a_slip_is_refused_with_its_name(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "node.toml"
    file.write_text(content)
    with pytest.raises(config.ConfigError) as caught:
        config.load({}, {}, file)
    assert str(caught.value).startswith(f"file {file}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(config.ConfigError, match=r"cannot be read: No such file"):
        config.load({}, {}, tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(config.ConfigError, match="not UTF-8"):
        config.load({}, {}, tmp_path / "binary.toml")


def test_an_unknown_variable_is_refused_but_those_of_the_tests_are_left_alone() -> None:
    with pytest.raises(config.ConfigError, match="environment MERKLEKV_PROT: unknown key 'prot'"):
        config.load({}, {"MERKLEKV_PROT": "1"}, None)
    others = {"MERKLEKV_TEST_PORT": "1", "MERKLEKV_CONFIG": "x", "MERKLEKV_PURE": "1", "MERKLEKV_REQUIRE_CORE": "1"}
    assert config.load({}, others, None).settings == Settings()


IN_A_POD = {
    "MERKLEKV_SERVICE_HOST": "10.0.0.1",
    "MERKLEKV_SERVICE_PORT": "7379",
    "MERKLEKV_SERVICE_PORT_CLIENTS": "7379",
    "MERKLEKV_SERVICE_PORT_HTTP_API": "8080",
    "MERKLEKV_PORT": "tcp://10.0.0.1:7379",
    "MERKLEKV_PORT_7379_TCP": "tcp://10.0.0.1:7379",
    "MERKLEKV_PORT_7379_TCP_PROTO": "tcp",
    "MERKLEKV_PORT_7379_TCP_PORT": "7379",
    "MERKLEKV_PORT_7379_TCP_ADDR": "10.0.0.1",
    "MERKLEKV_PORT_7380_UDP": "udp://10.0.0.1:7380",
    "MERKLEKV_0_SERVICE_HOST": "fd00::1",
    "MERKLEKV_0_PORT": "tcp://[fd00::1]:7379",
    "MERKLEKV_0_PORT_7379_TCP": "tcp://[fd00::1]:7379",
    "MERKLEKV_HEADLESS_READ_SERVICE_PORT_CLIENTS": "7379",
    "MERKLEKV_HEADLESS_READ_PORT": "sctp://10.0.0.2:7379",
}


def test_what_kubernetes_sets_for_services_that_are_named_like_the_node_is_no_setting() -> None:
    assert config.load({}, IN_A_POD, None).settings == Settings()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MERKLEKV_SERVICE_HOSTS", "10.0.0.1"),
        ("MERKLEKV_SERVICE", "10.0.0.1"),
        ("MERKLEKV_PORTS", "tcp://10.0.0.1:7379"),
        ("MERKLEKV_PROT", "tcp://10.0.0.1:7379"),
        ("MERKLEKV_PORT", "tcp://10.0.0.1"),
        ("MERKLEKV_PORT", "7379x"),
        ("MERKLEKV_PORT_7379", "tcp://10.0.0.1:7379"),
        ("MERKLEKV_HEADLESS_PORT", "7379"),
        ("MERKLEKV_REPLICATION__MQTT_PORT", "tcp://10.0.0.1:1883"),
    ],
)
def test_what_only_looks_like_that_is_refused(variable: str, value: str) -> None:
    with pytest.raises(config.ConfigError, match=f"environment {variable}: "):
        config.load({}, {variable: value}, None)


def test_a_port_in_the_environment_is_one_also_in_a_pod() -> None:
    assert config.load({}, IN_A_POD | {"MERKLEKV_PORT": "7380"}, None).settings == Settings(port=7380)


def test_a_secret_comes_from_a_file_and_is_never_shown(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("hush hush\n")
    loaded = config.load({}, {"MERKLEKV_REPLICATION__CLIENT_PASSWORD_FILE": str(file)}, None)
    assert loaded.settings.replication.client_password == "hush hush"
    shown = next(one for one in loaded.effective if one.key == "replication.client_password")
    assert (shown.shown(), shown.plain()) == (config.SECRET_MASK, config.SECRET_MASK)
    assert str(file) in shown.source
    with pytest.raises(config.ConfigError) as caught:
        load_flags(**{"replication.client_password": "two\nlines"})
    assert "two" not in str(caught.value)


def test_a_secret_given_both_ways_in_one_place_is_refused(tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("a")
    file = tmp_path / "node.toml"
    file.write_text(f'[replication]\nclient_password = "b"\nclient_password_file = "{password}"\n')
    with pytest.raises(config.ConfigError, match="given twice"):
        config.load({}, {}, file)


def test_a_secret_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    file = tmp_path / "password"
    variable = {"MERKLEKV_REPLICATION__CLIENT_PASSWORD_FILE": str(file)}
    file.write_text("x" * 65_535 + "\n")
    assert len(config.load({}, variable, None).settings.replication.client_password) == 65_535
    file.write_text("x" * (config.SECRET_FILE_SIZE_MAX + 1))
    with pytest.raises(config.ConfigError, match="larger than"):
        config.load({}, variable, None)
    file.write_bytes(b"\xff")
    with pytest.raises(config.ConfigError, match="not UTF-8"):
        config.load({}, variable, None)
    file.write_bytes(b"\xef\xbb\xbfsecret\r\n")
    assert config.load({}, variable, None).settings.replication.client_password == "secret"
    file.write_bytes(b"\n")  # it would be no password
    with pytest.raises(config.ConfigError, match="is empty"):
        config.load({}, variable, None)
    file.unlink()
    with pytest.raises(config.ConfigError, match="cannot be read"):
        config.load({}, variable, None)


def test_a_certificate_needs_its_key() -> None:
    with pytest.raises(config.ConfigError, match=r"given without replication\.tls_key_file; give both"):
        load_flags(**{"replication.tls_cert_file": "c.pem"})
    assert load_flags(**{"replication.tls_cert_file": "c", "replication.tls_key_file": "k"}).replication.tls_key_file


@pytest.mark.parametrize(("count", "shown"), [(0, "0"), (1, "1"), (1024, "1KiB"), (3 << 20, "3MiB"), (1000, "1000")])
def test_sizes_are_shown_exactly(count: int, shown: str) -> None:
    assert setting_types.show_size(count) == shown


# Of every type that a file can hold, and what a flag or a variable can.
GARBAGE: list[object] = [
    *("", " ", "x", "-1", "0", "1e3", "inf", "nan", "NaN", "1.5", "0x10", "true", "a..b", "a:b:c", "\n", "\t", "x\0y"),
    *(
        "1" * 5000,
        "9" * 30,
        "-" + "9" * 30,
        "x" * 100_000,
        "\udcff",
        "\U0001f9c0",
        "../..",
        "~nobody-at-all/x",
        "%s",
        "{}",
    ),
    *(0, -1, 1 << 63, -(1 << 63), 1 << 20_000, 1.5, float("inf"), float("nan"), -0.0, True, False),
    *([], [[]], ["x"], [1], [None], {}, {"a": 1}, datetime.date(2026, 1, 1), datetime.time(1, 2)),
]


@pytest.mark.parametrize("key", [key for key, _, _ in declarations()])
def test_whatever_is_given_is_refused_in_one_line_or_is_a_value_that_reads_itself(key: str) -> None:
    """Each setting, each way in: flag, variable, and a file of which only the values matter here."""
    declaration = next(one for name, one, _ in declarations() if name == key)
    for given in GARBAGE:
        ways: list[tuple[str, dict[str, tuple[str, object]], dict[str, str]]] = [
            ("flag --set", {key: ("--set", given)}, {})
        ]
        if isinstance(given, str):
            ways.append((f"environment {environment_name(key)}", {}, {environment_name(key): given}))
        for source, flags, environment in ways:
            try:
                loaded = config.load(flags, environment, None)
            except config.ConfigError as error:
                message = str(error)
                assert message.startswith(f"{source}: {key} ")
                assert (
                    message.endswith(f" is not allowed; give {declaration.type.allowed}") or "given without" in message
                )
                assert message.isprintable()
                assert len(message) < 1000
                continue
            value, found = value_of(loaded, key)
            assert found == source
            assert type(value) in (str, int, bool, tuple, type(Path()))
            assert declaration.type.parse(declaration.type.show(value)) == value


@pytest.mark.parametrize("key", [key for key, _, _ in declarations()])
def test_what_a_file_may_hold_is_refused_with_the_name_of_the_file(tmp_path: Path, key: str) -> None:
    file = tmp_path / "node.toml"
    section, _, name = key.rpartition(".")
    for written in ("[[]]", "{a = 1}", "1.5", "nan", "-inf", "2026-01-01", "12:00:00", "'''a\nb'''", "0x" + "f" * 9000):
        file.write_text(f"[{section}]\n{name} = {written}\n" if section else f"{name} = {written}\n")
        with pytest.raises(config.ConfigError) as caught:
            config.load({}, {}, file)
        assert str(caught.value).startswith(f"file {file}: {key} = ")
        assert str(caught.value).isprintable()


def test_a_file_with_a_byte_order_mark_or_other_line_ends_is_read(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    for content in (
        b"\xef\xbb\xbfport = 1234\n",
        b"port = 1234\r\nhost = '::1'\r\n",
        b"\xef\xbb\xbf# \xc3\xa4\r\nport = 1234",
    ):
        file.write_bytes(content)
        assert config.load({}, {}, file).settings.port == 1234


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("port = 1234".encode("utf-16"), "is not UTF-8 text"),
        ("port = 1234".encode("utf-16-le"), "is not TOML: "),
        ("port = 1234 # ä".encode("latin-1"), "is not UTF-8 text"),
        (b"port = " + b"1" * 5000, "has a number of thousands of digits"),
        (b"port = " + b"[" * (config.FILE_SIZE_MAX // 2), "has too many brackets within brackets"),
        (b".".join([b"a"] * (config.FILE_SIZE_MAX // 2)), "has more than 1000 points in a line"),
        (b"#" * (config.FILE_SIZE_MAX + 1), f"is larger than {config.FILE_SIZE_MAX} bytes"),
        (b"\0", "is not TOML: "),
    ],
)
def test_a_file_in_another_form_is_refused_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "node.toml"
    file.write_bytes(content)
    with pytest.raises(config.ConfigError) as caught:
        config.load({}, {}, file)
    assert str(caught.value).startswith(f"file {file}: {message}")
    assert str(caught.value).isprintable()


def test_a_largest_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_bytes(b"port = 1234\n".ljust(config.FILE_SIZE_MAX, b"#"))
    assert config.load({}, {}, file).settings.port == 1234


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1", "10.0.0.7"])
@pytest.mark.parametrize("key", ["port", "http_port"])
def test_the_port_of_the_broker_is_not_the_nodes(host: str, key: str) -> None:
    flags: dict[str, tuple[str, object]] = {
        "host": ("--host", "10.0.0.7"),
        "http_host": ("--set", "10.0.0.7"),
        key: (f"--{key}", "1883"),
        "replication.mqtt_broker": ("--set", host),
    }
    enabled: dict[str, tuple[str, object]] = {"replication.enabled": ("--set", "true")}
    with pytest.raises(
        config.ConfigError, match=f"flag --{key}: {key} = 1883 is also the port of the broker on this machine"
    ):
        config.load(flags | enabled, {}, None)
    config.load(flags, {}, None)
    config.load(flags | enabled | {"replication.mqtt_broker": ("--set", "elsewhere")}, {}, None)
    config.load(flags | enabled | {key: (f"--{key}", "1884")}, {}, None)


def certificate(directory: Path, *options: str) -> tuple[Path, Path]:
    """A certificate and its key."""
    files = directory / "cert.pem", directory / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-subj", "/CN=x"]
    subprocess.run(
        [*command, "-out", files[0], "-keyout", files[1], *options], check=True, capture_output=True, timeout=60
    )
    return files


def test_files_for_tls_are_read_before_anything_else(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    cert, key = certificate(tmp_path, "-nodes")
    _, other = certificate(tmp_path / "other", "-nodes")
    (tmp_path / "empty").touch()
    (tmp_path / "encrypted").mkdir()
    locked_cert, locked = certificate(tmp_path / "encrypted", "-passout", "pass:secret")
    keys = "replication.tls_ca_file", "replication.tls_cert_file", "replication.tls_key_file"

    def require(*files: Path | str) -> None:
        flags: dict[str, tuple[str, object]] = {
            name: ("--set", str(file)) for name, file in zip(keys, files, strict=True)
        }
        config.require_tls_files(config.load(flags, {}, None))

    require("", "", "")
    require(cert, cert, key)
    missing = tmp_path / "missing"
    wrong: list[tuple[int, tuple[Path | str, Path | str, Path | str], str]] = [
        (0, (missing, "", ""), "cannot be read: No such file or directory"),
        (0, (tmp_path, "", ""), "is not a file"),
        (0, (tmp_path / "empty", "", ""), "cannot be used: give certificates in PEM (no certificate or crl found)"),
        (1, ("", missing, key), "cannot be read: No such file or directory"),
        (2, ("", cert, missing), "cannot be read: No such file or directory"),
        (2, ("", cert, "/dev/zero"), "is not a file"),
        (2, ("", cert, other), f"cannot be used: it is not the key of {cert}"),
        (2, ("", locked_cert, locked), "cannot be used: it is encrypted: give a key without a password"),
        (1, ("", tmp_path / "empty", key), "cannot be used: give certificates in PEM"),
        (2, ("", cert, tmp_path / "empty"), "cannot be used: give a private key in PEM"),
        (2, ("", cert, cert), "cannot be used: give a private key in PEM"),
    ]
    for place, files, reason in wrong:
        with pytest.raises(config.ConfigError) as caught:
            require(*files)
        assert str(caught.value).startswith(f"flag --set: {keys[place]} = '{files[place]}' {reason}")
        assert str(caught.value).isprintable()
