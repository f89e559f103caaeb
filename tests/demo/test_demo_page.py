"""The demo's page in a browser: its buttons do what the keys do, and it shows what the demo knows."""

from __future__ import annotations

import subprocess
import webbrowser
from collections.abc import Callable, Iterator

import pytest
from fixtures.browser import OpenPage, PageOpener
from fixtures.support import wait_until

from merklekv import interpreter
from merklekv.demo.page import open_in_browser

MARK = "the page is at "


@pytest.fixture
def address() -> Iterator[str]:
    """Of the page of a demo whose own outages are far away."""
    command = [*interpreter.command("merklekv"), "demo", "--seconds", "80000"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        yield next(line.partition(MARK)[2].strip() for line in demo.stdout if MARK in line)
        demo.terminate()
        demo.communicate()


@pytest.fixture
def page(address: str, open_page: PageOpener) -> OpenPage:
    page = open_page(address)
    page.wait("[data-level=good]", "All equal, 0 of")
    return page


def press(page: OpenPage, name: str) -> None:
    """By the name that a screen reader says."""
    page.page.get_by_role("button", name=name, exact=True).click()


def is_enabled(page: OpenPage, name: str) -> bool:
    return page.page.get_by_role("button", name=name, exact=True).is_enabled()


def test_what_is_stopped_there_heals(page: OpenPage) -> None:
    assert not is_enabled(page, "start node-2")
    press(page, "kill -9 node-2")
    page.wait('.box[data-node="node-2"][data-state=down]', "killed")
    page.wait("[data-level=bad]", "node-2 is down")
    page.wait(".parts li[data-state=differs]", "node-2")  # from what it was last seen to hold
    assert not is_enabled(page, "kill -9 node-2")
    assert not is_enabled(page, "run the show")
    press(page, "stop broker")
    page.wait(".broker[data-state=down]", "0 of 3 connected")
    page.wait('.box[data-node="node-1"] .meter[aria-valuenow]:not([aria-valuenow="0"])')  # its outbox fills
    press(page, "start node-2")
    press(page, "start broker")
    page.wait("[data-level=good]", "acknowledged writes lost, healed in")
    press(page, "pause writing")
    page.wait("#happened", "writing is paused")
    press(page, "go on writing")
    press(page, "run the show")
    page.wait('.box[data-node="node-2"][data-state=down]')


def test_the_keyboard_alone_kills_and_starts(page: OpenPage) -> None:
    page.find("[data-press=kill-node-3]").focus()
    page.page.keyboard.press("Enter")
    page.wait('.box[data-node="node-3"][data-state=down]')
    wait_until(lambda: page.ask("document.activeElement.dataset.press") == "start-node-3")
    page.page.keyboard.press("Space")
    page.wait("[data-level=good]", "healed in")


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
