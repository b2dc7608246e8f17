"""Checks of the Triton kernels against the definition. `test_triton.py` runs this file in a process of its own.

Where there is a GPU they run on it; elsewhere in Triton's interpreter, which must be chosen before triton is imported.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from test_ops import COMBINATIONS, CONSTANTS, RESETS, assert_close, norm_definition, norm_inputs, normal
from torch.nn.functional import layer_norm

from spiketext.ops import Neuron, available_backends, kernels, lif, lif_reference, lif_triton, norm_lif, norm_lif_from
from spiketext.ops.lif import MOST_TRITON_STEPS, WIDEST_TRITON_ROW, resolve_backend

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [(2, 63), (1, 1), (8, 3, 5, 7), (3, 1030), (4,)]  # all of NAMES at the first, some at the others
FLOAT32 = 1e-5
# All neurons on a GPU. The interpreter is slow and takes, with each reset, those in which an even number of the other
# four settings is turned: any three settings still occur in all their combinations, so a fault needs four to hide.
TURNED = {"fire": ">", "code": "ternary", "surrogate": "fast_sigmoid", "detach_reset": False}
NAMES = [name for name, options in COMBINATIONS.items()
         if DEVICE == "cuda" or len(options.items() & TURNED.items()) % 2 == 0]  # fmt: skip


@pytest.fixture(autouse=True)
def unwritten_memory_is_nan(monkeypatch):
    monkeypatch.setattr(kernels, "load", lambda: None)  # nothing is compiled for the other back end
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


def on_device(*tensors):
    return [tensor.to(DEVICE) for tensor in tensors]


def gradients(function, inputs, used=(0, 1)):
    """What a function gives, and the gradients of its inputs for a fixed cotangent of the results that are used."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    results = function(*leaves)
    loss = sum((results[i] * normal(*results[i].shape, seed=8 + i).to(results[i])).sum() for i in used)
    return (*(result.detach() for result in results), *torch.autograd.grad(loss, leaves, allow_unused=True))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("reset", RESETS)
def test_every_neuron_equals_the_definition(reset, shape):
    inputs = on_device(normal(*shape, seed=1), normal(*shape[1:], seed=2))
    names = [name for name in NAMES if COMBINATIONS[name].items() >= RESETS[reset].items()]
    assert len(names) >= 8
    for name in names if shape == SHAPES[0] else names[len(shape) :: len(names) // 2 - 1]:
        options = COMBINATIONS[name]
        expected = gradients(lambda c, s, o=options: lif_reference(c, s, **o), inputs)
        actual = gradients(lambda c, s, o=options: lif(c, s, backend="triton", **o), inputs)
        assert torch.equal(actual[0], expected[0]), name
        assert_close(actual, expected, 1e-12, name)


@pytest.mark.parametrize("reset", RESETS)
def test_float32_spikes_and_membranes_are_those_of_the_definition_to_the_bit(reset):
    inputs = on_device(normal(6, 2100, seed=1, dtype=torch.float32), normal(2100, seed=2, dtype=torch.float32))
    options = {**CONSTANTS, **RESETS[reset]}
    expected = gradients(lambda c, s: lif_reference(c, s, **options), inputs)
    actual = gradients(lambda c, s: lif(c, s, backend="triton", **options), inputs)
    assert torch.equal(actual[0], expected[0]) and torch.equal(actual[1], expected[1])
    assert_close(actual, expected, FLOAT32, reset)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_the_definition_in_float32_rounded_at_the_end(dtype):
    current, state = on_device(normal(4, 515, seed=1).to(dtype), normal(515, seed=2).to(dtype))
    wide = gradients(lambda c, s: lif_reference(c, s, **CONSTANTS), (current.float(), state.float()))
    half = gradients(lambda c, s: lif(c, s, backend="triton", **CONSTANTS), (current, state))
    assert all(tensor.dtype == dtype for tensor in half)
    assert torch.equal(half[0].float(), wide[0])
    torch.testing.assert_close(half[1], wide[1].to(dtype), rtol=0.01, atol=0)  # one unit in the last place
    for a, e in zip(half[2:], wide[2:], strict=True):  # the cotangents were rounded too
        torch.testing.assert_close(a.float(), e, rtol=0.03, atol=0.03)


def test_a_sequence_can_be_cut_anywhere_and_gradients_pass_through():
    inputs = on_device(normal(5, 33, seed=1), normal(33, seed=2))
    for reset, cut in itertools.product(RESETS.values(), (1, 4)):
        options = {**CONSTANTS, **reset, "backend": "triton"}

        def in_two(current, state, cut=cut, options=options):
            first, state = lif(current[:cut], state, **options)
            second, state = lif(current[cut:], state, **options)
            return torch.cat([first, second]), state

        whole, pieces = gradients(lambda c, s, o=options: lif(c, s, **o), inputs), gradients(in_two, inputs)
        assert torch.equal(pieces[0], whole[0]) and torch.equal(pieces[1], whole[1])
        assert_close(pieces, whole, 1e-12, f"cut at {cut}")


@pytest.mark.parametrize("steps", range(1, 9))
def test_any_number_of_steps_with_and_without_a_state(steps):
    current, state = on_device(normal(steps, 37, seed=1), normal(37, seed=2))
    for inputs, used in (((current,), (steps % 2,)), ((current, state), (1 - steps % 2,))):
        expected = gradients(lambda *i: lif_reference(*i), inputs, used)
        actual = gradients(lambda *i: lif(*i, backend="triton"), inputs, used)
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)


