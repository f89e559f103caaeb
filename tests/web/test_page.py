"""The page in a browser: what it shows of a cluster, and how it can be used. Chromium, without a window."""

from __future__ import annotations

import copy
import json
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures.browser import OpenPage, PageOpener
from fixtures.cluster import HEALING, NodeHandle, ReplicationTestHarness
from fixtures.node import NodeFactory
from fixtures.support import free_port, wait_until

from merklekv.web.keys import KeyBrowser
from merklekv.web.page import page_routes
from merklekv.web.server import WebServer
from merklekv.web.verdict import verdict
from merklekv.web.view import ClusterView

AXE = Path(sys.prefix) / "npm" / "node_modules" / "axe-core" / "axe.min.js"
WIDTHS = (360, 768, 1280, 1600)
HOSTILE = (
    "<script>document.title='owned'</script>",
    '"><img src=x onerror=alert(1)>',
    "n" * 128,
    "\u05e9\u05dc\u05d5\u05dd-\u0645\u0631\u062d\u0628\u0627",
    "{{7*7}}${7*7}",
)


def a_node(name: str, **fields: Any) -> dict[str, Any]:
    """A node of a picture, that is well unless `fields` say otherwise."""
    node = {
        "id": name,
        "address": f"{name[:20]}:7379",
        "state": "up",
        "error": "",
        "version": "0.1.0",
        "durability": "always",
        "ready": True,
        "not_ready": [],
        "uptime_s": 4000,
        "keys": 12_290,
        "root": "ab" * 32,
        "differs": [],
        "replication": "connected",
        "outbox": 0,
        "outbox_bytes": 0,
        "inbox": 0,
        "memory_kb": 51_200,
        "exchanging": False,
        "problems": [],
        "reads": 120.0,
        "writes": 30.0,
        "p50_us": 64,
        "p99_us": 2048,
        "is_written": False,
    }
    return node | fields


def a_picture(*nodes: dict[str, Any]) -> dict[str, Any]:
    return {
        "at": 1_790_000_000.0,
        "here": nodes[0]["id"],
        "nodes": list(nodes),
        "not_shown": 2,
        "verdict": verdict(nodes),
        "members": [
            {
                "node": node["id"],
                "state": "member",
                "address": node["address"],
                "contact_ms": 900,
                "holds_back": "",
                "refuses": "",
            }
            for node in nodes
        ],
        "slow": [
            {"node": node["id"], "at": 1_790_000_000, "us": 15_000, "words": ["KEYS", node["id"]]} for node in nodes
        ],
    }


def troubled() -> dict[str, Any]:
    """Everything that the page can show at once."""
    down = a_node("node-2", state="down", error="node-2:7379: cannot connect", differs=None, keys=12_000)
    behind = a_node("node-3", root="cd" * 32, differs=[4, 17, 200], outbox=341, problems=["the clock is 70 s ahead"])
    starting = a_node("node-4", ready=False, not_ready=["sync: no exchange yet with node-1"], replication="connecting")
    return a_picture(a_node("node-1"), down, behind, starting)


class Scripted(ClusterView):
    """A view whose picture a test sets."""

    def __init__(self, picture: dict[str, Any]) -> None:
        super().__init__()
        self._shown = picture
        self._set = threading.Condition()

    def show(self, picture: dict[str, Any]) -> None:
        with self._set:
            self._shown = picture
            self._set.notify_all()

    def events(self) -> Generator[bytes, None, None]:
        while True:
            yield b"data: %b\n\n" % json.dumps(self._shown).encode()
            with self._set:
                self._set.wait(0.2)


class Site:
    """A server of the page, which can be stopped and started again."""

    def __init__(self, view: ClusterView, node_address: str) -> None:
        self._routes = page_routes(view, KeyBrowser(node_address))
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}/"
        self.server: WebServer | None = None
        self.start()

    def start(self) -> None:
        self.server = WebServer(self._routes, "127.0.0.1", self.port)
        self.server.start()

    def stop(self) -> None:
        if self.server is not None:
            self.server.stop()
            self.server = None


SiteFactory = Callable[..., Site]


