"""The sums of a linear map of spikes against its definition, `torch.nn.functional.linear`."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import linear

from spiketext.neurons import SpikeLinear
from spiketext.ops import kernels, spike_linear, spike_linear_int8
from spiketext.ops import linear as room

SHAPES = [
    (1, 1, 1),
    (3, 64, 32),
    (65, 63, 31),
    (70, 65, 33),
    (130, 192, 64),
    (1100, 193, 40),
    (64, 384, 2),
    (7, 577, 96),
]


def spikes_of(
    rows: int, inputs: int, rate: float, dtype=torch.float64, signed: bool = False, seed: int = 0
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    spikes = (torch.rand(rows, inputs, generator=generator) < rate).to(dtype)
    return spikes * (2 * torch.randint(2, (rows, inputs), generator=generator) - 1) if signed else spikes


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rate", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_sums_are_the_product(shape, rate, signed, dtype, near, compiled):
    rows, inputs, outputs = shape
    torch.manual_seed(1)
    weight = torch.randn(outputs, inputs, dtype=dtype, requires_grad=True)
    bias = torch.randn(outputs, dtype=dtype, requires_grad=True)
    spikes = spikes_of(rows, inputs, rate, dtype, signed).requires_grad_()
    upstream = torch.randn(rows, outputs, dtype=dtype)
    results = []
    for backend in ("cpp", "torch"):
        out = spike_linear(spikes, weight, bias, backend=backend)
        results.append((out, *torch.autograd.grad(out, (spikes, weight, bias), upstream)))
    for mine, defined in zip(*results, strict=True):
        assert mine.shape == defined.shape
        assert torch.allclose(mine, defined, rtol=near, atol=near * inputs**0.5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("signed", [False, True])
def test_sums_of_bytes_are_exact(shape, signed, compiled):
    rows, inputs, outputs = shape
    draw = torch.Generator().manual_seed(2)
    weight = torch.randint(-128, 128, (outputs, inputs), generator=draw).to(torch.int8)
    scale, bias = torch.rand(outputs, generator=draw), torch.randn(outputs, generator=draw)
    spikes = spikes_of(rows, inputs, 0.6, torch.float32, signed)
    expected = linear(spikes.double(), scale[:, None].double() * weight, bias.double())
    assert torch.allclose(spike_linear_int8(spikes, weight, scale, bias).double(), expected, rtol=1e-5, atol=1e-3)
    whole = spike_linear_int8(spikes, weight, torch.ones(outputs))
    assert torch.equal(whole, linear(spikes.double(), weight.double()).float())


def test_the_largest_bytes_do_not_overflow(compiled):
    weight, spikes = torch.full((70, 1536), -128, dtype=torch.int8), torch.ones(3, 1536)
    assert (spike_linear_int8(spikes, weight, torch.ones(70)) == -128 * 1536).all()
    spikes[:, ::2] = -1
    weight[:, ::2] = 127
    assert (spike_linear_int8(spikes, weight, torch.ones(70)) == -(127 + 128) * 768).all()


def test_bytes_and_other_numbers_take_the_definition(compiled):
    spikes, weight = torch.full((2, 3, 5), 0.5), torch.randint(-9, 9, (4, 5)).to(torch.int8)
    scale = torch.rand(4)
    assert torch.allclose(spike_linear_int8(spikes, weight, scale), linear(spikes, scale[:, None] * weight))


@pytest.mark.parametrize("signed", [False, True])
def test_windows_are_read_where_they_overlap(signed, compiled):
    texts = spikes_of(5 * 12, 30, 0.5, torch.float64, signed).view(5, 12, 30)
    spikes = texts.flatten(-2).unfold(-1, 90, 30)  # [5, 10, 90], three words each
    weight = torch.randn(33, 90, dtype=torch.float64, requires_grad=True)
    found = spike_linear(spikes, weight, backend="cpp")
    assert torch.equal(found, spike_linear(spikes.contiguous(), weight, backend="cpp"))
    expected = linear(spikes, weight)
    assert torch.allclose(found, expected, atol=1e-12)
    upstream = torch.randn_like(expected)
    slopes = [torch.autograd.grad(out, weight, upstream)[0] for out in (found, expected)]
    assert torch.allclose(*slopes, atol=1e-11)
    across = texts.transpose(1, 2)  # the numbers of a row are not side by side: copied
    assert torch.allclose(spike_linear(across, weight[:, :12], backend="cpp"), linear(across, weight[:, :12]))


def test_without_bias_and_with_leading_dimensions(compiled):
    spikes, weight = spikes_of(24, 100, 0.2).view(2, 3, 4, 100), torch.randn(10, 100, dtype=torch.float64)
    assert torch.allclose(spike_linear(spikes, weight, backend="cpp"), linear(spikes, weight), atol=1e-12)


@pytest.mark.parametrize("signed", [False, True])
def test_a_row_does_not_depend_on_its_neighbours_or_the_threads(signed, compiled):
    spikes, weight = spikes_of(1500, 300, 0.2, torch.float32, signed), torch.randn(70, 300)
    whole = spike_linear(spikes, weight, backend="cpp")
    threads = torch.get_num_threads()
    try:
        for count, rows in ((1, slice(0, 1500)), (2, slice(700, 900)), (3, slice(1499, 1500))):
            torch.set_num_threads(count)
            assert torch.equal(spike_linear(spikes[rows], weight, backend="cpp"), whole[rows])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("strange", [2.0, -2.0, 0.5, float("nan")])
def test_what_is_no_spike_takes_the_product(strange, dtype, compiled):
    spikes, weight = spikes_of(80, 70, 0.1, dtype, signed=True), torch.randn(3, 70, dtype=dtype)
    spikes[79, 69] = strange
    assert kernels.spike_bits(spikes).shape[0] == 0
    assert torch.equal(spike_linear(spikes, weight), linear(spikes, weight)) or strange != strange
    assert torch.isnan(spike_linear(spikes, weight)[79]).all() == (strange != strange)
    with pytest.raises(ValueError, match="-1, 0 and 1"):
        spike_linear(spikes, weight, backend="cpp")


@pytest.mark.parametrize("rows", [room.FEWEST_ROWS - 1, room.FEWEST_ROWS, 300])
def test_shapes_that_do_not_fit_end_as_those_of_the_definition(rows, compiled):
    """The compiled sums look at no shape: they would read beyond a weight or a bias."""
    weight = torch.randn(8, 128)
    for inputs in (64, 192):
        spikes = spikes_of(rows, inputs, 0.3, torch.float32)
        with pytest.raises(RuntimeError, match="shapes"):
            spike_linear(spikes, weight)
        with pytest.raises(RuntimeError, match="shapes"):
            spike_linear_int8(spikes, weight.to(torch.int8), torch.ones(8))
        with pytest.raises(ValueError, match=r"cannot run .*\[8, 128\]"):
            spike_linear(spikes, weight, backend="cpp")
    spikes = spikes_of(rows, 128, 0.3, torch.float32)
    assert torch.equal(spike_linear(spikes, weight, torch.ones(1)), linear(spikes, weight, torch.ones(1)))
    assert spike_linear(spikes, torch.empty(0, 128)).shape == (rows, 0)
    assert spike_linear_int8(spikes, torch.empty(0, 128, dtype=torch.int8), torch.ones(0)).shape == (rows, 0)


def test_the_path_is_chosen_by_size(compiled, monkeypatch):
    weight, taken = torch.randn(8, 70), []
    real = kernels.spike_linear
    monkeypatch.setattr(kernels, "spike_linear", lambda *arguments: taken.append(1) or real(*arguments))
    for rows, sums in ((room.FEWEST_ROWS, 1), (room.FEWEST_ROWS - 1, 0)):
        taken.clear()
        spike_linear(spikes_of(rows, 70, 0.5, torch.float32), weight)
        assert len(taken) == sums


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("signed", [False, True])
def test_bits_hold_the_spikes(signed, dtype, compiled):
    spikes = spikes_of(5, 130, 0.3, dtype, signed)
    bits = kernels.spike_bits(spikes)
    assert bits.shape == (2 if signed else 1, 5, 3)
    planes = [[[(int(word) >> j) & 1 for word in row for j in range(64)][:130] for row in plane] for plane in bits]
    read = torch.tensor(planes, dtype=dtype)
    assert torch.equal(read[0] - read[1] if signed else read[0], spikes)
    assert bits.untyped_storage().nbytes() == 8 * bits.numel()  # what backward keeps


def test_half_precision_and_autocast_take_the_product(compiled):
    layer, spikes = SpikeLinear(70, 8), spikes_of(100, 70, 0.1, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(spikes).dtype == torch.bfloat16
    assert layer.bfloat16()(spikes.bfloat16()).dtype == torch.bfloat16


def test_a_backend_that_cannot_run_is_named():
    weight = torch.randn(2, 3)
    with pytest.raises(ValueError, match="expected cpp or torch"):
        spike_linear(torch.ones(1, 3), weight, backend="triton")
    with pytest.raises(ValueError, match="bfloat16"):
        spike_linear(torch.ones(1, 3).bfloat16(), weight.bfloat16(), backend="cpp")


def test_only_the_first_derivative(compiled):
    weight = torch.randn(2, 70, requires_grad=True)
    spikes = spikes_of(64, 70, 0.1, torch.float32).requires_grad_()
    out = spike_linear(spikes, weight, backend="cpp").square().sum()
    (slope,) = torch.autograd.grad(out, spikes, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()
