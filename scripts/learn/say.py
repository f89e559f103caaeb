"""Publishes an event at the broker, as a node would, but with any version.

    python scripts/learn/say.py --port 7400 --topic lab k hello                     stamped now
    python scripts/learn/say.py --port 7400 --topic lab k old --at 1700000000       stamped then: seconds since 1970
    python scripts/learn/say.py --port 7400 --topic lab k later --at +30            stamped 30 s ahead of now
    python scripts/learn/say.py --port 7400 --topic lab k tie --at 1700000000 --op-id 2
    python scripts/learn/say.py --port 7400 --topic lab k --delete --times 3        the same event three times
    python scripts/learn/say.py --port 7400 --topic lab --raw junk                  a message that is no event

The event comes from a node called `stranger`.
"""

import argparse
import time
from typing import Any

import cbor2
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

STRANGER = "stranger"
ANSWER_S = 10


def event(key: str, value: str | None, at: str, op_id: int) -> dict[str, Any]:
    """An event, as merklekv/replication/stream/event.py explains it."""
    stamp = time.time_ns() + round(float(at) * 1e9) if at[0] in "+-" else round(float(at) * 1e9)
    return {
        "v": 1,
        "src": STRANGER,
        "op": "del" if value is None else "set",
        "key": key,
        "val": value if value is None else value.encode(),
        "ts": stamp,
        "op_id": op_id.to_bytes(16, "big"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=1883, help="of the broker on this machine [1883]")
    parser.add_argument("--topic", default="merkle_kv", help="the nodes' topic prefix [merkle_kv]")
    parser.add_argument("key", nargs="?", default="")
    parser.add_argument("value", nargs="?", default="")
    parser.add_argument("--delete", action="store_true", help="delete the key")
    parser.add_argument("--at", default="+0", help="the stamp: seconds since 1970, or with a sign, from now")
    parser.add_argument("--op-id", type=int, default=0, help="what decides between equal stamps")
    parser.add_argument("--times", type=int, default=1, help="how often it is published")
    parser.add_argument("--raw", help="publish this instead of an event")
    given = parser.parse_args()
    if not given.key and given.raw is None:
        parser.error("a key, or --raw")
    sound = cbor2.dumps(event(given.key, None if given.delete else given.value, given.at, given.op_id))
    payload = sound if given.raw is None else given.raw.encode()
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
    client.connect("127.0.0.1", given.port)
    client.loop_start()
    for _ in range(given.times):
        client.publish(f"{given.topic}/{STRANGER}/events", payload, qos=1).wait_for_publish(ANSWER_S)
    client.disconnect()
    client.loop_stop()


if __name__ == "__main__":
    main()