@pytest.fixture
def site_of() -> Iterator[SiteFactory]:
    sites: list[Site] = []

    def make(view: ClusterView, node_address: str = "127.0.0.1:1") -> Site:
        sites.append(Site(view, node_address))
        return sites[-1]

    yield make
    for site in sites:
        site.stop()


@pytest.fixture
def page_of(site_of: SiteFactory, open_page: PageOpener) -> Callable[..., OpenPage]:
    """The page of a picture."""

    def make(picture: dict[str, Any], **options: Any) -> OpenPage:
        return open_page(site_of(Scripted(picture)).address, **options)

    return make


def box(name: str, state: str = "") -> str:
    """A selector of a node's box in the diagram."""
    return f'.box[data-node="{name}"]' + (f'[data-state="{state}"]' if state else "")


class Cluster:
    """Three nodes that heal each other, and the page of the first."""

    def __init__(self, harness: ReplicationTestHarness) -> None:
        self.port = free_port()
        page = ("--http-port", str(self.port))
        self.nodes = [harness.create_node("", *HEALING, *(page if not number else ())) for number in range(3)]
        for node in self.nodes:
            node.wait_figure("replication_nodes", 3)
        self.harness = harness
        self.address = f"http://127.0.0.1:{self.port}/"

    @property
    def first(self) -> NodeHandle:
        return self.nodes[0]


@pytest.fixture
def cluster(own_harness: ReplicationTestHarness) -> Cluster:
    return Cluster(own_harness)


@pytest.mark.replication
def test_the_page_shows_what_the_nodes_say_who_is_killed_and_who_hangs(cluster: Cluster, open_page: PageOpener) -> None:
    first, second, third = cluster.nodes
    first.set_many({f"key:{number}": "v" for number in range(1200)})
    third.wait_for("key:1199", "v")
    cluster.harness.wait_converged()
    page = open_page(cluster.address)
    page.wait('.verdict[data-level="good"]', "All 3 nodes hold the same 1,200 keys")
    for node in cluster.nodes:
        name = node.node_id
        assert page.wait(box(name, "up") + " .keys").inner_text() == "1,200"
        assert first.root().startswith(page.find(box(name) + " .root").inner_text())
        page.wait("#members td", name)
    wait_until(lambda: page.find("#parts .said").all_inner_texts() == ["equal"] * 3)
    page.wait(".broker", "3 connected")
    assert page.find(".badge:visible").count() == 1
    figures = first.figures()
    head = page.find("#facts").inner_text()
    assert figures["version"] in head
    assert figures["durability"] in head

    second.kill()
    page.wait(box(second.node_id, "down") + " .why", "cannot connect")
    page.wait('.verdict[data-level="bad"]', f"{second.node_id} is down")
    page.wait_count('.link[data-state="down"]', 1)
    page.wait("#said", f"{second.node_id} is down")
    second.start()
    page.wait(box(second.node_id, "up"))
    page.wait('.verdict[data-level="good"]', "All 3 nodes hold the same 1,200 keys")
    page.wait_count('.link[data-state="down"]', 0)

    third.process.send_signal(signal.SIGSTOP)
    try:
        page.wait(box(third.node_id, "down"), "answer within 1 s")
        page.wait(box(first.node_id, "up"))
    finally:
        third.process.send_signal(signal.SIGCONT)
    page.wait(box(third.node_id, "up"))


@pytest.mark.replication
def test_events_wait_while_the_broker_is_away(cluster: Cluster, open_page: PageOpener) -> None:
    first = cluster.first
    page = open_page(cluster.address)
    page.wait('.verdict[data-level="good"]')
    cluster.harness.broker.stop()
    page.wait('.broker[data-state="down"]', "0 of 3 connected")
    first.set_many({f"key:{number}": "v" for number in range(50)})
    page.wait('.verdict[data-level="bad"]', "No node is connected to the broker; 50 events wait in outboxes")
    page.wait(f'{box(first.node_id)} .meter[aria-valuenow="50"]')
    page.wait("#problems li", first.node_id)
    cluster.harness.broker.start()
    page.wait(f'{box(first.node_id)} .meter[aria-valuenow="0"]')
    page.wait('.verdict[data-level="good"]', "All 3 nodes hold the same 50 keys")


