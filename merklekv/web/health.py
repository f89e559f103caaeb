"""/livez and /readyz: whether the process should be restarted, and whether clients should be sent to it.

Both are plain text and have status 200 or 503. A node that is alive and not ready needs time or help, and no restart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Final

from merklekv.net.transaction import HELD_SECONDS_MAX
from merklekv.web.server import Handler, Response

# A worker that does not answer for so long hangs: longer than the longest transaction and a sync of a slow disk take.
LIVE_S: Final = HELD_SECONDS_MAX + 10.0


def alive(answers: Callable[[float], bool]) -> Handler:
    """`ok` if all that serve clients answer within LIVE_S; `answers` says whether they do so within that time."""

    def livez(request: object) -> Response:
        if answers(LIVE_S):
            return Response(b"ok\n")
        return _unavailable(f"a thread that serves clients has not answered for {LIVE_S:.0f} seconds")

    return livez


def ready(not_ready: Callable[[], Mapping[str, str]]) -> Handler:
    """`ready`, or a line `reason: sentence` for each reason why the node is not."""

    def readyz(request: object) -> Response:
        problems = not_ready()
        if not problems:
            return Response(b"ready\n")
        return _unavailable("\n".join(f"{reason}: {problem}" for reason, problem in problems.items()))

    return readyz


def _unavailable(text: str) -> Response:
    return Response(f"{text}\n".encode(errors="backslashreplace"), status=HTTPStatus.SERVICE_UNAVAILABLE)
