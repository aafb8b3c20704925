"""The commands ``cache`` and ``warm``: show what the prefix cache on disk holds, and fill it.

They see the disk tier; what a running process keeps in memory only that process can tell
(``chat.prefix_cache.stats()``). A prompt is somebody else's text, so it goes through
`output.one_line` before it is printed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from langchain_rwkv_state._text import counted
from langchain_rwkv_state.cli import output
from langchain_rwkv_state.cli.help import LiteralCommand, LiteralGroup
from langchain_rwkv_state.cli.options import (
    CreateOption,
    JsonOption,
    ModelOption,
    StoreOption,
    StrategyOption,
    open_store,
)
from langchain_rwkv_state.cli.streams import read_text

if TYPE_CHECKING:
    from langchain_rwkv_state.chat_models import ChatRWKV
    from langchain_rwkv_state.prefix_cache import Namespace, PrefixStateCache
    from langchain_rwkv_state.prefix_cache.disk_tier import DiskTier, Row
    from langchain_rwkv_state.store import StateStore

_SHOWN_CHARS = 60

DirectoryOption = Annotated[
    Path | None,
    typer.Option(
        "--dir",
        metavar="DIR",
        envvar="RWKV_PREFIX_CACHE_DIR",
        show_default="the user's cache directory",
        help="Directory of the prefix cache.",
    ),
]

cache = typer.Typer(
    cls=LiteralGroup, help="Look at the prefix cache on disk, clear it, or ask why a prompt missed."
)


@cache.callback(invoke_without_command=True)
def show(
    context: typer.Context,
    directory: DirectoryOption = None,
    tree: Annotated[bool, typer.Option("--tree", help="Draw the tree with its texts.")] = False,
    model: ModelOption = "demo",
    as_json: JsonOption = False,
) -> None:
    """Show what the prefix cache on disk holds."""
    if context.invoked_subcommand is not None:
        if tree:
            raise typer.BadParameter("--tree is of `cache` alone.")
        if as_json:
            raise typer.BadParameter(f"Give --json behind {context.invoked_subcommand}.")
        return
    path = _directory(directory)
    if not path.exists():
        output.note(f"There is no prefix cache at {path} yet.")
        if as_json:
            output.as_json({"directory": str(path), "bytes": 0, "states": []})
        return
    with closing(_open(path)) as disk:
        rows = sorted(disk.rows(), key=lambda row: (str(row.namespace), row.key))
        if as_json:
            texts = _texts(rows, _decoder(model)) if tree and rows else [None] * len(rows)
            states = list(map(_as_json, rows, _above(rows), texts))
            total = sum(row.nbytes for row in rows)
            output.as_json({"directory": str(path), "bytes": total, "states": states})
            return
        console = output.out()
        if not rows:
            console.print(Text(f"The prefix cache at {path} is empty."), soft_wrap=True)
        elif tree:
            console.print(_tree(rows, _decoder(model)))
        else:
            console.print(_table(rows))
            total = sum(row.nbytes for row in rows)
            console.print(Text(f"{counted(len(rows), 'state')}, {output.size(total)}, in {path}"))


@cache.command(cls=LiteralCommand, epilog="Example: rwkv-state cache clear")
def clear(directory: DirectoryOption = None) -> None:
    """Forget everything on disk, pinned prompts too."""
    path = _directory(directory)
    if not path.exists():
        output.note(f"There is no prefix cache at {path} yet.")
        return
    with closing(_open(path)) as disk:
        count = disk.clear()
        output.out().print(f"Removed {counted(count, 'state')}.")


@cache.command(cls=LiteralCommand, epilog='Example: rwkv-state cache explain "What is a lamp?"')
def explain(
    prompt: Annotated[str, typer.Argument(help="What a human says.")],
    directory: DirectoryOption = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="System prompt.")] = None,
    salt: Annotated[str | None, typer.Option(help="The tenant's cache_salt.")] = None,
    model: ModelOption = "demo",
    strategy: StrategyOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Say how much of a prompt is kept on disk, and why not more."""
    from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage

    from langchain_rwkv_state.prefix_cache import Namespace, PrefixStateCache
    from langchain_rwkv_state.prompt.plan import ids_of

    said: list[BaseMessage] = [SystemMessage(system)] if system else []
    said.append(HumanMessage(prompt))
    with closing(PrefixStateCache(disk=_directory(directory))) as opened:
        llm = _model(model, strategy)
        try:
            loaded = llm.loaded()
            ids = ids_of(loaded.template.segments(said, start=True, answer=True))
            found = opened.explain(Namespace.of(loaded.zero, salt), ids)
        finally:
            llm.unload()
    if as_json:
        output.as_json(
            {
                "tokens": found.n_tokens,
                "reused": found.reused,
                "known": found.known,
                "cause": found.cause,
                "text": found.text,
            }
        )
    else:
        output.out().print(Text(found.text), soft_wrap=True)


