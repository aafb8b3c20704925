"""Every page's code runs as it stands: Python, shell and YAML, in the page's own order."""

import shutil

import pytest
import torch

from langchain_rwkv_state import ChatRWKV, DiskStateStore, MemoryStateStore
from langchain_rwkv_state.runtime import locate
from langchain_rwkv_state.runtime.checkpoint import read_tensors
from langchain_rwkv_state.serve import ServeSettings
from tests.helpers.checkpoints import write_checkpoint
from tests.helpers.pages import ROOT, Reader, blocks, not_run
from tests.helpers.server import serving

pytestmark = pytest.mark.filterwarnings("ignore:The function `load` is in beta")
PAGES = sorted(
    page
    for page in ("README.md", *(str(each.relative_to(ROOT)) for each in ROOT.glob("docs/**/*.md")))
    if blocks(page)
)
TUTORIALS = [page for page in PAGES if page.startswith("docs/tutorials/")]
SERVED = {"docs/serve.md"}
EXPECTED = {
    "docs/tools.md": ["get_weather {'city': 'Lisbon'}", "Sunny in Lisbon.", "name='Marlow' age=31"],
    "docs/command_line.md": ["Nice to meet you, Marlow.", "Your name is Marlow.", "Talk"],
    "docs/langchain.md": [
        "Your name is Marlow.",
        "You live in Lisbon.",
        "Mirabel",
        "demo 0.0",
        "1 message is left",
        " Marlow.",
    ],
    "docs/correcting.md": [
        "Your dog is called Rex.",
        "2 User: My dog is called Rex.",
        "I don't know what your dog is called.\nYou live in Lisbon.",
        "Took 1 turn out of bob: 1 turn.",
    ],
    "docs/agents.md": [
        "approved: The result is: Sunny, 18 degrees.",
        "one branch: You live in Lisbon.",
        "the other: You live in Kyoto.",
        "edited: Your name is Ottilie.",
        "5 states let go",
        "sent again: Your name is Marlow. 5 messages sent, 11 tokens read",
        "deep agent: Your name is Marlow.",
        "node: Arr! Your name is Marlow.",
    ],
    "docs/moving.md": [
        *("buffer: Your name is Marlow.", "session: Your name is Marlow."),
        *("summary: I don't know", "no summary: You live in Lisbon."),
        *("list: Your name is Marlow.", "state: Your name is Marlow."),
        "sessions: Your name is Marlow.",
        *("trimmed: I don't know", "whole: Your name is Marlow."),
        *("summarised: I don't know", "on a state: Your name is Marlow."),
        "transcript: Your name is Marlow.",
        "reference: Your name is Marlow. You live in Lisbon.\n2 messages in the thread",
    ],
    "docs/run_it.md": ["4 sessions in monday", "queued 0", "StoreStats(sessions=4", "a second"],
    "docs/tutorials/first_hour.md": [
        "All is well.",
        "Forked first-hour/terminal as first-hour/tried",
        "Took back 1 turn of first-hour/tried",
        "Your name is Marlow.",
        "moved: You live in Lisbon.",
        "bob: I don't know where you live.",
        "Mirabel",
        "Arr! Your name is Marlow.",
    ],
    "docs/tutorials/chat_service.md": [
        "Your name is Marlow.",
        "ruben You live in Kyoto.",
        "By my beard! Your name is Beatrice.",
        "aside: Your name is Marlow.",
        "503",
    ],
    "docs/tutorials/agent.md": [
        "-> Sunny, 18 degrees.",
        "-> 391",
        "Person {'name': 'Ann'",
        "'42', 'The result is: 42'",
    ],
    "docs/tutorials/states.md": [
        "202752 bytes",
        "3 Your name is Mubon.\n4 I don't know your name.",
        "0.5 Your name is Marlow. You live in Lisbon.",
    ],
    "docs/tutorials/operator.md": [
        "All is well.",
        "sessions, 0 damaged",
        "Renamed countess as ada",
        "nothing was to be repaired",
        "2 sessions, ",
        "drill: Your name is Marlow.",
        "turns moved: ",
    ],
    "docs/prefix_cache.md": ["hits=1", "('lamps',)", "sums: ", "Processes begin from them"],
    "docs/toolbox/blend.md": ["Your name is Beatrice.", "You live in Lisbon.", "session both"],
    "docs/toolbox/clamp_decay.md": ["+clamp(-8,-0.1)/fp32", "before,"],
    "docs/toolbox/codecs.md": ["exact 203", "int8 53", "Your name is Beatrice."],
    "docs/toolbox/decay.md": ["1.0 Your name is Beatrice.", "0.1 I don't know", "session fading"],
    "docs/toolbox/distance.md": ["nats apart", "LAYER"],
    "docs/toolbox/half_life.md": [
        "7 measured on 53 tokens of the built-in conversation",
        "tokens in the middle",
        "Wrote hl.png",
    ],
    "docs/toolbox/inspect.md": [
        "Finite: no NaN",
        "Sound: all sizes",
        "(6, 2) layers and heads",
        "differ most",
        "LAYER",
    ],
    "docs/toolbox/memory.md": ["state=34603008, cache=4294967296, grouped=1073741824"],
    "docs/toolbox/recall.md": ["state [(0, 2, 2)"],
    "docs/toolbox/renormalise.md": ["True", "An RWKV-7 has no scale beside its matrices"],
    "docs/toolbox/repeat.md": ["4 True True", "Mirabel.", "know your name."],
    "docs/toolbox/report.md": ["Wrote bob.html"],
    "docs/toolbox/start_states.md": ["Mirabel", "Your name is Orson.", "session donor"],
    "docs/toolbox/watch.md": ["absent", "1 turns; moved by None", "3 turns; moved by 0."],
    "docs/bundles.md": ["Wrote for-laptop.zip", "The session bob has"],
    "docs/sessions.md": ["Renamed tried as kept: 0 turns.", "['bob'] True", "Backed up 5 sessions"],
    "docs/json.md": ['"damaged": []', '"section": "store"'],
    "docs/models.md": ["True False"],
    "docs/runtimes.md": ["64 "],
    "docs/serve.md": [
        "Your name is Marlow.\nread ",
        "langchain: Your name is Marlow.",
        "branch: You live in Lisbon.\nbranch: You live in Kyoto.",
        "conversation: Your name is Marlow.",
    ],
    "docs/monitoring.md": [
        "True 0 ",
        "rwkv_loaded 1.0",
        "rwkv_decoded_tokens ",
    ],
}
NOT_RUN = {
    "docs/benchmarks.md": 1,
    "docs/command_line.md": 5,
    "docs/demo_model.md": 1,
    "docs/models.md": 2,
    "docs/prefix_cache.md": 1,  # a Redis
    "docs/redis.md": 5,
    "docs/toolbox/codecs.md": 1,
    "docs/toolbox/recall.md": 2,
    "docs/toolbox/watch.md": 4,
    "docs/serve.md": 4,
    "docs/thinking.md": 1,
    "README.md": 1,
    "docs/tutorials/first_hour.md": 1,
    "docs/tutorials/chat_service.md": 1,
    "docs/tutorials/states.md": 1,
    "docs/tutorials/operator.md": 2,
    "docs/deploy.md": 4,  # servers that go on until they are stopped, Docker, several machines
}
README = ["Your name is Marlow.\nI don't know where you live.\n", "Your name is Marlow.\n", ""]


