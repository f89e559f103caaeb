"""The server: its version, its state, its clock, and its end.

The line protocol's STATS has fixed names only, see `status.basic_metrics`; `STATS all` and STATS over RESP have all.
"""

from __future__ import annotations

import time

import merklekv
from merklekv.net.commands import status
from merklekv.net.commands.arguments import SYNTAX_ERROR, no_arguments
from merklekv.net.errors import Goodbye, RequestError, wrong_count
from merklekv.net.protocol import resp, text
from merklekv.net.protocol.resp import bulk
from merklekv.net.protocol.text import Request
from merklekv.net.registry import ALONE, FAST, OPTIONS_MAX, Reply, command, line_command
from merklekv.net.session import Session
from merklekv.net.vitals import memory


@command("VERSION", "The version of MerkleKV.", flags=FAST, note="MerkleKV's own")
def version(session: Session, request: Request) -> Reply:
    return bulk(merklekv.__version__.encode())


@line_command("VERSION", reply="`VERSION x.y.z`")
def version_line(session: Session, request: Request) -> Reply:
    return b"VERSION %b\r\n" % merklekv.__version__.encode()


@line_command(
    "MEMORY", group="memory", reply="`MEMORY bytes`", note="memory of the serving process, without mapped files"
)
def memory_line(session: Session, request: Request) -> Reply:
    return b"MEMORY %d\r\n" % memory()[1]


@command("STATS", "Counters since the start.", group="stat", note="MerkleKV's own: `STATS all` of the line protocol")
def stats(session: Session, request: Request) -> Reply:
    return resp.verbatim(status.lines_of(status.all_metrics(session.context)), session.protocol)


@line_command(
    "STATS [all]", group="stat", reply="`STATS`, lines `name:value`, `END`", note="[counters](#stats-and-info)"
)
def stats_line(session: Session, request: Request) -> Reply:
    if request[1] and request[1].lower() != b"all":
        raise RequestError("STATS command accepts only the argument all")
    values = status.all_metrics(session.context) if request[1] else status.basic_metrics(session.context)
    return b"STATS\r\n%bEND\r\n" % status.lines_of(values)


@command(
    "INFO [section ...]",
    "The state of the server.",
    group="stat",
    note=(
        "Redis's sections, with what is true of a node, and `MerkleKV` with all of `STATS all`; hits "
        "and misses are those of `GET`; `commandstats` counts a command and its subcommands together"
    ),
)
def info(session: Session, request: Request) -> Reply:
    """Redis's sections, as far as they mean something here; a section of our own holds the rest."""
    if len(request) > OPTIONS_MAX:
        raise wrong_count(request[0])
    sections = status.sections(session.context)
    wanted = {word.lower() for word in request[1:]} or {b"default"}
    if not wanted & status.EVERYTHING:
        if b"default" in wanted:
            wanted |= {name.lower().encode() for name in sections} - status.EXTRA_SECTIONS
        sections = {name: values for name, values in sections.items() if name.lower().encode() in wanted}
    body = b"\r\n".join(b"# %b\r\n%b" % (name.encode(), status.lines_of(values)) for name, values in sections.items())
    return resp.verbatim(body, session.protocol)


@line_command("INFO", group="stat", reply="`INFO`, lines `name:value`, `END`")
def info_line(session: Session, request: Request) -> Reply:
    return b"INFO\r\n%bEND\r\n" % status.lines_of(status.info_metrics(session.context))


@command("TIME", "The clock of the server: seconds and microseconds.", flags=FAST)
def time_(session: Session, request: Request) -> Reply:
    seconds, nanoseconds = divmod(time.time_ns(), 10**9)
    return resp.bulk_array([b"%d" % seconds, b"%d" % (nanoseconds // 1000)])


@command("SHUTDOWN [NOSAVE|SAVE] [NOW] [FORCE]", "Stops the server.", flags=ALONE, note="no reply: the connection ends")
def shutdown(session: Session, request: Request) -> Reply:
    """No reply: as with Redis, the connection just ends."""
    words = {word.upper() for word in request[1:]}
    if words == {b"ABORT"}:
        raise RequestError("No shutdown in progress.")
    if words - {b"NOSAVE", b"SAVE", b"NOW", b"FORCE"} or words >= {b"NOSAVE", b"SAVE"}:
        raise RequestError(SYNTAX_ERROR)
    raise Goodbye(b"", session.context.services.shutdown)


@line_command("SHUTDOWN", reply="`OK`, then the node stops", note="exit status 0")
def shutdown_line(session: Session, request: Request) -> Reply:
    no_arguments(request)
    raise Goodbye(text.OK, session.context.services.shutdown)
