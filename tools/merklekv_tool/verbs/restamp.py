"""`merklekv restamp`: gives current versions to what a wrong clock has stamped in the future.

Other nodes refuse such records until the time has come, so the keys cannot be replicated until then. Afterwards the
directory is a new member of its cluster under the same node id; the others remove the former one as they exchange.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Final

import typer

from merklekv.errors import Corruption, DiskFull, InvalidArgument
from merklekv.output import counted
from merklekv_tool.arguments import AsJson
from merklekv_tool.output import note, progress, say_result, text_of

if TYPE_CHECKING:
    from merklekv.replication.cluster.restamp import Restamped

EXAMPLES: Final = """
Examples:

    date                                                    # is it right now?
    systemctl stop merklekv
    merklekv restamp /var/lib/merklekv --dry-run
    merklekv restamp /var/lib/merklekv && systemctl start merklekv

Every record from after the current time of this machine gets a version of now, whichever node wrote it, so set the
clock first. Do it on each node whose log or `members` says so; the others need nothing. If it is more than one, stop
them all before the first. The records reach the others by anti-entropy, where they replace what was written there
before. A FLUSHALL from the future is not repeated: keys that other nodes still have come back.
"""


def restamp(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="A data directory that no node has open.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")] = False,
    as_json: AsJson = False,
) -> None:
    """Give current versions to records that a wrong clock has stamped in the future."""
    from merklekv.replication.cluster import restamp
    from merklekv.replication.cluster.members import MembersUnreadable
    from merklekv_tool.source.open import open_to_change, require_stopped

    began = time.monotonic()
    path = require_stopped(directory, "give the directory of the node, when it is stopped")
    with open_to_change(path) as engine:
        if not engine.time_gate.is_set:
            raise InvalidArgument("the clock of this machine was never set: set it first")
        now = engine.time_gate.wall()
        try:
            with progress(f"restamp {directory}") as update:
                result = restamp.restamp(engine, now, update, dry_run=dry_run)
        except MembersUnreadable as error:
            raise Corruption(f"{directory}: {error}; a start sets it aside") from error
        except DiskFull as error:
            raise DiskFull(f"{error}; make space and run this again, it does the rest") from error
        except KeyboardInterrupt:
            if not dry_run:
                note("interrupted; run this again before you start the node, it does the rest")
            raise
    if result and result.found.damaged and not as_json:
        note(f"left as they are: {counted(result.found.damaged, 'damaged record')}; merklekv verify names them")
    is_done = result is not None and not dry_run
    fields = {"directory": directory, "now_ns": now, "restamped": is_done, **_fields(result, is_done)}
    fields["seconds"] = round(time.monotonic() - began, 3)
    say_result(fields, "\n".join(_lines(directory, now, result, is_done)), as_json)


def _fields(result: Restamped | None, is_done: bool) -> dict[str, object]:
    from merklekv.engine.record import timestamp_of
    from merklekv.engine.restamp import FutureData
    from merklekv_tool.formats.jsonl import field

    found = result.found if result else FutureData()
    return {
        "records": found.records,
        "tombstones": found.tombstones,
        "damaged": found.damaged,
        "newest_ns": found.newest,
        "first": [field("key", key) | {"was_ns": timestamp_of(version)} for key, version in found.first],
        "truncation_ns": found.truncation,
        "gc_horizon_ns": found.gc_horizon,
        "store_id": result.identity.store_id.hex() if result and result.identity and is_done else "",
        "former_store_id": result.former.store_id.hex() if result and result.former else "",
    }


def _lines(directory: str, now: int, result: Restamped | None, is_done: bool) -> list[str]:
    from merklekv.engine.time_gate import show_time

    if result is None:
        return [f"{directory}: nothing is from after now, {show_time(now)}; nothing was changed"]
    found, identity = result.found, result.identity
    lines = [f"{directory}: it is {show_time(now)}"]
    if found.records:
        deleted = f", {found.tombstones} of them deleted" if found.tombstones else ""
        has = "would get" if not is_done else "has" if found.records == 1 else "have"
        lines.append(
            f"{counted(found.records, 'record')}{deleted}, up to {show_time(found.newest)}, {has} a version of now"
        )
        lines += [f"    {text_of(key)}" for key, _ in found.first]
        if more := found.records - len(found.first):
            lines.append(f"    and {more} more")
    if found.truncation:
        does = "does not hold any more" if is_done else "would not hold any more"
        lines.append(
            f"the FLUSHALL of {show_time(found.truncation)} {does}: keys that other nodes still have come back"
        )
    if found.gc_horizon:
        lines.append(f"the GC horizon, {show_time(found.gc_horizon)}, {'is' if is_done else 'would be'} now")
    if not (found.records or found.truncation or found.gc_horizon):
        lines.append("no record is from after that; times that the node has agreed to with others, or once had, are")
    if identity is not None:
        name = f"node {identity.node}"
        if not result.has_met:
            new = f"has the new store id {identity.store_id.hex()}" if is_done else "would have a new store id"
            lines.append(f"{name} {new}")
        else:
            new = f"is a new member, store id {identity.store_id.hex()}" if is_done else "would be a new member"
            lines.append(f"{name} {new}; the other nodes remove the former one")
    return lines