@pytest.fixture(scope="module", autouse=True)
def _weights_stay_loaded(_held_models):
    chat = ChatRWKV(model="demo", store=MemoryStateStore(), prefix_cache=False)
    chat.loaded()
    yield
    chat.unload()


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """What the pages take for granted: models, texts, and people who have talked."""
    desk = tmp_path_factory.mktemp("desk")
    demo = locate("demo")
    for name in ("model.pth", "rwkv-7.pth", "m.pth"):
        torch.save(read_tensors(demo), desk / name)
    shutil.copy(demo.with_name("tokenizer.json"), desk)
    write_checkpoint(desk / "rwkv-4.pth", 4, vocab=667)
    tuned = {f"blocks.{n}.att.time_state": 0.01 * torch.randn(2, 64, 64) for n in range(6)}
    torch.save(tuned, desk / "tuned.pth")
    for name in ("book.txt", "manual.txt"):
        (desk / name).write_text("User: The ladder is in the attic.\n\nAssistant: I see.\n\n")
    (desk / "prompts.yaml").write_text("- name: lamps\n  system: You answer questions on lamps.\n")
    with DiskStateStore(desk / "home" / "states") as store:
        chat = ChatRWKV(model="demo", temperature=0, store=store)
        chat.with_session("alice").invoke("My name is Beatrice.")
        chat.with_session("bob").invoke("My name is Marlow.")
        for name in ("ada", "old"):
            chat.with_session(name).invoke("I live in Lisbon.")
        chat.unload()
    return desk


@pytest.fixture
def reader(desk, tmp_path):
    """Somebody at a copy of that desk."""
    shutil.copytree(desk, tmp_path / "desk")
    return Reader(tmp_path / "desk", tmp_path / "desk" / "home")


@pytest.fixture
def _served(request, tmp_path, monkeypatch):
    """What a page's clients ask, where it has some."""
    if request.getfixturevalue("page") not in SERVED:
        yield
        return
    with serving(ServeSettings(model="demo", store=str(tmp_path / "served"))) as url:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{url}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", "none")
        yield


@pytest.mark.usefixtures("_served")
@pytest.mark.parametrize("page", [page for page in PAGES if page != "README.md"])
def test_the_code_of_a_page_runs_in_its_own_order(page, reader, tmp_path):
    if page in TUTORIALS:  # which begin with nothing but the package
        (tmp_path / "new").mkdir()
        reader = Reader(tmp_path / "new", tmp_path / "home")
    # Tutorials are typed again, in the same home and directory.
    for _ in range(2 if page in TUTORIALS else 1):
        printed = reader.follow(page)
        for text in EXPECTED.get(page, ()):
            assert text in printed


def test_what_is_not_run_is_counted():
    assert {page: not_run(page) for page in PAGES if not_run(page)} == NOT_RUN


@pytest.mark.parametrize("number", range(len(README)))
def test_a_block_of_the_readme_runs_by_itself_and_again(number, tmp_path):
    found = [block for block in blocks("README.md") if block.kind == "python"]
    assert len(found) == len(README)
    assert len(found[number].code.splitlines()) <= 24
    # In one home and one directory, as a reader tries it again.
    for _ in range(2 * found[number].is_run):
        printed = Reader(tmp_path, tmp_path / "home").run(found[number], "README.md")
        assert README[number] in printed


def test_the_commands_of_the_readme_run_and_again(tmp_path):
    commands = [block for block in blocks("README.md") if "rwkv-state" in block.code]
    assert len(commands) == 1
    for _ in range(2):
        printed = Reader(tmp_path, tmp_path / "home").run(commands[0], "README.md")
        assert "Your name is Marlow." in printed
        assert "bob" in printed
