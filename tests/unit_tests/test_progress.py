"""Progress bars: they count, wait until work is long, and draw on terminals alone."""

import io

import pytest
from langchain_core.messages import HumanMessage
from rich.console import Console

from langchain_rwkv_state import _progress as progress
from langchain_rwkv_state._progress import LateBar
from langchain_rwkv_state.runtime import read_tensors
from tests.helpers.checkpoints import write_checkpoint


def drawn_on(terminal: bool) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, force_terminal=terminal, width=80), file


def test_off_a_terminal_nothing_is_drawn():
    console, file = drawn_on(False)
    with progress.counting(3, console) as counters:
        assert counters == []
    assert file.getvalue() == ""


@pytest.mark.parametrize("how", ["batch", "abatch"])
async def test_every_answer_counts(how, make_chat, monkeypatch):
    console, file = drawn_on(True)
    counting = progress.counting
    monkeypatch.setattr(progress, "counting", lambda total: counting(total, console))
    chat = make_chat(7, progress=True, max_tokens=2)
    inputs = ["one", [HumanMessage("two")], "three"]
    answers = chat.batch(inputs) if how == "batch" else await chat.abatch(inputs)
    assert len(answers) == 3
    assert "3/3" in file.getvalue()


def test_failures_count_too(make_chat, monkeypatch):
    console, file = drawn_on(True)
    counting = progress.counting
    monkeypatch.setattr(progress, "counting", lambda total: counting(total, console))
    chat = make_chat(7, progress=True, max_tokens=2)
    results = chat.batch(["one", []], [{"tags": ["a"]}, {}], return_exceptions=True)
    assert isinstance(results[1], ValueError)
    assert "2/2" in file.getvalue()


# -- bars that wait --------------------------------------------------------------------------


class Clock:
    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def told(bar, clock, steps, total, seconds_each):
    for done in range(1, steps + 1):
        clock.now += seconds_each
        bar.tell(done, total)


@pytest.mark.parametrize(
    ("steps", "total", "seconds_each", "drawn"),
    [
        (40, 40, 0.01, False),  # over before anybody looked
        (12, 12, 0.1, False),  # when it can be said how long it takes, less than a second is left
        (8, 40, 0.1, True),
        (2, 1000, 0.1, False),  # not yet seen long enough
    ],
)
def test_a_bar_is_drawn_once_a_second_of_work_lies_ahead(steps, total, seconds_each, drawn, clock):
    console, file = drawn_on(True)
    with LateBar("Loading m", console=console) as bar:
        told(bar, clock, steps, total, seconds_each)
    assert ("Loading m" in file.getvalue()) is drawn


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a[red]b", "a[red]b"),
        ("[/x]", "[/x]"),
        (":smile:", ":smile:"),
        ("a\x1b[2Jb", "a\ufffd[2Jb"),
    ],
)
def test_a_files_name_is_drawn_as_it_is_and_commands_nothing(name, shown, clock):
    console, file = drawn_on(True)
    with LateBar(f"Loading {name}", console=console) as bar:
        told(bar, clock, 8, 40, 0.1)
    assert f"Loading {shown} " in file.getvalue()


def test_the_pace_is_that_of_what_was_done_since_the_first_step(clock):
    console, file = drawn_on(True)
    with LateBar("Reading", console=console) as bar:
        assert bar.tell is not None
        bar.tell(900, 1000)  # known from before
        clock.now += 0.6
        bar.tell(910, 1000)  # five seconds to come
    assert "910/1000" in file.getvalue()


def test_bytes_are_shown_as_sizes_and_the_cursor_comes_back(clock):
    console, file = drawn_on(True)

    def load():
        with LateBar("m", console=console, in_bytes=True) as bar:
            assert bar.tell is not None
            for done in range(1, 9):
                clock.now += 0.1
                bar.tell(done * 10**9, 40 * 10**9)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load()
    shown = file.getvalue()
    assert "/40.0 GB" in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")


def test_off_a_terminal_or_when_not_wanted_nothing_is_told(monkeypatch):
    monkeypatch.setattr("sys.stderr", io.StringIO())
    monkeypatch.setenv("FORCE_COLOR", "1")  # colours in a log are no bars in it
    assert LateBar("m").tell is None
    console, _ = drawn_on(True)
    assert LateBar("m", progress=False, console=console).tell is None
    with progress.counting(3) as counters:
        assert counters == []


