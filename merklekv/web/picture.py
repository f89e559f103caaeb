"""The picture of a cluster: what its page shows, as plain data, made of what the nodes have said.

Whatever a node says is text of a bounded length here; the page shows it as text.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from merklekv.metrics import by_label
from merklekv.output import counted, printable
from merklekv.web.differences import differing
from merklekv.web.latency import percentile_us
from merklekv.web.verdict import verdict
from merklekv.web.watch import NodeWatch, Sight

TEXT_MAX: Final = 300
PROBLEMS_MAX: Final = 20  # of one node
REASONS_MAX: Final = 8
MEMBERS_SHOWN: Final = 100
SLOW_SHOWN: Final = 10
ARGUMENTS_SHOWN: Final = 8
WORD_MAX: Final = 80
NUMBER_MAX: Final = (1 << 53) - 1  # those of JavaScript are exact so far

Json = dict[str, Any]

# Metrics that are a problem as soon as they are above 0, with what to say of them.
_BAD_WHEN_POSITIVE: Final[Mapping[str, str]] = {
    "writes_stalled": "writes wait for a checkpoint",
    "refused_records": "records are refused; exchanges leave them out: {}",
    "scrub_unrepaired": "damages that the scrub could not repair: {}",
    "members_unreadable": "rows of the member table cannot be read: {}",
    "outbox_dropped_overflow": "events dropped because the outbox was full: {}",
    "outbox_dropped_too_large": "events dropped because the broker takes no such size: {}",
    "log_lines_dropped": "lines that the log could not take: {}",
}
_BAD_THREADS: Final = ("waiting", "ended")


def picture(watches: Sequence[NodeWatch], names: Mapping[str, str], not_shown: int, here: str) -> Json:
    """Everything that the page shows.

    `names`: ids of nodes by address, as the member table has them. `not_shown`: nodes beyond those watched. `here`: the
    address of the node that serves the page, empty for another server.
    """
    unequal = differing({watch.address: watch.parts for watch in watches if watch.is_up})
    nodes = [node_picture(watch, names.get(watch.address, ""), unequal.get(watch.address)) for watch in watches]
    roots = {node["root"] for node in nodes if node["state"] == "up" and node["root"]}
    for node in nodes:
        if len(roots) == 1 and node["root"]:
            node["differs"] = []
    return {
        "at": round(time.time(), 1),
        "here": next((node["id"] for node in nodes if node["address"] == here), ""),
        "nodes": nodes,
        "not_shown": not_shown,
        "verdict": verdict(nodes),
        "members": _members(watches),
        "slow": _slow(watches, names),
    }


def node_picture(watch: NodeWatch, name: str, differs: list[int] | None) -> Json:
    """One node: what it said last, also when it is down."""
    sight, state = watch.sight, watch.state
    is_up = state == "up"
    figures = sight.figures if sight is not None else {}
    node: Json = {
        "id": _text(figures.get("node_id") or name or watch.address),
        "address": _text(watch.address),
        "state": state,
        "error": _text(watch.problem),
        "version": _text(figures.get("version", "")),
        "durability": _text(figures.get("durability", "")),
        "ready": {"1": True, "0": False}.get(figures.get("ready", "")),
        "not_ready": _reasons(figures),
        "uptime_s": _number(figures, "uptime_seconds"),
        "keys": _number(figures, "db_keys"),
        "root": _text(sight.root if sight is not None else "")[:64],
        "differs": differs,
        "replication": _text(figures.get("replication_state", "")),
        "outbox": _number(figures, "outbox_events"),
        "outbox_bytes": _number(figures, "outbox_bytes"),
        "inbox": _number(figures, "inbox_messages"),
        "memory_kb": _number(figures, "used_memory_kb"),
        "exchanging": bool(_number(figures, "exchange_running")),
        "problems": _problems(figures) if is_up else [],
    }
    return node | (_rates(watch.before, sight) if is_up else {})


def _rates(before: Sight | None, sight: Sight | None) -> Json:
    """What happened between two rounds, in a second; and how long half and 99 % of the commands took at most."""
    if before is None or sight is None or sight.at <= before.at:
        return {}
    seconds = sight.at - before.at
    first, last = before.calls, sight.calls
    is_written = _number(sight.figures, "log_next_sequence") != _number(before.figures, "log_next_sequence")
    return {
        "reads": round(max(0, last.reads - first.reads) / seconds, 1),
        "writes": round(max(0, last.writes - first.writes) / seconds, 1),
        "p50_us": percentile_us(first, last, 0.5),
        "p99_us": percentile_us(first, last, 0.99),
        "is_written": is_written,
    }


def _reasons(figures: Mapping[str, str]) -> list[str]:
    """Why a node is not ready."""
    reasons = by_label(figures, "not_ready").items()
    return [_text(f"{reason}: {sentence}") for reason, sentence in reasons if sentence][:REASONS_MAX]


def _problems(figures: Mapping[str, str]) -> list[str]:
    found = [figures.get("clock_problem", ""), figures.get("replication_detail", "")]
    for thread, status in by_label(figures, "thread_status").items():
        found += [f"thread {thread}: {status}"] if status.startswith(_BAD_THREADS) else []
    for name, words in _BAD_WHEN_POSITIVE.items():
        count = _number(figures, name)
        found += [words.format(f"{count:,}")] if count else []
    found += [f"record {key}: {reason}" for key, reason in by_label(figures, "refused_record").items()]
    found += [f"exchange with {peer}: {error}" for peer, error in by_label(figures, "peer_error").items() if error]
    refused = by_label(figures, "refused_events")
    found += [f"events refused ({reason}): {count}" for reason, count in refused.items() if count != "0"]
    return [_text(one) for one in found if one][:PROBLEMS_MAX]


def _members(watches: Sequence[NodeWatch]) -> list[Json]:
    """The member table of the first node that answers."""
    rows = next((watch.members for watch in watches if watch.is_up and watch.members), ())
    fields = ("node", "state", "address", "contact_ms", "holds_back", "refuses")
    return [
        {name: _text(row[name]) if isinstance(row.get(name), str) else _integer(row.get(name)) for name in fields}
        for row in rows[:MEMBERS_SHOWN]
    ]


def _slow(watches: Sequence[NodeWatch], names: Mapping[str, str]) -> list[Json]:
    """The newest slow commands of all nodes that are up."""
    found: list[Json] = [
        {
            "node": _text(watch.sight.figures["node_id"]),
            "at": one.at,
            "us": one.microseconds,
            "words": [_word(word) for word in one.words[:ARGUMENTS_SHOWN]],
        }
        for watch in watches
        if watch.is_up and watch.sight is not None
        for one in watch.slow
    ]
    return sorted(found, key=lambda one: -one["at"])[:SLOW_SHOWN]


def _word(word: bytes) -> str:
    """A word of a command; of one that is no text, its size."""
    try:
        return _text(word.decode())[:WORD_MAX]
    except UnicodeDecodeError:
        return f"({counted(len(word), 'byte')})"


def _text(text: str) -> str:
    return printable(text[:TEXT_MAX])


def _number(figures: Mapping[str, str], name: str) -> int | None:
    """The value of a metric of whole numbers; None if the node does not report it, or something else."""
    try:
        return _integer(int(figures.get(name, "")))
    except ValueError:
        return None


def _integer(value: object) -> int | None:
    """A whole number that the page can show; one of thousands of digits would even be an error to write."""
    return value if isinstance(value, int) and abs(value) <= NUMBER_MAX else None
