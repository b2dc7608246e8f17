"""The Triton kernels on this machine's GPU: share of copy bandwidth, and time of others over ours.

    python benchmarks/gpu.py [FILE.json]

One line of JSON for each case. `ratio` of a "bandwidth" case: bytes that must move in one pass / seconds / measured
copy bandwidth (1 is the limit of the machine, L2 cache flushed before each run). `ratio` of any other case: its seconds
over those of our kernel (above 1: ours is the faster one). Where something cannot run, `error` says why.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spiketext.about import versions
from spiketext.ops import lif, lif_reference, norm_lif, presets

SHAPES = [(4, 32 * 64, 384), (4, 32 * 64, 1536), (4, 128 * 64, 768)]  # [T, B * L, D]
DTYPES = [torch.float32, torch.bfloat16]
EPS = 1e-12
Function = Callable[..., Tensor]


def seconds(run: Callable[[], Any]) -> float:
    """Median of one run, the caches flushed before each."""
    from triton.testing import do_bench

    return do_bench(run, warmup=50, rep=200, return_mode="median") / 1000


def times(function: Function, inputs: list[Tensor], gradient: Tensor) -> dict[str, float]:
    """Seconds of forward as in training, and of backward."""
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    forward = seconds(lambda: function(*inputs))
    spikes = function(*inputs)
    backward = seconds(lambda: torch.autograd.grad(spikes, inputs, gradient, retain_graph=True))
    return {"forward": forward, "backward": backward}


def copy_bandwidth(like: Tensor) -> float:
    """Bytes read and written per second by a plain copy of a tensor of this size."""
    out = torch.empty_like(like)
    return 2 * like.nbytes / seconds(lambda: out.copy_(like))


def tensor_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Layer norm in PyTorch's kernel, neurons in tensor code."""
    return lif(torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias, EPS), backend="torch")[0]


def reference_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The definition."""
    return lif_reference(torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias, EPS))[0]


def spikingjelly_node(backend: str) -> Function:
    """A multi-step LIFNode of SpikingJelly; ours with its preset is the same neuron."""
    from spikingjelly.activation_based import functional, neuron

    node = neuron.LIFNode(tau=2.0, step_mode="m", backend=backend).cuda()

    def run(x: Tensor) -> Tensor:
        functional.reset_net(node)
        return node(x)

    return run


def cases(kind: str) -> Iterator[tuple[str, Callable[[], Function], Function]]:
    """Name, maker of the other function, our function."""
    if kind == "norm_lif":
        ours: Function = lambda x, w, b: norm_lif(x, w, b, EPS, backend="triton")  # noqa: E731
        yield "tensor code", lambda: tensor_norm, ours
        yield "torch.compile of the definition", lambda: torch.compile(reference_norm), ours
        return
    paper: Function = lambda x: lif(x, backend="triton")[0]  # noqa: E731
    jelly: Function = lambda x: lif(x, backend="triton", **presets("spikingjelly"))[0]  # noqa: E731
    yield "tensor code", lambda: lambda x: lif(x, backend="torch")[0], paper
    yield "torch.compile of the definition", lambda: torch.compile(lambda x: lif_reference(x)[0]), paper
    for backend in ("torch", "triton", "cupy"):
        yield f"SpikingJelly {backend}", lambda backend=backend: spikingjelly_node(backend), jelly


def measure(kind: str, shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    """All rows of one shape and dtype."""
    x = torch.randn(shape, device="cuda", dtype=dtype) * 2
    inputs = [x] if kind == "lif" else [x, torch.ones_like(x[0, 0]), torch.zeros_like(x[0, 0])]
    gradient = torch.randn_like(x)
    row = {"function": kind, "shape": list(shape), "dtype": str(dtype).removeprefix("torch.")}
    copy = copy_bandwidth(x)
    done: dict[Function, dict[str, float]] = {}
    for name, make, ours in cases(kind):
        if ours not in done:
            done[ours] = times(ours, inputs, gradient)
        for way, tensors in (("forward", 2), ("backward", 3)) if name == "tensor code" else ():
            rate = tensors * x.nbytes / done[ours][way]
            yield {**row, "against": "bandwidth", "way": way, "seconds": done[ours][way], "ratio": rate / copy,
                   "gb_per_second": rate / 1e9, "copy_gb_per_second": copy / 1e9}  # fmt: skip
        try:
            theirs = times(make(), inputs, gradient)
        except Exception as error:  # another library, absent or of another mind: the row says so
            yield {**row, "against": name, "error": f"{type(error).__name__}: {str(error).splitlines()[:1]}"}
            continue
        for way, spent in theirs.items():
            yield {**row, "against": name, "way": way, "seconds": spent, "ratio": spent / done[ours][way]}


def main() -> None:
    """Measure everything and print it; write it to a file where one is named."""
    if not torch.cuda.is_available():
        print("no CUDA device: not measured")
        return
    rows = []
    for shape in SHAPES:
        for dtype in DTYPES:
            for kind in ("lif", "norm_lif"):
                torch.compiler.reset()
                for row in measure(kind, shape, dtype):
                    rows.append(row)
                    print(json.dumps(row), flush=True)
    result = {"gpu": torch.cuda.get_device_name(), "versions": versions(), "rows": rows}
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
