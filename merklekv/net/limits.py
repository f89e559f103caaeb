"""Every bound on what a client can make the server use, in one place.

No client, honest or not, makes the server's memory or another client's waiting time grow without end. An operator can
set the bounds in `Limits`. The constants divide the server's time and memory among clients; they are not settings
because no other value was found to be better.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from merklekv.errors import InvalidArgument

KIB = 1024
MIB = 1024 * 1024

# How a worker shares its time. A tick reads each ready connection once, and together at most TICK_BYTES (but
# never less than RECEIVE_BYTES_MIN each), so that a tick of full pipelines stays in the tens of milliseconds.
RECEIVE_BYTES_MAX = 64 * KIB
RECEIVE_BYTES_MIN = 4 * KIB
TICK_BYTES = MIB
# Reading takes about 1 ms for these. After a tick in which it takes longer than READ_S, each connection is read half as
# much: many tiny arguments take a hundred times as long to parse.
READ_S = 0.02
# Replies wait in memory for the commit; a tick that has gathered this much commits and sends early.
TICK_OUTPUT_BYTES = 8 * MIB
# Writes wait in memory for the commit, too, and are copied into one frame of the log.
TICK_WRITTEN_BYTES = 8 * MIB
# Replies that a client was slow to read are sent on in pieces of this size.
SEND_BYTES = 64 * KIB
# Before a commit that waits for the disk, a tick reads again this many times what has arrived meanwhile.
GATHERINGS_MAX = 4
# Long commands and paused connections together get at most this much of a tick, and at most such a share of the time
# that its other work has taken; but one slice at least.
SLICE_S = 0.005
LONG_SHARE = 0.5
RESUMED_MAX = 64  # in a tick, which looks at no more of them: a commit may wake thousands
# Requests of one connection that arrive together run in one tick for so long; those that are left run in later ones.
# Most take microseconds. A large value, many subscribers or many clients make each take milliseconds, and there may be
# thousands.
PIPELINE_S = 0.02
# A command over many keys looks at this many before it lets others run.
SLICE_KEYS = 1000
# How often the worker asks whether a parked connection can go on.
PARKED_POLL_S = 0.002
# How often the worker looks for idle, lingering and refused connections.
SWEEP_S = 1.0
# After so long, and TURN_S more for each that it has run, the connections that a tick has read and not come to wait for
# later ticks, oldest first. They have half of TICK_S there, and half is for those who come then. Ordinary pipelines
# take less than a turn, each of the largest values takes more.
TICK_S = 0.05
TURN_S = 0.001
# After an error that ends a connection, the server reads and drops input for this long: closing with unread input makes
# the kernel reset the connection, and the client would lose the error that it should read.
LINGER_S = 2.0
ACCEPT_BATCH = 256
BACKLOG = 4096
# A refused connection stays open for a moment: for the client's first byte, which decides the protocol of the refusal,
# or for the client to read it. No more than this many stay; the next ones are told and closed at once.
REFUSED_WAITING_MAX = 16
# Files that the process needs besides its connections. A node that replicates and exchanges under load has 22 open: the
# standard streams, lock, log segments and their syncs, LMDB, the pipes of the checkpoint process, listener, epoll and
# wake-ups, the pipe of signals, the broker. The rest is for what comes and goes: COMMAND_THREADS_MAX exchanges that
# clients ask for, the node's own, look-ups of names, a new child, files that Python imports.
FILES_RESERVED = 64
FILES_PER_WORKER = 2  # of those, for the first worker
FILES_OVER_HTTP = 48  # if the node serves HTTP: 24 requests at once, the nodes that are watched, listeners
# What one request may need beside its largest value: a key, headers, options.
REQUEST_ROOM_BYTES = MIB
# An argument of RESP may always have so many bytes, however small the largest value is: a key, a part of an EXCHANGE.
BULK_BYTES_MIN = 16 * KIB
# A glob pattern. Compiling one takes up to 20 us a byte.
GLOB_BYTES_MAX = 16 * KIB
# The name of a client, of its library, of the version of that. CLIENT LIST shows those of all clients.
NAME_BYTES_MAX = KIB
# Unfinished SCANs that the server remembers. A cursor costs at most a key and a few words.
CURSORS_MAX = 10_000

# Subscriptions. Channels are larger than any key: notifications name keys.
SUBSCRIPTION_BYTES_MAX = KIB
SUBSCRIPTION_ROOM_BYTES = 600  # beside its name
CLIENT_SUBSCRIPTIONS_MAX = 16_384
SUBSCRIPTIONS_MAX = 262_144
# Each message is compared with each pattern, and one that was made to be slow takes 1 us a byte. What stands before the
# first wildcard costs nothing and does not count, but a pattern counts as one byte at least.
PATTERN_BYTES_MAX = 16 * KIB
# Unsent output above this closes the connection of a subscriber, as Redis does: it cannot be made to read.
SUBSCRIBER_OUTPUT_BYTES = 32 * MIB
# Messages that a tick has for a subscriber are joined up to this size: beyond, each would be copied for each of many.
JOINED_PUSHES_BYTES = 16 * KIB
PUSH_ROOM_BYTES = 64  # what a message takes for each subscriber, beside its bytes, which all share
# Messages that wait for another worker's turn; more are dropped.
BOARD_BYTES_MAX = 16 * MIB
# Commands that run in a thread of their own (SYNC), all clients together. More are refused: each keeps a thread for as
# long as another node takes, and many threads slow the workers down.
COMMAND_THREADS_MAX = 8
# What a connection takes beside what it holds.
CONNECTION_BYTES = 4 * KIB
# What an argument costs beside its bytes, and a key that a client watches.
ARGUMENT_BYTES = 64
WATCHED_BYTES = 256
# Clients together may hold at least so many of the largest values, and one request or reply half of that.
VALUES_MIN = 3


@dataclass(frozen=True, slots=True)
class Limits:
    """What an operator may set. Sizes are in bytes, times in seconds."""

    connections: int = 10_000
    line_bytes: int = MIB  # one line of the text protocol, without its line end
    arguments: int = MIB  # of one RESP request, its name included
    request_bytes: int = 64 * MIB  # one whole RESP request; never less than the largest value needs
    output_soft_bytes: int = MIB  # unsent output above this: no further request of that connection is run
    output_hard_bytes: int = 128 * MIB  # above this: the connection is closed
    memory_bytes: int = 256 * MIB  # of all clients together, and of the messages of other nodes that wait
    idle_timeout_s: float = 0.0  # 0: an idle connection stays

    def within(self, value_bytes: int) -> Limits:
        """The same, so that one request or reply takes no more than half of the memory of all.

        Raises InvalidArgument if that leaves too little for values of so many bytes.
        """
        half = self.memory_bytes // 2
        if self.output_hard_bytes < value_bytes:
            raise InvalidArgument(
                f"the output limit of {self.output_hard_bytes} bytes is less than the largest value, {value_bytes} "
                "bytes: raise the first or lower the second"
            )
        if self.memory_bytes < VALUES_MIN * value_bytes:
            raise InvalidArgument(
                f"{self.memory_bytes} bytes of memory for clients are less than {VALUES_MIN} times the largest value, "
                f"{value_bytes} bytes: raise the first or lower the second"
            )
        request_bytes = min(half, max(self.request_bytes, value_bytes + REQUEST_ROOM_BYTES))
        return replace(self, request_bytes=request_bytes, output_hard_bytes=min(half, self.output_hard_bytes))
