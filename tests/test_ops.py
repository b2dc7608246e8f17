"""The neuron: its definition against voltages computed by hand, every back end against its definition."""

from __future__ import annotations

import functools
import inspect
import itertools
import math
import os
import subprocess
import sys
import threading
import time
from dataclasses import fields
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import layer_norm

from spiketext.ops import Neuron, available_backends, kernels, lif, lif_reference, norm_lif, norm_lif_from, presets
from spiketext.ops.lif import resolve_backend
from spiketext.ops.surrogate import derivative, encode, fires

BACKENDS = ["reference", "torch", "cpp"]
SHAPES = [(1, 1), (4, 63), (16, 2, 100, 7), (3, 0, 5)]
RESETS = {
    "delayed": {"reset": "subtract", "reset_delay": True},
    "at-once": {"reset": "subtract", "reset_delay": False},
    "zero": {"reset": "zero", "reset_delay": True},
    "zero-at-once": {"reset": "zero", "reset_delay": False},
}
CONSTANTS = {"beta": 0.85, "threshold": 0.6, "gain": 1.3}  # no two equal, none of them 1: a confusion shows
COMBINATIONS = {
    f"{code}-{reset}-{fire}-{surrogate}-{'detached' if detach else 'through-reset'}": {
        **CONSTANTS, **RESETS[reset], "fire": fire, "code": code, "surrogate": surrogate, "detach_reset": detach,
    }
    for reset, fire, code, surrogate, detach in itertools.product(
        RESETS, (">=", ">"), ("binary", "ternary"), ("atan", "fast_sigmoid"), (True, False)
    )
}  # fmt: skip
NEAR = 1e-5  # in float32 a membrane this near to a threshold may fire or not


def compiled_runs(options: dict) -> bool:
    return options.get("detach_reset", True)


def combinations(backend: str) -> list[dict]:
    """Those that this back end runs. That the compiled one refuses the others is a test of its own."""
    return [options for options in COMBINATIONS.values() if backend != "cpp" or compiled_runs(options)]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def run_with_gradients(function, current, state, **options):
    """Spikes, last state, and the gradients of current and state for one random cotangent of both results."""
    current = current.detach().requires_grad_()
    state = state.detach().requires_grad_()
    spikes, last = function(current, state, **options)
    loss = (spikes * normal(*spikes.shape, seed=8, dtype=current.dtype)).sum()
    loss = loss + (last * normal(*last.shape, seed=9, dtype=current.dtype)).sum()
    return (spikes.detach(), last.detach(), *torch.autograd.grad(loss, (current, state)))


def membranes_of(current, state, **options):
    """U[1..T], by the definition, one call for each step."""
    membranes = []
    for t in range(len(current)):
        state = lif_reference(current[t : t + 1], state, **options)[1]
        membranes.append(state)
    return torch.stack(membranes)


def distance_to_threshold(membranes, options):
    return (membranes.abs() if options["code"] == "ternary" else membranes).sub(options["threshold"]).abs()


def assert_close(actual, expected, tolerance, what):
    for part, a, e in zip(("spikes", "state", "d current", "d state"), actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=tolerance, atol=tolerance, msg=lambda m, p=part: f"{what}, {p}: {m}")


# --- the definition, by hand ------------------------------------------------------------------------------------------


