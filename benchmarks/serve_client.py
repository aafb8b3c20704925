"""Asks a server for streamed answers, many at once, and counts: the other end of `serve_cost`.

It runs in a process of its own, so that its time is not the server's, and knows no more of HTTP
than it takes to send a request and to see an answer's end.

    python -m benchmarks.serve_client HOST PORT    # rounds come as lines of JSON on standard input
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

END = b"0\r\n\r\n"
QUESTIONS = (
    "Good morning. How are you?",
    "My name is Bob. What is my name?",
    "What is the capital of France?",
    "I have {n} apples and a dog. What do I have?",
    "My cat is called Tom{n}. What is my cat called?",
)


class Client:
    """One connection, which is kept.

    Args:
        host: Of the server.
        port: Of the server.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, body: bytes) -> tuple[float, int]:
        """Returns the seconds to the first piece of an answer, and how many events came.

        Args:
            body: The request's.
        """
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port)
        reader, writer = self._streams
        start = time.perf_counter()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: {self._host}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        said, first = b"", 0.0
        while not said.endswith(END):
            piece = await reader.read(1 << 16)
            first = first or time.perf_counter() - start
            said += piece
            if not piece or not said.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"The server answered {said[:300]!r}.")
        if b"data: [DONE]" not in said:
            raise RuntimeError(f"A stream ended with {said[-300:]!r}.")
        return first, said.count(b"data: {")

    async def close(self) -> None:
        """Closes the connection."""
        if self._streams is not None:
            self._streams[1].close()
            await self._streams[1].wait_closed()


async def ask_all(host: str, port: int, bodies: Sequence[dict[str, Any]], at_once: int) -> Any:
    """Returns what a round took.

    Args:
        host: Of the server.
        port: Of the server.
        bodies: The requests.
        at_once: How many are asked at a time.
    """
    waiting = [json.dumps(body).encode() for body in bodies]
    found: list[tuple[float, int]] = []

    async def work() -> None:
        client = Client(host, port)
        while waiting:
            found.append(await client.ask(waiting.pop()))
        await client.close()

    start = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(at_once)))
    firsts = sorted(first for first, _ in found)
    return {
        "answers": len(found),
        "events": sum(events for _, events in found),
        "seconds": time.perf_counter() - start,
        "first_p50": firsts[len(firsts) // 2],
        "first_p99": firsts[min(len(firsts) - 1, int(0.99 * len(firsts)))],
    }


def main() -> None:
    host, port = sys.argv[1], int(sys.argv[2])
    for line in sys.stdin:
        told = json.loads(line)
        found = asyncio.run(ask_all(host, port, told["bodies"], told["at_once"]))
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
