"""Settings: precedence, every kind of value at and past its limits, and errors that say what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from merklekv import config, kinds
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
    "allow_remote": [("true", True), ("No", False), (True, True), ("1", True), ("off", False)],
    "storage_path": [("/var/lib/merklekv", Path("/var/lib/merklekv")), ("~", Path.home())],
    "host": [("::1", "::1"), ("localhost", "localhost")],
    "replication.client_id": [("n" * 128, "n" * 128), ("", ""), ("node-1.example", "node-1.example")],
    "replication.topic_prefix": [("a/b", "a/b"), ("merkle_kv", "merkle_kv")],
    "replication.peer_list": [("a:1, [::1]:65535", ("a:1", "[::1]:65535")), (["a:1"], ("a:1",)), ("", ())],
    "replication.advertise_address": [(one, one) for one in ("a:1", "[::1]:65535", "a" * 255 + ":1", "")],
    "anti_entropy.share_percent": [("1", 1), (100, 100)],
    "scrub.interval_seconds": [("0", 0), (31_536_000, 31_536_000)],
    "scrub.share_percent": [("1", 1), (100, 100)],
    "replication.mqtt_version": [("3.1.1", "3.1.1"), (5, "5")],
}
BAD: dict[str, list[object]] = {
    "port": ["-1", 65_536, "abc", "", 1.5, True, None, ["7379"]],
    "memtable_size": [65_535, "4194305KiB", "64XiB", "MiB", "-1", 1.5, True],
    "max_value_size": [0, "513MiB"],
    "durability": ["sometimes", "", True],
    "allow_remote": ["maybe", "", 2],
    "storage_path": ["", "a\0b", 5],
    "host": ["", "a b"],
    "replication.client_id": ["a/b", "a+b", "a#b", "a b", "n" * 129],
    "replication.topic_prefix": ["", "/a", "a/", "a//b", "a/+/b", "t" * 513],
    "replication.peer_list": ["a", "a:0", "a:65536", [5], ":1", "a:b", 5],
    "replication.advertise_address": ["a", "a:0", "a:65536", ":1", "a:b", "a:1,b:2", "a" * 256 + ":1", ["a:1"], 5],
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
    allowed = next(declaration.kind.allowed for name, declaration, _ in declarations() if name == key)
    assert str(caught.value) == f"flag --set: {key} = {given!r} is not allowed; give {allowed}"


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
    loaded = config.load({}, {environment_name(key): declaration.kind.show(default)}, None)
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
    assert config.load({}, {"MERKLEKV_TEST_PORT": "1", "MERKLEKV_CONFIG": "x"}, None).settings == Settings()


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
    file.unlink()
    with pytest.raises(config.ConfigError, match="cannot be read"):
        config.load({}, variable, None)


def test_a_certificate_needs_its_key() -> None:
    with pytest.raises(config.ConfigError, match=r"given without replication\.tls_key_file; give both"):
        load_flags(**{"replication.tls_cert_file": "c.pem"})
    assert load_flags(**{"replication.tls_cert_file": "c", "replication.tls_key_file": "k"}).replication.tls_key_file


@pytest.mark.parametrize(("count", "shown"), [(0, "0"), (1, "1"), (1024, "1KiB"), (3 << 20, "3MiB"), (1000, "1000")])
def test_sizes_are_shown_exactly(count: int, shown: str) -> None:
    assert kinds.show_size(count) == shown
