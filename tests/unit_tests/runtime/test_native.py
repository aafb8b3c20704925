"""The native RWKV-7: the package's numbers, for many conversations in one pass."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from langchain_rwkv_state.errors import ModelLoadError, StateMismatch
from langchain_rwkv_state.runtime import Runtime, Slots, load_runtime, open_slots
from langchain_rwkv_state.runtime.checkpoint import Checkpoint
from langchain_rwkv_state.runtime.handle import RuntimeHandle
from langchain_rwkv_state.runtime.native import build, linear
from langchain_rwkv_state.runtime.native import plain as plain
from langchain_rwkv_state.runtime.native.compiled import panels, rounded
from langchain_rwkv_state.runtime.native.large_pages import room
from langchain_rwkv_state.runtime.native.model import MAX_ROWS, NativeModel, NativeSlots
from langchain_rwkv_state.runtime.native.private_folder import private_folder
from langchain_rwkv_state.runtime.native.recurrence import (
    CHUNK,
    Places,
    Tokens,
    chunked,
    recur,
    step,
)
from langchain_rwkv_state.runtime.slots import StateSlots
from langchain_rwkv_state.runtime.strategy import Stage
from langchain_rwkv_state.state import RWKVState
from tests.helpers.checkpoints import DEFAULT_VOCAB, random_checkpoint, write_checkpoint
from tests.helpers.tokens import random_tokens, stepped

TOLERANCE = 1e-4
FP32 = Stage("cpu", "fp32")
PASSES = [
    pytest.param(
        True,
        id="compiled",
        marks=pytest.mark.skipif(build.library() is None, reason="there is no C++ compiler"),
    ),
    pytest.param(False, id="plain"),
]


def native(
    tensors: dict[str, torch.Tensor], *, compiled: bool, stage: Stage = FP32
) -> RuntimeHandle:
    checkpoint = Checkpoint.of(tensors, Path("random.pth"))
    model = NativeModel(dict(tensors), checkpoint, stage, compiled=compiled)
    return RuntimeHandle(model, lambda: None, name="random")


def ids(count: int, seed: int = 0, vocab: int = DEFAULT_VOCAB) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab, (count,), generator=generator).tolist()


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).abs().max() < TOLERANCE)


def same_state(one: RWKVState, other: RWKVState) -> bool:
    assert one.derivation == other.derivation
    return all(close(one[name], other[name]) for name in one)


# -- agreement ---------------------------------------------------------------------------------


@pytest.mark.parametrize("compiled", PASSES)
@pytest.mark.parametrize(
    ("n_embd", "head_size", "dtype"),
    [
        (128, 64, torch.float32),
        (64, 32, torch.float16),
        (256, 128, torch.bfloat16),
        (96, 16, torch.float32),
        (160, 32, torch.float16),
    ],
)
def test_it_agrees_with_the_package(
    tmp_path: Path, n_embd: int, head_size: int, dtype: torch.dtype, compiled: bool
) -> None:
    tensors = random_checkpoint(7, n_embd=n_embd, head_size=head_size, n_layer=3, dtype=dtype)
    path = write_checkpoint(tmp_path / "m.pth", tensors=tensors)
    package = load_runtime(path, "package cpu fp32")
    ours = native(tensors, compiled=compiled)
    assert ours.layout == package.layout
    assert ours.fingerprint == package.fingerprint
    theirs, mine = package.zero_state(), ours.zero_state()
    for seed, count in enumerate((1, 5, 1, CHUNK, 2 * CHUNK + 1, 130, 1)):
        expected, theirs = package.forward(ids(count, seed), theirs)
        logits, mine = ours.forward(ids(count, seed), mine)
        assert close(logits, expected)
        assert same_state(mine, theirs)
    package.close()


@pytest.mark.parametrize("compiled", PASSES)
def test_states_move_between_the_runtimes(tmp_path: Path, compiled: bool) -> None:
    tensors = random_checkpoint(7)
    package = load_runtime(
        write_checkpoint(tmp_path / "m.pth", tensors=tensors), "package cpu fp32"
    )
    ours = native(tensors, compiled=compiled)
    _, middle = package.forward(ids(20), package.zero_state())
    logits, _ = ours.forward([7, 8], middle)
    expected, _ = package.forward([7, 8], middle)
    assert close(logits, expected)
    package.close()


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_narrow_dtypes_stay_near(dtype: str) -> None:
    tensors = random_checkpoint(7)
    exact, narrow = (
        native(tensors, compiled=False, stage=Stage("cpu", kind)) for kind in ("fp32", dtype)
    )
    assert narrow.fingerprint != exact.fingerprint
    logits, state = narrow.forward(ids(40), narrow.zero_state())
    assert state["blocks.0.att_x_prev"].dtype == {"bf16": torch.bfloat16}.get(dtype, torch.float16)
    expected, _ = exact.forward(ids(40), exact.zero_state())
    difference = logits.log_softmax(0).exp() - expected.log_softmax(0).exp()
    assert difference.abs().max() < 0.02


@pytest.mark.parametrize("compiled", PASSES)
def test_a_callers_autocast_changes_nothing(compiled: bool) -> None:
    ours = native(random_checkpoint(7), compiled=compiled)
    expected, _ = ours.forward(ids(20), ours.zero_state())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, _ = ours.forward(ids(20), ours.zero_state())
    assert torch.equal(logits, expected)


# -- many at once ------------------------------------------------------------------------------


@pytest.mark.parametrize("compiled", PASSES)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_strangers_in_the_batch_change_nothing(compiled: bool, data: st.DataObject) -> None:
    ours = _shared(compiled)
    lengths = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=6))
    slots = data.draw(st.permutations(range(8)))[: len(lengths)]
    rounds = data.draw(st.integers(1, 3))
    pool = open_slots(ours, 8)
    alone = [ours.zero_state() for _ in lengths]
    for slot, state in zip(slots, alone, strict=True):
        pool.put(slot, state)
    for turn in range(rounds):
        reads = [
            (slot, ids(length, seed=100 * turn + slot))
            for slot, length in zip(slots, lengths, strict=True)
        ]
        together = pool.read(reads).clone()
        for row, (_, tokens) in enumerate(reads):
            logits, alone[row] = ours.forward(tokens, alone[row])
            assert close(together[row], logits)
    for slot, state in zip(slots, alone, strict=True):
        assert same_state(pool.get(slot), state)


def _shared(compiled: bool, made: dict[bool, RuntimeHandle] = {}) -> RuntimeHandle:  # noqa: B006
    if compiled not in made:
        made[compiled] = native(random_checkpoint(7), compiled=compiled)
    return made[compiled]


@pytest.mark.skipif(build.library() is None, reason="there is no C++ compiler")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_compiled_pass_gives_the_same_bits_in_any_crowd_and_any_chunks(
    dtype: torch.dtype,
) -> None:
    """So that an answer does not depend on who else is served, nor on how its prompt was read."""
    ours = native(random_checkpoint(7, dtype=dtype), compiled=True)
    tokens = ids(140)
    alone, after = ours.forward(tokens, ours.zero_state())
    for chunk in (1, 7, 100):
        state = ours.zero_state()
        for start in range(0, len(tokens), chunk):
            logits, state = ours.forward(tokens[start : start + chunk], state)
        assert torch.equal(logits, alone)
        assert state == after
    rows = [ids(3, 1), tokens, ids(61, 2), [4], [5], [6]]
    together, states = ours.forward_batch(rows, [ours.zero_state()] * len(rows))
    assert torch.equal(together[1], alone)
    assert states[1] == after


@pytest.mark.parametrize("compiled", PASSES)
def test_slots_that_are_not_named_stay_bit_for_bit(compiled: bool) -> None:
    ours = _shared(compiled)
    pool = open_slots(ours, 3)
    for slot in range(3):
        pool.put(slot, ours.forward(ids(9, slot), ours.zero_state())[1])
    before = pool.get(1)
    pool.read([(2, ids(20)), (0, [3])])
    assert pool.get(1) == before


@pytest.mark.parametrize("compiled", PASSES)
def test_the_state_handed_in_stays_bit_for_bit(compiled: bool) -> None:
    ours = _shared(compiled)
    _, state = ours.forward(ids(9), ours.zero_state())
    copies = {name: state[name] for name in state}
    ours.forward_batch([ids(30), [4]], [state, state])
    pool = open_slots(ours, 1)
    pool.put(0, state)
    pool.read([(0, [1, 2, 3])])
    assert all(torch.equal(state[name], copies[name]) for name in state)


@pytest.mark.parametrize("compiled", PASSES)
def test_a_copy_stays_what_it_was_when_the_slot_moves_on(compiled: bool) -> None:
    ours = _shared(compiled)
    pool = open_slots(ours, 1)
    pool.put(0, ours.zero_state())
    pool.read([(0, [1, 2])])
    kept = pool.get(0)
    numbers = {name: kept[name] for name in kept}
    pool.read([(0, [3])])
    assert all(torch.equal(kept[name], numbers[name]) for name in kept)
    assert kept.n_tokens == 2
    assert pool.get(0).derivation == kept.derivation.read([3])
    assert kept.nbytes == kept.layout.nbytes


@pytest.mark.parametrize("compiled", PASSES)
def test_more_rows_than_a_pass_takes(compiled: bool) -> None:
    ours = _shared(compiled)
    rows = [ids(MAX_ROWS + 100, 1), ids(3, 2), ids(MAX_ROWS, 3), [9]]
    zero = ours.zero_state()
    logits, states = ours.forward_batch(rows, [zero] * 4)
    for row, tokens in enumerate(rows):
        state, expected = zero, None
        for start in range(0, len(tokens), 100):
            expected, state = ours.forward(tokens[start : start + 100], state)
        assert expected is not None
        assert close(logits[row], expected)
        assert same_state(states[row], state)


# -- the slots' rules --------------------------------------------------------------------------


def both_kinds(tmp_path: Path) -> list[tuple[Runtime, Slots]]:
    path = write_checkpoint(tmp_path / "m.pth", 7)
    runtimes = [load_runtime(path, strategy) for strategy in ("auto", "package cpu fp32")]
    return [(runtime, open_slots(runtime, 2)) for runtime in runtimes]


def test_every_runtime_has_slots_and_they_agree(tmp_path: Path) -> None:
    (ours, own), (package, kept) = both_kinds(tmp_path)
    assert isinstance(own, NativeSlots)
    assert isinstance(kept, StateSlots)
    for runtime, pool in ((ours, own), (package, kept)):
        pool.put(0, runtime.zero_state())
        pool.put(1, runtime.zero_state())
        assert pool.count == 2
    reads: Sequence[tuple[int, list[int]]] = [(1, ids(7)), (0, [4])]
    assert close(own.read(reads), kept.read(reads))
    assert same_state(own.get(1), kept.get(1))
    for runtime, pool in ((ours, own), (package, kept)):
        with pytest.raises(ValueError, match="nothing to read"):
            pool.read([])
        with pytest.raises(ValueError, match="at most once"):
            pool.read([(0, [1]), (0, [2])])
        with pytest.raises(ValueError, match="not in the model's vocabulary"):
            pool.read([(0, [1]), (1, [DEFAULT_VOCAB])])
        with pytest.raises(ValueError, match="no tokens"):
            pool.read([(0, [])])
        pool.clear(1)
        with pytest.raises(ValueError, match="Slot 1 is empty"):
            pool.get(1)
        with pytest.raises(ValueError, match="Slot 1 is empty"):
            pool.read([(0, [1]), (1, [1])])
        assert pool.get(0).n_tokens == 1
        runtime.close()
    with pytest.raises(ModelLoadError, match="unloaded"):
        own.read([(0, [1])])
    with pytest.raises(ValueError, match="at least one slot"):
        open_slots(package, 0)


def test_a_slot_copied_into_another_goes_on_by_itself(tmp_path: Path) -> None:
    for runtime, pool in both_kinds(tmp_path):
        pool.put(0, runtime.zero_state())
        pool.read([(0, ids(5))])
        pool.copy(0, 1)
        before = pool.get(0)
        assert pool.get(1) == before
        pool.read([(0, [3])])
        assert pool.get(1) == before
        pool.copy(1, 0)
        assert pool.get(0) == before
        pool.clear(1)
        with pytest.raises(ValueError, match="Slot 1 is empty"):
            pool.copy(1, 0)
        runtime.close()


def test_a_state_of_another_model_is_refused() -> None:
    ours = _shared(False)
    other = native(random_checkpoint(7, seed=1), compiled=False)
    with pytest.raises(StateMismatch):
        open_slots(ours, 1).put(0, other.zero_state())


# -- the recurrence ----------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, CHUNK - 1, CHUNK, 3 * CHUNK + 5])
def test_the_chunked_form_equals_the_step(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    heads, size = 3, 32

    def random() -> torch.Tensor:
        return torch.randn(count, heads, size, generator=generator)

    unit = torch.nn.functional.normalize(random(), dim=-1)
    # Decays down to the least that the model can give.
    decay = torch.exp(-0.606531 * torch.sigmoid(random() + 4))
    tokens = Tokens(random(), decay, random(), random(), -unit, unit * torch.sigmoid(random()))
    start = torch.randn(heads, size, size, generator=generator)
    state, outputs = start.unsqueeze(0), []
    for t in range(count):
        y, state = step(tokens.at(slice(t, t + 1)), state)
        outputs.append(y)
    y, after = chunked(tokens, start)
    scale = torch.cat(outputs).abs().max()
    assert (y - torch.cat(outputs)).abs().max() < 1e-5 * scale
    assert (after - state[0]).abs().max() < 1e-5 * state.abs().max()


@pytest.mark.parametrize("start", [[0, 1, 2, 3, 4, 5], [0, 1, 18, 19, 54, 60]])
def test_ragged_segments_equal_the_step(start: list[int]) -> None:
    tokens, slot = random_tokens(start[-1], 2, 32), [3, 0, 5, 1, 2]
    wkv = torch.randn(6, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    expected_y, expected = stepped(tokens, wkv, start, slot)
    before = wkv[4].clone()
    y = recur(tokens, wkv, Places.of(start, slot, torch.device("cpu")))
    assert (y - expected_y).abs().max() < 1e-5 * expected_y.abs().max()
    assert (wkv - expected).abs().max() < 1e-5 * expected.abs().max()
    assert torch.equal(wkv[4], before)


# -- eight bits --------------------------------------------------------------------------------


def test_eight_bits_stay_within_half_a_step() -> None:
    weight = torch.randn(50, 30)
    weight[3] = 0
    integers, scale = rounded(weight)
    assert integers.dtype == torch.int8
    error = (integers * scale.unsqueeze(1) - weight).abs()
    assert (error <= scale.unsqueeze(1) / 2 * (1 + 1e-5)).all()


@pytest.mark.skipif(build.library() is None, reason="there is no C++ compiler")
def test_both_passes_round_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, int8 = random_checkpoint(7), replace(FP32, weights="int8")
    library = build.library()
    if library is not None and library.has_dots():
        monkeypatch.setattr(plain, "pack", _rounding_rows)
    compiled, other = (native(tensors, compiled=kind, stage=int8) for kind in (True, False))
    assert compiled.fingerprint == other.fingerprint
    assert "int8" in compiled.fingerprint
    differences = []
    for count in (1, 2, 3, 10, 40):
        one, _ = compiled.forward(ids(count), compiled.zero_state())
        logits, _ = other.forward(ids(count), other.zero_state())
        differences.append(float((one - logits).abs().max()))
    # Now and then a value at the border of two bytes falls on the other side.
    assert sorted(differences)[2] < TOLERANCE
    assert max(differences) < 0.1


def _rounding_rows(weight: torch.Tensor, bias: torch.Tensor | None = None) -> linear.Linear:
    """Rounds what a large matrix multiplies to 8 bits, row by row, as the compiled pass does."""
    product = linear.pack(weight, bias)
    if min(weight.shape) < 128:  # of a LoRA; the model is 128 wide
        return product

    def rounded_product(x: torch.Tensor) -> torch.Tensor:
        scale = x.abs().amax(-1, keepdim=True) / 127
        return product((x / scale).nan_to_num().round() * scale)

    return rounded_product


@pytest.mark.skipif(build.library() is None, reason="there is no C++ compiler")
def test_eight_bits_give_the_same_bits_in_any_crowd_and_any_chunks() -> None:
    ours = native(random_checkpoint(7), compiled=True, stage=replace(FP32, weights="int8"))
    alone, after = ours.forward(ids(30), ours.zero_state())
    _, state = ours.forward(ids(30)[:11], ours.zero_state())
    together, states = ours.forward_batch([[1], ids(30)[11:], [2]], [state] * 3)
    assert torch.equal(together[1], alone)
    assert states[1] == after


def test_panels_hold_every_weight_once() -> None:
    weight = torch.arange(10.0).view(5, 2)
    packed = panels(weight, 4)
    assert packed.shape == (2, 2, 4, 1)
    back = packed.squeeze(3).transpose(1, 2).reshape(8, 2)
    assert torch.equal(back[:5], weight)
    assert not back[5:].any()
    assert panels(weight, 4, 2)[0, 0].tolist() == weight[:4].tolist()


def test_large_arrays_begin_at_a_cache_line() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.int8):
        array = room((3, 5), dtype, zero=True)
        assert array.shape == (3, 5)
        assert array.dtype == dtype
        assert array.data_ptr() % 64 == 0
        assert not array.any()


# -- which runtime ------------------------------------------------------------------------------


def test_auto_takes_the_native_runtime_for_rwkv_7_alone(tmp_path: Path) -> None:
    for version, strategy, kind in (
        (7, "auto", NativeSlots),
        (7, "cpu int8", NativeSlots),
        (7, "native cpu fp32", NativeSlots),
        (7, "cpu fp32", NativeSlots),
        (7, "package cpu fp32", StateSlots),
        (6, "cpu fp32", StateSlots),
        (6, "auto", StateSlots),
        (4, "auto", StateSlots),
    ):
        path = write_checkpoint(tmp_path / f"{version}.pth", version)
        runtime = load_runtime(path, strategy)
        assert type(open_slots(runtime, 1)) is kind
        runtime.close()
    with pytest.raises(ModelLoadError, match="is for RWKV-7, and this is an RWKV 6"):
        load_runtime(tmp_path / "6.pth", "native cpu fp32")


def test_a_head_too_large_for_the_compiled_pass_takes_the_plain_one() -> None:
    tensors = random_checkpoint(7, n_embd=512, head_size=512, n_layer=1)
    checkpoint = Checkpoint.of(tensors, Path("m.pth"))
    assert not NativeModel(dict(tensors), checkpoint, FP32).is_compiled
    with pytest.raises(ValueError, match="not to be had"):
        NativeModel(dict(tensors), checkpoint, FP32, compiled=True)


# -- building ----------------------------------------------------------------------------------


@pytest.fixture
def fresh_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "library", build.library.__wrapped__)
    return tmp_path / "cache"


@pytest.mark.skipif(build.library() is None, reason="there is no C++ compiler")
def test_it_is_built_once_and_kept(fresh_build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert build.library() is not None
    built = list(fresh_build.rglob("*.so"))
    assert len(built) == 1
    assert built[0].parent.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(build, "_build", None)
    assert build.library() is not None


def test_without_a_compiler_there_is_no_error(
    fresh_build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    assert build.library() is None


def test_a_compiler_that_fails_is_no_error(
    fresh_build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "bin" / "g++"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(broken.parent))
    assert build.library() is None
    assert not list(fresh_build.rglob("*.so"))


@pytest.mark.slow
@pytest.mark.skipif(build.library() is None, reason="there is no C++ compiler")
def test_a_library_that_was_cut_short_is_built_again(fresh_build: Path) -> None:
    program = "from langchain_rwkv_state.runtime.native import build; print(build.library())"
    for _ in range(2):  # in processes of their own, since to load it would end the process
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=False
        )
        assert (done.returncode, "CDLL" in done.stdout) == (0, True), done.stderr
        (built,) = fresh_build.rglob("*.so")
        size = built.stat().st_size
        assert size > 10_000
        os.truncate(built, size // 2)


@pytest.mark.posix
@pytest.mark.parametrize("damage", ["none", "cut", "emptied", "altered", "named as before", "link"])
def test_a_library_is_loaded_only_as_it_was_built(damage: str, tmp_path: Path) -> None:
    content = b"\x7fELF and so on"
    built = tmp_path / build._named("rwkv7-mark", content)
    left = {"cut": content[:5], "emptied": b"", "altered": content[:-1] + b"N"}
    built.write_bytes(left.get(damage, content))
    if damage == "named as before":  # by a version that knew no digest of the content
        built = built.rename(tmp_path / "rwkv7-mark.so")
    elif damage == "link":
        built.symlink_to(built.rename(tmp_path / "elsewhere"))
    assert build._kept(tmp_path, "rwkv7-mark") == (built if damage == "none" else None)
    assert built.exists() == (damage in ("none", "link"))


@pytest.mark.parametrize("name", ["", "langchain-rwkv-state", "langchain-rwkv-state/compiled"])
def test_a_folder_that_others_can_write_to_is_not_used_and_named(
    name: str, fresh_build: Path
) -> None:
    (fresh_build / "langchain-rwkv-state" / "compiled").mkdir(parents=True)
    (fresh_build / name).chmod(0o777)
    with pytest.warns(UserWarning, match=rf"{fresh_build / name} can be written to by everybody"):
        assert build._folder() is None


@pytest.mark.skipif(build.library() is None, reason="there is no C++ compiler")
def test_without_a_folder_it_is_built_for_the_process_alone_with_a_warning(
    fresh_build: Path,
) -> None:
    fresh_build.write_bytes(b"")
    with pytest.warns(UserWarning, match="every process builds it anew"):
        assert build.library() is not None


def test_folders_of_the_cache_are_made_for_the_user_alone(tmp_path: Path) -> None:
    made = private_folder(tmp_path / "a" / "b" / "c")
    for folder in (made, made.parent, made.parent.parent):
        assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(("members", "alone"), [([], True), (["me"], True), (["me", "you"], False)])
def test_a_group_that_is_the_users_own_may_write(
    members: list[str], alone: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o770)
    gid = tmp_path.stat().st_gid
    user = SimpleNamespace(pw_name="me", pw_gid=gid)
    monkeypatch.setattr("pwd.getpwuid", lambda _: user)
    group = SimpleNamespace(gr_name="me", gr_gid=gid, gr_mem=members)
    monkeypatch.setattr("grp.getgrgid", lambda _: group)
    if alone:
        assert private_folder(tmp_path / "a") == tmp_path / "a"
    else:
        with pytest.raises(PermissionError, match=f"{tmp_path} can be written to by its group"):
            private_folder(tmp_path / "a")


def test_a_folder_in_one_like_tmp_is_the_users_own(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    assert private_folder(tmp_path / "a") == tmp_path / "a"


@pytest.mark.parametrize("choice", ["0", "1"])
def test_the_compiled_pass_can_be_switched_off(
    choice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RWKV_STATE_COMPILED", choice)
    tensors = random_checkpoint(7)
    model = NativeModel(dict(tensors), Checkpoint.of(tensors, Path("m.pth")), FP32)
    assert model.is_compiled == (choice == "1" and build.library() is not None)


@pytest.mark.skipif(build.library() is None, reason="there is no C++ compiler")
def test_it_brings_no_second_openmp_and_no_rounding_of_small_numbers() -> None:
    program = (
        "import torch\n"
        "from langchain_rwkv_state.runtime.native import build\n"
        "build.library()\n"
        "maps = open('/proc/self/maps').read()\n"
        "print(len({l.split()[-1] for l in maps.splitlines() if 'gomp' in l or 'libomp' in l}))\n"
        "print(torch.tensor(1e-40).item() > 0 and float(2e-310) / 2 > 0)\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    assert shown == ["1", "True"]
