"""The command ``serve``: serves a model by OpenAI's protocol, to the end of the process.

It reads options and starts the server. What it logs goes to standard error; where it listens is
said there, too, whatever is logged.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from langchain_rwkv_state.cli import output
from langchain_rwkv_state.cli.options import (
    FrequencyOption,
    MaxTokensOption,
    ModelOption,
    PresenceOption,
    ReasoningOption,
    SeedOption,
    StoreOption,
    StrategyOption,
    TemperatureOption,
    TokenizerOption,
    TopKOption,
    TopPOption,
    given,
    read_ttl,
)


def _read_size(text: str, *, least: int = 1) -> int:
    from langchain_rwkv_state.serve.sizes import read_size

    try:
        return read_size(text, least=least)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _read_cache_size(text: str) -> int:
    return _read_size(text, least=0)


def serve(
    model: ModelOption = "demo",
    name: Annotated[
        str | None,
        typer.Option(
            "--name", show_default="the file's", help="What clients call the model, as model=."
        ),
    ] = None,
    host: Annotated[
        str, typer.Option("--host", help="Where to listen; off loopback it asks for keys.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="0 takes one that is free.")
    ] = 8000,
    store: StoreOption = None,
    ttl: Annotated[
        float | None,
        typer.Option(
            "--ttl",
            parser=read_ttl,
            metavar="TIME",
            show_default="the store's",
            help="How long a response can be gone on from: seconds, 30m, 7d, 2w or never.",
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            "--api-key-file",
            metavar="FILE",
            show_default="none: one tenant, no key",
            help="A line for each key: NAME KEY [requests=8] [tokens_per_minute=60000] [body=4MB].",
        ),
    ] = None,
    no_keys: Annotated[
        bool,
        typer.Option(
            "--no-keys",
            help="Ask for no key off loopback either: for a proxy that does so itself.",
        ),
    ] = False,
    workers: Annotated[
        int,
        typer.Option("--workers", min=1, help="Processes that serve, over one copy of the model."),
    ] = 1,
    requests: Annotated[
        int | None,
        typer.Option(
            "--requests", min=1, show_default="no limit", help="Requests of a key at once."
        ),
    ] = None,
    tokens_per_minute: Annotated[
        int | None,
        typer.Option(
            "--tokens-per-minute",
            min=1,
            show_default="no limit",
            help="Tokens of a key that are read and answered.",
        ),
    ] = None,
    body: Annotated[
        int,
        typer.Option(
            "--body", parser=_read_size, metavar="SIZE", help="The most bytes of a request's body."
        ),
    ] = "4MB",  # type: ignore[assignment] # as the parser takes it
    prefix_cache: Annotated[
        int | None,
        typer.Option(
            "--prefix-cache",
            parser=_read_cache_size,
            metavar="SIZE",
            show_default="5 % of free memory",
            help="Memory of each process for states of what was read before; 0 for none.",
        ),
    ] = None,
    drain: Annotated[
        float,
        typer.Option(
            "--drain", min=0, metavar="SECONDS", help="What runs at SIGTERM may go on for so long."
        ),
    ] = 30.0,
    slots: Annotated[
        int | None,
        typer.Option(
            "--slots", min=1, show_default="64", help="Requests in one pass of the model."
        ),
    ] = None,
    max_queue: Annotated[
        int | None,
        typer.Option("--max-queue", min=1, show_default="4096", help="Requests that may wait."),
    ] = None,
    strategy: StrategyOption = "auto",
    tokenizer: TokenizerOption = None,
    template: Annotated[
        str | None,
        typer.Option("--template", show_default="the model's own", help="world, g1 or demo."),
    ] = None,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    top_k: TopKOption = None,
    presence_penalty: PresenceOption = None,
    frequency_penalty: FrequencyOption = None,
    max_tokens: MaxTokensOption = None,
    reasoning: ReasoningOption = None,
    seed: SeedOption = None,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        typer.Option("--log-level", help="What is logged to standard error."),
    ] = "info",
) -> None:
    """Serve a model to any client of OpenAI's API, with its conversations as states.

    Chat completions, completions and responses stand below /v1. SIGTERM lets what runs end; SIGHUP
    reads the keys anew.
    """
    from langchain_rwkv_state.serve.server import require_extra

    require_extra()
    from langchain_rwkv_state.serve import Limits, ServeSettings
    from langchain_rwkv_state.serve.server import serve as run

    logging.basicConfig(
        level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("uvicorn").setLevel(max(logging.WARNING, logging.root.level))
    options: dict[str, Any] = given(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        max_tokens=max_tokens,
        reasoning=reasoning,
        seed=seed,
        slots=slots,
        max_queue=max_queue,
    )
    settings = ServeSettings(
        model=model,
        strategy=strategy,
        tokenizer=tokenizer,
        template=template,
        options=options,
        name=name,
        store=store,
        ttl=ttl,
        api_key_file=None if api_key_file is None else str(api_key_file),
        limits=Limits(requests, tokens_per_minute, body),
        prefix_cache_bytes=prefix_cache,
        drain_seconds=drain,
    )

    def listening(address: str) -> None:
        output.note(f"Serving {settings.model_name} at {address}/v1.")

    whole = run(
        settings,
        host=host,
        port=port,
        workers=workers,
        allow_no_keys=no_keys,
        on_listening=listening,
    )
    if not whole:
        output.error("The server was ended before all that ran had ended.")
        raise typer.Exit(1)