def warm(
    file: Annotated[
        Path, typer.Option("--file", "-f", metavar="FILE", help="YAML: a list of prompts.")
    ],
    directory: DirectoryOption = None,
    model: ModelOption = "demo",
    strategy: StrategyOption = "auto",
    store: StoreOption = None,
    create: CreateOption = False,
) -> None:
    """Read prompts and pin them in the prefix cache on disk, for every process to begin from.

    With a store in Redis they are pinned in that, for every machine; on disk only with --dir.

    FILE holds a list; each prompt has a name, and a system text or messages:
    "- {name: support, system: You are ...}" or
    "- {name: shop, salt: tenant, messages: [[system, You are ...], [human, ...], [ai, ...]]}".
    """
    prompts = read_prompts(file)
    console = output.out()
    with (
        closing(open_store(store, create=create)) as opened,
        closing(_into(directory, opened)) as into,
    ):
        llm = _model(model, strategy, store=opened, prefix_cache=into)
        try:
            for name, salt, messages in prompts:
                llm.cache_salt = salt
                known = llm.pin_prefix(messages, name=name)
                segments = llm.loaded().template.segments(messages, start=True)
                tokens = sum(len(segment.ids) for segment in segments)
                read = f": {counted(tokens, 'token')}, {tokens - known} of them read"
                line = Text.assemble(output.one_line(name), read)
                console.print(line, soft_wrap=True)
        finally:
            llm.unload()
        console.print(Text(_how_to_use(into.directory, opened)), soft_wrap=True)


def _into(directory: Path | None, store: StateStore) -> PrefixStateCache:
    """Returns the cache to pin prompts in."""
    from langchain_rwkv_state.prefix_cache import PrefixStateCache

    if not store.shares_pins:
        return PrefixStateCache(disk=_directory(directory))
    return PrefixStateCache(disk=directory and _directory(directory), shared=store)


def _how_to_use(directory: Path | None, store: StateStore) -> str:
    """Says what makes other processes begin from what was read."""
    if store.shares_pins:
        return f"Processes begin from them with PrefixStateCache(shared={store.location!r})."
    from langchain_rwkv_state.prefix_cache import DIRECTORY_VARIABLE, default_cache_directory

    named = os.environ.get(DIRECTORY_VARIABLE)
    if directory == default_cache_directory() and named is None:
        return (
            f"Every process of this user begins from them that sets neither {DIRECTORY_VARIABLE} "
            "nor prefix_cache=."
        )
    return (
        f"Processes begin from them that set {DIRECTORY_VARIABLE}={directory}, or pass "
        f"prefix_cache=PrefixStateCache(disk={str(directory)!r})."
    )


def read_prompts(file: Path) -> list[tuple[str, str | None, list[Any]]]:
    """Reads names, salts and messages of prompts from a YAML file.

    Raises:
        ValueError: The file is no such list; the message says where.
    """
    import yaml
    from langchain_core.messages import SystemMessage, convert_to_messages

    try:
        given = yaml.safe_load(read_text(file))
    except yaml.YAMLError as error:
        raise ValueError(
            f"{file} is not YAML; a text that holds ?, :, # or brackets needs quotes: {error}"
        ) from error
    if not isinstance(given, list) or not given:
        raise ValueError(f"{file} must hold a list of prompts.")
    prompts: list[tuple[str, str | None, list[Any]]] = []
    pinned: set[tuple[str, str | None]] = set()
    for number, each in enumerate(given, 1):
        if not isinstance(each, Mapping) or not isinstance(each.get("name"), str):
            raise ValueError(f"Prompt {number} of {file} has no name.")  # noqa: TRY004
        wrong = _wrong(each)
        if wrong:
            raise ValueError(f"Prompt {each['name']!r} of {file} has {wrong}.")
        messages: list[Any] = [SystemMessage(str(each["system"]))] if each.get("system") else []
        try:
            said = [tuple(m) if isinstance(m, list) else m for m in each.get("messages") or ()]
            messages += convert_to_messages(said)
        except (ValueError, TypeError, NotImplementedError) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"Prompt {each['name']!r} of {file} holds a message that is none ({reason}): write "
                '[human, "Hi."], with quotes around numbers and signs.'
            ) from error
        salt = None if each.get("salt") is None else str(each["salt"])
        if (each["name"], salt) in pinned:
            raise ValueError(
                f"{file} has two prompts of the name {each['name']!r}: a name pins one of them."
            )
        pinned.add((each["name"], salt))
        prompts.append((each["name"], salt, messages))
    return prompts


