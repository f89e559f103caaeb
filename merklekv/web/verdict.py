"""How the cluster is, in one sentence: whether its nodes hold the same, and what is in the way if they do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from merklekv.engine.format import INNER_NODES
from merklekv.output import counted, listed

Level = Literal["good", "live", "busy", "bad"]
NAMES_SHOWN: Final = 3
CONNECTED: Final = "connected"

Node = Mapping[str, Any]  # see picture.node_picture


def verdict(nodes: Sequence[Node]) -> dict[str, str]:
    """`level`: `good`, `live` (clients write), `busy` (it needs time only) or `bad`; `text`: the sentence."""
    level, text = _verdict(nodes)
    return {"level": level, "text": text}


def _verdict(nodes: Sequence[Node]) -> tuple[Level, str]:
    up = [node for node in nodes if node["state"] == "up"]
    down = [node for node in nodes if node["state"] == "down"]
    asked = [node for node in nodes if node["state"] == "asked"]
    cut_off = [node for node in up if node["replication"] not in ("", "disabled", CONNECTED)]
    if not up:
        return ("bad", f"{_names(down)} {_do(down, 'does', 'do')} not answer") if down else ("busy", "Asking the node")
    if down:
        return "bad", f"{_names(down)} {_do(down, 'is', 'are')} down{_waiting(up)}"
    if cut_off:
        where = "No node is" if len(cut_off) == len(up) > 1 else f"{_names(cut_off)} {_do(cut_off, 'is', 'are')} not"
        return "bad", f"{where} connected to the broker{_waiting(up)}"
    if asked:
        return "busy", f"Asking {_names(asked)}"
    if any(node["ready"] is False for node in up):
        starting = [node for node in up if node["ready"] is False]
        return "busy", f"{_names(starting)} {_do(starting, 'is', 'are')} not ready"
    if any(not node["root"] or node["keys"] is None for node in up):
        counting = [node for node in up if not node["root"] or node["keys"] is None]
        return "busy", f"{_names(counting)} {_do(counting, 'counts its', 'count their')} keys"
    parts = len({part for node in up for part in node["differs"] or ()})
    is_equal = len({node["root"] for node in up}) == 1
    differ = f"differ in {parts} of {INNER_NODES} parts" if parts else "differ"
    if any(node.get("is_written") for node in up) and len(up) > 1:
        return "live", f"Clients write; at this moment the nodes {'are equal' if is_equal else differ}"
    if is_equal:
        keys = counted(up[0]["keys"], "key")
        return "good", f"All {len(up)} nodes hold the same {keys}" if len(up) > 1 else f"One node holds {keys}"
    if any(node["outbox"] or node["inbox"] or node["exchanging"] for node in up):
        return "busy", f"Nodes {differ}; healing"
    return "busy", f"Nodes {differ}; the next exchange heals them"


def _waiting(up: Sequence[Node]) -> str:
    events = sum(node["outbox"] or 0 for node in up)
    return f"; {counted(events, 'event')} {'waits' if events == 1 else 'wait'} in outboxes" if events else ""


def _names(nodes: Sequence[Node]) -> str:
    names = [node["id"] for node in nodes]
    if len(names) > NAMES_SHOWN:
        names[NAMES_SHOWN:] = [f"{len(names) - NAMES_SHOWN} more"]
    return listed(names)


def _do(nodes: Sequence[Node], one: str, several: str) -> str:
    return one if len(nodes) == 1 else several
