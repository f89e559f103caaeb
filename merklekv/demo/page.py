"""The demo's page: the live page of its nodes, with what the demo knows beside them, and buttons for its controls.

The demo knows its processes, so a node that was killed is shown as down at once, with the reason.
"""

from __future__ import annotations

import os
import threading
import webbrowser
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final

from merklekv.address import format_address
from merklekv.demo.cluster import Cluster
from merklekv.demo.controls import Control, Controls
from merklekv.demo.health import State
from merklekv.demo.part import NodePart
from merklekv.harness.process import HOST
from merklekv.web.keys import KeyBrowser
from merklekv.web.page import page_routes
from merklekv.web.server import Request, Response, Route, WebServer
from merklekv.web.view import ClusterView

PATH: Final = "/demo/"
EVENTS_SHOWN: Final = 3
WHY_DOWN: Final = {"down": "killed", "dead": "ended by itself"}
LEVELS: Final = {State.EQUAL: "good", State.OUTAGE: "bad"}
GRAPHICAL: Final = ("DISPLAY", "WAYLAND_DISPLAY")

Json = dict[str, Any]


class Page:
    """Serves the page at `address` within a `with` block."""

    def __init__(self, cluster: Cluster, controls: Controls, happened: Sequence[str]) -> None:
        self._cluster = cluster
        self._controls = controls
        self._happened = happened
        self._told: Json = {}  # made anew by the thread of the cluster, read by those of the server
        addresses = [format_address(HOST, node.process.port) for node in cluster.nodes]
        routes = page_routes(ClusterView(*addresses, amend=self._amend), KeyBrowser(addresses[0]))
        buttons = {PATH + name: Route(self._press, "POST") for name in controls.all}
        self._server = WebServer({**routes, **buttons}, HOST, 0)

    def __enter__(self) -> Page:
        self.tell()
        self.address = f"http://{format_address(*self._server.start())}/"
        return self

    def __exit__(self, *error: object) -> None:
        self._server.stop()

    def tell(self) -> None:
        """Takes over how the cluster is now; for the thread that drives it."""
        cluster = self._cluster
        level = "bad" if cluster.has_lost else LEVELS.get(cluster.health.state, "busy")
        self._told = {
            "verdict": {"level": level, "text": cluster.verdict()},
            "nodes": {node.name: self._of_node(node) for node in cluster.nodes},
            "states": {part.name: part.state for part in cluster.parts},
            "demo": {
                "controls": [_button(name, control) for name, control in self._controls.all.items()],
                "happened": list(self._happened)[-EVENTS_SHOWN:],
            },
        }

    def _of_node(self, node: NodePart) -> Json:
        """What page and terminal show alike."""
        view, differs = self._cluster.shown.get(node.name), self._cluster.differing.get(node.name)
        if view is None:
            return {"differs": differs}
        content = {"keys": view.keys, "root": view.root, "outbox": view.outbox, "replication": view.connection}
        return {**content, "differs": differs}

    def _amend(self, picture: Json) -> Json:
        told = self._told
        for node, part in zip(picture["nodes"], self._cluster.nodes, strict=False):
            state = told["states"][part.name]
            node["id"] = part.name
            if state in WHY_DOWN:
                node.update(state="down", error=WHY_DOWN[state])
            elif node["state"] == "down" and state == "starting":
                node.update(state="asked", error="")
            node.update(told["nodes"][part.name])
        return {**picture, "verdict": told["verdict"], "demo": told["demo"]}

    def _press(self, request: Request) -> Response:
        self._controls.press(request.path.removeprefix(PATH))
        return Response(b"", status=HTTPStatus.ACCEPTED)


def _button(name: str, control: Control) -> Json:
    shown = {"name": name, "label": control.label, "part": control.part}
    return {**shown, "enabled": control.makes_sense()}


def open_in_browser(address: str) -> None:
    """Opens the page in the viewer's browser, if there is a graphical session; does not wait."""
    if not any(map(os.environ.get, GRAPHICAL)):
        return
    try:
        browser = webbrowser.get()
    except webbrowser.Error:
        return
    if type(browser) is not webbrowser.GenericBrowser:  # such as Lynx, which would take the terminal
        threading.Thread(target=browser.open, args=(address,), daemon=True).start()
