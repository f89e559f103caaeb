"""The demo's page in a browser: its buttons do what the keys do, and it shows what the demo knows."""

from __future__ import annotations

import webbrowser
from collections.abc import Callable

import pytest
from fixtures.browser import OpenPage, PageOpener
from fixtures.demo import DemoTerminal
from fixtures.support import wait_until

from merklekv.demo.page import open_in_browser


@pytest.fixture
def page(demo_terminal: DemoTerminal, open_page: PageOpener) -> OpenPage:
    page = open_page(demo_terminal.address)
    page.wait("[data-level=good]", "All equal, 0 of")
    return page


def press(page: OpenPage, name: str) -> None:
    """By the name that a screen reader says."""
    page.page.get_by_role("button", name=name, exact=True).click()


def is_enabled(page: OpenPage, name: str) -> bool:
    return page.page.get_by_role("button", name=name, exact=True).is_enabled()


def test_what_is_stopped_there_heals(page: OpenPage, demo_terminal: DemoTerminal) -> None:
    assert not is_enabled(page, "start node-2")
    page.find("[data-press=kill-node-2]").focus()
    page.page.keyboard.press("Enter")
    page.wait('.box[data-node="node-2"][data-state=down]', "killed")
    page.wait("[data-level=bad]", "node-2 is down")
    page.wait(".parts li[data-state=differs]", "node-2")  # from what it was last seen to hold
    assert not is_enabled(page, "kill -9 node-2")
    assert not is_enabled(page, "run the show")
    press(page, "stop broker")
    page.wait(".broker[data-state=down]", "0 of 3 connected")
    page.wait('.box[data-node="node-1"] .meter:not([aria-valuenow="0"])')  # its outbox fills
    demo_terminal.press("b")  # keys and buttons drive the same cluster
    page.find("[data-press=kill-node-1]").focus()
    page.page.keyboard.press("Enter")
    wait_until(lambda: page.ask("document.activeElement.dataset.press") == "start-node-1")
    page.page.keyboard.press("Space")
    press(page, "start node-2")
    page.wait("[data-level=good]", "acknowledged writes lost, healed in")
    press(page, "pause writing")
    page.wait("#happened", "writing is paused")
    press(page, "go on writing")
    page.wait("#happened", "writing goes on")
    press(page, "run the show")
    page.wait('.box[data-node="node-2"][data-state=down]')


# -- opening it --------------------------------------------------------------------------------------------------------


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the viewer's browser was asked to open; there is a graphical session."""
    addresses: list[str] = []

    class Browser(webbrowser.BackgroundBrowser):
        def open(self, url: str, new: int = 0, autoraise: bool = True) -> bool:
            addresses.append(url)
            return True

    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(webbrowser, "get", lambda: Browser("firefox"))
    return addresses


def test_it_opens_in_the_browser(opened: list[str]) -> None:
    open_in_browser("http://127.0.0.1:1/")
    wait_until(lambda: opened == ["http://127.0.0.1:1/"])


def missing() -> webbrowser.BaseBrowser:
    raise webbrowser.Error("no browser")


@pytest.mark.parametrize("get", [missing, lambda: webbrowser.GenericBrowser("lynx")], ids=["none", "in the terminal"])
def test_without_a_browser_of_its_own_window_nothing_opens(
    opened: list[str], monkeypatch: pytest.MonkeyPatch, get: Callable[[], webbrowser.BaseBrowser]
) -> None:
    monkeypatch.setattr(webbrowser, "get", get)
    monkeypatch.setattr(webbrowser.GenericBrowser, "open", lambda self, url, **how: opened.append(url))
    open_in_browser("http://127.0.0.1:1/")
    assert opened == []


def test_without_a_graphical_session_nothing_opens(opened: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    open_in_browser("http://127.0.0.1:1/")
    assert opened == []
