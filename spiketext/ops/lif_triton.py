"""The CUDA back end: `lif` and `norm_lif` as one Triton kernel each way, fused over time.

Definition: `lif_reference` and `norm_lif` in lif.py; `_fires`, `_step`, `_slope` and `_carry` repeat it, operations in
the same order. A row is D neurons that share a layer norm, or a block of neurons without one. One program holds a row,
walks the T steps with the membranes in registers, and backward computes them again from x: the caller keeps x and
nothing else. Memory may be float16, bfloat16, float32 or float64; sums are in float32, or float64 for float64.

The neuron is a constant of the kernel: another threshold is another kernel, compiled in seconds and then cached.
Where TRITON_INTERPRET=1 is set before the first use, Triton's interpreter runs the kernels on CPU tensors: for tests.
SPIKETEXT_KERNELS=0 turns this back end off, as it does the one of C++.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from spiketext.ops.kernels import contiguous

if TYPE_CHECKING:
    from spiketext.ops.lif import Neuron

try:
    import triton
    import triton.language as tl

    jit = triton.jit
except ImportError:  # the definitions below can still be read, `available_backends` leaves it out

    def jit(function: Any) -> Any:
        """Stands in for `triton.jit`."""
        return function


BLOCK = 1024  # neurons in a program of `lif`
PROGRAMS = 512  # of backward with a norm, for each group: each adds up its rows, then their sums are added


@jit
def _fires(u, n: tl.constexpr):
    """S[t] of a membrane, in the dtype of the membrane, as the threshold is (Triton 3.6 would make it float32)."""
    threshold = tl.full(u.shape, n.threshold, u.dtype)
    if n.fire == ">=":
        spikes = (u >= threshold).to(u.dtype)
        if n.code == "ternary":
            spikes -= (-u >= threshold).to(u.dtype)
    else:
        spikes = (u > threshold).to(u.dtype)
        if n.code == "ternary":
            spikes -= (-u > threshold).to(u.dtype)
    return spikes


@jit
def _step(current, u, n: tl.constexpr):
    """U[t] from I[t] and U[t-1]."""
    fired = _fires(u, n)
    if n.reset == "zero":
        after = n.gain * current + n.beta * (1 - tl.abs(fired)) * u
    elif n.reset_delay:
        after = n.gain * current + n.beta * u - n.threshold * fired
    else:
        after = n.gain * current + n.beta * (u - n.threshold * fired)
    return after


@jit
def _surrogate(distance, n: tl.constexpr):
    if n.surrogate == "atan":
        z = 1.5707963267948966 * n.alpha * distance
        slope = 0.5 * n.alpha / (1 + z * z)
    else:
        z = 1 + n.alpha * tl.abs(distance)
        slope = 1 / (z * z)
    return slope


@jit
def _slope(u, n: tl.constexpr):
    """dS[t] / dU[t]."""
    slope = _surrogate(u - n.threshold, n)
    if n.code == "ternary":
        slope += _surrogate(u + n.threshold, n)
    return slope


@jit
def _carry(u, n: tl.constexpr):
    """dU[t+1] / dU[t], the reset included where it carries a gradient."""
    fired = _fires(u, n)
    if n.reset == "zero":
        kept = 1 - tl.abs(fired)
        if not n.detach_reset:
            slope = _slope(u, n) * u
            if n.code == "ternary":
                slope *= fired
            kept -= slope
        carry = n.beta * kept
    elif n.detach_reset:
        carry = tl.zeros_like(u) + n.beta
    elif n.reset_delay:
        carry = n.beta - n.threshold * _slope(u, n)
    else:
        carry = n.beta * (1 - n.threshold * _slope(u, n))
    return carry


@jit
def _load(pointer, at, mask, sums: tl.constexpr):
    """A row in the dtype of the sums; zeros where nothing was given and beyond the row."""
    row = tl.zeros(at.shape, sums) if pointer is None else tl.load(pointer + at, mask=mask, other=0).to(sums)
    return row


@jit
def _normalise(row, inside, eps: tl.constexpr, D: tl.constexpr):
    """The row with mean 0 and variance 1 (zeros beyond it), and one over its standard deviation."""
    centred = tl.where(inside, row - tl.sum(row, 0) / D, 0.0)
    inverse = 1 / tl.sqrt(tl.sum(centred * centred, 0) / D + eps)
    return centred * inverse, inverse


@jit
def _forward(
    x, state, weight, bias, spikes, last, neurons, groups, eps: tl.constexpr, D: tl.constexpr, T: tl.constexpr,
    WIDTH: tl.constexpr, sums: tl.constexpr, n: tl.constexpr,
):  # fmt: skip
    """Memory [T, neurons], one row of D a program; the row's own norm is number row % groups of weight and bias."""
    row, d = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH)
    at, own = row * D + d, row % groups * D + d
    mask = (d < D) & (at < neurons)
    w, b = _load(weight, own, mask, sums), _load(bias, own, mask, sums)
    u = _load(state, at, mask, sums)
    here = at
    for _ in tl.static_range(T):
        current = _load(x, here, mask, sums)
        if weight is not None:
            normed, _inverse = _normalise(current, mask, eps, D)
            current = normed * w + b
        u = _step(current, u, n)
        tl.store(spikes + here, _fires(u, n), mask=mask)
        here += neurons
    if last is not None:
        tl.store(last + at, u, mask=mask)