def test_two_bars_are_not_drawn_over_each_other(clock):
    console, file = drawn_on(True)
    other_console, other = drawn_on(True)
    with progress.stepping("first", console) as step:
        step(1, 2)
        with LateBar("second", console=other_console) as bar:
            told(bar, clock, 8, 40, 0.1)
    assert "first" in file.getvalue()
    assert other.getvalue() == ""
    with LateBar("third", console=other_console) as bar:
        told(bar, clock, 8, 40, 0.1)
    assert "third" in other.getvalue()


def test_a_bar_that_cannot_be_drawn_stops_no_work(clock, caplog):
    class Broken(io.StringIO):
        def write(self, text):
            raise OSError("the terminal is gone")

    console = Console(file=Broken(), force_terminal=True, width=80)
    with LateBar("m", console=console) as bar, caplog.at_level("DEBUG", "langchain_rwkv_state"):
        told(bar, clock, 20, 40, 0.1)
    assert "the terminal is gone" in caplog.text
    with progress.stepping("next", drawn_on(True)[0]):
        assert progress._drawing.locked()
    assert not progress._drawing.locked()


def test_after_its_end_a_bar_is_not_drawn_any_more(clock):
    console, file = drawn_on(True)
    with LateBar("m", console=console) as bar:
        pass
    told(bar, clock, 8, 40, 0.1)
    assert file.getvalue() == ""


# -- who tells of what -----------------------------------------------------------------------


@pytest.fixture
def bars(monkeypatch):
    """Notes what the bars of a model are told."""
    steps: dict[str, list[tuple[int, int]]] = {}

    class Noted(LateBar):
        def __init__(self, label, *, progress=None, **options):
            super().__init__(label, progress=progress, console=Console(file=io.StringIO()))
            if self.tell is not None:
                self.tell = lambda done, total: steps.setdefault(label, []).append((done, total))

    for module in ("base", "chat_models"):
        monkeypatch.setattr(f"langchain_rwkv_state.{module}.LateBar", Noted)
    return steps


@pytest.mark.parametrize("make", ["make_chat", "make_llm"])
def test_loading_tells_of_every_byte(make, bars, request, tiny_model):
    model = request.getfixturevalue(make)(7, strategy="native cpu fp32")
    model.loaded()
    [(label, steps)] = bars.items()
    size = tiny_model(7).stat().st_size
    assert label == f"Loading {tiny_model(7).name}"
    assert all(total == size for _, total in steps)
    done = [at for at, _ in steps]
    assert done == sorted(done)
    assert size * 0.9 < done[-1] <= size  # an archive has headers too


@pytest.mark.parametrize("how", ["prefill", "aprefill", "in a session", "pin_prefix"])
async def test_reading_tells_of_its_tokens(how, make_chat, bars):
    chat = make_chat(7)
    text = "One two three. " * 60
    if how == "prefill":
        chat.prefill(text)
    elif how == "aprefill":
        await chat.aprefill(text)
    elif how == "in a session":
        chat.prefill(text, session="s")
    else:
        chat.pin_prefix(text, name="p")
    [(label, steps)] = bars.items()
    assert label == ("Reading p" if how == "pin_prefix" else "Reading")
    total = chat.get_num_tokens(text) + 1  # what every sequence begins with
    assert len(steps) > 1
    assert steps[-1] == (total, total)


def test_whoever_is_told_of_the_progress_draws_it(make_chat, bars):
    steps = []
    make_chat(7).prefill("One two three.", on_progress=lambda *step: steps.append(step))
    assert steps
    assert not bars


@pytest.mark.parametrize("make", ["make_chat", "make_llm"])
def test_progress_false_draws_nothing(make, bars, request):
    model = request.getfixturevalue(make)(7, strategy="native cpu fp32", progress=False)
    model.loaded()
    if make == "make_chat":
        model.prefill("One two three. " * 60)
    assert not bars


@pytest.mark.parametrize("form", [".safetensors", ".pth"])
def test_every_form_of_a_file_tells_of_its_bytes(form, tmp_path):
    path = write_checkpoint(tmp_path / f"m{form}", 7, n_embd=64, head_size=32)
    steps = []
    read_tensors(path, on_progress=lambda *step: steps.append(step))
    size = path.stat().st_size
    assert all(done <= total == size for done, total in steps)
    assert size / 2 < steps[-1][0] <= size
    steps.clear()
    read_tensors(path, mapped=True, on_progress=lambda *step: steps.append(step))
    assert not steps
