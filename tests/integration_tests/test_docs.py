"""The documentation says what is: links lead somewhere, tables agree with the code."""

import inspect
import re
from pathlib import Path

import pytest
import yaml

from benchmarks import public_models, tables
from langchain_rwkv_state import __version__, errors
from langchain_rwkv_state.state import StateLayout, memory

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")])
_LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"```.*?```|`[^`]*`", re.S)


def _links(page: Path) -> list[str]:
    text = _CODE.sub("", page.read_text())
    return ["".join(pair) for pair in _LINK.findall(text)]


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", _CODE.sub("", page.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_to_files_that_are_there(page):
    for link in _links(page):
        if link.startswith(("http:", "https:", "mailto:")):
            continue
        target, _, anchor = link.partition("#")
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"{page.name} links to {link}"
        if anchor:
            assert anchor in _anchors(file), f"{page.name} links to {link}"


def test_every_page_is_in_the_index():
    index = _links(ROOT / "docs/index.md")
    pages = {str(page.relative_to(ROOT / "docs")) for page in ROOT.glob("docs/**/*.md")}
    assert any("/" in page for page in pages)
    assert pages - {"index.md"} <= set(index)


def test_every_error_is_on_the_page_on_errors():
    page = (ROOT / "docs/errors.md").read_text()
    tree = page.split("```")[1]
    classes = [c for _, c in inspect.getmembers(errors, inspect.isclass)]
    assert len(classes) > 10
    for error in classes:
        assert re.search(rf"\b{error.__name__}\b", tree), f"the tree lacks {error.__name__}"
        assert f"| `{error.__name__}` |" in page, f"the table lacks {error.__name__}"
        if error is not errors.RWKVStateError:
            line = next(x for x in tree.splitlines() if re.search(rf"\b{error.__name__}\b", x))
            depth, base = 0, error  # of what has two, it stands below the first
            while base is not errors.RWKVStateError:
                depth, base = depth + 1, base.__bases__[0]
            assert line.index(error.__name__) == 4 * depth, f"{error.__name__} is misplaced"
            assert issubclass(error, ValueError) == ("ValueError" in line)
    for name in re.findall(r"^\| `(\w+)` \|", page, re.M):
        assert hasattr(errors, name), f"the table has {name}, which is no error"


def test_sizes_on_the_page_on_the_idea_are_those_of_the_layout():
    page = (ROOT / "docs/idea.md").read_text()
    rows = re.findall(r"^\| RWKV-(\d) .*? \| (\d+) x (\d+) \| ([\d,]+) \|$", page, re.M)
    assert len(rows) > 10
    for version, n_layer, n_embd, nbytes in rows:
        layout = StateLayout.of(
            int(version),  # type: ignore[arg-type]
            n_layer=int(n_layer),
            n_embd=int(n_embd),
            head_size=None if version == "4" else 64,
        )
        assert f"{layout.nbytes:,}" == nbytes


@pytest.mark.parametrize(
    "page",
    [page for page in tables.PAGES if "<!-- /" in page.read_text("utf-8")],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_tables_between_marks_are_what_the_code_writes(page):
    text = page.read_text("utf-8")
    assert tables.fill(text) == text, "python -m benchmarks.tables writes them anew"


def test_the_table_of_published_models_is_that_of_the_layout():
    page = (ROOT / "docs/toolbox/memory.md").read_text()
    rows = re.findall(r"^\| RWKV-(\d) .*? \| (\d+) x (\d+) \| ([\d,]+) \| (.*) \|$", page, re.M)
    assert len(rows) == len(public_models.MODELS)
    for version, n_layer, n_embd, nbytes, cells in rows:
        layout = public_models.layout_of(int(version), int(n_layer), int(n_embd))  # type: ignore[arg-type]
        assert nbytes == f"{layout.nbytes:,}"
        at_8k = memory(layout, 8192)
        assert cells.split(" | ")[1] == f"{at_8k.cache / 1e6:,.0f} / {at_8k.grouped / 1e6:,.0f}"


def test_versions_in_the_table_of_the_tested_setup_are_the_pinned_ones():
    page = (ROOT / "docs/limitations.md").read_text()
    pinned = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    for shown, name in (
        ("PyTorch", "torch"),
        *((n, n) for n in ("langchain-core", "rwkv", "diskcache")),
    ):
        row = re.search(rf"^\| {shown} \| ([\d.]+)", page, re.M)
        assert row, f"the table lacks {shown}"
        assert row[1] == pinned[name]


def test_the_oldest_langchain_core_that_is_tested_is_the_oldest_that_is_allowed():
    oldest = re.search(r"^OLDEST_CORE := ([\d.]+)$", (ROOT / "Makefile").read_text(), re.M)
    assert oldest
    allowed = re.search(r'"langchain-core>=([\d.]+),', (ROOT / "pyproject.toml").read_text())
    assert allowed
    assert oldest[1] == allowed[1]
    page = (ROOT / "docs/limitations.md").read_text()
    assert f"the oldest that is allowed, {oldest[1]}" in page


def test_every_scenario_of_agents_is_a_test_that_runs_as_the_table_says():
    page = (ROOT / "docs/agents.md").read_text()
    rows = re.findall(r"^\| .+ \| (yes|no) \| (yes|no) \| `(test_\w+)` \|$", page, re.M)
    assert len({name for *_, name in rows}) == len(rows) >= 24
    found: dict[str, set[tuple[str, str]]] = {}
    for file in ROOT.glob("tests/unit_tests/conversation/test_middleware_*.py"):
        code = file.read_text()
        for test in re.split(r"^(?=async def test_)", code, flags=re.M)[1:]:
            assert "make_agent: MakeAgent" in test  # which runs in ways of both kinds
            is_sync = "no" if "if not agent.is_async:\n        pytest.skip" in test else "yes"
            found.setdefault(test.split("(")[0].split()[-1], set()).add((is_sync, "yes"))
    for *ways, name in rows:
        assert found.get(name) == {tuple(ways)}, name


def test_the_readme_is_one_screen():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 90


def test_the_citation_is_of_this_version():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__


def test_the_workflow_runs_what_a_user_runs_on_every_python_that_is_claimed():
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    commands = [step["run"] for step in steps if "run" in step]
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert commands
    for command in commands:
        make, target, python = command.split()
        assert (make, python, target in targets) == ("make", "PYTHON=python", True), command
    claimed = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text())
    assert set(claimed) <= set(workflow["jobs"]["test"]["strategy"]["matrix"]["python"])
