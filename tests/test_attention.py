"""Attention by squared counts against its definition, and what it keeps for backward."""

from __future__ import annotations

import pytest
import torch

from spiketext.models import SpikeBertConfig
from spiketext.ops import require_whole_numbers, squared_attention, squared_attention_reference


def spikes(length: int, dtype: torch.dtype, seed: int = 0) -> list[torch.Tensor]:
    """q, k and v [2, 3, L, 8] of -1, 0 and 1 that ask for gradients."""
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(-1, 2, (2, 3, length, 8), generator=draw).to(dtype).requires_grad_() for _ in range(3)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", [0, 1, 7, 40])
def test_values_and_gradients_are_those_of_the_definition(length, dtype):
    qkv = spikes(length, dtype)
    out, expected = squared_attention(*qkv), squared_attention_reference(*qkv)
    assert torch.equal(out, expected) and torch.equal(out, out.round())
    toward = torch.randint(-3, 4, out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)  # sums stay exact
    ours, theirs = torch.autograd.grad(out, qkv, toward), torch.autograd.grad(expected, qkv, toward)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    with torch.no_grad():
        assert torch.equal(squared_attention(*qkv), expected)


def test_sums_that_may_pass_what_float32_can_count_are_refused():
    length, width, levels = 512, 32, 2
    require_whole_numbers(length, width, levels)
    largest = [torch.full((1, length, width), float(levels)) for _ in range(3)]
    assert squared_attention(*largest).max() == length * levels * (levels**2 * width) ** 2 == 2**24
    with pytest.raises(
        ValueError, match=r"heads of 33 .* may sum up to 17842176, expected at most 16777216; take more"
    ):
        require_whole_numbers(length, width + 1, levels)
    sizes = {"hidden_size": 128, "num_attention_heads": 2, "attention": "squared", "time_steps": 1}
    SpikeBertConfig(**sizes, code="ternary")
    with pytest.raises(Exception, match="codes up to 4 may sum up"):
        SpikeBertConfig(**sizes, code="integer")


def test_gradients_are_those_of_finite_differences():
    draw = torch.Generator().manual_seed(0)
    qkv = [torch.randn(2, 5, 3, dtype=torch.float64, generator=draw).requires_grad_() for _ in range(3)]
    assert torch.autograd.gradcheck(squared_attention, qkv)


def test_no_map_of_counts_is_kept_for_backward():
    kept: dict[str, list[torch.Size]] = {}
    for attend in (squared_attention, squared_attention_reference):
        shapes = kept[attend.__name__] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, to=shapes: to.append(x.shape) or x, lambda x: x):
            attend(*spikes(40, torch.float32))
    maps = {name: [shape for shape in shapes if shape[-2:] == (40, 40)] for name, shapes in kept.items()}
    assert not maps["squared_attention"] and len(maps["squared_attention_reference"]) == 3
