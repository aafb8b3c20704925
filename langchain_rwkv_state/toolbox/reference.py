"""The models' formulas, one token at a time, to be read: what runs them fast is measured by this.

RWKV-4, 5 (5.0, 5.1 and 5.2), 6 and 7 over a checkpoint's tensors as they are, in fp32, on the CPU.
It is no runtime: it has no batch, no devices and no speed. The easy mistake is the order of the
matrix's two sides: RWKV-5 and 6 keep it as ``[key, value]``, RWKV-7 as ``[value, key]``.

Glossary, with the papers' letters: D width of the model; H heads of size N, with H * N = D; F width
of the channel-mix; V size of the vocabulary; x the residual stream, r receptance, k key, v value,
w decay, u bonus for the current token, g gate, a RWKV-7's in-context learning rate.

Sources: Peng et al., arXiv 2305.13048 (RWKV-4), 2404.05892 (5 and 6), 2503.14456 (7); BlinkDL's
``rwkv`` package 0.8.32, function by function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import group_norm, layer_norm, normalize, silu

Tensors = Mapping[str, Tensor]
Mixed = tuple[Tensor, dict[str, Tensor]]

_GROUP_NORM_EPS = 64e-5
_RATE_7 = 0.606531  # exp(-0.5), with the digits that the package gives it


class ReferenceModel:
    """A model that reads one token in some thirty lines of formulas.

    Args:
        weights: A checkpoint's tensors by BlinkDL's names.

    Raises:
        ValueError: They are not those of an RWKV-4, 5, 6 or 7.

    Example:
        >>> model = ReferenceModel(torch.load("model.pth", weights_only=True))  # doctest: +SKIP
        >>> logits, state = model.step(11, state)  # doctest: +SKIP
    """

    def __init__(self, weights: Tensors) -> None:
        self._w = {name: tensor.float().squeeze() for name, tensor in weights.items()}
        self.version = _version(weights)
        self.n_layer = 1 + max(int(n.split(".")[1]) for n in weights if n.startswith("blocks."))
        self._time_mix, self._channel_mix = _MIXES[self.version]
        bonus = (weights.get(f"blocks.0.att.{n}") for n in ("r_k", "time_faaaa", "time_first"))
        found = next((each for each in bonus if each is not None), None)
        self.n_head = 1 if self.version == 4 or found is None else found.shape[0]

    def zero_tensors(self) -> dict[str, Tensor]:
        """Returns the state of a model that has read nothing, or its tuned start, by name."""
        width = self._w["emb.weight"].shape[1]
        att = self._w["blocks.0.att.key.weight"].shape[0]
        size = att // self.n_head
        found: dict[str, Tensor] = {}
        for number in range(self.n_layer):
            block = f"blocks.{number}."
            found |= {block + name: torch.zeros(width) for name in ("att_x_prev", "ffn_x_prev")}
            if self.version == 4:
                found |= {block + name: torch.zeros(att) for name in ("att_aa", "att_bb")}
                found[block + "att_pp"] = torch.full((att,), -1e30)
            else:
                # Some checkpoints bring a start state, values by keys in the file.
                tuned = self._w.get(block + "att.time_state", torch.zeros(()))
                tuned = tuned.expand(self.n_head, size, size)
                found[block + "att_kv"] = tuned.transpose(1, 2).clone()
        return found

    def step(self, token: int, state: Tensors) -> tuple[Tensor, dict[str, Tensor]]:
        """Reads one token.

        Args:
            token: Its id.
            state: Tensors by name, as an `RWKVState` has them; left as they are.

        Returns:
            The logits ``[V]``, and the state behind the token.
        """
        logits, after, _ = self.step_with_rates(token, state)
        return logits, after

    def step_with_rates(
        self, token: int, state: Tensors
    ) -> tuple[Tensor, dict[str, Tensor], list[Tensor]]:
        """Reads one token; returns also how fast each layer's past faded, ``[D]`` each.

        Args:
            token: Its id.
            state: Tensors by name; left as they are.

        Returns:
            Logits, the state behind the token, and for each layer the rates ``-ln w`` of the
            factors by which the channels (RWKV-4) or the matrices' key sides (the others) were
            multiplied. (A factor near 1 would keep few digits of its rate.)
        """
        x = self._norm("blocks.0.ln0", self._w["emb.weight"][token])
        after: dict[str, Tensor] = {}
        rates: list[Tensor] = []
        carried: dict[str, Tensor] = {}
        for number in range(self.n_layer):
            block = f"blocks.{number}."
            before = {n.removeprefix(block): t for n, t in state.items() if n.startswith(block)}
            for norm, part, mix in (
                ("ln1", "att.", self._time_mix),
                ("ln2", "ffn.", self._channel_mix),
            ):
                weights = {
                    n.removeprefix(block + part): t
                    for n, t in self._w.items()
                    if n.startswith(block + part)
                }
                normed = self._norm(block + norm, x)
                added, changed = mix(weights | carried, normed, before, self.n_head)
                if "v_first" in changed:
                    carried = {"v_first": changed.pop("v_first")}
                if "rate" in changed:
                    rates.append(changed.pop("rate").flatten())
                x = x + added
                after |= {block + name: tensor for name, tensor in changed.items()}
        return self._w["head.weight"] @ self._norm("ln_out", x), after, rates

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return layer_norm(x, x.shape, self._w[f"{name}.weight"], self._w[f"{name}.bias"])


# -- RWKV-4 --------------------------------------------------------------------------------------


def time_mix_4(w: Tensors, x: Tensor, before: Tensors, _: int) -> Mixed:
    """RWKV-4: a weighted mean of all values so far, with weights ``exp(k)`` that decay.

    ``wkv = (A + exp(u + k) v) / (B + exp(u + k))``; then ``A = exp(w) A + exp(k) v`` and
    ``B = exp(w) B + exp(k)``. A and B would overflow, so each is kept as ``aa * exp(pp)`` and
    ``bb * exp(pp)``, where ``pp`` is the largest exponent so far.

    Args:
        w: The layer's weights.
        x: The normed input, ``[D]``.
        before: ``att_x_prev`` ``[D]``, ``att_aa``, ``att_bb`` and ``att_pp`` ``[D]``.

    Returns:
        What is added to the residual stream, ``[D]``; the four after the token, and ``rate``.
    """
    back = before["att_x_prev"]
    r = torch.sigmoid(w["receptance.weight"] @ _lerp(back, x, w["time_mix_r"]))
    k = w["key.weight"] @ _lerp(back, x, w["time_mix_k"])
    v = w["value.weight"] @ _lerp(back, x, w["time_mix_v"])
    aa, bb, pp = before["att_aa"], before["att_bb"], before["att_pp"]

    now = w["time_first"] + k
    top = torch.maximum(pp, now)
    past, new = torch.exp(pp - top), torch.exp(now - top)
    wkv = (past * aa + new * v) / (past * bb + new)

    speed = torch.exp(w["time_decay"])
    faded = pp - speed
    top = torch.maximum(faded, k)
    past, new = torch.exp(faded - top), torch.exp(k - top)
    after = {
        "att_x_prev": x,
        "att_aa": past * aa + new * v,
        "att_bb": past * bb + new,
        "att_pp": top,
        "rate": speed,
    }
    return w["output.weight"] @ (r * wkv), after


def channel_mix_4(w: Tensors, x: Tensor, before: Tensors, _: int) -> Mixed:
    """RWKV-4 and 5: a gated network of one hidden layer, ``relu(k)^2``.

    The state is the normed input itself: the next token mixes it into its own.
    """
    back = before["ffn_x_prev"]
    r = torch.sigmoid(w["receptance.weight"] @ _lerp(back, x, w["time_mix_r"]))
    k = w["key.weight"] @ _lerp(back, x, w["time_mix_k"])
    return r * (w["value.weight"] @ torch.relu(k) ** 2), {"ffn_x_prev": x}


# -- RWKV-5 --------------------------------------------------------------------------------------


def time_mix_5(w: Tensors, x: Tensor, before: Tensors, heads: int) -> Mixed:
    """RWKV-5: each head keeps a matrix of outer products ``k v``, which decays by row.

    ``y = r (S + diag(u) k v)``; then ``S = diag(w) S + k v`` with ``w = exp(-exp(time_decay))``.
    In 5.2 decay and bonus are numbers for each row; in 5.0 and 5.1 they are one for a head. 5.0 has
    no gate, and keeps the logarithm of its bonus.

    Args:
        w: The layer's weights.
        x: The normed input, ``[D]``.
        before: ``att_x_prev`` ``[D]`` and ``att_kv`` ``[H, N, N]``, keys by values.
        heads: H.

    Returns:
        What is added to the residual stream, ``[D]``; the two after the token, and ``rate``.
    """
    back = before["att_x_prev"]
    r, k, v = (
        w[f"{name}.weight"] @ _lerp(back, x, w[f"time_mix_{name[0]}"])
        for name in ("receptance", "key", "value")
    )
    gate = torch.ones_like(r)
    if "gate.weight" in w:
        gate = silu(w["gate.weight"] @ _lerp(back, x, w["time_mix_g"]))
    rate = torch.exp(w["time_decay"]).reshape(heads, -1, 1).expand(heads, r.numel() // heads, 1)
    y, matrix = _read_and_write(w, r, k, v, torch.exp(-rate), before["att_kv"])
    after = {"att_x_prev": x, "att_kv": matrix, "rate": rate}
    return _gated_output(w, y, gate, heads), after


# -- RWKV-6 --------------------------------------------------------------------------------------


def time_mix_6(w: Tensors, x: Tensor, before: Tensors, heads: int) -> Mixed:
    """RWKV-6: as RWKV-5, but the text itself decides how far tokens mix and how fast rows decay.

    Five mixing vectors come from one low-rank network, and
    ``w = exp(-exp(time_decay + tanh(x_w W1) W2))`` from another.

    Args:
        w: The layer's weights.
        x: The normed input, ``[D]``.
        before: ``att_x_prev`` ``[D]`` and ``att_kv`` ``[H, N, N]``, keys by values.
        heads: H.

    Returns:
        What is added to the residual stream, ``[D]``; the two after the token, and ``rate``.
    """
    xx = before["att_x_prev"] - x
    low = torch.tanh((x + xx * w["time_maa_x"]) @ w["time_maa_w1"]).view(5, 1, -1)
    moved = torch.bmm(low, w["time_maa_w2"]).squeeze(1)
    xw, xk, xv, xr, xg = (
        x + xx * (w[f"time_maa_{name}"] + each) for name, each in zip("wkvrg", moved, strict=True)
    )
    r, k, v = w["receptance.weight"] @ xr, w["key.weight"] @ xk, w["value.weight"] @ xv
    gate = silu(w["gate.weight"] @ xg)
    speed = w["time_decay"] + torch.tanh(xw @ w["time_decay_w1"]) @ w["time_decay_w2"]
    rate = torch.exp(speed).view(heads, -1, 1)
    y, matrix = _read_and_write(w, r, k, v, torch.exp(-rate), before["att_kv"])
    after = {"att_x_prev": x, "att_kv": matrix, "rate": rate}
    return _gated_output(w, y, gate, heads), after


def channel_mix_6(w: Tensors, x: Tensor, before: Tensors, _: int) -> Mixed:
    """RWKV-6: as RWKV-4, with the mixing weights counted from the other end."""
    xx = before["ffn_x_prev"] - x
    r = torch.sigmoid(w["receptance.weight"] @ (x + xx * w["time_maa_r"]))
    k = w["key.weight"] @ (x + xx * w["time_maa_k"])
    return r * (w["value.weight"] @ torch.relu(k) ** 2), {"ffn_x_prev": x}


# -- RWKV-7 --------------------------------------------------------------------------------------


def time_mix_7(w: Tensors, x: Tensor, before: Tensors, heads: int) -> Mixed:
    """RWKV-7: before a head writes at a key, it takes out what stood there (a delta rule).

    ``S = S (diag(w) - kk^T (a * kk)) + v^T k``, with ``kk`` the key's direction, ``a`` how much
    of the old is taken out, and
    ``w = exp(-exp(-0.5) sigmoid(...))``, from 0.545 to 1. Then ``y = S r``.

    Args:
        w: The layer's weights, and from the second layer on ``v_first``, the first layer's values.
        x: The normed input, ``[D]``.
        before: ``att_x_prev`` ``[D]`` and ``att_kv`` ``[H, N, N]``, values by keys.
        heads: H.

    Returns:
        What is added to the residual stream, ``[D]``; the two after the token, ``v_first`` and
        ``rate``.
    """
    xx = before["att_x_prev"] - x
    xr, xw, xk, xv, xa, xg = (x + xx * w[f"x_{name}"] for name in "rwkvag")
    r, k, v = w["receptance.weight"] @ xr, w["key.weight"] @ xk, w["value.weight"] @ xv
    fading = _RATE_7 * torch.sigmoid(w["w0"] + torch.tanh(xw @ w["w1"]) @ w["w2"])
    rate = torch.sigmoid(w["a0"] + (xa @ w["a1"]) @ w["a2"])
    gate = torch.sigmoid(xg @ w["g1"]) @ w["g2"]

    direction = normalize((k * w["k_k"]).view(heads, -1), dim=-1)
    k = k * (1 + (rate - 1) * w["k_a"])
    v_first = w.get("v_first", v)
    if "v_first" in w:
        v = v + (v_first - v) * torch.sigmoid(w["v0"] + (xv @ w["v1"]) @ w["v2"])

    rows, columns = v.view(heads, -1, 1), k.view(heads, 1, -1)
    taken_out = -direction.unsqueeze(2) @ (direction * rate.view(heads, -1)).unsqueeze(1)
    matrix = before["att_kv"]
    matrix = matrix * torch.exp(-fading).view(heads, 1, -1) + matrix @ taken_out + rows @ columns
    y = matrix @ r.view(heads, -1, 1)

    y = group_norm(y.reshape(1, -1), heads, w["ln_x.weight"], w["ln_x.bias"], _GROUP_NORM_EPS)[0]
    bonus = (r * k).view(heads, -1) * w["r_k"].view(heads, -1)
    y = y + (bonus.sum(-1, keepdim=True) * v.view(heads, -1)).flatten()
    after = {"att_x_prev": x, "att_kv": matrix, "v_first": v_first, "rate": fading}
    return w["output.weight"] @ (y * gate), after


def channel_mix_7(w: Tensors, x: Tensor, before: Tensors, _: int) -> Mixed:
    """RWKV-7: without the gate of the earlier versions."""
    k = w["key.weight"] @ (x + (before["ffn_x_prev"] - x) * w["x_k"])
    return w["value.weight"] @ torch.relu(k) ** 2, {"ffn_x_prev": x}


# -- what versions share -------------------------------------------------------------------------


def _lerp(back: Tensor, x: Tensor, share: Tensor) -> Tensor:
    """The token shift: `share` of this token and the rest of the one before."""
    return x * share + back * (1 - share)


def _read_and_write(
    w: Tensors, r: Tensor, k: Tensor, v: Tensor, decay: Tensor, matrix: Tensor
) -> tuple[Tensor, Tensor]:
    """Reads a head's matrix with the bonus for the current token, then writes to it (5, 6)."""
    heads, size, _ = matrix.shape
    product = k.view(heads, size, 1) @ v.view(heads, 1, size)
    bonus = w["time_faaaa"] if "time_faaaa" in w else w["time_first"].exp()
    bonus = bonus.reshape(heads, -1, 1)
    return r.view(heads, 1, size) @ (bonus * product + matrix), product + decay * matrix


def _gated_output(w: Tensors, y: Tensor, gate: Tensor, heads: int) -> Tensor:
    y = group_norm(y.reshape(1, -1), heads, w["ln_x.weight"], w["ln_x.bias"], _GROUP_NORM_EPS)[0]
    return w["output.weight"] @ (y * gate)


def _version(weights: Tensors) -> int:
    first = {n.removeprefix("blocks.0.att.") for n in weights if n.startswith("blocks.0.att.")}
    if "r_k" in first:
        return 7
    if "time_maa_x" in first:
        return 6
    if "time_mix_k" in first:
        return 5 if "ln_x.weight" in first else 4
    raise ValueError("The tensors are not those of an RWKV-4, 5, 6 or 7.")


_Mix = Callable[[Tensors, Tensor, Tensors, int], Mixed]
_MIXES: dict[int, tuple[_Mix, _Mix]] = {
    4: (time_mix_4, channel_mix_4),
    5: (time_mix_5, channel_mix_4),
    6: (time_mix_6, channel_mix_6),
    7: (time_mix_7, channel_mix_7),
}
