"""The documentation says what the code does: commands, flags, settings, statuses, links and the README's first
minute.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures.node import NodeFactory

import merklekv
from merklekv import config, exit_codes
from merklekv.net.limits import Limits
from merklekv.node import limits_of
from merklekv.settings import Settings, declarations

ROOT = Path(__file__).parent.parent
PLACES = ("docs", "tests", "benchmarks", "deploy")
PAGES = sorted([*ROOT.glob("*.md"), *(page for place in PLACES for page in ROOT.glob(f"{place}/**/*.md"))])
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]*)(?:#([^)\s]*))?\)")
BLOCK = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"```.*?```|`[^`]*`", re.DOTALL)
# What makes a browser fetch something. A link that a reader follows does not.
FETCHED = re.compile(r'<(?:script|img|source)\b[^>]*\bsrc="([^"]*)"|<link\b[^>]*\bhref="([^"]*)"|url\(([^)]*)\)')
SITE_S = 280


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text().replace("\\|", "|")


@pytest.mark.parametrize("script", ["write_cli_docs.py", "write_commands.py", "write_compatibility.py"])
def test_a_generated_page_is_what_the_code_makes_of_it(script: str) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / script, "--check"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_the_protocol_page_has_the_limits_in_force() -> None:
    text = page("protocol.md")
    limits = Limits()
    assert f"`limits.max_connections`, {limits.connections:,}" in text
    assert f"{limits.line_bytes >> 20} MiB without its ending" in text
    assert f"{limits.arguments:,}" in text
    assert f"`limits.max_request_bytes`, {limits.request_bytes >> 20} MiB" in text
    assert f"`limits.max_output_bytes`, {limits.output_hard_bytes >> 20} MiB" in text
    assert f"`limits.memory`, {limits.memory_bytes >> 20} MiB" in text


def test_the_settings_leave_the_limits_at_the_servers_own_defaults() -> None:
    assert limits_of(Settings()) == Limits()


@pytest.mark.parametrize("status", sorted(exit_codes.MEANINGS))
def test_every_exit_status_is_in_the_operations_page(status: int) -> None:
    assert re.search(rf"^\| {status} \|", page("operations.md"), re.MULTILINE)


def test_every_setting_that_a_page_names_exists() -> None:
    keys = {key for key, _, _ in declarations()}
    for name in ("operations.md", "protocol.md"):
        for named in re.findall(r"`((?:limits|replication|anti_entropy|scrub)\.[a-z_]+)`", page(name)):
            assert named in keys, f"{name}: {named}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(path: Path) -> None:
    for target, anchor in LINK.findall(CODE.sub("", path.read_text())):
        if target.startswith(("http:", "https:", "mailto:")):
            continue
        file = (path.parent / target).resolve() if target else path
        assert file.exists(), f"{target} does not exist"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{target}#{anchor} does not exist"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_list_of_contents_has_every_section_in_order(path: Path) -> None:
    text = BLOCK.sub("", path.read_text())
    head, _, _ = text.partition("\n## ")
    contents = re.findall(r"^- \[[^\]]*\]\(#([^)]*)\)$", head, re.MULTILINE)
    assert contents in ([], [anchor_of(title) for title in re.findall(r"^## (.*)$", text, re.MULTILINE)])


def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    site = tmp_path / "site"
    options = ["-q", "--fail-on-warning", "--keep-going", "-c", str(ROOT / "docs"), "-d", str(tmp_path / "doctrees")]
    command = [sys.executable, "-m", "sphinx", *options, str(ROOT), str(site)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SITE_S)
    assert done.returncode == 0, done.stderr
    fetched = {(file.name, "".join(found)) for suffix in ("html", "css") for file in site.rglob(f"*.{suffix}")
               for found in FETCHED.findall(file.read_text())}  # fmt: skip
    assert {(name, address) for name, address in fetched if "//" in address.partition("data:")[0]} == set()
    assert (site / "docs/operations.html").exists()
    assert "tombston" in (site / "searchindex.js").read_text()  # the stem


def test_the_glossary_is_in_order_and_says_where_each_term_is_explained() -> None:
    _, *entries = re.split(r"^## ", page("glossary.md"), flags=re.MULTILINE)
    terms = [entry.partition("\n")[0] for entry in entries]
    assert terms == sorted(terms, key=str.casefold)
    assert [term for term, entry in zip(terms, entries, strict=True) if not re.search(r"\w\.md", entry)] == []


def test_the_pages_link_every_term_of_the_glossary() -> None:
    """A term without a link is one that no reader of the other pages looks up."""
    pages = [path for path in PAGES if path.name != "glossary.md"]
    linked = {anchor for path in pages for target, anchor in LINK.findall(path.read_text()) if "glossary" in target}
    terms = re.findall(r"^## (.*)$", page("glossary.md"), re.MULTILINE)
    assert [term for term in terms if anchor_of(term) not in linked] == []


def anchors(file: Path) -> set[str]:
    return {anchor_of(title) for title in re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)}


def anchor_of(title: str) -> str:
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def test_the_changelog_has_this_version() -> None:
    assert f"## {merklekv.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_readmes_first_minute_with_netcat(node_factory: NodeFactory) -> None:
    """What the README shows is what the server answers."""
    block = re.search(r"\$ printf '([^']*)'.*?\n(.*?)\n\n", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block is not None
    requests = block[1].replace("\\n", "\n").encode()
    expected = block[2].splitlines()
    with node_factory().connect() as client:
        client.send(requests)
        assert [client.line() for _ in expected] == expected


def test_the_readmes_two_nodes(node_factory: NodeFactory) -> None:
    """`merklekv sync` and `merklekv diff` do what the README says, at two other ports."""
    page = (ROOT / "README.md").read_text()
    one, other = node_factory(), node_factory()
    with one.connect() as client:
        client.send(b"SET greeting hello world\n")
        assert client.line() == "OK"
    for verb, said in (("sync", ""), ("diff", "no key differs\n")):
        command = f"merklekv {verb} 127.0.0.1:7379 127.0.0.1:7380"
        assert command in page
        words = command.replace("7379", str(one.port)).replace("7380", str(other.port)).split()
        done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        assert said in done.stdout
    with other.connect() as client:
        client.send(b"GET greeting\n")
        assert client.line() == "VALUE hello world"


def test_the_readmes_settings_are_valid(tmp_path: Path) -> None:
    block = re.search(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block is not None
    (tmp_path / "node.toml").write_text(block[1])
    settings = config.load({}, {}, tmp_path / "node.toml").settings
    assert (settings.replication.enabled, settings.replication.client_id) == (True, "node-1")


def test_the_readmes_library_example_runs(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    example = next(block for block in blocks if "merklekv.open" in block)
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout == "None [b'key']\n", done.stderr


def test_the_examples_of_the_library_run_and_their_types_fit(tmp_path: Path, node_factory: NodeFactory) -> None:
    *blocks, with_asyncio = re.findall(r"```python\n(.*?)```", page("library.md"), re.DOTALL)
    scripts = {"library.py": "\n".join(blocks), "asynchronous.py": with_asyncio}
    said = []
    for name, script in scripts.items():
        (tmp_path / name).write_text(script.replace("7379", str(node_factory().port) if "aio" in script else "7379"))
        command = [sys.executable, str(tmp_path / name)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert said[0].startswith("b'Ann' False 1\nset b'user:5' b'Eve' ")
    assert said[1].startswith("[b'Ann', None] 3\nset b'user:1' b'Ann'\nset b'from' b'90'\ndel b'user:1' None\n")
    for name in scripts:
        strict = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), str(tmp_path / name)]
        checked = subprocess.run(strict, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert checked.returncode == 0, checked.stdout


def test_the_page_on_the_library_has_every_error_that_is_exported() -> None:
    exported = {name for name in merklekv.__all__ if isinstance(getattr(merklekv, name), type)}
    errors = {name for name in exported if issubclass(getattr(merklekv, name), merklekv.MerkleKVError)}
    table = page("library.md").partition("## Errors")[2].partition("```")[0]
    assert errors == set(re.findall(r"`(\w+)`", table)) & exported
    for name in errors:
        assert getattr(merklekv, name).__doc__


def test_the_readmes_redis_example_runs(node_factory: NodeFactory) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    example = next(block for block in blocks if "import redis" in block)
    example = example.replace("7379", str(node_factory().port))
    done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, timeout=60)
    assert done.stdout == "b'\\x00 any bytes \\xff' 1\n", done.stderr
