"""Publish and subscribe over RESP, with the replies of Redis, whose channels are those of one node.

Over RESP2 a client that has subscribed may only change its subscriptions, PING, RESET and QUIT: its other replies could
not be told from messages. Over RESP3 messages are pushes, so it may do anything.

The confirmations are pushes as well, and not withdrawn by a roll-back: it changes no subscription. But a transaction
that is taken back is taken back with its subscriptions: its client gets an error in the place of all confirmations.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

from merklekv.net.commands.arguments import slices
from merklekv.net.errors import Rejected, RequestError
from merklekv.net.glob import compile_glob, matching
from merklekv.net.limits import CLIENT_SUBSCRIPTIONS_MAX, SUBSCRIPTION_BYTES_MAX, SUBSCRIPTION_ROOM_BYTES
from merklekv.net.protocol import resp, text
from merklekv.net.protocol.resp import Push, bulk
from merklekv.net.protocol.text import Request
from merklekv.net.pubsub import Kind, Message
from merklekv.net.registry import RESP, Long, Reply, Subcommands, command, full_name, unnamed
from merklekv.net.session import Session, check_reply_size

SUBSCRIBE = ("pubsub", "noscript", "loading", "stale")
PUBLISH = ("pubsub", "loading", "stale", "fast")


@command(
    "SUBSCRIBE channel [channel ...]",
    "Listens to channels.",
    flags=SUBSCRIBE,
    note="see [publish and subscribe](#publish-and-subscribe)",
)
def subscribe(session: Session, request: Request) -> Reply:
    return _subscribe(session, Kind.CHANNEL, request[1:])


@command(
    "PSUBSCRIBE pattern [pattern ...]",
    "Listens to all channels whose names match patterns.",
    flags=SUBSCRIBE,
    note="see [publish and subscribe](#publish-and-subscribe)",
)
def psubscribe(session: Session, request: Request) -> Reply:
    return _subscribe(session, Kind.PATTERN, request[1:])


def _subscribe(session: Session, kind: Kind, names: Sequence[bytes]) -> Push:
    _require_few(names)
    _remember(session)
    counts = session.context.pubsub.subscribe(session, kind, names)
    session.context.memory.grown += SUBSCRIPTION_ROOM_BYTES * len(names)
    session.choose_commands()
    return _confirm(session, kind.value + b"subscribe", zip(map(bulk, names), counts, strict=True))


@command(
    "UNSUBSCRIBE [channel ...]",
    "Ends subscriptions to channels, or to all channels.",
    flags=SUBSCRIBE,
    note="see [publish and subscribe](#publish-and-subscribe)",
)
def unsubscribe(session: Session, request: Request) -> Reply:
    return _unsubscribe(session, Kind.CHANNEL, request[1:])


@command(
    "PUNSUBSCRIBE [pattern ...]",
    "Ends subscriptions to patterns, or to all patterns.",
    flags=SUBSCRIBE,
    note="see [publish and subscribe](#publish-and-subscribe)",
)
def punsubscribe(session: Session, request: Request) -> Reply:
    return _unsubscribe(session, Kind.PATTERN, request[1:])


def _require_few(names: Sequence[bytes]) -> None:
    """More than a client may subscribe to would only keep others waiting."""
    if len(names) > CLIENT_SUBSCRIPTIONS_MAX:
        raise RequestError(f"more than {CLIENT_SUBSCRIPTIONS_MAX} names, which no client may subscribe to")


def _unsubscribe(session: Session, kind: Kind, names: Sequence[bytes]) -> Push:
    _require_few(names)
    _remember(session)
    left = session.context.pubsub.unsubscribe(session, kind, names)
    session.choose_commands()
    confirmed = [(bulk(name), count) for name, count in left]
    if not confirmed:
        confirmed = [(session.nil, len(session.subscriptions or ()))]
    return _confirm(session, kind.value + b"unsubscribe", confirmed)


def _remember(session: Session) -> None:
    """Lets a transaction that is taken back leave the subscriptions that are there now."""
    transaction, listening = session.transaction, session.subscriptions
    if transaction is not None and transaction.undo is None:
        before = {kind: list(listening.names[kind]) if listening else [] for kind in Kind}
        transaction.undo = lambda: _restore(session, before)


def _restore(session: Session, before: Mapping[Kind, Sequence[bytes]]) -> None:
    pubsub = session.context.pubsub
    for kind, names in before.items():
        added = set(session.subscriptions.names[kind]).difference(names) if session.subscriptions else ()
        if added:
            pubsub.unsubscribe(session, kind, list(added))
        with suppress(RequestError):  # others have taken the room
            pubsub.subscribe(session, kind, names)
    session.choose_commands()


def _confirm(session: Session, word: bytes, confirmed: Iterable[tuple[bytes, int]]) -> Push:
    head = b"%b3\r\n%b" % (b">" if session.protocol == 3 else b"*", bulk(word))
    return Push(b"".join([b"%b%b:%d\r\n" % (head, name, count) for name, count in confirmed]))


@unnamed(text.REFUSED_SUBSCRIBED, protocols=[RESP])
def refused_subscribed(session: Session, request: Request) -> Reply:
    raise Rejected(
        f"Can't execute '{full_name(request)}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are "
        "allowed in this context"
    )


@command(
    "PUBLISH channel message",
    "Sends a message to the subscribers of a channel.",
    flags=PUBLISH,
    note="see [publish and subscribe](#publish-and-subscribe)",
)
def publish(session: Session, request: Request) -> Reply:
    """The reply counts the subscribers of this node, in a cluster as well."""
    _, channel, payload = request
    if len(channel) > SUBSCRIPTION_BYTES_MAX:
        raise RequestError(f"name of a channel larger than {SUBSCRIPTION_BYTES_MAX} bytes")
    return resp.integer(session.context.pubsub.publish(session, Message(channel, payload)))


# -- PUBSUB ------------------------------------------------------------------------------------------------------------

_pubsub = Subcommands("PUBSUB")
command(
    "PUBSUB CHANNELS [pattern]|NUMSUB [channel ...]|NUMPAT|HELP",
    "What the clients of this node have subscribed to.",
    arity=-2,
    note="see [publish and subscribe](#publish-and-subscribe)",
)(_pubsub.run)


@_pubsub.add("CHANNELS [pattern]", "The channels that clients have subscribed to by name.")
def _channels(session: Session, arguments: Sequence[bytes]) -> Long:
    if len(arguments) > 1:
        raise RequestError("unknown subcommand or wrong number of arguments for 'CHANNELS'. Try PUBSUB HELP.")
    prefix, matches = compile_glob(arguments[0] if arguments else b"*")
    found: list[bytes] = []
    size = 0
    for number, names in enumerate(slices(session.context.pubsub.names(Kind.CHANNEL))):
        if number:
            yield None
        matched = yield from matching([name for name in names if name.startswith(prefix)], matches)
        size += sum(map(len, matched))
        check_reply_size(session, size)
        found += matched
    return resp.bulk_array(found)


@_pubsub.add("NUMSUB [channel ...]", "How many clients have subscribed to each of these channels.")
def _numsub(session: Session, arguments: Sequence[bytes]) -> Long:
    pubsub = session.context.pubsub
    parts: list[bytes] = []
    for number, channels in enumerate(slices(arguments)):
        if number:
            yield None
        for channel in channels:
            parts += bulk(channel), resp.integer(pubsub.subscribers(channel))
    return resp.array(parts)


@_pubsub.add("NUMPAT", "How many different patterns clients have subscribed to.")
def _numpat(session: Session, arguments: Sequence[bytes]) -> bytes:
    return resp.integer(session.context.pubsub.count(Kind.PATTERN))
