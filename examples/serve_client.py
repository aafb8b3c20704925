"""A server of one's own, and OpenAI's client: ids of responses stand for what was said.

Where OPENAI_BASE_URL is set, that server is asked; else one is started on loopback. It needs the
extra ``serve`` and the package ``openai``.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from openai import OpenAI


@contextmanager
def server() -> Iterator[str]:
    """Serves the built-in model, on a port that is free, while the context lasts."""
    command = [sys.executable, "-m", "langchain_rwkv_state", "serve", "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)  # noqa: S603 # ours
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if " at http://" in line:
                yield line.split(" at ")[1].strip(" .\n")
                break
        else:
            raise SystemExit("The server did not start.")
    finally:
        process.send_signal(signal.SIGTERM)  # what runs may end
        process.communicate()


def talk(url: str) -> None:
    """Talks by ids: each turn sends what is new, and any turn can be gone on from."""
    client = OpenAI(base_url=url, api_key=os.environ.get("OPENAI_API_KEY", "none"))

    def ask(said: str, after: str | None = None) -> tuple[str, str]:
        answer = client.responses.create(
            model="demo", temperature=0, input=said, previous_response_id=after
        )
        details = answer.usage and answer.usage.input_tokens_details
        cached = details.cached_tokens if details else 0
        read = answer.usage.input_tokens - cached if answer.usage else 0
        print(f"you   {said}\nrwkv  {answer.output_text}  ({read} tokens read)")
        return answer.id, answer.output_text

    first, _ = ask("My name is Marlow.")
    for city in ("Lisbon", "Kyoto"):
        print("-- from the first answer")
        moved, _ = ask(f"I live in {city}.", after=first)
        ask("Where do I live?", after=moved)
    print("-- a stream")
    with client.responses.stream(
        model="demo", temperature=0, input="What is my name?", previous_response_id=first
    ) as events:
        for event in events:
            if event.type == "response.output_text.delta":
                print(event.delta, end="", flush=True)
    print()
    client.responses.delete(first)  # what was gone on from it stays


if __name__ == "__main__":
    if "OPENAI_BASE_URL" in os.environ:
        talk(os.environ["OPENAI_BASE_URL"])
    else:
        with server() as url:
            talk(url)
