"""The neuron: its definition, and the same function sooner.

Equation (SpikeBERT eq. 1-4, SNN-TextCNN eq. 1-3; I current, U membrane potential, S spikes, thr threshold):

    U[t] = gain * I[t] + beta * U[t-1] - thr * S[t-1]        S[t] = 1 if U[t] >= thr else 0
    backward  atan:          dS/dU = (alpha/2) / (1 + (pi/2 * alpha * (U - thr))^2)
              fast_sigmoid:  dS/dU = 1 / (1 + alpha * |U - thr|)^2

Letters: beta is the share of the membrane that is kept for the next step; SpikingJelly's tau is 1 / (1 - beta).
How we differ: v1 of SpikeBERT prints U where U - thr is meant; SpikingJelly subtracts beta * thr at a soft reset.
`lif_reference` is the definition, a loop over time; `lif` computes the same with a fused pass.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from types import ModuleType
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from spiketext.ops import kernels
from spiketext.ops.surrogate import DEFAULT_ALPHA, Surrogate, derivative, encode

Reset = Literal["subtract", "zero"]
Code = Literal["binary", "ternary", "integer"]
_Function = TypeVar("_Function", bound=Callable)
MOST_TRITON_STEPS = 32  # its walk over time is unrolled, membranes are registers
WIDEST_TRITON_ROW = 8192  # neurons that share a norm: one program holds them


@dataclass(frozen=True)
class Neuron:
    """The constants of a neuron, checked at birth.

    Fields: beta (share of the membrane kept, 0 to 1), threshold (> 0, the unit of the membrane), gain (factor on the
    current), reset ("subtract" the threshold or to "zero"), reset_delay (the reset acts after the leak, as in the
    paper, or before it; no effect with "zero"), fire (">=" or ">"), code ("binary" 0/1, "ternary" -1/0/1, "integer"
    0..levels without memory), levels and signed (integer only), surrogate and its scale alpha (None: 2 for atan, 25
    for fast_sigmoid), detach_reset (no gradient through the reset).
    Raises: ValueError naming the field, the values that are possible and the value got.
    """

    beta: float = 0.9
    threshold: float = 1.0
    reset: Reset = "subtract"
    reset_delay: bool = True
    gain: float = 1.0
    fire: Literal[">=", ">"] = ">="
    code: Code = "binary"
    levels: int = 4
    signed: bool = False
    surrogate: Surrogate = "atan"
    alpha: float | None = None
    detach_reset: bool = True

    def __post_init__(self):
        choices = {"reset": ("subtract", "zero"), "fire": (">=", ">"), "code": ("binary", "ternary", "integer"),
                   "surrogate": tuple(DEFAULT_ALPHA)}  # fmt: skip
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"neuron {name}: expected one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if self.alpha is None:
            object.__setattr__(self, "alpha", DEFAULT_ALPHA[self.surrogate])
        if not 0 <= self.beta <= 1:
            raise ValueError(f"neuron beta: expected a share between 0 and 1, got {self.beta}")
        for name in ("threshold", "alpha"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"neuron {name}: expected a number above 0, got {getattr(self, name)}")
        if not math.isfinite(self.gain):
            raise ValueError(f"neuron gain: expected a finite number, got {self.gain}")
        if self.levels < 1 or self.levels != int(self.levels):
            raise ValueError(f"neuron levels: expected at least 1, whole; got {self.levels}")
        object.__setattr__(self, "levels", int(self.levels))


_neuron = functools.lru_cache(maxsize=256)(Neuron)  # a layer asks for the same one at every call


def _takes_neuron(function: _Function) -> _Function:
    """Show the fields of `Neuron`, with their defaults, in the signature of a function that takes them by name."""
    shown = inspect.signature(function)
    own = [each for each in shown.parameters.values() if each.kind is not each.VAR_KEYWORD]
    constants = [inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default,
                                   annotation=field.type) for field in fields(Neuron)]  # fmt: skip
    function.__signature__ = shown.replace(parameters=[*own, *constants])  # type: ignore[attr-defined]
    return function


def presets(name: str, *, tau: float = 2.0, beta: float = 1.0) -> dict[str, Any]:
    """Arguments of `lif` that reproduce a neuron of the literature.

    "paper": the equation of SpikeBERT. "spikingjelly": `LIFNode(tau, decay_input=True, v_reset=0)` with ATan, the
    authors' SpikeBERT program (tau in time steps). "snntorch": `Leaky(beta, reset_mechanism="subtract")`, the authors'
    SNN-TextCNN program.
    Raises: ValueError for another name, or a tau below one step.
    """
    if not tau >= 1:
        raise ValueError(f"neuron tau: expected at least 1 time step, got {tau}")
    known: dict[str, dict[str, Any]] = {
        "paper": {},
        "spikingjelly": {"beta": 1 - 1 / tau, "gain": 1 / tau, "reset": "zero", "reset_delay": False,
                         "fire": ">=", "surrogate": "atan", "alpha": 2.0},
        "snntorch": {"beta": beta, "reset": "subtract", "reset_delay": True, "fire": ">",
                     "surrogate": "fast_sigmoid", "alpha": 25.0},
    }  # fmt: skip
    if name not in known:
        raise ValueError(f"neuron preset: expected one of {', '.join(known)}, got {name!r}")
    return known[name]


@_takes_neuron
def lif_reference(current: Tensor, state: Tensor | None = None, **neuron: Any) -> tuple[Tensor, Tensor]:
    """The definition of `lif`: one step after the other, differentiated by autograd. Same arguments, same result."""
    n = Neuron(**neuron)
    _check(current, state, n)
    if n.code == "integer":
        membrane = n.gain * current
        return encode(membrane, n), membrane[-1]
    membrane = torch.zeros_like(current[0]) if state is None else state
    spikes = []
    emitted = encode(membrane, n)  # S[t-1]: what the given membrane has just fired
    for step in current:
        pending = emitted.detach() if n.detach_reset else emitted
        if n.reset == "zero":
            membrane = n.gain * step + n.beta * (1 - _size(pending, n)) * membrane
        elif n.reset_delay:
            membrane = n.gain * step + n.beta * membrane - n.threshold * pending
        else:
            membrane = n.gain * step + n.beta * (membrane - n.threshold * pending)
        emitted = encode(membrane, n)
        spikes.append(emitted)
    return torch.stack(spikes), membrane


@_takes_neuron
def lif(current: Tensor, state: Tensor | None = None, *, backend: str | None = None, **neuron: Any):
    """Run leaky integrate-and-fire neurons over all time steps.

    Shapes:   current [T, ...], state [...] (rest when None) -> spikes [T, ...], state [...].
    Units:    membrane, threshold and current share one arbitrary unit; beta is per time step.
    Dtype:    any floating dtype; spikes are 0/1 (ternary -1/0/1, integer 0..levels) in current's dtype.
    State:    U[T] before its pending reset, so a sequence can be cut anywhere with equal spikes (Triton in half
              precision: but for the rounding of the state, which is given in current's dtype).
    Gradient: the surrogate through the threshold; none through the reset unless detach_reset=False.
    Options:  every field of `Neuron`, by name.  Equation: the head of this file.
    Backend:  "cpp" (compiled, CPU, float32/float64), "triton" (CUDA, T up to 32; half precision is
              summed in float32), "torch" (tensor code), "reference"; None takes the first that can run here.
    Raises:   ValueError for a current without time axis, a state of another shape, an option out of range, T other
              than 1 with the integer code, or a backend that cannot run.
    """
    n = _neuron(**neuron)
    _check(current, state, n)
    chosen = resolve_backend(backend, current, n)
    if chosen == "reference":
        return lif_reference(current, state, **neuron)
    if chosen == "torch" or not current.numel():
        return _FusedLIF.apply(current, torch.zeros_like(current[0]) if state is None else state, n)
    width = current.shape[-1] if current.dim() > 1 else 1
    flat = current.reshape(current.shape[0], -1, 1, width)
    start = None if state is None else state.reshape(-1, 1, width)
    spikes, last = _CompiledLIF.apply(flat, start, None, None, 0.0, n, _kernels(chosen), True)
    return spikes.view(current.shape), last.view(current.shape[1:])


@_takes_neuron
def norm_lif(x: Tensor, weight: Tensor, bias: Tensor, eps: float, *, backend: str | None = None, **neuron: Any):
    """Layer normalisation and then `lif`, in one pass over memory where a compiled back end runs.

    Shapes:  x [T, ..., D] with weight, bias [D], or x [T, ..., G, D] with weight, bias [G, D] (a norm of its own for
             each of G groups) -> spikes, the shape of x. Every sequence starts at rest.
    Definition: `lif(layer_norm(x) * weight + bias)[0]`. Options, dtype, gradient and errors: see `lif`.
    """
    return _norm_lif(x, None, weight, bias, eps, backend, neuron, keep=False)[0]


@_takes_neuron
def norm_lif_from(
    x: Tensor, state: Tensor | None, weight: Tensor, bias: Tensor, eps: float, *, backend: str | None = None,
    **neuron: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`norm_lif` that goes on from a state, the shape of one step of x, in the dtype of the norm; and the state after.

    Definition: `lif(layer_norm(x) * weight + bias, state)`.
    """
    spikes, last = _norm_lif(x, state, weight, bias, eps, backend, neuron, keep=True)
    assert last is not None
    return spikes, last


def _norm_lif(
    x: Tensor, state: Tensor | None, weight: Tensor, bias: Tensor, eps: float, backend: str | None,
    neuron: dict[str, Any], keep: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    n = _neuron(**neuron)
    if weight.shape != bias.shape or weight.dim() not in (1, 2) or weight.shape != x.shape[x.dim() - weight.dim() :]:
        raise ValueError(
            f"weight and bias must both have the last dimension of x {list(x.shape)}, or its last two (a norm for each "
            f"group); got {list(weight.shape)} and {list(bias.shape)}"
        )
    if x.dim() < 2:
        raise ValueError(f"x must have a time axis and features, [T, ..., D]; got {list(x.shape)}")
    dtype = torch.promote_types(x.dtype, torch.promote_types(weight.dtype, bias.dtype))
    x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
    chosen = resolve_backend(backend, x, n)
    fused = chosen == "cpp" or (chosen == "triton" and x.shape[-1] <= WIDEST_TRITON_ROW)
    if not fused or not x.numel():
        current = torch.nn.functional.layer_norm(x, x.shape[-1:], eps=eps) * weight + bias
        return lif(current, state, backend=backend, **neuron)
    _check(x, state, n)
    groups = weight.shape[0] if weight.dim() == 2 else 1
    flat = x.reshape(x.shape[0], -1, groups, x.shape[-1])
    start = None if state is None else state.reshape(flat.shape[1:])
    spikes, last = _CompiledLIF.apply(flat, start, weight, bias, eps, n, _kernels(chosen), keep)
    return spikes.view(x.shape), None if last is None else last.view(x.shape[1:])


def available_backends(current: Tensor, neuron: Neuron) -> list[str]:
    """The back ends that can run this tensor and neuron, fastest first (Triton's interpreter, for tests, is last)."""
    return [kind for kind in _kinds(current) if _can_run(kind, current, neuron)]


def _kinds(current: Tensor) -> tuple[str, ...]:
    return ("triton", "cpp", "torch", "reference") if current.is_cuda else ("cpp", "torch", "reference", "triton")


def resolve_backend(requested: str | None, current: Tensor, neuron: Neuron) -> str:
    """The back end that will run. Raises ValueError when the requested one cannot, naming those that can."""
    if requested in ("torch", "reference"):
        return requested if neuron.code != "integer" else "reference"
    if requested is None:
        return next(kind for kind in _kinds(current) if _can_run(kind, current, neuron))
    if not _can_run(requested, current, neuron):
        through = "" if neuron.detach_reset else " with a gradient through the reset"
        through += f" over {len(current)} steps" if len(current) > MOST_TRITON_STEPS else ""
        raise ValueError(
            f"backend {requested!r} cannot run a {neuron.code} neuron{through} on {current.device} in "
            f"{current.dtype}; available here: {', '.join(available_backends(current, neuron))}"
        )
    return requested


def _can_run(backend: str, current: Tensor, neuron: Neuron) -> bool:
    if neuron.code == "integer" and backend in ("torch", "triton"):
        return False
    if backend == "triton":
        interpreted = current.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
        return (current.is_cuda or interpreted) and current.shape[0] <= MOST_TRITON_STEPS and _triton_is_installed()
    if backend == "cpp":
        usual = current.device.type == "cpu" and current.dtype in (torch.float32, torch.float64)
        return usual and neuron.detach_reset and kernels.load() is not None
    return backend in ("torch", "reference")


@functools.cache
def _triton_is_installed() -> bool:
    return os.environ.get("SPIKETEXT_KERNELS") != "0" and importlib.util.find_spec("triton") is not None


def _check(current: Tensor, state: Tensor | None, neuron: Neuron) -> None:
    if current.dim() < 1 or current.shape[0] < 1:
        raise ValueError(f"current must have a time axis of at least one step, [T, ...]; got {list(current.shape)}")
    if state is not None and state.shape != current.shape[1:]:
        raise ValueError(f"state must have the shape {list(current.shape[1:])} of one step, got {list(state.shape)}")
    if state is not None and state.dtype != current.dtype:
        raise ValueError(f"state must have the dtype of current, {current.dtype}; got {state.dtype}")
    if neuron.code == "integer" and (current.shape[0] != 1 or state is not None):
        got = f"T = {current.shape[0]}" if state is None else "a state"
        raise ValueError(f"the integer code has no memory: expected T = 1 and no state, got {got}")


def _size(spikes: Tensor, n: Neuron) -> Tensor:
    return spikes.abs() if n.code == "ternary" else spikes


class _FusedLIF(torch.autograd.Function):
    """`lif_reference` as tensor code: keeps only the membranes, walks back over them once."""

    @staticmethod
    def forward(ctx: Any, current: Tensor, state: Tensor, n: Neuron):
        membranes = torch.empty_like(current)
        before, fired = state, encode(state, n)
        for t, step in enumerate(current):
            if n.reset == "zero":
                torch.add(n.gain * step, (1 - _size(fired, n)) * before, alpha=n.beta, out=membranes[t])
            elif n.reset_delay:
                torch.add(n.gain * step, before, alpha=n.beta, out=membranes[t]).sub_(fired, alpha=n.threshold)
            else:
                torch.add(n.gain * step, before - n.threshold * fired, alpha=n.beta, out=membranes[t])
            before = membranes[t]
            fired = encode(before, n)
        ctx.save_for_backward(membranes, state)
        ctx.neuron = n
        return encode(membranes, n), membranes[-1].clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        _once()
        (membranes, state), n = ctx.saved_tensors, ctx.neuron
        grad_spikes, running = grads
        grad_current = torch.empty_like(membranes)
        for t in range(len(membranes) - 1, -1, -1):
            local = grad_spikes[t] * derivative(membranes[t], n)
            running = running + local if t == len(membranes) - 1 else running * _carry(membranes[t], n) + local
            grad_current[t] = n.gain * running
        return grad_current, running * _carry(state, n), None


def _once() -> None:
    if torch.is_grad_enabled():  # somebody asked for create_graph
        raise RuntimeError("this back end is differentiable once; for second derivatives take backend='reference'")


def _carry(membrane: Tensor, n: Neuron) -> Tensor | float:
    """dU[t+1] / dU[t], the reset included where it carries a gradient."""
    slope: Tensor | float = 0.0 if n.detach_reset else derivative(membrane, n)
    if n.reset == "zero":
        spikes = encode(membrane, n)
        return n.beta * (1 - _size(spikes, n) - slope * membrane * (spikes if n.code == "ternary" else 1))
    return n.beta - n.threshold * slope if n.reset_delay else n.beta * (1 - n.threshold * slope)


def _kernels(chosen: str) -> ModuleType:
    if chosen == "cpp":
        return kernels
    from spiketext.ops import lif_triton

    return lif_triton


class _CompiledLIF(torch.autograd.Function):
    """Optional layer norm and LIF over x [T, N, G, D] by compiled kernels; backward computes the membranes again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, state: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps, n, kernels,
                keep):  # fmt: skip
        x = x.contiguous()
        ctx.save_for_backward(x, state, weight, bias)
        ctx.neuron, ctx.eps, ctx.kernels = n, eps, kernels
        ctx.set_materialize_grads(False)
        return kernels.forward(x, state, weight, bias, eps, n, keep)

    @staticmethod
    def backward(ctx: Any, grad_spikes: Tensor | None, grad_last: Tensor | None):
        _once()
        x, state, weight, bias = ctx.saved_tensors
        grad_spikes = torch.zeros_like(x) if grad_spikes is None else grad_spikes.contiguous()
        return *ctx.kernels.backward(x, state, weight, bias, ctx.eps, ctx.neuron, grad_spikes, grad_last), *[None] * 4
