"""Floor 0: rates in [0, 1] to spike trains (SNN-TextCNN 3.1.2). Nothing is kept between two calls.

poisson        spike[t] = 1 with probability rate, independently of all others
deterministic  spike[t] = floor(rate * (t + 1)) - floor(rate * t), t from 0: evenly spread, T * rate rounded down

The Poisson draws come from no generator with a state. A draw is SplitMix64's output at a counter, keyed by (seed, draw,
text, t, position, dimension), where the text is its token ids: a text has the same spikes in every batch, in every
place of it and at every padding, on every machine, and the first steps of a longer train are those of a shorter one.
"""

from __future__ import annotations

import torch
from torch import Tensor

CODINGS = ("poisson", "deterministic")
_STEP = -7046029254386353131  # 0x9E3779B97F4A7C15, the odd constant by which SplitMix64 counts
_FIRST, _SECOND = -4658895280553007687, -7723592293110705685  # 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def poisson(
    rates: Tensor,
    steps: int,
    input_ids: Tensor,
    mask: Tensor,
    *,
    seed: int = 0,
    draw: int = 0,
    noise: Tensor | None = None,
) -> Tensor:
    """Spikes of new noise for every draw. noise [B], int64: keys of the texts, in place of what their token ids give.

    Shapes: rates [B, L, D], input_ids and mask [B, L] (1 for a real token, which must come first) -> [T, B, L, D].
    Units:  rates are probabilities per step; the draws have 16 bits, so 0 never fires, 1 always, and what lies between
            is exact to 2^-16. Dtype: rates' own. No gradient reaches the rates.
    """
    _require_rates(rates, steps)
    places = torch.arange(input_ids.shape[1], device=rates.device)
    start = _mix(_mix(torch.tensor(seed, device=rates.device)) + draw)
    if noise is None:
        noise = (_mix((places + 1) * _STEP + input_ids) * mask.long()).sum(1)  # [B], the same at every padding
    keys = _mix(_mix(start ^ noise) + torch.arange(1, steps + 1, device=rates.device)[:, None] * _STEP)  # [T, B]
    keys = _mix(keys[..., None] + (places + 1) * _STEP)  # [T, B, L]
    width = rates.shape[-1]
    quarters = torch.arange(1, -(-width // 4) + 1, device=rates.device) * _STEP
    draws = _mix(keys[..., None] + quarters).view(torch.int16)[..., :width]  # four of 16 bits in each of 64
    exact = rates.detach().to(torch.promote_types(rates.dtype, torch.float32))  # bf16 knows no 32767
    return (draws < (exact * 2**16 - 2**15)).to(rates.dtype)


def deterministic(rates: Tensor, steps: int) -> Tensor:
    """Evenly spread spikes: rates [B, L, D] -> [T, B, L, D], dtype of rates. Equation: the head of this file."""
    _require_rates(rates, steps)
    times = torch.arange(steps + 1, dtype=torch.float64, device=rates.device).view(-1, 1, 1, 1)
    return (rates.detach().double() * times).floor().diff(dim=0).to(rates.dtype)


def _require_rates(rates: Tensor, steps: int) -> None:
    if steps < 1:
        raise ValueError(f"time steps: expected at least 1, got {steps}")
    if rates.numel() and not (rates.min() >= 0 and rates.max() <= 1):
        raise ValueError(f"rates: expected values from 0 to 1, got {rates.min():.3g} to {rates.max():.3g}")


def _mix(keys: Tensor) -> Tensor:
    """SplitMix64's finaliser: 64 bits to 64 bits, one to one; int64 arithmetic wraps."""
    mixed = keys ^ _shifted(keys, 30)
    mixed *= _FIRST
    mixed ^= _shifted(mixed, 27)
    mixed *= _SECOND
    return mixed.bitwise_xor_(_shifted(mixed, 31))


def _shifted(keys: Tensor, by: int) -> Tensor:
    return (keys >> by).bitwise_and_((1 << (64 - by)) - 1)  # zeros come in from the left, as in unsigned numbers
