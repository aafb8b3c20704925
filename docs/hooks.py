"""What the site needs beside the pages: files outside docs/, and the help of every command.

On GitHub a page may link to any file of the repository; a site has only its own. So each file that
a page links to becomes a page under project/, and the links are turned there. The help of the
commands is asked of the program itself, so that it cannot be out of date. What stands in code is
left alone, since it only looks like a link.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, InclusionLevel

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PROJECT = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
COMMANDS = "<!-- commands -->"
WORKER = "https://unpkg.com/iframe-worker/shim"
_CODE = re.compile(r"(^(`{3,})[^\n]*\n.*?^\2`*$|`[^`\n]*`)", re.M | re.S)
_LINK = re.compile(r"(\]\()([^)\s]+)(\))")
_LANGUAGES = {".py": "python", ".cpp": "cpp", ".toml": "toml", ".yml": "yaml"}


def on_files(files: Any, config: Any) -> Any:
    """Adds a page for each file outside docs/ that a page links to, and those that they link to."""
    left = [ROOT / name for name in PROJECT]
    left += [path for page in DOCS.rglob("*.md") for path in _outside(page)]
    while left:
        path = left.pop()
        if files.get_file_from_path(_uri(path)) is None:
            page = File.generated(
                config, _uri(path), content=_page(path), inclusion=InclusionLevel.NOT_IN_NAV
            )
            files.append(page)
            left += _outside(path)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turns links to files outside docs/, and writes the commands' help in its place."""
    uri = page.file.src_uri
    origin = next((path for path in map(ROOT.__truediv__, PROJECT) if _uri(path) == uri), None)
    if origin is None and page.file.abs_src_path and Path(page.file.abs_src_path).exists():
        origin = DOCS / uri
    if origin is not None:
        markdown = _turned(markdown, origin, uri)
    if COMMANDS in markdown:
        markdown = markdown.replace(COMMANDS, "\n".join(_commands()))
    return markdown


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Has search take the worker that lies in docs/, where the theme would fetch one."""
    beside = posixpath.relpath("offline_worker.js", posixpath.dirname(page.file.dest_uri) or ".")
    return output.replace(WORKER, beside)


def on_post_template(output_content: str, **_: Any) -> str:
    """Does the same for the page that says that there is no such page."""
    return output_content.replace(WORKER, "offline_worker.js")


def _outside(page: Path) -> list[Path]:
    """Returns the files outside docs/ that a page links to."""
    if page.suffix != ".md":
        return []
    links = _LINK.findall(_CODE.sub("", page.read_text("utf-8")))
    targets = [_target(page, link) for _, link, _ in links]
    return [path for path in targets if path is not None and DOCS not in path.parents]


def _target(page: Path, link: str) -> Path | None:
    """Returns the file that a link leads to, ``None`` for a place on the web or on the page."""
    name = link.partition("#")[0]
    if not name or re.match(r"\w+:", name):
        return None
    return Path(os.path.normpath(page.parent / name))


def _turned(markdown: str, page: Path, uri: str) -> str:
    def turn(found: re.Match[str]) -> str:
        target = _target(page, found[2])
        if target is None:
            return found[0]
        link = posixpath.relpath(_uri(target), posixpath.dirname(uri) or ".")
        return f"{found[1]}{link}{found[2][len(found[2].partition('#')[0]) :]}{found[3]}"

    parts = _CODE.split(markdown)
    # Each piece of code is followed by the run of backticks that it began with.
    return "".join(
        (_LINK.sub(turn, part) if n % 3 == 0 else part if n % 3 == 1 else "")
        for n, part in enumerate(parts)
        if part is not None
    )


def _uri(path: Path) -> str:
    """Returns the site's name of a file of the repository."""
    if DOCS in path.parents:
        return path.relative_to(DOCS).as_posix()
    name = path.relative_to(ROOT).as_posix().lower()
    return f"project/{name}" if name.endswith(".md") else f"project/{name}.md"


def _page(path: Path) -> str:
    """Returns a file as a page; of a directory, the programs in it."""
    if path.suffix == ".md":
        return path.read_text("utf-8")
    if path.is_dir():
        shown = "\n\n".join(_code(each, f"## {each.name}") for each in sorted(path.glob("*.py")))
        return f"# {path.name}\n\n{shown}\n"
    return _code(path, f"# {path.relative_to(ROOT).as_posix()}") + "\n"


def _code(path: Path, heading: str) -> str:
    language = _LANGUAGES.get(path.suffix, "text")
    return f"{heading}\n\n````{language}\n{path.read_text('utf-8').rstrip()}\n````"


def _commands() -> Iterator[str]:
    """Yields the help of every command, asked of the program."""
    import typer

    from langchain_rwkv_state.cli import app

    group = typer.main.get_command(app)
    with group.make_context("rwkv-state", [], resilient_parsing=True) as context:
        yield from _command(group, context)


def _command(command: Any, context: Any) -> Iterator[str]:
    help_text = str(command.help or "").replace("\\[", "[").replace("\f", "")
    example = str(command.epilog or "").replace("\\[", "[").removeprefix("Example: ")
    yield f"## {context.command_path}\n"
    yield re.sub(r"\n(?!\n)", " ", help_text.replace("\n\n", "\0")).replace("\0", "\n\n") + "\n"
    yield f"```text\n{command.get_usage(context).strip()}\n```\n"
    if example and example not in help_text:
        yield f"```sh\n{example}\n```\n"
    rows = [(each, each.get_help_record(context)) for each in command.params]
    shown = [
        (record[0], record[1])
        for each, record in rows
        if record and each.name != "help" and not getattr(each, "hidden", False)
    ]
    if shown:
        yield "| | what it is |\n|---|---|"
        yield from (f"| `{_line(name)}` | {_cell(text)} |" for name, text in shown)
        yield ""
    for name, each in sorted(getattr(command, "commands", {}).items()):
        if not each.hidden:
            with each.make_context(name, [], parent=context, resilient_parsing=True) as inner:
                yield from _command(each, inner)


def _line(text: str) -> str:
    return " ".join(text.replace("\\[", "[").split())


def _cell(text: str) -> str:
    """Returns a text as a table's cell; within code a bar ends none, and is not to be marked."""
    return _line(text).replace("|", "\\|")
