"""The compiled back end: builds the .cpp files here once with PyTorch's own tools, then loads them from the cache."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from spiketext.ops.lif import Neuron

FLAGS = ["-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math"]
SOURCES = sorted(Path(__file__).parent.glob("*.cpp"))


@functools.cache
def load() -> str | None:
    """Path of the loaded library; None when it cannot be built here (`why_not` says why).

    The first call on a machine compiles for about half a minute. SPIKETEXT_KERNELS=0 turns the back end off.
    """
    if why_not() is not None:
        return None
    from torch.utils import cpp_extension

    name = f"spiketext_{_fingerprint()}"
    try:
        with _alone(Path(cpp_extension._get_build_directory(name, verbose=False))):
            cpp_extension.load(
                name,
                [str(source) for source in SOURCES],
                extra_cflags=FLAGS,
                is_python_module=False,
            )
    except (RuntimeError, OSError) as error:
        warnings.warn(
            f"the compiled kernels could not be built, slower tensor code runs instead: {error}", stacklevel=2
        )
        return None
    return name


@contextmanager
def _alone(folder: Path, patience: float = 5.0) -> Iterator[None]:
    """Wait until no other process builds in a folder, and keep others waiting; one that was killed holds nobody up.

    PyTorch's own `lock` is a mere file, which stays where its process was killed, and is then waited for for ever. The
    lock here ends with its process. Compilers that outlive theirs are waited for: they still write into the folder.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    lock, started, told = folder / "lock", time.monotonic(), False
    with (folder / "builder").open("w") as held:

        def ours() -> bool:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return not (lock.exists() and _works_in(folder))

        while not ours():
            if not told and time.monotonic() - started > patience:
                told = True
                sys.stderr.write(f"waiting for another process that compiles the kernels in {folder}\n")
            time.sleep(0.1)
        lock.unlink(missing_ok=True)
        yield


def _works_in(folder: Path) -> bool:
    """Whether another process of this machine works in a folder, as compilers do; False where /proc is missing."""
    for place in set(Path("/proc").glob("[0-9]*/cwd")) - {Path(f"/proc/{os.getpid()}/cwd")}:
        with suppress(OSError):  # of another user, or gone by now
            if place.readlink() == folder.resolve():
                return True
    return False


def why_not() -> str | None:
    """What keeps the compiled back end from running here; None when nothing does."""
    if os.environ.get("SPIKETEXT_KERNELS") == "0":
        return "turned off by SPIKETEXT_KERNELS=0"
    here = str(Path(sys.executable).parent)  # where pip puts ninja, also when the environment is not activated
    if here not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), here])
    for tool in ("ninja", "c++"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    return None


def forward(
    x: Tensor, state: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float, n: Neuron, keep: bool
) -> tuple[Tensor, Tensor | None]:
    """x [T, N, G, D], state [N, G, D], weight, bias [G, D] -> spikes [T, N, G, D], last membrane [N, G, D] to keep."""
    return torch.ops.spiketext.norm_lif(x, *contiguous(state, weight, bias), keep, *_constants(n, eps))


def backward(
    x: Tensor, state: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float, n: Neuron,
    grad_spikes: Tensor, grad_state: Tensor | None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """Gradients of x, state, weight and bias, each None where the input was None."""
    optional = contiguous(state, weight, bias, grad_state)
    grad_x, grad_state, grad_weight, grad_bias = torch.ops.spiketext.norm_lif_backward(
        x, *optional[:3], grad_spikes, optional[3], *_constants(n, eps)
    )
    if weight is None:
        return grad_x, grad_state, None, None
    return grad_x, grad_state, grad_weight.view_as(weight), grad_bias.view_as(weight)


def spike_bits(spikes: Tensor) -> Tensor:
    """spikes [..., K], M rows -> int64 [P, M, ceil(K / 64)], a bit each: ones, minus ones if any; P = 0: other numbers.

    Rows may overlap, as windows do: they are read where they stand.
    """
    return torch.ops.spiketext.spike_bits(spikes if spikes.stride(-1) == 1 else spikes.contiguous())


def spike_linear(bits: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """bits of spikes [P, M, ceil(K / 64)], weight [N, K], bias [N] -> [M, N]."""
    return torch.ops.spiketext.spike_linear(bits, weight.contiguous(), *contiguous(bias))


def spike_linear_int8(bits: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """bits of spikes [P, M, ceil(K / 64)], weight [N, K] in int8, scale and bias [N] in float32 -> [M, N]."""
    return torch.ops.spiketext.spike_linear_int8(bits, *contiguous(weight, scale, bias))


def spike_linear_weight_grad(bits: Tensor, grad: Tensor, inputs: int) -> Tensor:
    """bits of spikes [P, M, ceil(inputs / 64)], gradient of the output [M, N] -> of the weight [N, inputs]."""
    return torch.ops.spiketext.spike_linear_weight_grad(bits, grad, inputs)


def contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    """The same tensors, each in one piece of memory."""
    return [tensor.contiguous() if tensor is not None else None for tensor in tensors]


def _constants(n: Neuron, eps: float) -> tuple:
    levels = n.levels if n.code == "integer" else 0
    lowest = -1 if n.code == "ternary" else -levels if n.signed else 0
    return (n.beta, n.threshold, n.gain, n.alpha, eps, n.reset == "zero", n.reset_delay, n.fire == ">",
            n.surrogate == "atan", lowest, levels)  # fmt: skip


def _fingerprint() -> str:
    """Of source, torch and processor, and of where they are: a library built for another machine is never loaded.

    The build file names the sources and torch by their paths: two checkouts in one folder would undo each other's.
    """
    flags = ""
    if Path("/proc/cpuinfo").exists():
        flags = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), "")
    parts = (
        *(f"{source.resolve()}\n{source.read_text()}" for source in SOURCES),
        torch.__file__,
        *FLAGS,
        torch.__version__,
        sys.version,
        platform.machine(),
        platform.processor(),
        flags,
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
