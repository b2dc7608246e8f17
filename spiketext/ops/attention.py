"""Attention by squares of the counts of coinciding spikes: its definition, and the same keeping less for backward.

    out[i] = sum over j of max(q[i] . k[j], 0)^2 v[j]

PyTorch would keep three maps of L x L numbers a head for backward. Only q, k and v are kept; backward counts again,
which costs one product more of the five that there are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def squared_attention_reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The definition; see `squared_attention`."""
    return (q @ k.mT).clamp_min(0).square() @ v


def squared_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """max(q k^T, 0)^2 v, without a memory of the counts.

    Shapes:  q, k, v [..., L, D] -> [..., L, D].  Dtype: any float; whole numbers stay whole, in float32 below 2^24.
    It can be differentiated once.
    """
    return _SquaredAttention.apply(q, k, v)


def require_whole_numbers(length: int, width: int, levels: int = 1) -> None:
    """Raises ValueError where sums over so many tokens, of heads of a width and codes up to levels, may pass 2^24.

    Above it float32 rounds, so the order of the additions, and with it padding, could change a spike.
    """
    largest = length * levels * (levels * levels * width) ** 2
    if largest > 2**24:
        raise ValueError(f"squared attention of {length} tokens, heads of {width} and codes up to {levels} may sum up "
                         f"to {largest}, expected at most {2**24}; take more heads, fewer levels or attention "
                         "counts")  # fmt: skip


class _SquaredAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor):
        ctx.save_for_backward(q, k, v)
        return (q @ k.mT).clamp_min_(0).square_() @ v

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor):
        q, k, v = ctx.saved_tensors
        counts = (q @ k.mT).clamp_min_(0)
        slope = (grad @ v.mT).mul_(counts).mul_(2)  # 0 where the count is 0 or less
        return slope @ k, slope.mT @ q, counts.square_().mT @ grad