def _wrong(prompt: Mapping[Any, Any]) -> str | None:
    """Says what keeps a prompt from being one."""
    strange = sorted(set(map(str, prompt)) - {"name", "salt", "system", "messages"})
    if strange:
        return f"the unknown key {strange[0]!r}"
    for key in ("system", "salt"):
        if isinstance(prompt.get(key), list | dict):
            return f"a {key} that is no text"
    if not isinstance(prompt.get("messages") or [], list):  # a text would be taken letter by letter
        return 'messages that are no list: write [[human, "Hi."], [ai, "Hello."]]'
    if not (prompt.get("system") or prompt.get("messages")):
        return "neither system nor messages"
    return None


def _table(rows: Sequence[Row]) -> Table:
    now = time.time()
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("MODEL", overflow="fold")
    for name in ("TOKENS", "BYTES", "HITS"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("LAST USED", "EXPIRES", "PINNED", "SALTED"):
        table.add_column(name, no_wrap=True)
    for row in rows:
        table.add_row(
            output.one_line(row.namespace.fingerprint.partition("/")[0]),
            str(len(row.key) // 4),
            output.size(row.nbytes),
            str(row.uses),
            output.ago(row.used, now),
            output.until(row.expires, now),
            output.one_line(row.pin or ""),
            "yes" if row.namespace.salt else "",
        )
    return table


def _tree(rows: Sequence[Row], decode: Callable[[Row, tuple[int, ...]], str]) -> Tree:
    """Draws the states of each root, each below the deepest one that it goes on from."""
    drawn = Tree("prefix cache")
    trunks: dict[Namespace, Tree] = {}
    branches: list[Tree] = []
    for row, above, text in zip(rows, _above(rows), _texts(rows, decode), strict=True):
        if row.namespace not in trunks:
            salted = f", salt {row.namespace.salt[:8]}" if row.namespace.salt else ""
            name = output.plain(row.namespace.fingerprint + salted)
            trunks[row.namespace] = drawn.add(escape(name))
        if len(text) > _SHOWN_CHARS:
            half = _SHOWN_CHARS // 2
            text = f"{text[:half]}\u2026{text[-half:]}"
        line = output.one_line(repr(text)[1:-1])
        tokens = counted(len(row.key) // 4, "token")
        line.append(f"  {tokens}, {output.size(row.nbytes)}, hits {row.uses}", "dim")
        if row.pin:
            line.append(f"  pinned: {output.in_one_line(row.pin)}", "bold")
        branches.append((trunks[row.namespace] if above is None else branches[above]).add(line))
    return drawn


def _above(rows: Sequence[Row]) -> list[int | None]:
    """Returns for each state the place of the deepest one that it goes on from."""
    above: list[int | None] = []
    stack: list[int] = []
    for place, row in enumerate(rows):
        while stack and not _goes_on(row, rows[stack[-1]]):
            stack.pop()
        above.append(stack[-1] if stack else None)
        stack.append(place)
    return above


def _goes_on(row: Row, above: Row) -> bool:
    return row.namespace == above.namespace and row.key.startswith(above.key)


def _texts(rows: Sequence[Row], decode: Callable[[Row, tuple[int, ...]], str]) -> list[str]:
    """Returns for each state the text that it adds to the one above it."""
    from langchain_rwkv_state.prefix_cache.radix_tree import unpack

    starts = [0 if place is None else len(rows[place].key) for place in _above(rows)]
    return [decode(row, unpack(row.key[start:])) for row, start in zip(rows, starts, strict=True)]


def _as_json(row: Row, above: int | None, text: str | None) -> dict[str, Any]:
    return {
        "fingerprint": row.namespace.fingerprint,
        "salted": bool(row.namespace.salt),
        "tokens": len(row.key) // 4,
        "bytes": row.nbytes,
        "hits": row.uses,
        "used": output.iso_time(row.used),
        "expires": output.iso_time(row.expires),
        "pin": row.pin,
        "above": above,
        "text": text,
    }


def _decoder(model: str) -> Callable[[Row, tuple[int, ...]], str]:
    """Returns what gives the text of ids; ids themselves where they are another tokenizer's."""
    llm = _model(model, "auto")
    try:
        loaded = llm.loaded()
        tokenizer, ours = loaded.tokenizer, loaded.runtime.fingerprint.split("/")[2:3]
    finally:
        llm.unload()

    def decode(row: Row, ids: tuple[int, ...]) -> str:
        if row.namespace.fingerprint.split("/")[2:3] != ours:
            return " ".join(map(str, ids))
        return tokenizer.decode_bytes(ids).decode("utf-8", "replace")

    return decode


def _model(model: str, strategy: str, **settings: Any) -> ChatRWKV:
    from langchain_rwkv_state.chat_models import ChatRWKV

    return ChatRWKV(model=model, strategy=strategy, **{"prefix_cache": False, **settings})


def _directory(directory: Path | None) -> Path:
    from langchain_rwkv_state.prefix_cache import default_cache_directory

    return default_cache_directory() if directory is None else directory.expanduser()


def _open(path: Path) -> DiskTier:
    from langchain_rwkv_state.prefix_cache.disk_tier import DiskTier

    return DiskTier(path, budget=0)