def test_keys_and_their_changes(node_factory: NodeFactory, open_page: PageOpener) -> None:
    port = free_port()
    node = node_factory("--http-port", str(port))
    with node.connect() as client:
        client.send(b"".join(b"SET other:%d v\r\n" % number for number in range(120)))
        for _ in range(120):
            assert client.line() == "OK"
        for value in ("one", "two", "<b>three</b>"):
            assert client.ask(f"SET user:1 {value}") == "OK"
        assert client.ask("SET user:12 other") == "OK"
    page = open_page(f"http://127.0.0.1:{port}/")
    page.find("#search button").click()
    page.wait(".pager", "Page 1, 50 keys")
    page.wait(".pager button", "Next page").click()
    page.wait(".pager", "Page 2, 50 keys")
    page.wait(".pager button", "Next page").click()
    page.wait(".pager", "Page 3, 22 keys")
    assert page.wait(".pager button", "Next page").is_disabled()
    page.find("#prefix").fill("user:")
    page.page.keyboard.press("Enter")
    page.wait(".pager", "Page 1, 2 keys")
    page.find("button.key").first.click()
    page.wait("#history table", "one")
    assert page.find("#history tbody td:nth-child(3)").all_inner_texts() == ["<b>three</b>", "two", "one"]
    page.page.keyboard.press("Escape")
    page.find("#prefix").fill("nothing")
    page.find("#search button").click()
    page.wait("#keys", "No key begins with this.")


@pytest.mark.parametrize("width", [360, 1280])
def test_hostile_names_are_text(page_of: Callable[..., OpenPage], width: int) -> None:
    nodes = [a_node(name, error=name, problems=[name], not_ready=[name], ready=False, version=name) for name in HOSTILE]
    page = page_of(a_picture(*nodes), width=width)
    assert page.wait(".box .name").page.locator(".box .name").all_text_contents() == list(HOSTILE)
    for name in HOSTILE:
        page.wait("#members td", name)
        page.wait("#slow td", name)
        page.wait("#problems li", name)
    assert page.find("img:not(.brand img), main script, iframe, [onerror]").count() == 0
    assert page.ask("document.documentElement.scrollWidth") <= width
    assert HOSTILE[0] in page.page.title()


@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits(page_of: Callable[..., OpenPage], width: int) -> None:
    page = page_of(troubled(), width=width)
    page.wait(box("node-4"))
    assert page.ask("document.documentElement.scrollWidth") <= width
    inside = "boxes => boxes.every(box => box.scrollWidth <= box.clientWidth + 1)"
    assert page.find(".box").evaluate_all(inside)


@pytest.mark.parametrize("dark", [False, True], ids=("light", "dark"))
def test_it_is_accessible(site_of: SiteFactory, open_page: PageOpener, node_factory: NodeFactory, dark: bool) -> None:
    node = node_factory()
    with node.connect() as client:
        assert client.ask("SET a b") == "OK"
    page = open_page(site_of(Scripted(troubled()), f"127.0.0.1:{node.port}").address, dark=dark, calm=True)
    page.wait(box("node-4"))
    page.find("#search button").click()
    page.wait("#keys table")
    assert AXE.is_file(), "axe-core is not installed: `make test` sees to that"
    page.ask(AXE.read_text())
    assert violations(page) == []
    page.find("button.key").click()
    page.wait("#history table")
    assert violations(page) == []
    assert page.find("#parts .said").all_inner_texts() == [
        "equal",
        "not known while it is down",
        "differs in 3 parts: 4, 17, 200",
        "equal",
    ]


def violations(page: OpenPage) -> list[Any]:
    """What axe finds, with the elements."""
    found = page.ask("axe.run(document, {resultTypes: ['violations']}).then(result => result.violations)")
    return [(one["id"], [node["html"] for node in one["nodes"]]) for one in found]


