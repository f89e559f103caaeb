"""Listens at the broker and prints the events of the nodes, one line each.

    python scripts/learn/listen.py --port 7400 --topic lab              until Ctrl-C
    python scripts/learn/listen.py --port 7400 --topic lab --events 5   until five have come

A line is the node, the sequence number of the event, the operation, the key, the value, and the version: its timestamp
in seconds before now (negative: ahead), and its op id.
"""

import argparse
import contextlib
import queue
import time
from typing import Any

import cbor2
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion


def events(payload: bytes) -> list[dict[str, Any]]:
    """The events of a message: one, or a batch with its common fields once."""
    message = cbor2.loads(payload)
    if "events" not in message:
        return [message]
    return [event | {"seq": message["seq"] + at} for at, event in enumerate(message["events"])]


def told(node: str, event: dict[str, Any]) -> str:
    """An event as a line."""
    value = event["val"].decode(errors="replace") if event["val"] is not None else "-"
    what = f"{event['op']} {event.get('key', '')} {value!r}"
    ago_s = time.time() - event["ts"] / 1e9
    return f"{node} #{event.get('seq', '-')} {what} {ago_s:.1f} s ago, op id {event['op_id'].hex()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=1883, help="of the broker on this machine [1883]")
    parser.add_argument("--topic", default="merkle_kv", help="the nodes' topic prefix [merkle_kv]")
    parser.add_argument("--events", type=int, default=0, help="end after so many")
    given = parser.parse_args()
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)

    def subscribe(*_: object) -> None:
        client.subscribe(f"{given.topic}/+/events", 1)

    client.on_connect = subscribe
    client.on_subscribe = lambda *_: print("listening", flush=True)
    messages: queue.SimpleQueue[paho.MQTTMessage] = queue.SimpleQueue()
    client.on_message = lambda _, __, message: messages.put(message)
    client.connect("127.0.0.1", given.port)
    client.loop_start()
    heard = 0
    with contextlib.suppress(KeyboardInterrupt):
        while not given.events or heard < given.events:
            message = messages.get()
            for event in events(bytes(message.payload)):
                print(told(message.topic.split("/")[-2], event), flush=True)
                heard += 1
    client.disconnect()
    client.loop_stop()


if __name__ == "__main__":
    main()