HAND = {  # beta 0.5, threshold 1, rest, current 0.75, 1, 0.25, 1: voltages and spikes, worked out on paper
    "delayed": ([0.75, 1.375, -0.0625, 0.96875], [0, 1, 0, 0]),  # 0.25 + 0.6875 - 1 after the spike
    "at-once": ([0.75, 1.375, 0.4375, 1.21875], [0, 1, 0, 1]),  # 0.25 + 0.5 * 0.375
    "zero": ([0.75, 1.375, 0.25, 1.125], [0, 1, 0, 1]),  # nothing is left of 1.375
    "zero-at-once": ([0.75, 1.375, 0.25, 1.125], [0, 1, 0, 1]),  # reset_delay has no effect on a reset to zero
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reset", RESETS)
def test_voltages_and_spikes_are_those_worked_out_by_hand(backend, reset):
    current = torch.tensor([0.75, 1.0, 0.25, 1.0], dtype=torch.float64)
    voltages, spikes = HAND[reset]
    for steps in range(1, 5):
        fired, state = lif(current[:steps], backend=backend, beta=0.5, **RESETS[reset])
        assert fired.tolist() == spikes[:steps]
        assert state.item() == voltages[steps - 1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_defaults_are_the_neuron_of_the_paper(backend):
    # beta 0.9, thr 1: U = 1.5; 0.5 + 0.9 * 1.5 - 1 = 0.85; 0.5 + 0.9 * 0.85 = 1.265; 0.5 + 0.9 * 1.265 - 1 = 0.6385
    current = torch.tensor([1.5, 0.5, 0.5, 0.5], dtype=torch.float64)
    voltages = [lif(current[: t + 1], backend=backend)[1].item() for t in range(4)]
    assert voltages == pytest.approx([1.5, 0.85, 1.265, 0.6385], abs=1e-12)
    assert lif(current, backend=backend)[0].tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_ternary_voltages_are_those_worked_out_by_hand(backend):
    current = torch.tensor([-1.25, 0.25, 2.0, 0.0], dtype=torch.float64)
    expected = {  # beta 0.5, threshold 1
        "delayed": ([-1.25, 0.625, 2.3125, 0.15625], [-1, 0, 1, 0]),  # 0.25 - 0.625 + 1
        "at-once": ([-1.25, 0.125, 2.0625, 0.53125], [-1, 0, 1, 0]),  # 0.25 + 0.5 * (-1.25 + 1)
        "zero": ([-1.25, 0.25, 2.125, 0.0], [-1, 0, 1, 0]),
    }
    for reset, (voltages, spikes) in expected.items():
        options = {"beta": 0.5, "code": "ternary", **RESETS[reset]}
        assert membranes_of(current, torch.zeros((), dtype=torch.float64), **options).tolist() == voltages
        fired, state = lif(current, backend=backend, **options)
        assert (fired.tolist(), state.item()) == (spikes, voltages[-1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_are_those_worked_out_by_hand(backend):
    # U = 0.5, 1.25 (beta 0.5, no spike at step 1)
    # atan, alpha 2: dS/dU = 1 / (1 + (pi (U - 1))^2); fast sigmoid: 1 / (1 + 25 |U - 1|)^2
    slopes = {
        "atan": [1 / (1 + (math.pi * 0.5) ** 2), 1 / (1 + (math.pi * 0.25) ** 2)],
        "fast_sigmoid": [1 / (1 + 25 * 0.5) ** 2, 1 / (1 + 25 * 0.25) ** 2],
    }
    for surrogate, (first, second) in slopes.items():
        for detach in (True, False) if backend != "cpp" else (True,):
            current = torch.tensor([0.5, 1.0], dtype=torch.float64, requires_grad=True)
            spikes, _ = lif(current, backend=backend, beta=0.5, surrogate=surrogate, detach_reset=detach)
            spikes.backward(torch.tensor([2.0, 3.0], dtype=torch.float64))
            carry = 0.5 if detach else 0.5 - first  # dU[2] / dU[1] = beta - thr * dS[1]/dU[1]
            assert current.grad.tolist() == pytest.approx([2 * first + 3 * second * carry, 3 * second], rel=1e-12)


def by_hand(current, state, *, beta, threshold, gain, reset, reset_delay, fire, code):
    """One neuron in exact fractions, written from the specification and sharing nothing with the library."""

    def fired(u):
        up, down = (u >= threshold, -u >= threshold) if fire == ">=" else (u > threshold, -u > threshold)
        return int(up) - int(down and code == "ternary")

    spikes, s = [], fired(state)
    for i in current:
        if reset == "zero":
            state = gain * i + (beta * state if s == 0 else 0)
        else:
            state = gain * i + beta * state - (1 if reset_delay else beta) * threshold * s
        s = fired(state)
        spikes.append(s)
    return spikes, state


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=12, deadline=None, derandomize=True, database=None)
@given(
    steps=st.lists(st.lists(st.integers(-6, 8), min_size=3, max_size=3), min_size=1, max_size=6),
    start=st.lists(st.integers(-6, 8), min_size=3, max_size=3),
)
def test_ties_and_all_else_equal_exact_fractions(backend, steps, start):
    constants = {"beta": Fraction(1, 2), "threshold": Fraction(3, 4), "gain": Fraction(1, 2)}  # all exact in float32
    for reset, fire, code in itertools.product(RESETS, (">=", ">"), ("binary", "ternary")):
        options = {**RESETS[reset], "fire": fire, "code": code}
        if backend == "cpp" and not compiled_runs(options):
            continue
        expected = [
            by_hand([Fraction(step[i], 4) for step in steps], Fraction(start[i], 4), **constants, **options)
            for i in range(3)
        ]
        for dtype in (torch.float32, torch.float64):
            current, state = torch.tensor(steps, dtype=dtype) / 4, torch.tensor(start, dtype=dtype) / 4
            floats = {name: float(value) for name, value in constants.items()}
            spikes, last = lif(current, state, backend=backend, **floats, **options)
            assert spikes.T.tolist() == [spike for spike, _ in expected], (options, dtype)
            assert last.tolist() == [float(membrane) for _, membrane in expected], (options, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_membrane_exactly_at_the_threshold_fires_only_with_greater_or_equal(backend, dtype):
    current = torch.tensor([[0.25, 0.5, 0.75]], dtype=dtype)
    assert lif(current, backend=backend, threshold=0.5)[0].tolist() == [[0, 1, 1]]
    assert lif(current, backend=backend, threshold=0.5, fire=">")[0].tolist() == [[0, 0, 1]]
    # the tie is a state too: S' is recomputed from it with the same comparison
    rest = torch.zeros(1, 3, dtype=dtype)
    for fire, expected in ((">=", [0.125, -0.25, -0.125]), (">", [0.125, 0.25, -0.125])):
        assert lif(rest, current[0], backend=backend, threshold=0.5, beta=0.5, fire=fire)[1].tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_tie_with_a_threshold_that_no_float_holds_is_a_tie_in_its_dtype(backend, dtype):
    current = torch.full((1, 9), 0.1, dtype=dtype)
    assert lif(current, backend=backend, threshold=0.1)[0].all()
    assert not lif(current, backend=backend, threshold=0.1, fire=">")[0].any()


# --- back ends against the definition ---------------------------------------------------------------------------------


@functools.cache
def definition(shape, options):
    """What the definition gives in float64, computed once for all back ends; no membrane is at a threshold."""
    current, state, options = normal(*shape, seed=1), normal(*shape[1:], seed=2), dict(options)
    if current.numel():
        assert distance_to_threshold(membranes_of(current, state, **options), options).min() > 1e-9
    return run_with_gradients(lif_reference, current, state, **options)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_back_end_equals_the_definition_in_float64(backend, shape, poisoned_memory):
    current, state = normal(*shape, seed=1), normal(*shape[1:], seed=2)
    for options in combinations(backend):
        expected = definition(shape, tuple(options.items()))
        actual = run_with_gradients(lif, current, state, backend=backend, **options)
        assert torch.equal(actual[0], expected[0]), options
        assert_close(actual, expected, 1e-9, f"{backend} {options}")


@pytest.mark.parametrize("backend", BACKENDS)
def test_back_end_equals_the_definition_in_float32_but_for_counted_flips(backend, poisoned_memory):
    current, state = normal(16, 3001, seed=3, dtype=torch.float32), normal(3001, seed=4, dtype=torch.float32)
    state[:150].clamp_(-0.5, 0.5)  # no spike is pending, so that the first step ends at the threshold, nearly
    border = CONSTANTS["threshold"] + normal(150, seed=5) * 2e-7
    current[0, :150] = (border - CONSTANTS["beta"] * state[:150]) / CONSTANTS["gain"]
    total = 0
    for options in combinations(backend):
        near = distance_to_threshold(membranes_of(current, state, **options), options) < NEAR
        clear = ~near.any(0)  # neurons that are never near a threshold: nothing of them may differ
        assert 100 < near.any(0).sum() < 200, options
        expected = run_with_gradients(lif_reference, current, state, **options)
        actual = run_with_gradients(lif, current, state, backend=backend, **options)
        assert all(tensor.dtype == torch.float32 for tensor in actual), options
        assert torch.equal(actual[0][:, clear], expected[0][:, clear]), options
        kept = [tensor[..., clear] for tensor in actual], [tensor[..., clear] for tensor in expected]
        assert_close(*kept, 1e-4, f"{backend} {options}")
        total += int((actual[0] != expected[0]).sum())
    print(f"{backend}: {total} spikes flipped in {len(combinations(backend))} runs of {current.numel()} neuron-steps; "
          "150 of 3001 neurons begin within 1e-6 of the threshold")  # fmt: skip
    assert total == 0 or backend != "reference"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", ["torch", "cpp"])
def test_small_shapes_agree_in_float32(backend, shape, poisoned_memory):
    current, state = normal(*shape, seed=5, dtype=torch.float32), normal(*shape[1:], seed=6, dtype=torch.float32)
    clear = ~(distance_to_threshold(membranes_of(current, state), {"code": "binary", "threshold": 1}) < NEAR).any(0)
    expected = run_with_gradients(lif_reference, current, state)
    actual = run_with_gradients(lif, current, state, backend=backend)
    assert_close([t[..., clear] for t in actual], [t[..., clear] for t in expected], 1e-4, backend)
    assert all(a.dtype == torch.float32 and a.shape == e.shape for a, e in zip(actual, expected, strict=True))


@pytest.mark.parametrize("shape", [(5,), (4, 0), (2, 3, 0), (3, 0, 0)], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_shapes_without_neurons_or_without_a_batch_run(backend, shape, poisoned_memory):
    current, state = normal(*shape, seed=1), normal(*shape[1:], seed=2)
    expected = run_with_gradients(lif_reference, current, state)
    actual = run_with_gradients(lif, current, state, backend=backend)
    assert [tensor.shape for tensor in actual] == [shape, shape[1:], shape, shape[1:]]
    assert_close(actual, expected, 1e-9, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reset", RESETS)
def test_memory_layout_changes_nothing(backend, reset, poisoned_memory):
    options = {**CONSTANTS, **RESETS[reset], "backend": backend}
    base = normal(10, 6, 8, seed=1)
    layouts = {
        "transposed": base.permute(2, 1, 0),
        "strided": base[::3, :, ::2],
        "time last": base.movedim(-1, 0),
        "expanded": base[:, :1].expand(10, 6, 8),
        "offset": base[1:, 2:, 3:],
    }
    for name, current in layouts.items():
        state = normal(current.shape[2], current.shape[1], seed=2).T
        cotangent = normal(*current.shape[::-1], seed=8).permute(2, 1, 0)
        assert not (current.is_contiguous() or state.is_contiguous() or cotangent.is_contiguous()), name
        results = []
        for layout in (torch.Tensor.detach, lambda tensor: tensor.detach().contiguous()):
            leaves = layout(current).requires_grad_(), layout(state).requires_grad_()
            spikes, last = lif(*leaves, **options)
            grads = torch.autograd.grad([spikes, last], leaves, [layout(cotangent), last.detach()])
            results.append((spikes, last, *grads))
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True)), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_neither_current_nor_state_is_written_to(backend):
    current, state = normal(4, 9, seed=1), normal(9, seed=2)
    copies = current.clone(), state.clone()
    run_with_gradients(lif, current, state, backend=backend)
    spikes, last = lif(current, state, backend=backend)
    last.fill_(7.0)
    spikes.fill_(7.0)
    assert torch.equal(current, copies[0]) and torch.equal(state, copies[1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reset", RESETS)
def test_a_gradient_of_only_one_of_the_two_results_is_enough(backend, reset):
    for used in (0, 1):
        grads = []
        for function, options in ((lif_reference, {}), (lif, {"backend": backend})):
            current, state = normal(4, 9, seed=1).requires_grad_(), normal(9, seed=2).requires_grad_()
            result = function(current, state, **RESETS[reset], **options)[used]
            grads.append(torch.autograd.grad((result * normal(*result.shape, seed=3)).sum(), (current, state)))
        for actual, expected in zip(*grads, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_state_is_a_state_of_rest(backend):
    current = normal(4, 9, seed=1)
    for options in combinations(backend):
        spikes, state = lif(current, backend=backend, **options)
        from_rest = lif(current, torch.zeros_like(current[0]), backend=backend, **options)
        assert torch.equal(spikes, from_rest[0]) and torch.equal(state, from_rest[1]), options


@pytest.mark.parametrize("alpha", [0.5, 2.0, 7.0])
@pytest.mark.parametrize("surrogate", ["atan", "fast_sigmoid"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_scale_of_the_surrogate_is_an_argument_in_every_back_end(backend, surrogate, alpha):
    current = normal(1, 99, seed=1).requires_grad_()
    lif(current, backend=backend, threshold=0.6, surrogate=surrogate, alpha=alpha)[0].sum().backward()
    distance = current.detach() - 0.6
    slope = (alpha / 2) / (1 + (math.pi / 2 * alpha * distance) ** 2)
    slope = slope if surrogate == "atan" else 1 / (1 + alpha * distance.abs()) ** 2
    torch.testing.assert_close(current.grad, slope, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_runs_in_tensor_code_and_keeps_its_dtype(dtype):
    current = normal(4, 500, seed=1).to(dtype).requires_grad_()
    assert available_backends(current, Neuron()) == ["torch", "reference"]
    spikes, state = lif(current)
    spikes.sum().backward()
    assert (spikes.dtype, state.dtype, current.grad.dtype) == (dtype,) * 3
    assert set(spikes.unique().tolist()) == {0.0, 1.0} and current.grad.isfinite().all()
    assert (spikes == lif_reference(current)[0]).float().mean() > 0.99


# --- gradients without a twin -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize(
    ("backend", "code"),
    list(itertools.product(BACKENDS, ("binary", "ternary"))),
)
def test_gradient_of_the_final_state_equals_finite_differences(backend, reset, code):
    # between thresholds U[T] is a smooth (linear) function of current and state while spikes stay as they are, and
    # with the detached reset its gradient is the true one
    options = {**CONSTANTS, **RESETS[reset], "code": code}
    current, state = normal(5, 12, seed=1), normal(12, seed=2)
    assert distance_to_threshold(membranes_of(current, state, **options), options).min() > 1e-4
    inputs = current.requires_grad_(), state.requires_grad_()
    assert torch.autograd.gradcheck(lambda c, s: lif(c, s, backend=backend, **options)[1], inputs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_second_derivative_is_right_or_refused(backend):
    def second(name):
        x = normal(3, 4, seed=1).requires_grad_()
        (first,) = torch.autograd.grad(lif(x, backend=name)[0].sum(), x, create_graph=True)
        return torch.autograd.grad((first * x).sum(), x)[0]

    try:
        actual = second(backend)
    except RuntimeError as error:
        assert "backend='reference'" in str(error)
    else:
        torch.testing.assert_close(actual, second("reference"))


@pytest.mark.parametrize("name", ["binary-atan", "binary-fast_sigmoid", "ternary-atan", "ternary-fast_sigmoid"])
def test_the_surrogate_is_the_derivative_of_its_smooth_spike(name):
    code, surrogate = name.split("-")
    n = Neuron(code=code, surrogate=surrogate, threshold=0.6, alpha=3.0)

    def smooth(u):  # d/dx of atan(pi/2 a x) / pi, and of x / (1 + a |x|)
        parts = [u - 0.6] if code == "binary" else [u - 0.6, u + 0.6]
        if surrogate == "atan":
            return sum(torch.atan(math.pi / 2 * 3.0 * x) / math.pi for x in parts)
        return sum(x / (1 + 3.0 * x.abs()) for x in parts)

    membrane = torch.linspace(-2.03, 2.01, 150, dtype=torch.float64)
    numeric = (smooth(membrane + 1e-6) - smooth(membrane - 1e-6)) / 2e-6
    torch.testing.assert_close(derivative(membrane, n), numeric, rtol=1e-6, atol=1e-6)
    leaf = membrane.clone().requires_grad_()
    encode(leaf, n).sum().backward()
    assert torch.equal(leaf.grad, derivative(membrane, n))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_surrogate_peaks_at_the_threshold(backend):
    current = torch.linspace(-1, 2, 301, dtype=torch.float64)[None].requires_grad_()
    for surrogate, peak in (("atan", 1.0), ("fast_sigmoid", 1.0)):  # alpha / 2 with alpha 2, and 1
        grad = torch.autograd.grad(lif(current, backend=backend, surrogate=surrogate)[0].sum(), current)[0][0]
        assert current[0, grad.argmax()].item() == pytest.approx(1.0)
        assert grad.max().item() == pytest.approx(peak)


# --- laws -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=10, deadline=None, derandomize=True, database=None)
@given(cuts=st.sets(st.integers(1, 8), min_size=1, max_size=4), seed=st.integers(0, 10**6))
def test_a_sequence_can_be_cut_anywhere(backend, dtype, cuts, seed):
    current, state = normal(9, 3, 11, seed=seed, dtype=dtype), normal(3, 11, seed=seed + 1, dtype=dtype)
    bounds = [0, *sorted(cuts), 9]
    for reset, code in itertools.product(RESETS, ("binary", "ternary")):
        options = {**CONSTANTS, **RESETS[reset], "code": code, "backend": backend}
        if backend == "cpp" and not compiled_runs(options):
            continue
        whole, whole_state = lif(current, state, **options)
        pieces, running = [], state
        for first, stop in itertools.pairwise(bounds):
            spikes, running = lif(current[first:stop], running, **options)
            pieces.append(spikes)
        assert torch.equal(torch.cat(pieces), whole), options
        assert torch.equal(running, whole_state), options


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_pass_through_a_cut(backend):
    def in_two(current, state, **kept):
        first, state = lif(current[:2], state, **kept)
        second, state = lif(current[2:], state, **kept)
        return torch.cat([first, second]), state

    current, state = normal(5, 33, seed=1), normal(33, seed=2)
    for options in combinations(backend):
        whole = run_with_gradients(lif, current, state, backend=backend, **options)
        pieces = run_with_gradients(in_two, current, state, backend=backend, **options)
        assert_close(pieces, whole, 1e-12, f"{backend} {options}")


@pytest.mark.parametrize("backend", BACKENDS)
def test_neurons_do_not_know_their_neighbours(backend):
    current = normal(6, 4, 50, seed=1)
    spikes, state = lif(current, backend=backend)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(lif(current[..., order], backend=backend)[0], spikes[..., order])
    assert torch.equal(lif(current[:, 2:3], backend=backend)[0], spikes[:, 2:3])
    assert torch.equal(lif(current[:, :, :1], backend=backend)[1], state[:, :1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_step_from_rest_is_a_plain_threshold(backend):
    current = normal(1, 200, seed=1)
    assert torch.equal(lif(current, backend=backend, threshold=0.3)[0], (current >= 0.3).double())


@pytest.mark.parametrize("backend", BACKENDS)
def test_beta_is_the_share_of_the_membrane_kept_per_step(backend):
    silent = torch.zeros(7, 1, dtype=torch.float64)
    for beta in (0.0, 0.5, 0.9, 1.0):
        state = lif(silent, torch.tensor([0.8], dtype=torch.float64), beta=beta, backend=backend)[1]
        assert state.item() == pytest.approx(0.8 * beta**7, abs=1e-15)
    tau = presets("spikingjelly", tau=10.0)
    assert (tau["beta"], tau["gain"]) == (0.9, 0.1)


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_threshold_is_the_unit_of_membrane_and_current(backend, reset):
    current = normal(6, 50, seed=1)
    spikes, state = lif(current, backend=backend, threshold=0.5, **RESETS[reset])
    bigger, bigger_state = lif(current * 8, backend=backend, threshold=4.0, **RESETS[reset])  # exact in binary
    assert torch.equal(bigger, spikes) and torch.equal(bigger_state, state * 8)
    assert torch.equal(lif(current, gain=8.0, backend=backend, threshold=4.0, **RESETS[reset])[0], spikes)


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_a_ternary_neuron_is_symmetric_under_a_change_of_sign(backend, reset):
    for detach in (True, False):
        options = {**CONSTANTS, **RESETS[reset], "code": "ternary", "detach_reset": detach, "backend": backend}
        current, state = normal(6, 200, seed=1), normal(200, seed=2)
        current[0, :50] = state[:50] = 0.6  # ties: the threshold itself
        plus = run_with_gradients(lif, current, state, **options)
        minus = run_with_gradients(lif, -current, -state, **options)
        assert torch.equal(minus[0], -plus[0]) and torch.equal(minus[1], -plus[1])
        assert {-1.0, 0.0, 1.0} == set(plus[0].unique().tolist())
        torch.testing.assert_close(minus[2:], plus[2:], rtol=1e-12, atol=1e-12)


def test_delay_has_no_effect_on_a_reset_to_zero():
    current, state = normal(6, 200, seed=1), normal(200, seed=2)
    for backend in ("reference", "torch"):
        for code in ("binary", "ternary"):
            a, b = (run_with_gradients(lif, current, state, reset="zero", reset_delay=delay, code=code, backend=backend)
                    for delay in (True, False))  # fmt: skip
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# --- integer code -----------------------------------------------------------------------------------------------------


def test_integer_codes_are_the_nearest_multiples_of_the_threshold():
    units = torch.tensor([-9.0, -1.5, -0.75, -0.5, -0.25, 0.25, 0.5, 0.75, 1.5, 3.25, 4.0, 4.5, 9.0])
    current = (units * 0.5)[None]  # threshold 0.25, gain 0.5: all exact
    codes, state = lif(current, code="integer", threshold=0.25, gain=0.5)
    assert codes.tolist() == [[0, 0, 0, 0, 0, 0, 1, 1, 2, 3, 4, 4, 4]]  # halves go up, as floor(x + 1/2) says
    assert torch.equal(state, current[0] * 0.5)
    signed, _ = lif(current, code="integer", threshold=0.25, gain=0.5, signed=True)
    assert signed.tolist() == [[-4, -1, -1, 0, 0, 0, 1, 1, 2, 3, 4, 4, 4]]


def test_integer_codes_are_clipped_to_their_levels():
    current = torch.linspace(-20, 20, 401)[None]
    for levels in (1, 2, 4, 15):
        assert set(lif(current, code="integer", levels=levels)[0].unique().tolist()) == set(range(levels + 1))
        signed = lif(current, code="integer", levels=levels, signed=True)[0]
        assert set(signed.unique().tolist()) == set(range(-levels, levels + 1))


@pytest.mark.parametrize("signed", [False, True])
def test_integer_gradient_is_one_over_the_threshold_inside_the_codes_and_zero_outside(signed):
    low = -4.5 if signed else -0.5
    units = torch.tensor([low - 3, low - 0.01, low, low + 0.01, 1.3, 4.49, 4.5, 4.51, 8.0], dtype=torch.float64)
    current = (units * 0.25 / 2)[None].requires_grad_()  # membrane = gain * current = units * threshold
    codes, state = lif(current, code="integer", threshold=0.25, gain=2.0, signed=signed)
    grad = torch.autograd.grad(codes.sum(), current, retain_graph=True)[0]
    assert grad.tolist() == [[0, 0, 8, 8, 8, 8, 8, 0, 0]]  # gain / threshold
    assert torch.autograd.grad(state.sum(), current)[0].tolist() == [[2.0] * 9]


def test_the_integer_code_has_no_memory():
    with pytest.raises(ValueError, match="integer code has no memory: expected T = 1 and no state, got T = 2"):
        lif(normal(2, 3), code="integer")
    with pytest.raises(ValueError, match="integer code has no memory: expected T = 1 and no state"):
        lif(normal(1, 3), normal(3), code="integer")
    with pytest.raises(ValueError, match="integer code has no memory"):
        lif_reference(normal(4, 3), code="integer")


@pytest.mark.parametrize("backend", [None, "reference", "torch", "cpp"])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_integer_code_is_the_same_whoever_is_asked(backend, signed, dtype, compiled):
    neuron = {"code": "integer", "signed": signed, "levels": 3, "threshold": 0.7, "gain": 1.3}
    halves = torch.arange(-12, 13, dtype=torch.float64) * 0.7 / 2 / 1.3  # every second one is where a code changes
    current = torch.cat([3 * normal(1, 99, seed=1), halves[None]], 1).to(dtype)
    up = normal(1, current.shape[1], seed=2).to(dtype)
    answers = []
    for run in (lambda x: lif(x, backend=backend, **neuron), lambda x: lif_reference(x, **neuron)):
        x = current.clone().requires_grad_()
        spikes, state = run(x)
        (spikes * up).sum().backward()
        answers.append((spikes, state, x.grad))
    for ours, definition in zip(*answers, strict=True):
        torch.testing.assert_close(ours, definition, rtol=1e-6, atol=0)
    chosen = "reference" if backend in ("reference", "torch") else "cpp"
    assert resolve_backend(backend, current, Neuron(**neuron)) == chosen


@pytest.mark.parametrize("code", ["binary", "ternary", "integer"])
def test_spikes_without_a_gradient_are_the_same_spikes(code):
    membrane, n = normal(500, seed=1) * 3, Neuron(code=code)
    assert torch.equal(fires(membrane, n), encode(membrane.clone().requires_grad_(), n).detach())
    assert not fires(membrane.clone(), n).requires_grad


# --- layer norm and neuron in one -------------------------------------------------------------------------------------


def norm_inputs(shape, groups, dtype=torch.float64):
    width = shape[-1]
    own = (width,) if groups is None else (groups, width)
    x, weight, bias = (normal(*size, seed=seed, dtype=dtype) for seed, size in enumerate((shape, own, own)))
    return x * 3 + 1, 1 + weight, bias


def norm_gradients(function, inputs, **options):
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    spikes = function(*leaves, 1e-5, **options)
    loss = (spikes * normal(*spikes.shape, seed=8, dtype=spikes.dtype)).sum()
    return spikes.detach(), *torch.autograd.grad(loss, leaves)


def norm_definition(x, weight, bias, eps, **options):
    return lif_reference(layer_norm(x, x.shape[-1:], eps=eps) * weight + bias, **options)[0]


NORM_SHAPES = [((4, 63), None), ((1, 1, 2), None), ((5, 2, 9, 17), None), ((4, 2, 9, 3, 17), 3), ((3, 2, 1, 8), 1),
               ((3, 0, 5), None), ((3, 0, 2, 5), 2)]  # fmt: skip


@pytest.mark.parametrize("backend", ["torch", "cpp"])
@pytest.mark.parametrize("groups", [None, 3])
def test_norm_lif_goes_on_from_a_state(backend, groups):
    torch.manual_seed(0)
    x = torch.randn(4, 5, 3, 17, dtype=torch.float64, requires_grad=True)
    weight, bias = (torch.randn((17,) if groups is None else (3, 17), dtype=torch.float64) for _ in range(2))
    whole = norm_definition(x, weight, bias, 1e-5)
    first, state = norm_lif_from(x[:1], None, weight, bias, 1e-5, backend=backend)
    rest, last = norm_lif_from(x[1:], state, weight, bias, 1e-5, backend=backend)
    spikes = torch.cat([first, rest])
    assert torch.equal(spikes, whole) and last.shape == x.shape[1:]
    up = torch.randn_like(whole)
    (mine,), (defined,) = torch.autograd.grad(spikes, x, up), torch.autograd.grad(whole, x, up)
    assert torch.allclose(mine, defined, atol=1e-10)
    with pytest.raises(ValueError, match="state must have the shape"):
        norm_lif_from(x, state[:2], weight, bias, 1e-5, backend=backend)


@pytest.mark.parametrize(("shape", "groups"), NORM_SHAPES, ids=str)
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_norm_lif_equals_layer_norm_and_then_lif(backend, reset, shape, groups, poisoned_memory):
    for fire, surrogate in itertools.product((">=", ">"), ("atan", "fast_sigmoid")):
        options = {**CONSTANTS, **RESETS[reset], "fire": fire, "surrogate": surrogate}
        inputs = norm_inputs(shape, groups)
        expected = norm_gradients(norm_definition, inputs, **options)
        actual = norm_gradients(norm_lif, inputs, backend=backend, **options)
        assert torch.equal(actual[0], expected[0])
        for part, a, e in zip(("x", "weight", "bias"), actual[1:], expected[1:], strict=True):
            torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-9, msg=lambda m, p=part: f"d {p}: {m}")


@pytest.mark.parametrize("groups", [None, 3])
@pytest.mark.parametrize("backend", BACKENDS)
def test_norm_lif_in_float32_differs_only_in_counted_flips(backend, groups, poisoned_memory):
    shape = (4, 1000, 3, 33)
    inputs = norm_inputs(shape, groups, torch.float32)
    x, weight, bias = inputs
    current = layer_norm(x, x.shape[-1:], eps=1e-5) * weight + bias
    near = (membranes_of(current, torch.zeros_like(current[0])) - 1).abs() < NEAR
    expected, actual = norm_gradients(norm_definition, inputs), norm_gradients(norm_lif, inputs, backend=backend)
    differ = actual[0] != expected[0]
    print(f"{int(differ.sum())} spikes flipped, {int(near.sum())} of {near.numel()} membranes came near the threshold")
    assert near.sum() < 40
    assert not differ[:, ~near.any(0)].any()
    clear = ~near.any(-1).any(0)  # rows that share a norm with no such neuron
    torch.testing.assert_close(actual[1][:, clear], expected[1][:, clear], rtol=1e-4, atol=1e-4)
    if not differ.any():
        for a, e in zip(actual[2:], expected[2:], strict=True):
            torch.testing.assert_close(a, e, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_norm_lif_takes_any_memory_layout(backend):
    x, weight, bias = norm_inputs((4, 6, 8), None)
    swapped = x.permute(0, 2, 1).contiguous().permute(0, 2, 1)
    strided_weight = torch.stack([weight, weight], -1)[:, 0]
    assert not swapped.is_contiguous() and not strided_weight.is_contiguous()
    straight = norm_gradients(norm_lif, (x, weight, bias), backend=backend)
    layouts = norm_gradients(norm_lif, (swapped, strided_weight, bias), backend=backend)
    for a, b in zip(layouts, straight, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_group_has_a_norm_of_its_own(backend):
    x, weight, bias = norm_inputs((4, 5, 3, 17), 3)
    together = norm_lif(x, weight, bias, 1e-5, backend=backend)
    for g in range(3):
        assert torch.equal(norm_lif(x[:, :, g], weight[g], bias[g], 1e-5, backend=backend), together[:, :, g])


def test_norm_lif_runs_every_neuron_that_lif_runs():
    inputs = norm_inputs((4, 5, 17), None)
    for options in COMBINATIONS.values():
        for a, e in zip(norm_gradients(norm_lif, inputs, **options), norm_gradients(norm_definition, inputs, **options),
                        strict=True):  # fmt: skip
            torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-9)
    x, weight, bias = norm_inputs((1, 5, 17), None)
    for signed in (False, True):
        integer = {"code": "integer", "signed": signed, "levels": 2, "threshold": 0.3}
        found = [norm_gradients(run, (x, weight, bias), **integer) for run in (norm_lif, norm_definition)]
        for a, e in zip(*found, strict=True):
            torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-9)


def test_two_threads_give_what_one_gives(compiled):
    inputs, before = norm_inputs((4, 31, 3, 17), 3), torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(norm_gradients(norm_lif, inputs, backend="cpp"))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert torch.equal(other[0], results[0][0])
        for a, b in zip(other[1:], results[0][1:], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("x_shape", "own"), [((4, 5, 8), (9,)), ((4, 5, 8), (7,)), ((4, 5, 3, 8), (2, 8)), ((4, 6, 8), (3, 8))], ids=str
)
def test_norm_lif_refuses_weights_of_another_shape(backend, x_shape, own):
    with pytest.raises((ValueError, RuntimeError)):
        norm_lif(normal(*x_shape), torch.ones(own).double(), torch.zeros(own).double(), 1e-5, backend=backend)


# --- what cannot run says so ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reset": "soft"}, "neuron reset: expected one of subtract, zero, got 'soft'"),
        ({"fire": "<"}, "neuron fire: expected one of >=, >, got '<'"),
        ({"code": "analog"}, "neuron code: expected one of binary, ternary, integer, got 'analog'"),
        ({"surrogate": "relu"}, "neuron surrogate: expected one of atan, fast_sigmoid, got 'relu'"),
        ({"beta": -0.1}, r"neuron beta: expected a share between 0 and 1, got -0\.1"),
        ({"beta": 1.1}, r"neuron beta: expected a share between 0 and 1, got 1\.1"),
        ({"beta": float("nan")}, "neuron beta: expected a share between 0 and 1, got nan"),
        ({"threshold": 0.0}, r"neuron threshold: expected a number above 0, got 0\.0"),
        ({"threshold": -1.0}, r"neuron threshold: expected a number above 0, got -1\.0"),
        ({"threshold": float("nan")}, "neuron threshold: expected a number above 0, got nan"),
        ({"levels": 0}, "neuron levels: expected at least 1, whole; got 0"),
        ({"levels": 2.5}, "neuron levels: expected at least 1, whole; got 2.5"),
        ({"alpha": -1.0}, "neuron alpha: expected a number above 0"),
        ({"gain": float("inf")}, "neuron gain: expected a finite number"),
    ],
    ids=str,
)
def test_an_option_out_of_range_is_refused_with_what_is_possible(options, message):
    for refuse in (lambda: Neuron(**options), lambda: lif(normal(2, 3), **options),
                   lambda: lif_reference(normal(2, 3), **options)):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            refuse()


def test_the_scale_of_the_surrogate_follows_from_its_name():
    assert (Neuron().alpha, Neuron(surrogate="fast_sigmoid").alpha, Neuron(alpha=3.0).alpha) == (2.0, 25.0, 3.0)


@pytest.mark.parametrize("function", [lif, lif_reference])
def test_a_current_or_state_of_the_wrong_shape_is_refused(function):
    axis = r"current must have a time axis of at least one step, \[T, \.\.\.\]; got"
    with pytest.raises(ValueError, match=axis + r" \[\]"):
        function(torch.tensor(1.0))
    with pytest.raises(ValueError, match=axis + r" \[0, 3\]"):
        function(torch.zeros(0, 3))
    with pytest.raises(ValueError, match=r"state must have the shape \[2, 3\] of one step, got \[3\]"):
        function(torch.zeros(4, 2, 3), torch.zeros(3))


@pytest.mark.parametrize("backend", BACKENDS)
def test_norm_lif_refuses_a_sequence_without_steps(backend):
    with pytest.raises(ValueError, match=r"current must have a time axis of at least one step"):
        norm_lif(torch.zeros(0, 2, 3), torch.ones(3), torch.zeros(3), 1e-5, backend=backend)


def test_presets_are_arguments_of_lif_and_an_unknown_one_is_refused():
    assert presets("paper") == {}
    assert presets("spikingjelly", tau=4.0) == {
        "beta": 0.75, "gain": 0.25, "reset": "zero", "reset_delay": False, "fire": ">=", "surrogate": "atan",
        "alpha": 2.0,
    }  # fmt: skip
    assert presets("snntorch") == {
        "beta": 1.0, "reset": "subtract", "reset_delay": True, "fire": ">", "surrogate": "fast_sigmoid", "alpha": 25.0,
    }  # fmt: skip
    for name in ("paper", "spikingjelly", "snntorch"):
        lif(normal(2, 3), **presets(name))
    with pytest.raises(ValueError, match="neuron preset: expected one of paper, spikingjelly, snntorch, got 'norse'"):
        presets("norse")


def test_the_fastest_back_end_that_can_run_is_taken(compiled):
    current = normal(2, 3)
    assert available_backends(current, Neuron()) == ["cpp", "torch", "reference"]
    assert available_backends(current.float(), Neuron()) == ["cpp", "torch", "reference"]
    assert resolve_backend(None, current, Neuron()) == "cpp"
    assert available_backends(current, Neuron(code="ternary")) == ["cpp", "torch", "reference"]
    through_reset = Neuron(detach_reset=False)
    assert available_backends(current, through_reset) == ["torch", "reference"]
    assert resolve_backend(None, current, through_reset) == "torch"
    assert available_backends(current.to("meta"), Neuron()) == ["torch", "reference"]


@pytest.mark.parametrize(
    ("requested", "options", "message"),
    [
        ("triton", {"code": "integer"}, "'triton' cannot run an? integer neuron .*; available here: .*reference$"),
        ("cpp", {"detach_reset": False}, "'cpp' cannot run a binary neuron .*; available here: torch, reference$"),
        ("cuda", {}, r"'cuda' cannot run a binary neuron on cpu in torch\.float64; available .*torch, reference$"),
        ("", {}, "backend '' cannot run a binary neuron"),
    ],
)
def test_a_back_end_that_cannot_run_is_refused_with_those_that_can(requested, options, message):
    with pytest.raises(ValueError, match=message):
        resolve_backend(requested, normal(1, 3), Neuron(**options))
    with pytest.raises(ValueError, match=message):
        lif(normal(1, 3), backend=requested, **options)
    with pytest.raises(ValueError, match=message):
        norm_lif(normal(1, 3), torch.ones(3).double(), torch.zeros(3).double(), 1e-5, backend=requested, **options)


def test_without_a_compiler_tensor_code_runs(monkeypatch):
    monkeypatch.setattr(kernels, "load", lambda: None)
    current = normal(4, 9)
    assert available_backends(current, Neuron()) == ["torch", "reference"]
    assert torch.equal(lif(current)[0], lif_reference(current)[0])
    with pytest.raises(ValueError, match="available here: torch, reference"):
        lif(current, backend="cpp")


def test_the_compiled_back_end_can_be_turned_off_and_names_what_it_lacks(monkeypatch):
    monkeypatch.setenv("SPIKETEXT_KERNELS", "0")
    assert kernels.why_not() == "turned off by SPIKETEXT_KERNELS=0"
    monkeypatch.setenv("SPIKETEXT_KERNELS", "1")
    monkeypatch.setenv("PATH", os.environ["PATH"])  # why_not adds to it
    monkeypatch.setattr(kernels.shutil, "which", lambda tool: None if tool == "c++" else tool)
    assert kernels.why_not() == "c++ is not installed"


def test_two_checkouts_of_one_source_have_builds_of_their_own(monkeypatch, tmp_path):
    here = kernels._fingerprint()
    copies = [tmp_path / source.name for source in kernels.SOURCES]
    for source, copied in zip(kernels.SOURCES, copies, strict=True):
        copied.write_text(source.read_text())
    monkeypatch.setattr(kernels, "SOURCES", copies)
    assert kernels._fingerprint() != here


def test_a_killed_build_holds_nobody_up_and_a_living_one_is_waited_for(tmp_path, capsys):
    lock, source = (
        tmp_path / "lock",
        f"""
import sys, time
from pathlib import Path
from spiketext.ops.kernels import _alone
with _alone(Path({str(tmp_path)!r})):
    (Path({str(tmp_path)!r}) / "lock").touch()  # as PyTorch does
    print("builds", flush=True)
    sys.stdin.readline()
    (Path({str(tmp_path)!r}) / "lock").unlink()
""",
    )
    for killed in (False, True):
        with subprocess.Popen([sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as builder:
            assert builder.stdout.readline() == b"builds\n"
            end = builder.kill if killed else builder.stdin.close
            timer = threading.Timer(0.5, end)
            timer.start()
            started = time.monotonic()
            with kernels._alone(tmp_path, patience=0.1):
                assert time.monotonic() - started > 0.4 and not lock.exists()
            timer.join()
        assert capsys.readouterr().err == f"waiting for another process that compiles the kernels in {tmp_path}\n"


def test_compilers_that_outlive_their_process_are_waited_for(tmp_path, capsys):
    (tmp_path / "lock").touch()
    with subprocess.Popen(["sleep", "0.5"], cwd=tmp_path), kernels._alone(tmp_path, patience=0.1):
        assert not kernels._works_in(tmp_path) and not (tmp_path / "lock").exists()
    assert "waiting" in capsys.readouterr().err
    with kernels._alone(tmp_path, patience=0.1):
        pass
    assert capsys.readouterr().err == ""


def test_the_constants_of_a_neuron_stand_in_the_signatures_with_their_defaults():
    for function in (lif, lif_reference, norm_lif):
        shown = inspect.signature(function).parameters
        known = {field.name: field.default for field in fields(Neuron)}
        assert {name: parameter.default for name, parameter in shown.items() if name in known} == known
        assert not any(parameter.kind is parameter.VAR_KEYWORD for parameter in shown.values())
