"""The neuron's back ends against SpikingJelly's LIFNode and snnTorch's Leaky, forward and backward over all steps.

The constants of ours are those of the rival, so both sides compute the same spikes (`spikes_differ`: the share that do
not, in float32). SpikingJelly: LIFNode, step_mode "m", its eager implementation for the CPU. snnTorch: Leaky, stepped
in a Python loop, as its documentation does. `layer norm + ...` is ours fused, the rival's as two modules.

bandwidth_share: bytes that must move / seconds / the copy bandwidth of the same turns. Bytes for each neuron and step:
forward reads the current and writes the spike, 8; backward reads current and gradient and writes a gradient, 12. Above
1 is possible: the arrays of a layer fit into large caches, those of the copy do not.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from benchmarks.networks import copy_bandwidth
from spiketext.bench import Row, Say, absent, elsewhere, installed, measure, serve
from spiketext.ops import lif, lif_reference, norm_lif, presets
from spiketext.options import BenchOptions

SHAPES = {"tiny": [(4, 16, 32)], "short": [(4, 2048, 384), (4, 2048, 1536)], "full": [(4, 2048, 384), (4, 2048, 1536)]}
TURNS = {"tiny": 2, "short": 7, "full": 15}
BYTES = {"forward": 8, "forward + backward": 20}
BACKENDS = ("reference", "torch", "cpp")
OURS = {"paper": presets("paper"), "spikingjelly": presets("spikingjelly"), "snntorch": presets("snntorch", beta=0.9)}
Function = Callable[[Tensor], Tensor]


def run(options: BenchOptions, say: Say) -> list[Row]:
    """Rows: the start-up of the compiled back end, then neuron x shape x pass x candidate."""
    rows: list[Row] = [] if options.scale == "tiny" else start_up()
    for shape in SHAPES[options.scale]:
        for neuron in OURS:
            say(f"neuron: {neuron}, {list(shape)}")
            rows += _compare(neuron, shape, options)
    return rows


def start_up() -> list[Row]:
    """Seconds until the compiled neuron has run once, in a new process: built from nothing, and from the cache."""
    with tempfile.TemporaryDirectory() as empty:
        work = {}
        for name in ("built from nothing", "from the cache"):
            with elsewhere(starter, {}, {"TORCH_EXTENSIONS_DIR": empty}) as ask:
                work[name] = ask("start")
    return [{"table": "start-up of the compiled back end", "what": name, "seconds": seconds}
            for name, seconds in work.items()]  # fmt: skip


def starter(settings: dict[str, Any]) -> Callable[[Any], float]:
    """The other end of `start_up`."""

    def answer(question: Any) -> float:
        started = time.perf_counter()
        lif(torch.zeros(4, 8), backend="cpp")
        return time.perf_counter() - started

    return answer


def rivals(neuron: str) -> dict[str, Function | str]:
    """The other libraries' neuron with the constants of `neuron`, or why there is none."""
    if neuron == "spikingjelly":
        if not installed("spikingjelly"):
            return {"SpikingJelly LIFNode": "spikingjelly is not installed"}
        from spikingjelly.activation_based import neuron as nodes
        from spikingjelly.activation_based import surrogate

        node = nodes.LIFNode(tau=2.0, v_reset=0.0, surrogate_function=surrogate.ATan(alpha=2.0), detach_reset=True,
                             step_mode="m")  # fmt: skip

        def stepped(current: Tensor) -> Tensor:
            node.reset()
            return node(current)

        return {"SpikingJelly LIFNode": stepped}
    if neuron == "snntorch":
        if not installed("snntorch"):
            return {"snnTorch Leaky": "snntorch is not installed"}
        import snntorch

        cell = snntorch.Leaky(beta=0.9, spike_grad=snntorch.surrogate.fast_sigmoid(slope=25))

        def looped(current: Tensor) -> Tensor:
            spikes, membrane = [], torch.zeros_like(current[0])
            for step in current:
                spike, membrane = cell(step, membrane)
                spikes.append(spike)
            return torch.stack(spikes)

        return {"snnTorch Leaky": looped}
    import torch._inductor.config as generated

    generated.force_disable_caches = True  # so that its first call is one
    compiled = torch.compile(lambda current: lif_reference(current, **OURS[neuron])[0], dynamic=False)
    return {"torch.compile(reference)": compiled}


