"""Files of other tools: every shape they come in, and those that must be refused."""

from __future__ import annotations

import os

import pytest
import safetensors.torch
import torch

from langchain_rwkv_state.errors import StateCorrupt, StateMismatch
from langchain_rwkv_state.runtime import load_runtime
from langchain_rwkv_state.state import export_tensors, import_tensors, zero_state
from tests.helpers.checkpoints import random_checkpoint, write_checkpoint
from tests.helpers.states import random_state
from tests.unit_tests.conftest import LAYOUTS

VERSIONS = list(LAYOUTS)


def pair(version):
    """Returns a state and the zero state of its model."""
    return random_state([1], layout=LAYOUTS[version]), zero_state(LAYOUTS[version], "model")


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_what_is_exported_comes_back(tmp_path, version, suffix):
    state, zero = pair(version)
    path = tmp_path / f"state{suffix}"
    export_tensors(state, path)
    found = import_tensors(path, zero, n_tokens=7)
    assert same(found, state)
    assert found.n_tokens == 7
    assert found.derivation not in (state.derivation, zero.derivation)
    assert os.name == "nt" or path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ValueError, match=r"\.pt"):
        export_tensors(state, tmp_path / "state.bin")


def test_the_exported_list_is_the_packages_own(tmp_path, models):
    """What the `rwkv` package gets from the file is what it would have had itself."""
    for version in (4, 5.2, 6, 7):
        runtime = models[version]
        _, state = runtime.forward([1, 2, 3], runtime.zero_state())
        export_tensors(state, tmp_path / "state.pt")
        plain = torch.load(tmp_path / "state.pt", weights_only=True)
        assert isinstance(plain, list)
        assert all(map(torch.equal, plain, (state[name] for name in state)))
        back = import_tensors(tmp_path / "state.pt", runtime.zero_state())
        assert torch.equal(runtime.forward([4], back)[0], runtime.forward([4], state)[0])


@pytest.mark.parametrize("version", VERSIONS)
def test_every_form_is_taken(tmp_path, version):
    state, zero = pair(version)
    kinds = {name.rpartition(".")[2] for name in state}
    stacks = {k: torch.stack([state[f"blocks.{n}.{k}"] for n in (0, 1)]) for k in kinds}
    forms = [
        tuple(state[name] for name in state),
        {name: state[name] for name in state},
        stacks,
        {name: state[name].double().unsqueeze(0) for name in state},
        {("att_ab" if k == "att_bb" else k): stack for k, stack in stacks.items()},
    ]
    found = []
    for number, form in enumerate(forms):
        torch.save(form, tmp_path / f"{number}.pt")
        found.append(import_tensors(tmp_path / f"{number}.pt", zero))
        assert same(found[-1], state)
    assert len({each.derivation for each in found}) == 1


def test_rwkv_4_without_its_log_scale_is_refused_unless_it_has_none(tmp_path):
    state, zero = pair(4)
    four = [state[name] for name in state if not name.endswith("att_pp")]
    four[2][5] = 0
    torch.save(four, tmp_path / "four.pt")
    with pytest.raises(StateMismatch, match="att_pp"):
        import_tensors(tmp_path / "four.pt", zero)
    found = import_tensors(tmp_path / "four.pt", zero, log_scale=0)
    assert found["blocks.0.att_pp"][4:7].tolist() == pytest.approx([0, -1e30, 0])
    assert torch.equal(found["blocks.0.att_aa"], state["blocks.0.att_aa"])


@pytest.mark.parametrize("version", [5.2, 6])
def test_a_tuned_state_from_a_file_is_the_one_in_the_checkpoint(tmp_path, version):
    sizes = {"n_embd": 64, "head_size": 32}
    weights = random_checkpoint(version, n_embd=64, head_size=32, tuned_state=True)
    tuned = {name: tensor for name, tensor in weights.items() if "time_state" in name}
    torch.save(tuned, tmp_path / "tuned.pth")
    with_it = load_runtime(write_checkpoint(tmp_path / "with.pth", tensors=weights), "cpu fp32")
    plain = {name: tensor for name, tensor in weights.items() if name not in tuned}
    without = load_runtime(write_checkpoint(tmp_path / "without.pth", tensors=plain), "cpu fp32")
    assert with_it.layout.head_size == sizes["head_size"]
    donor = import_tensors(tmp_path / "tuned.pth", without.zero_state())
    expected, _ = with_it.forward([1, 2, 3], with_it.zero_state())
    assert torch.equal(without.forward([1, 2, 3], donor)[0], expected)
    with_it.close()
    without.close()


def test_a_tuned_state_of_rwkv_7_is_taken_as_it_stands(tmp_path):
    _, zero = pair(7)
    tuned = {f"blocks.{n}.att.time_state": torch.randn(2, 32, 32) for n in (0, 1)}
    safetensors.torch.save_file(tuned, tmp_path / "tuned.safetensors")
    found = import_tensors(tmp_path / "tuned.safetensors", zero)
    assert torch.equal(found["blocks.1.att_kv"], tuned["blocks.1.att.time_state"])
    assert not found["blocks.1.att_x_prev"].any()
    with pytest.raises(StateMismatch, match="RWKV-4"):
        import_tensors(tmp_path / "tuned.safetensors", pair(4)[1])


class Payload:
    def __reduce__(self):
        return (os.mkdir, ("made",))


@pytest.mark.parametrize("content", [{"a": Payload()}, [Payload()], Payload()])
def test_a_pickled_payload_is_not_run(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    torch.save(content, "state.pt")
    with pytest.raises(StateCorrupt, match="nothing of it was"):
        import_tensors("state.pt", pair(7)[1])
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "content",
    [[], [torch.zeros(3)] * 6, {"a": torch.zeros(2)}, {"blocks.0.att_kv": torch.zeros(2)}],
)
def test_tensors_of_another_model_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "state.pt")
    with pytest.raises(StateMismatch):
        import_tensors(tmp_path / "state.pt", pair(7)[1])


@pytest.mark.parametrize("content", [7, "text", {"a": 1}, [1, 2, 3, 4, 5, 6], None])
def test_what_is_no_tensor_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "state.pt")
    with pytest.raises(StateCorrupt):
        import_tensors(tmp_path / "state.pt", pair(7)[1])


@pytest.mark.parametrize("data", [b"", b"nonsense", b"PK\x03\x04", b"\x80\x02\x8a\x0a"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_damaged_files_are_refused(tmp_path, data, suffix):
    path = tmp_path / f"state{suffix}"
    path.write_bytes(data)
    with pytest.raises(StateCorrupt):
        import_tensors(path, pair(7)[1])


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_an_export_that_fails_leaves_what_was_there(tmp_path, monkeypatch, ending):
    state, path = random_state([1], layout=LAYOUTS[7]), tmp_path / f"state.{ending}"
    export_tensors(state, path)
    before = path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        export_tensors(random_state([2], layout=LAYOUTS[7]), path)
    assert [each.read_bytes() for each in tmp_path.iterdir()] == [before]