@jit
def _backward(
    x, state, weight, bias, grad_spikes, grad_last, grad_x, grad_state, grad_weight, grad_bias, neurons, rows, groups,
    eps: tl.constexpr, D: tl.constexpr, T: tl.constexpr, WIDTH: tl.constexpr, sums: tl.constexpr, n: tl.constexpr,
):  # fmt: skip
    """Program (p, g) walks rows p, p + programs, ... of group g there and back; its sums are row p of grad_weight."""
    first, group, d = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.arange(0, WIDTH)
    inside, own = d < D, group * D + d
    w, b = _load(weight, own, inside, sums), _load(bias, own, inside, sums)
    sum_w, sum_b = tl.zeros([WIDTH], sums), tl.zeros([WIDTH], sums)
    for number in range(first, rows, tl.num_programs(0)):
        at = (group + tl.cast(number, tl.int64) * groups) * D + d
        mask = inside & (at < neurons)
        start = _load(state, at, mask, sums)
        u, here = start, at
        membranes, normed, inverses = (), (), ()
        for _ in tl.static_range(T):
            current = _load(x, here, mask, sums)
            if weight is not None:
                z, inverse = _normalise(current, mask, eps, D)
                current = z * w + b
                normed += (z,)
                inverses += (inverse,)
            u = _step(current, u, n)
            membranes += (u,)
            here += neurons
        g = _load(grad_last, at, mask, sums)
        for t in tl.static_range(T - 1, -1, -1):
            here -= neurons
            if t < T - 1:
                g *= _carry(membranes[t], n)
            g += _load(grad_spikes, here, mask, sums) * _slope(membranes[t], n)
            down = n.gain * g
            if weight is not None:
                sum_w += down * normed[t]
                sum_b += down
                down *= w
                across, along = tl.sum(down, 0) / D, tl.sum(down * normed[t], 0) / D
                down = inverses[t] * (down - across - normed[t] * along)
            tl.store(grad_x + here, down, mask=mask)
        if grad_state is not None:
            tl.store(grad_state + at, g * _carry(start, n), mask=mask)
    if weight is not None:
        own += first * groups * D
        tl.store(grad_weight + own, sum_w, mask=inside)
        tl.store(grad_bias + own, sum_b, mask=inside)


def forward(
    x: Tensor, state: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float, n: Neuron, keep: bool
) -> tuple[Tensor, Tensor | None]:
    """x [T, N, G, D], state [N, G, D], weight, bias [G, D] -> spikes [T, N, G, D], last membrane [N, G, D] to keep."""
    spikes, last = torch.empty_like(x), torch.empty_like(x[0]) if keep else None
    rows, groups, plan = _plan(x, weight, eps, n)
    with torch.cuda.device_of(x):
        _forward[(rows * groups,)](x, *contiguous(state, weight, bias), spikes, last, x[0].numel(), groups, **plan)
    return spikes, last


def backward(
    x: Tensor, state: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float, n: Neuron,
    grad_spikes: Tensor, grad_last: Tensor | None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """Gradients of x, state, weight and bias, each None where the input was None."""
    grad_x = torch.empty_like(x)
    grad_state = None if state is None else torch.empty_like(state, memory_format=torch.contiguous_format)
    rows, groups, plan = _plan(x, weight, eps, n)
    programs, partial = rows, None
    if weight is not None:
        programs = min(rows, PROGRAMS)
        kind = torch.float64 if x.dtype == torch.float64 else torch.float32
        partial = x.new_empty((2, programs, *weight.shape), dtype=kind)
    with torch.cuda.device_of(x):
        _backward[(programs, groups)](
            x, *contiguous(state, weight, bias, grad_spikes, grad_last), grad_x, grad_state,
            *((None, None) if partial is None else partial), x[0].numel(), rows, groups, **plan,
        )  # fmt: skip
    if weight is None or partial is None:
        return grad_x, grad_state, None, None
    grad_weight, grad_bias = partial.sum(1).to(weight.dtype)
    return grad_x, grad_state, grad_weight, grad_bias


def _plan(x: Tensor, weight: Tensor | None, eps: float, n: Neuron) -> tuple[int, int, dict[str, Any]]:
    """Rows of a group, groups, and the constants of a launch: four neurons a thread with a norm, eight without."""
    steps, _, groups, width = x.shape
    sums = tl.float64 if x.dtype == torch.float64 else tl.float32
    plan = {"eps": eps, "T": steps, "sums": sums, "n": n, "enable_fp_fusion": False}
    if weight is None:
        return triton.cdiv(x[0].numel(), BLOCK), 1, {"D": BLOCK, "WIDTH": BLOCK, "num_warps": 4, **plan}
    block = triton.next_power_of_2(width)
    return x.shape[1], groups, {"D": width, "WIDTH": block, "num_warps": min(16, max(1, block // 128)), **plan}