def test_the_keyboard_alone(page_of: Callable[..., OpenPage]) -> None:
    page = page_of(troubled())
    page.wait(box("node-4"))
    keyboard = page.page.keyboard
    walked = []
    for _ in range(7):
        keyboard.press("Tab")
        focused = "document.activeElement.id || document.activeElement.textContent || document.activeElement.ariaLabel"
        walked.append(page.ask(f"{focused}"))
        style = page.ask("getComputedStyle(document.activeElement).outlineStyle")
        assert style != "none", walked
    assert walked[:5] == ["Skip to the state of the cluster", "theme", "curves-of", "prefix", "Show"]
    page.find("#theme").focus()
    keyboard.press("Enter")
    assert page.ask("getComputedStyle(document.documentElement).colorScheme") == "dark"
    assert page.find("#theme").get_attribute("aria-label") == "Switch to light colours"
    page.find("#curves-of").focus()
    keyboard.press("ArrowDown")
    page.wait('.plot[aria-label^="Latency of node-2"]')


def test_what_is_said_aloud_changes_with_the_meaning_only(site_of: SiteFactory, open_page: PageOpener) -> None:
    view = Scripted(a_picture(a_node("a"), a_node("b")))
    page = open_page(site_of(view).address)
    page.wait("#said", "All 2 nodes hold the same 12,290 keys")
    view.show(a_picture(a_node("a", keys=7), a_node("b", keys=7)))
    page.wait("#sentence", "All 2 nodes hold the same 7 keys")
    assert page.find("#said").inner_text() == "All 2 nodes hold the same 12,290 keys"
    view.show(a_picture(a_node("a"), a_node("b", state="down")))
    page.wait("#said", "b is down")


def test_a_server_that_is_lost_and_comes_back(site_of: SiteFactory, open_page: PageOpener) -> None:
    site = site_of(Scripted(a_picture(a_node("a"))))
    page = open_page(site.address)
    page.expected = ["net::ERR_"]
    page.wait("#live", "live")
    site.stop()
    page.wait("#sentence", "This node does not answer; trying again")
    page.wait("#live", "connection lost")
    site.start()
    page.wait("#sentence", "One node holds 12,290 keys")
    assert page.find("#live").inner_text() == "live"


def test_the_curves_follow_the_pictures(site_of: SiteFactory, open_page: PageOpener) -> None:
    picture = a_picture(a_node("a"), a_node("b", reads=5.0))
    view = Scripted(picture)
    page = open_page(site_of(view).address)
    page.wait('.plot[aria-label="Requests / s of a: reads 120, writes 30"]')
    page.wait('.plot[aria-label="Latency of a: median 64 µs, 99 % 2 ms"]')
    page.find("#curves-of").select_option("b")
    page.wait('.plot[aria-label="Requests / s of b: reads 5, writes 30"]')
    later = copy.deepcopy(picture)
    later["nodes"][1] |= {"outbox": 77}
    view.show(later)
    page.wait('.plot[aria-label="Outbox of b: events that wait 77"]')


def test_the_curves_begin_anew_when_the_clock_is_set_back(site_of: SiteFactory, open_page: PageOpener) -> None:
    picture = a_picture(a_node("a"))
    view = Scripted(picture)
    page = open_page(site_of(view).address)
    page.wait('.plot[aria-label="Requests / s of a: reads 120, writes 30"]')
    page.ask(
        "() => { const Plot = uPlot; window.charts = [];"
        " window.uPlot = function (...given) { const one = new Plot(...given); charts.push(one); return one; }; }"
    )
    page.find("#theme").click()  # draws them with new colours
    shown: list[float] = []
    for at, reads in ((picture["at"] + 1, 1), (picture["at"] - 3600, 2), (picture["at"] - 3599, 3)):
        node = a_node("a", reads=reads)
        view.show(a_picture(node) | {"at": at})
        page.wait(f'.plot[aria-label="Requests / s of a: reads {reads}, writes 30"]')
        shown.append(at)
    assert page.ask("charts[0].data[0]") == shown[1:]


def test_it_is_small_and_quickly_there(page_of: Callable[..., OpenPage]) -> None:
    page = page_of(troubled())
    page.wait(box("node-4"))
    sizes = page.ask("performance.getEntriesByType('resource').map(one => one.encodedBodySize)")
    assert 60_000 < sum(sizes) < 300_000
