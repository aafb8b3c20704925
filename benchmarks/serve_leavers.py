"""Asks a server for streams again and again, leaves some of them: the other end of `serve_crowd`.

It runs in a process of its own, so that its time and memory are not the server's, and is there at
once: nothing of the package is imported.

    python -m benchmarks.serve_leavers HOST PORT CLIENTS SECONDS    # prints what it found, as JSON
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import Counter
from typing import Any

from benchmarks.serve_client import END, QUESTIONS

_LEAVES = 0.1


class Client:
    """One who asks again and again, and at times leaves in the middle of an answer.

    Args:
        place: Host and port of the server.
        number: Which one it is.
        until: When it asks no more, on the steady clock.
        found: How many answers ended how.
        firsts: Seconds to the first piece of each answer.
    """

    def __init__(
        self,
        place: tuple[str, int],
        number: int,
        until: float,
        found: Counter[str],
        firsts: list[float],
    ) -> None:
        self._place = place
        self._chance = random.Random(number)
        self._number = number
        self._until = until
        self._found = found
        self._firsts = firsts

    async def run(self) -> None:
        """Asks until its time is over."""
        asked = 0
        while time.perf_counter() < self._until:
            asked += 1
            try:
                self._found[await self._ask(asked)] += 1
            except OSError as error:
                self._found[type(error).__name__] += 1

    async def _ask(self, asked: int) -> str:
        text = QUESTIONS[asked % len(QUESTIONS)].format(n=asked)
        body = json.dumps(
            {
                "model": "demo",
                "messages": [{"role": "user", "content": f"{self._number}, {asked}. {text}"}],
                "stream": True,
            }
        ).encode()
        leaves_after = self._chance.randint(1, 8) if self._chance.random() < _LEAVES else None
        start = time.perf_counter()
        reader, writer = await asyncio.open_connection(*self._place)
        try:
            head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
            head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            said, first = b"", 0.0
            while not said.endswith(END):
                piece = await reader.read(1 << 16)
                first = first or time.perf_counter() - start
                said += piece
                if not piece:
                    break
                if leaves_after is not None and said.count(b"data: {") >= leaves_after:
                    return "left"
        finally:
            writer.close()
        status = said[9:12].decode("ascii", "replace")
        if status == "200":
            if b"data: [DONE]" not in said:
                return "200, but broken off"
            self._firsts.append(first)
        return status


async def crowd(host: str, port: int, clients: int, seconds: float) -> dict[str, Any]:
    """Returns what a crowd found."""
    found: Counter[str] = Counter()
    firsts: list[float] = []
    until = time.perf_counter() + seconds
    await asyncio.gather(
        *(Client((host, port), n, until, found, firsts).run() for n in range(clients))
    )
    firsts.sort()
    return {
        "ended": dict(found),
        "first_p50": firsts[len(firsts) // 2] if firsts else 0.0,
        "first_p99": firsts[min(len(firsts) - 1, int(0.99 * len(firsts)))] if firsts else 0.0,
    }


def main() -> None:
    host, *numbers = sys.argv[1:]
    found = crowd(host, int(numbers[0]), int(numbers[1]), float(numbers[2]))
    print(json.dumps(asyncio.run(found)))


if __name__ == "__main__":
    main()
