"""The routes of the live page: its files, the pictures that it shows, and the key browser. All of them only read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from typing import Final

from merklekv.web.keys import KeyBrowser
from merklekv.web.server import Request, Response, Route, Stream
from merklekv.web.view import ClusterView

HTML: Final = "text/html; charset=utf-8"
CSS: Final = "text/css; charset=utf-8"
SCRIPT: Final = "text/javascript; charset=utf-8"
SVG: Final = "image/svg+xml"
JSON: Final = "application/json"

INDEX: Final = "index.html"
FILES: Final[Mapping[str, str]] = {
    "page.css": CSS,
    "page.js": SCRIPT,
    "dom.js": SCRIPT,
    "words.js": SCRIPT,
    "demo.js": SCRIPT,
    "diagram.js": SCRIPT,
    "parts.js": SCRIPT,
    "curves.js": SCRIPT,
    "tables.js": SCRIPT,
    "keys.js": SCRIPT,
    "theme.js": SCRIPT,
    "icon.svg": SVG,
    "uPlot/uPlot.iife.min.js": SCRIPT,
    "uPlot/uPlot.min.css": CSS,
}


def page_routes(view: ClusterView, browser: KeyBrowser) -> dict[str, Route]:
    """What a server needs to serve the page of a view, with the keys of the browser's node."""

    def keys(request: Request) -> Response:
        return _json(browser.page(request.query.get("prefix", ""), request.query.get("cursor", "")))

    def history(request: Request) -> Response:
        return _json(browser.history(request.query.get("key", "")))

    files = {f"/static/{name}": Route(_File(name, kind)) for name, kind in FILES.items()}
    return {
        "/": Route(_File(INDEX, HTML)),
        "/events": Route(lambda request: Stream(view.events())),
        "/keys": Route(keys),
        "/history": Route(history),
        **files,
    }


class _File:
    """A handler that answers with a file of the package; read once, when it is first asked for."""

    def __init__(self, name: str, kind: str) -> None:
        self._name, self._kind = name, kind
        self._answer: Response | None = None

    def __call__(self, request: Request) -> Response:
        if self._answer is None:
            content = resources.files(__package__).joinpath("static", self._name).read_bytes()
            self._answer = Response(content, self._kind)
        return self._answer


def _json(value: object) -> Response:
    return Response(json.dumps(value, separators=(",", ":")).encode(), JSON)