def test_a_tie_is_a_tie_in_its_dtype_and_zero_wide_shapes_run():
    for dtype, fire in itertools.product((torch.float32, torch.float64), (">=", ">")):
        (current,) = on_device(torch.full((1, 9), 0.1, dtype=dtype))
        spikes = lif(current, backend="triton", threshold=0.1, fire=fire)[0]
        assert (spikes == (fire == ">=")).all()
    for shape in ((4, 0), (2, 3, 0), (3, 0, 5)):
        (current,) = on_device(normal(*shape))
        assert lif(current, backend="triton")[0].shape == shape


def test_integers_as_constants_and_any_memory_layout():
    base = normal(6, 5, 4, seed=1)
    (current,) = on_device(base.permute(2, 1, 0))
    for options in ({"threshold": 1, "gain": 2, "alpha": 3, "beta": 1}, {"beta": 0, "surrogate": "fast_sigmoid"}):
        expected = gradients(lambda c, o=options: lif_reference(c, **o), (current,))
        actual = gradients(lambda c, o=options: lif(c, backend="triton", **o), (current,))
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)


# --- layer norm and neuron in one -------------------------------------------------------------------------------------


NORM_SHAPES = [((2, 63), None), ((1, 1, 2), None), ((5, 2, 3, 17), None), ((3, 2, 2, 3, 17), 3)]


def assert_norm_close(actual, expected, tolerance, what):
    for part, a, e in zip(("spikes", "x", "weight", "bias"), actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=tolerance, atol=tolerance, msg=lambda m, p=part: f"{what}, {p}: {m}")


@pytest.mark.parametrize(("shape", "groups"), NORM_SHAPES, ids=str)
def test_norm_lif_equals_layer_norm_and_then_lif(shape, groups):
    inputs = on_device(*norm_inputs(shape, groups))
    for name in list(COMBINATIONS)[len(shape) :: 5 if len(shape) == 2 else 19]:
        options = COMBINATIONS[name]
        expected = gradients(lambda *i, o=options: (norm_definition(*i, 1e-5, **o),), inputs, (0,))
        actual = gradients(lambda *i, o=options: (norm_lif(*i, 1e-5, backend="triton", **o),), inputs, (0,))
        assert torch.equal(actual[0], expected[0]), name
        assert_norm_close(actual, expected, 1e-10, name)


def test_norm_lif_goes_on_from_a_state():
    x, weight, bias = on_device(*norm_inputs((4, 2, 3, 17), 3))
    x.requires_grad_()
    first, state = norm_lif_from(x[:2], None, weight, bias, 1e-5, backend="triton")
    rest, _ = norm_lif_from(x[2:], state, weight, bias, 1e-5, backend="triton")
    whole = norm_definition(x, weight, bias, 1e-5)
    spikes = torch.cat([first, rest])
    assert torch.equal(spikes, whole)
    up = torch.randn_like(whole)
    (mine,), (defined,) = torch.autograd.grad(spikes, x, up), torch.autograd.grad(whole, x, up)
    assert torch.allclose(mine, defined, atol=1e-10)


@pytest.mark.parametrize("groups", [None, 3])
def test_norm_lif_in_float32_is_that_of_tensor_code(groups):
    inputs = on_device(*norm_inputs((4, 7, 3, 33), groups, torch.float32))
    x, weight, bias = inputs
    current = layer_norm(x, x.shape[-1:], eps=1e-5) * weight + bias
    membranes = [lif_reference(current[: t + 1])[1] for t in range(4)]
    assert min((u - 1).abs().min() for u in membranes) > 1e-5  # no membrane is so near that rounding decides
    expected = gradients(lambda *i: (norm_lif(*i, 1e-5, backend="torch"),), inputs, (0,))
    actual = gradients(lambda *i: (norm_lif(*i, 1e-5, backend="triton"),), inputs, (0,))
    assert torch.equal(actual[0], expected[0])
    assert_norm_close(actual, expected, FLOAT32, groups)


def test_a_program_walks_over_many_rows_and_sums_come_out_the_same_every_time(monkeypatch):
    inputs = on_device(*norm_inputs((2, 7, 2, 5), 2))
    expected = gradients(lambda *i: (norm_definition(*i, 1e-5),), inputs, (0,))
    monkeypatch.setattr(lif_triton, "PROGRAMS", 3)  # of 7 rows: one program has three, two have two
    first, second = (gradients(lambda *i: (norm_lif(*i, 1e-5, backend="triton"),), inputs, (0,)) for _ in range(2))
    assert_norm_close(first, expected, 1e-10, "many rows")
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_row_too_wide_for_one_program_is_normed_by_tensor_code():
    inputs = on_device(*norm_inputs((1, 1, WIDEST_TRITON_ROW + 1), None))
    spikes = norm_lif(*inputs, 1e-5, backend="triton")
    assert torch.equal(spikes, norm_definition(*inputs, 1e-5))


# --- the choice -------------------------------------------------------------------------------------------------------


def test_the_back_end_is_first_on_a_gpu_and_by_name_in_the_interpreter():
    current = torch.zeros(2, 3, device=DEVICE)
    names = available_backends(current, Neuron())
    assert names[0 if DEVICE == "cuda" else -1] == "triton"
    assert resolve_backend("triton", current, Neuron(code="ternary", detach_reset=False)) == "triton"
    long = torch.zeros(MOST_TRITON_STEPS + 1, 3, device=DEVICE)
    for one, options in ((long, {}), (current[:1], {"code": "integer"})):
        with pytest.raises(ValueError, match="backend 'triton' cannot run"):
            lif(one, backend="triton", **options)


def test_a_second_derivative_is_refused():
    x = torch.zeros(2, 3, device=DEVICE, requires_grad=True)
    with pytest.raises(RuntimeError, match="backend='reference'"):
        torch.autograd.grad(lif(x, backend="triton")[0].sum(), x, create_graph=True)
