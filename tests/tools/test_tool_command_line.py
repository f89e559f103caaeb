"""The tool's command line: what places are called, and one line and one status for each way of failing."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures.node import NodeFactory
from fixtures.support import wait_until
from fixtures.tools import TOOL, FakeNode, address, fails, filled, opened, run, run_several, succeeds
from merklekv_tool import exit_codes, files
from merklekv_tool.cli import app
from merklekv_tool.errors import FileError
from merklekv_tool.source.open import address_of, node_address

from merklekv.errors import InvalidArgument
from merklekv.exit_codes import EXIT_CORRUPT, EXIT_FORMAT, EXIT_LOCKED, EXIT_UNWRITABLE, EXIT_USAGE

EVERY_VERB = [command.name for command in app.registered_commands if command.name]
VERBS = ["verify", "dump", "load"]
INTERRUPTED = """
import os
import signal
import sys

import merklekv_tool.load_generator
import merklekv_tool.cli
import typer.main


def pause():
    pass  # Python looks for signals before a call


def interrupted(*_):
    exec("os.kill(os.getpid(), signal.SIGINT); pause()", globals())
    sys.exit(7)


module, name = sys.argv[1].rsplit(".", 1)
setattr(sys.modules[module], name, interrupted)
sys.argv = ["merklekv-tool", "bench", "127.0.0.1:1"]
merklekv_tool.cli.main()
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    filled(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def dump(data: Path, tmp_path: Path) -> Path:
    succeeds("dump", data, "--output", tmp_path / "dump")
    return tmp_path / "dump"


def words(verb: str, place: str | Path, dump: Path) -> list[str | Path]:
    return [verb, dump, place] if verb == "load" else [verb, place]


@pytest.mark.parametrize("verb", EVERY_VERB)
def test_help_has_examples(verb: str) -> None:
    text = succeeds(verb, "--help").decode()
    assert "Examples:" in text
    assert f"merklekv {verb}" in text
    assert "--json" in text


def test_help_has_every_verb_and_status() -> None:
    text = succeeds("--help").decode()
    for verb in EVERY_VERB:
        assert re.search(rf"\b{verb}\b", text)
    for status, meaning in exit_codes.MEANINGS.items():
        assert re.search(rf"\b{status}  {re.escape(meaning)}", text), status


def test_statuses_are_distinct() -> None:
    named = {name: value for name, value in vars(exit_codes).items() if name.startswith("EXIT_")}
    assert len(set(named.values())) == len(named)
    assert set(named.values()) <= set(exit_codes.MEANINGS)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    environment = os.environ | {"_MERKLEKV_TOOL_COMPLETE": f"source_{shell}"}
    done = subprocess.run(TOOL, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert "merklekv-tool" in done.stdout
    assert done.returncode == 0


def test_installing_completion(tmp_path: Path) -> None:
    """As docs/operations.md says: from a shell, into what that shell reads when it starts."""
    command = f"{shlex.join(TOOL)} --install-completion && echo done"
    environment = os.environ | {"HOME": str(tmp_path)}
    subprocess.run(["bash", "-c", command], capture_output=True, timeout=120, env=environment, check=True)
    done = subprocess.run(
        ["bash", "-c", ". ~/.bashrc && complete -p merklekv-tool"],
        capture_output=True,
        timeout=120,
        env=environment,
        check=True,
    )
    assert b"merklekv" in done.stdout


def test_completing_a_verb() -> None:
    environment = os.environ | {
        "_MERKLEKV_TOOL_COMPLETE": "complete_bash",
        "COMP_WORDS": "merklekv-tool ver",
        "COMP_CWORD": "1",
    }
    done = subprocess.run(TOOL, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert done.stdout.split() == ["verify"]


HEAVY = """
import sys
from merklekv_tool.cli import main
try:
    main()
except SystemExit:
    pass
heavy = {"lmdb", "hiredis", "xxhash", "cbor2", "rich.progress", "rich.live"}
print("heavy:", sorted(heavy & set(sys.modules)))
"""


def test_help_imports_nothing_heavy() -> None:
    command = [sys.executable, "-c", HEAVY, "dump", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.endswith("heavy: []\n")


@pytest.mark.parametrize(
    "arguments", [["verify"], ["verify", "a", "b"], ["load", "file"], ["dump", "a", "--nosuch"], ["forget", "a"]]
)
def test_a_wrong_command_line_leads_to_the_help_of_its_verb(arguments: list[str]) -> None:
    done = run(*arguments)
    fails(EXIT_USAGE, f"; 'merklekv-tool {arguments[0]} --help' shows what there is", done=done)
    assert b".;" not in done.stderr


def test_a_verb_that_is_mistyped() -> None:
    fails(EXIT_USAGE, "Did you mean 'stats'? 'merklekv-tool --help' shows what there is", done=run("stat"))


def test_a_verb_is_needed() -> None:
    fails(EXIT_USAGE, "merklekv-tool: Missing command; 'merklekv-tool --help' shows what there is", done=run())


@pytest.mark.parametrize("arguments", [["nosuch"], ["--nosuch"]])
def test_a_verb_that_is_none(arguments: list[str]) -> None:
    fails(EXIT_USAGE, "nosuch", "; 'merklekv-tool --help' shows what there is", done=run(*arguments))


@pytest.mark.parametrize(
    "arguments", [["verify"], ["dump"], ["diff", ""], ["tree"], ["tree", "", "--json"], ["log"], ["members", "--json"]]
)
def test_output_that_cannot_be_written(arguments: list[str], data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "other")
    with opened(tmp_path / "other") as engine:
        engine.set(b"key", b"value")
    verb, *more = arguments
    command = [*TOOL, verb, str(data), *(one or str(tmp_path / "other") for one in more)]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, timeout=120, check=False)
    assert done.stderr == b"merklekv-tool: the output: cannot write: No space left on device\n"
    assert done.returncode == EXIT_UNWRITABLE


@pytest.mark.parametrize("arguments", [["dump", ""], ["log", ""], ["tree", ""]])
def test_output_that_nobody_reads(arguments: list[str], data: Path) -> None:
    command = [*TOOL, *(one or str(data) for one in arguments)]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, timeout=120, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (exit_codes.EXIT_PIPE, b"")


@pytest.mark.parametrize(
    ("place", "meant"),
    [
        ("127.0.0.1:7379", ("127.0.0.1", 7379)),
        ("some.host:1", ("some.host", 1)),
        ("[::1]:7379", ("::1", 7379)),
        ("7380", ("127.0.0.1", 7380)),
        (":7379", ("127.0.0.1", 7379)),
        ("localhost", ("localhost", 7379)),
        ("10.0.0.5", ("10.0.0.5", 7379)),
        ("host", None),
        ("123456", None),
        ("1.2.3", None),
        ("data", None),
        ("./127.0.0.1:7379", None),
        ("/var/lib/merklekv", None),
        ("host:", None),
        ("host:port", None),
    ],
)
def test_what_a_place_means(place: str, meant: tuple[str, int] | None) -> None:
    assert address_of(place) == meant


@pytest.mark.parametrize(
    ("place", "meant"), [("host", ("host", 7379)), ("10.0.0.5", ("10.0.0.5", 7379)), ("[::1]", ("::1", 7379))]
)
def test_a_bare_host_where_only_a_node_is_meant(place: str, meant: tuple[str, int]) -> None:
    assert node_address(place) == meant


def test_a_directory_that_is_called_like_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert address_of("host:7379") == ("host", 7379)
    (tmp_path / "host:7379").mkdir()
    assert address_of("host:7379") is None
    (tmp_path / "7379").mkdir()
    assert address_of("7379") is None
    with pytest.raises(InvalidArgument, match="7379: a directory, not a running node"):
        node_address("7379")


def test_a_port_that_is_none() -> None:
    assert address_of("host:65535") == ("host", 65535)
    for none in ("host:65536", "host:0"):
        with pytest.raises(InvalidArgument, match="is no address"):
            address_of(none)
        fails(EXIT_USAGE, none, done=run("verify", none))


# What no node can be called, and what each verb says of it: that it is no address, or no directory.
NO_PLACES = [
    "a..b:7379",
    "localhost:99999",
    "localhost:0",
    "host:",
    ":99999",
    "0",
    "::1:7379",
    "h:" + 5000 * "7",
    "a b:1",
]
NO_PLACES += ["a" * 64 + ":1", "\udcff:1", "x\ny:1", "\x1b[31m:1", "[x]:1", "[::1", ""]


def with_place(verb: str, place: str, dump: Path) -> list[str]:
    """The verb's words with that place."""
    words = {"load": [str(dump), place], "diff": [place, place], "forget": ["n", "--at", place]}
    words |= {"backup": [place, f"{dump}.backup"], "restore": [place, f"{dump}.data"]}
    return [verb, *words.get(verb, [place])]


@pytest.mark.parametrize("verb", EVERY_VERB)
def test_what_is_no_place(verb: str, dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line and one status, whatever is given."""
    before = sorted(tmp_path.iterdir())
    monkeypatch.chdir(tmp_path)
    done = run_several([with_place(verb, place, dump) for place in NO_PLACES])
    expected = {EXIT_USAGE, EXIT_FORMAT, EXIT_UNWRITABLE, exit_codes.EXIT_UNREACHABLE, exit_codes.EXIT_DUMP}
    for place, result in zip(NO_PLACES, done, strict=True):
        said = result.shown.decode()
        assert result.status in expected, (place, said)
        assert re.fullmatch(r"merklekv-tool: [^\n\x1b]+\n", said), place
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("verb", EVERY_VERB)
def test_what_may_not_be_read(verb: str, data: Path, dump: Path) -> None:
    """A directory of another user, opened by a user who is not root."""
    data.chmod(0)
    done = run(*with_place(verb, str(data), dump), powers=False)
    said = done.stderr.decode()
    assert done.returncode in (EXIT_USAGE, EXIT_UNWRITABLE), said
    assert re.fullmatch(r"merklekv-tool: [^\n]+\n", said)
    data.chmod(0o700)


# What answers on a port, and is no node: a web server, one that says anything, one that says nothing and goes.
STRANGERS = {
    "http": b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
    "garbage": bytes(range(128, 256)) * 20,
    "number": b":1\r\n" * 2000,
    "nothing": b"$-1\r\n" * 2000,
    "list": b"*0\r\n" * 2000,
    "lists": b"*1\r\n" * 2000 + b":1\r\n",
    "text": b"$3\r\nabc\r\n" * 2000,
    "error": b"-ERR no\x1b[31m\r\n" * 2000,
}


@pytest.mark.parametrize("verb", [verb for verb in EVERY_VERB if verb not in ("restore", "restamp", "compact")])
def test_a_stranger_at_the_port(verb: str, dump: Path) -> None:
    with contextlib.ExitStack() as stack:
        strangers = [stack.enter_context(FakeNode(greeting=answer)) for answer in STRANGERS.values()]
        done = run_several([with_place(verb, stranger.address, dump) for stranger in strangers])
    for name, result in zip(STRANGERS, done, strict=True):
        said = result.shown.decode()
        assert result.status in (exit_codes.EXIT_UNREACHABLE, exit_codes.EXIT_NODE), (name, said)
        assert re.fullmatch(r"merklekv-tool: [^\n\x1b]+\n", said), name


@pytest.mark.parametrize("verb", VERBS)
def test_a_directory_that_a_node_holds(verb: str, data: Path, dump: Path, node_factory: NodeFactory) -> None:
    node = node_factory(directory=data)
    done = run(*words(verb, data, dump))
    fails(EXIT_LOCKED, str(data), f"in use by process {node.pid}", "HOST:PORT", done=done)
    succeeds(*words(verb, address(node), dump))


@pytest.mark.parametrize("verb", VERBS)
def test_a_node_that_is_not_there(verb: str, dump: Path) -> None:
    place = "127.0.0.1:1"  # below what a test's node may be given
    fails(exit_codes.EXIT_UNREACHABLE, place, "refused", done=run(*words(verb, place, dump)))


@pytest.mark.parametrize("verb", VERBS)
def test_a_host_that_is_not_there(verb: str, dump: Path) -> None:
    place = "no.such.host.invalid:7379"
    fails(exit_codes.EXIT_UNREACHABLE, place, "cannot connect", done=run(*words(verb, place, dump)))


@pytest.mark.parametrize("verb", VERBS)
def test_something_else_on_the_port(verb: str, dump: Path) -> None:
    with FakeNode(greeting=b"SSH-2.0-OpenSSH_9.2\r\n") as other:
        done = run(*words(verb, other.address, dump))
    fails(exit_codes.EXIT_UNREACHABLE, other.address, "does not answer as a MerkleKV node", done=done)


@pytest.mark.parametrize("verb", VERBS)
def test_a_server_without_these_commands(verb: str, dump: Path) -> None:
    with FakeNode() as other:
        other.knows_nothing = True
        done = run(*words(verb, other.address, dump))
    fails(exit_codes.EXIT_NODE, other.address, "unknown command", "is it a MerkleKV node", done=done)
    assert b"beginning with" not in done.stderr


def test_a_node_that_takes_no_more_clients() -> None:
    refusal = b"-ERR max number of clients reached\r\n"
    for verb in ("stats", "verify", "dump", "bench", "health"):
        with FakeNode(greeting=refusal) as node:
            node.closes_at = b"PING"
            fails(exit_codes.EXIT_NODE, node.address, "max number of clients reached", done=run(verb, node.address))


def test_a_node_that_goes_away(data: Path, node_factory: NodeFactory) -> None:
    with FakeNode() as node:
        node.closes_at = b"RECORDS"
        fails(exit_codes.EXIT_UNREACHABLE, node.address, "closed", done=run("dump", node.address))
        fails(exit_codes.EXIT_UNREACHABLE, node.address, "closed", done=run("verify", node.address))


@pytest.mark.parametrize("verb", ["verify", "dump"])
def test_no_data_directory(verb: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "one.tar.gz").write_bytes(b"")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_bytes(b"")
    for name, said in (
        ("missing", "neither a data directory nor HOST:PORT"),
        ("file", "neither a data directory nor HOST:PORT"),
        ("other", "not a MerkleKV data directory (no FORMAT file)"),
        ("one.tar.gz", "a backup in one file has to be restored first"),
    ):
        done = run(verb, tmp_path / name)
        fails(EXIT_FORMAT, str(tmp_path / name), said, done=done)
        assert b"choose an empty" not in done.stderr
    assert not (tmp_path / "missing").exists()


def test_loading_where_something_else_is(dump: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_bytes(b"")
    fails(EXIT_FORMAT, "not a MerkleKV data directory", done=run("load", dump, tmp_path / "other"))
    fails(EXIT_FORMAT, str(dump), done=run("load", dump, dump))


@pytest.mark.parametrize("verb", VERBS)
def test_a_directory_of_a_later_release(verb: str, data: Path, dump: Path) -> None:
    (data / "FORMAT").write_text("MerkleKV data format 4\n")
    fails(EXIT_FORMAT, str(data), "data format 4 is from a later release", done=run(*words(verb, data, dump)))


@pytest.mark.parametrize("verb", ["dump", "load"])
def test_a_damaged_directory(verb: str, data: Path, dump: Path) -> None:
    segment = max((data / "log").glob("*.log"))
    segment.write_bytes(b"X" + segment.read_bytes()[1:])
    done = run(*words(verb, data, dump))
    fails(EXIT_CORRUPT, str(segment), "damaged at byte 0", "merklekv verify", done=done)
    assert run("verify", data).returncode == exit_codes.EXIT_PROBLEMS


def test_interrupted_from_the_keyboard(data: Path, tmp_path: Path) -> None:
    """Nothing half done is left, and nothing but the status is said."""
    output = tmp_path / "out"
    with FakeNode() as node:
        node.waits_at = b"RECORDS"
        with subprocess.Popen(
            [*TOOL, "dump", node.address, "--output", str(output)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            wait_until(lambda: node.asked[b"RECORDS"], what="the tool to read")
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=120)
            node.go_on.set()
    assert process.returncode == exit_codes.EXIT_INTERRUPTED
    assert b"Traceback" not in said
    assert os.listdir(tmp_path) == ["data"]


@pytest.mark.parametrize("place", ["merklekv_tool.load_generator.run", "typer.main.get_command"])
def test_interrupted_within_an_import(place: str, tmp_path: Path) -> None:
    """Dataclasses are made by `exec`: where the interrupt passes through it, Python would kill itself in the end."""
    (tmp_path / "interrupted.py").write_text(INTERRUPTED)
    command = [sys.executable, "-m", "interrupted", place]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (exit_codes.EXIT_INTERRUPTED, b"")
    ignores = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *command]  # as what runs in the background does
    done = subprocess.run(ignores, cwd=tmp_path, capture_output=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (7, b"")


def test_a_stdin_that_is_closed(tmp_path: Path) -> None:
    command = ["sh", "-c", 'exec "$@" <&-', "sh", *TOOL, "load", "-", str(tmp_path / "data")]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    fails(EXIT_UNWRITABLE, "the input: cannot read: stdin is closed", done=done)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("form", ["jsonl", "cbor"])
def test_a_stdout_that_is_closed(data: Path, form: str) -> None:
    command = ["sh", "-c", 'exec "$@" >&-', "sh", *TOOL, "dump", "--format", form, str(data)]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    fails(EXIT_UNWRITABLE, "the output: cannot write: stdout is closed", done=done)


@pytest.mark.parametrize(
    "arguments",
    [["stats", "--watch", "--interval", "nan"], ["stats", "--watch", "--interval", "inf"], ["bench", "-s", "nan"]],
)
def test_a_number_that_is_none(arguments: list[str]) -> None:
    way_out = f"; 'merklekv-tool {arguments[0]} --help' shows what there is"
    fails(EXIT_USAGE, arguments[-2], way_out, done=run(*arguments))


@pytest.mark.parametrize("arguments", [["--last", "9" * 30], ["--since", f"{'9' * 5000}d"], ["--until", "9" * 5000]])
def test_a_number_of_many_digits(arguments: list[str], data: Path) -> None:
    done = run("log", data, *arguments)
    fails(EXIT_USAGE, done=done)
    assert len(done.stderr) < 1000


def test_a_working_directory_that_was_removed(data: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    command = ["sh", "-c", 'mkdir "$0" && cd "$0" && rmdir "$0" && exec "$@"', str(gone), *TOOL]
    done = subprocess.run([*command, "backup", str(data), "backup"], capture_output=True, timeout=120, check=False)
    fails(EXIT_UNWRITABLE, "the working directory was removed", done=done)
    done = subprocess.run([*command, "verify", str(data)], capture_output=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_an_output_that_is_a_link_is_written_through(data: Path, tmp_path: Path) -> None:
    """Root would replace /dev/stdout for the whole machine."""
    link, whole = tmp_path / "stdout", succeeds("dump", data)
    link.symlink_to("/proc/self/fd/1")
    assert succeeds("dump", data, "--output", link) == whole
    assert os.readlink(link) == "/proc/self/fd/1"
    shown = tmp_path / "shown"
    with shown.open("wb") as stdout:
        subprocess.run([*TOOL, "dump", str(data), "--output", str(link)], stdout=stdout, timeout=120, check=True)
    assert shown.read_bytes() == whole
    assert link.is_symlink()
    link.unlink()
    link.symlink_to(tmp_path / "new")
    succeeds("dump", data, "--output", link)
    assert (tmp_path / "new").read_bytes() == whole
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600
    assert link.is_symlink()


def test_a_file_behind_a_link_is_replaced_whole(data: Path, tmp_path: Path) -> None:
    link, file = tmp_path / "link", tmp_path / "elsewhere" / "file"
    file.parent.mkdir()
    file.write_bytes(b"the one before")
    file.chmod(0o644)
    link.symlink_to(file)
    with FakeNode() as node:
        node.closes_at = b"RECORDS"
        assert run("dump", node.address, "--output", link).returncode == exit_codes.EXIT_UNREACHABLE
    assert file.read_bytes() == b"the one before"
    succeeds("dump", data, "--output", link)
    assert file.read_bytes() == succeeds("dump", data)
    assert file.stat().st_mode & 0o777 == 0o600
    assert link.is_symlink()
    assert os.listdir(file.parent) == ["file"]


def test_a_file_that_is_open_and_has_no_name_any_more_is_written(data: Path, tmp_path: Path) -> None:
    shown = tmp_path / "shown"
    with shown.open("w+b") as stdout:
        shown.unlink()
        subprocess.run([*TOOL, "dump", str(data), "-o", "/dev/stdout"], stdout=stdout, timeout=120, check=True)
        assert stdout.read() == succeeds("dump", data)
    assert os.listdir(tmp_path) == ["data"]


def test_two_outputs_of_one_name_have_a_draft_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two containers may have processes of one number."""
    name = str(tmp_path / "out")
    with files.open_output(name) as first, files.open_output(name) as second:
        first.write(b"first")
        second.write(b"second")
    assert Path(name).read_bytes() == b"first"
    monkeypatch.setattr(files, "draft_of", lambda path: tmp_path / "draft")
    with files.open_output(name) as first:
        first.write(b"again")
        with pytest.raises(FileError, match="File exists"), files.open_output(name):
            pass
    assert Path(name).read_bytes() == b"again"
    assert os.listdir(tmp_path) == ["out"]


def test_an_output_with_the_longest_name(data: Path, tmp_path: Path) -> None:
    name = "n" * 255
    succeeds("dump", data, "--output", tmp_path / name)
    succeeds("backup", data, tmp_path / f"b{name[1:]}")
    succeeds("restore", tmp_path / f"b{name[1:]}", tmp_path / f"r{name[1:]}")
    assert succeeds("dump", tmp_path / f"r{name[1:]}") == (tmp_path / name).read_bytes()


def test_a_note_that_stderr_does_not_take_is_lost(data: Path, tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        command = [*TOOL, "dump", str(data), "--output", str(tmp_path / "out")]
        assert subprocess.run(command, stderr=full, timeout=120, check=False).returncode == 0
    assert (tmp_path / "out").read_bytes() == succeeds("dump", data)