def _compare(neuron: str, shape: tuple[int, ...], options: BenchOptions) -> list[Row]:
    constants = OURS[neuron]
    others = rivals(neuron) if neuron != "paper" or options.scale != "tiny" else {}
    draw = torch.Generator().manual_seed(0)
    current = torch.randn(shape, generator=draw)
    gain, shift, eps = torch.full(shape[-1:], 1.5), torch.full(shape[-1:], 0.1), 1e-12
    plain: dict[str, Function | str] = {
        f"lif, {backend}": lambda x, b=backend: lif(x, backend=b, **constants)[0] for backend in BACKENDS
    }
    fused: dict[str, Function | str] = {
        f"norm_lif, {b}": lambda x, b=b: norm_lif(x, gain, shift, eps, backend=b, **constants) for b in BACKENDS
    }
    for name, other in others.items():
        plain[name] = other
        if neuron != "paper":
            fused[f"layer norm + {name}"] = other if isinstance(other, str) else _after_norm(other, gain, shift, eps)
    return [row for kind in (plain, fused) for row in _rows(kind, neuron, current, options)]


def _after_norm(node: Function, gain: Tensor, shift: Tensor, eps: float) -> Function:
    return lambda x: node(layer_norm(x, x.shape[-1:], gain, shift, eps))


def _rows(candidates: dict[str, Function | str], neuron: str, current: Tensor, options: BenchOptions) -> list[Row]:
    usable: dict[str, Function] = {}
    reasons: dict[str, str] = {}
    first: dict[str, float] = {}
    for name, candidate in candidates.items():
        if isinstance(candidate, str):
            reasons[name] = candidate
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                started = time.perf_counter()
                candidate(current.clone().requires_grad_()).sum().backward()
                first[name] = time.perf_counter() - started
            usable[name] = candidate
        except Exception as error:  # a compiler that is missing, a back end that cannot run: the row says which
            reasons[name] = str(error).strip().splitlines()[0][:120]
    best = next(name for name in reversed(list(candidates)[: len(BACKENDS)]) if name in usable)
    expected = usable[best](current)
    cotangent = torch.randn(current.shape, generator=torch.Generator().manual_seed(1))
    leaf = current.clone().requires_grad_()
    found: list[Row] = []
    for what, moved in BYTES.items():
        work = {name: _pass(candidate, leaf, cotangent, what) for name, candidate in usable.items()}
        samples = measure(work | {"copy": copy_bandwidth(1 if options.scale == "tiny" else 256)},
                          options.repeats or TURNS[options.scale])  # fmt: skip
        copied = 2 * (1 if options.scale == "tiny" else 256) * 2**20 / samples.median("copy")
        for name in candidates:
            head = {"table": f"neurons {list(current.shape)}", "neuron": neuron, "pass": what, "candidate": name}
            if name not in usable:
                found.append(absent(reasons[name], **head))
                continue
            row = samples.row(name, best, **head) | {"first_s": first[name]}
            row["bandwidth_share"] = moved * current.numel() / samples.median(name) / copied
            row["spikes_differ"] = (usable[name](current) != expected).float().mean().item()
            found.append(row)
    return found


def _pass(candidate: Function, leaf: Tensor, cotangent: Tensor, what: str) -> Callable[[], Any]:
    if what == "forward":
        return torch.no_grad()(lambda: candidate(leaf))
    return lambda: torch.autograd.grad(candidate(leaf), leaf, cotangent)


if __name__ == "__main__":
    serve(starter)
