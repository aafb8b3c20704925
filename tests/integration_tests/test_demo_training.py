"""The training writes a model that the plain `rwkv` package loads and computes alike."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import safetensors.torch
import torch
from tokenizers import Tokenizer
from torch.nn import functional

from examples.demo_training import fast
from examples.demo_training.cases import nothing_told, recall
from examples.demo_training.evaluate import Conversations, load, run
from examples.demo_training.grow import grown
from examples.demo_training.model import wkv_chunked, wkv_naive
from langchain_rwkv_state.demo import MODEL_PATH
from tests.helpers.reference import Logits, reference_logits

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "train_demo_model.py"
TOKENS = [0, *((11 * n * n + 5 * n) % 380 for n in range(1, 60))]


def _as_pth(folder: Path, out: Path) -> Path:
    torch.save(safetensors.torch.load_file(folder / "model.safetensors"), out)
    return out


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the script wrote in a few steps."""
    out = tmp_path_factory.mktemp("smoke")
    command = [sys.executable, str(SCRIPT), "--smoke", "--threads", "1", "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return out


@pytest.fixture(scope="module")
def reference(smoke: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Logits]:
    """What the plain package computes for the smoke model and for the one that is shipped."""
    folder = tmp_path_factory.mktemp("reference")
    paths = [_as_pth(smoke, folder / "smoke.pth"), _as_pth(MODEL_PATH.parent, folder / "demo.pth")]
    return reference_logits(paths, TOKENS, folder, version_7=True)


def test_the_script_writes_a_model_and_a_tokenizer(smoke: Path) -> None:
    assert (smoke / "model.safetensors").is_file()
    assert Tokenizer.from_file(str(smoke / "tokenizer.json")).token_to_id("<|endoftext|>") == 0
    assert (smoke / "checkpoint.pt").is_file()


def test_a_finished_run_is_resumed_from_its_checkpoint_and_changes_nothing(smoke: Path) -> None:
    before = (smoke / "model.safetensors").read_bytes()
    command = [sys.executable, str(SCRIPT), "--smoke", "--threads", "1", "--out", str(smoke)]
    done = subprocess.run(command, check=True, capture_output=True, timeout=300, text=True)
    assert "going on from step" in done.stdout
    assert (smoke / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("which", ["smoke", "demo"])
def test_the_plain_package_computes_the_same_logits(
    which: str, smoke: Path, reference: list[Logits]
) -> None:
    folder, expected = (
        (smoke, reference[0]) if which == "smoke" else (MODEL_PATH.parent, reference[1])
    )
    model, _ = load(folder)
    with torch.no_grad():
        x, _ = model.hidden(torch.tensor([TOKENS]), model.zero_state(1))
        logits = model.logits(x[0, -1])
    for way in ("sequence", "steps", "mixed"):
        torch.testing.assert_close(logits, expected[way], rtol=1e-3, atol=1e-3)


def test_a_deeper_model_computes_what_the_shallower_one_does(smoke: Path) -> None:
    model, tokenizer = load(smoke)
    shape = replace(model.shape, layers=4, vocab=model.shape.vocab + 3)
    with torch.no_grad():
        deeper = grown(smoke / "model.safetensors", shape, new=(1, 3)).eval()
        got, _ = deeper.hidden(torch.tensor([TOKENS]), deeper.zero_state(1))
        want, _ = model.hidden(torch.tensor([TOKENS]), model.zero_state(1))
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(
        deeper.logits(got)[..., : tokenizer.get_vocab_size()], model.logits(want)
    )
    with pytest.raises(ValueError, match="2 blocks"):
        grown(smoke / "model.safetensors", replace(shape, layers=3), new=())


def test_padded_pieces_leave_the_state_as_the_whole_does() -> None:
    model, _ = load(MODEL_PATH.parent)
    with torch.no_grad():
        _, whole = model.hidden(torch.tensor([TOKENS]), model.zero_state(1))
        state = model.zero_state(1)
        for piece in (TOKENS[:7], TOKENS[7:8], TOKENS[8:40], TOKENS[40:]):
            padded = torch.tensor([piece + [3] * 5])
            _, state = model.hidden(padded, state, torch.tensor([len(piece)]))
    for a, b in zip(whole, state, strict=True):
        torch.testing.assert_close(a.wkv, b.wkv, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(a.att_x, b.att_x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("way", ["chunked", "compiled"])
def test_values_and_gradients_of_the_recurrence_equal_the_naive_loop(way: str) -> None:
    if way == "compiled" and fast.library() is None:
        pytest.skip("no C++ compiler")
    torch.manual_seed(1)
    r, k, v, a = (torch.randn(2, 48, 2, 64) for _ in range(4))
    key = functional.normalize(torch.randn(2, 48, 2, 64), dim=-1)
    logw = -0.606531 * torch.sigmoid(4 * torch.randn(2, 48, 2, 64))
    p0 = torch.randn(4, 64, 64)
    weight = torch.randn(2, 48, 2, 64)

    def values_and_gradients(kind: str) -> list[torch.Tensor]:
        inputs = [x.clone().requires_grad_() for x in (r, logw, k, v, -key, key * a.sigmoid())]
        r_, logw_, k_, v_, a_, b_ = inputs
        if kind == "compiled":
            y, p = fast.FastWKV.apply(r_, logw_.exp(), k_, v_, a_, b_, p0)
        else:
            recurrence = wkv_naive if kind == "naive" else wkv_chunked
            y, p = recurrence(r_, logw_, k_, v_, a_, b_, p0)
        return [y, p, *torch.autograd.grad((y * weight).sum(), inputs)]

    for got, expected in zip(values_and_gradients(way), values_and_gradients("naive"), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_the_shipped_model_recalls_and_admits() -> None:
    model, tokenizer = load(MODEL_PATH.parent)
    assert run(model, tokenizer, [recall(Random(n), 4) for n in range(20)]) >= 0.9
    assert run(model, tokenizer, [nothing_told(Random(n)) for n in range(20)]) >= 0.9


def test_rows_of_a_batch_do_not_touch_each_other() -> None:
    model, tokenizer = load(MODEL_PATH.parent)
    questions = ["My name is Bob.", "What is your name?", "Thanks!"]
    alone = []
    for question in questions:
        talk = Conversations(model, tokenizer, 1)
        alone += talk.answer([[0, *talk.encoder.question("User", question, first=True)]])
    talk = Conversations(model, tokenizer, 3)
    rows = [[0, *talk.encoder.question("User", q, first=True)] for q in questions]
    assert talk.answer(rows) == alone
