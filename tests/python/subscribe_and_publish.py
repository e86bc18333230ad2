#!/usr/bin/env python3
"""Publishes three records and reads them back: subscribe_and_publish.py URL STREAM

A whole client of docs/protocol/websocket.md, for `pip install websockets msgpack`.
The stream must exist. Exits with 1 unless everything that was sent comes back.
"""
import asyncio
import sys

import msgpack
import websockets

CREDIT = 1 << 20


async def run(url: str, stream: str) -> bool:
    address = url.replace("http", "ws", 1).rstrip("/") + "/v1/ws"
    async with websockets.connect(address, subprotocols=["anabranch.v1.msgpack"]) as socket:

        async def say(**message):
            await socket.send(msgpack.packb(message))

        async def hear():
            frame = await asyncio.wait_for(socket.recv(), timeout=10)
            message = msgpack.unpackb(frame) | {"size": len(frame)}
            if message["type"] == "error":
                sys.exit(f"{message['code']} {message['message']}")
            return message

        await say(type="hello", version=1, client="subscribe_and_publish.py")
        print("connected to", (await hear())["broker"])

        sent = [(f"key-{n}".encode(), f'{{"n":{n}}}'.encode()) for n in range(3)]
        records = [{"key": key, "value": value} for key, value in sent]
        await say(type="publish", id=1, stream=stream, records=records)
        ack = await hear()
        # Each row: our id, partition, offset, records, index in the frame.
        offsets = {(row[1], row[2] + n) for row in ack["acks"] for n in range(row[3])}
        print("on", ack["durability"], "as", sorted(offsets))

        await say(type="subscribe", subscription=1, stream=stream, **{"from": "earliest"}, credit=CREDIT)
        received = {}
        while offsets - received.keys():
            message = await hear()
            for part in message.get("parts", []):
                for record in part["records"]:
                    place = (part["partition"], record["offset"])
                    if place in offsets:
                        received[place] = (record["key"], record["value"])
                        print(*place, record["key"].decode(), record["value"].decode())
            # Processed: the broker may send as many bytes again.
            await say(type="credit", subscription=1, bytes=message["size"])
        return sorted(received.values()) == sorted(sent)


if __name__ == "__main__":
    sys.exit(0 if asyncio.run(run(*sys.argv[1:3])) else 1)
