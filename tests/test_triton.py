"""The Triton kernels, in a process of its own: on a GPU if there is one, else in Triton's interpreter."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import torch
from conftest import missing

HERE = Path(__file__).parent


def test_the_kernels_equal_the_definition():
    """Every check of triton_checks.py. The interpreter must be chosen before triton is imported, and for all of it."""
    if importlib.util.find_spec("triton") is None:
        missing("triton is not installed; pip install --no-deps -r requirements-oracles.txt")
    environment = os.environ | ({} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"})
    command = [sys.executable, "-m", "pytest", "--noconftest", "-m", "", str(HERE / "triton_checks.py")]
    run = subprocess.run(command, cwd=HERE.parent, env=environment, capture_output=True, text=True, timeout=600)
    print(run.stdout[-4000:])
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]


def test_nobody_imports_triton_unasked_and_the_kernels_compile_for_a_gpu_that_is_not_here(tmp_path):
    """The interpreter is Python; the compiler takes less. Down to the machine code of compute capability 8.0."""
    if importlib.util.find_spec("triton") is None:
        missing("triton is not installed; pip install --no-deps -r requirements-oracles.txt")
    code = """
import sys, torch, spiketext
from spiketext.ops import kernels, lif
kernels.load = lambda: None
lif(torch.zeros(2, 3))
assert "spiketext.ops.lif_triton" not in sys.modules, "imported unasked"

import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from spiketext.ops import Neuron, lif_triton

pointers = "x state weight bias spikes last grad_spikes grad_last grad_x grad_state grad_weight grad_bias".split()
plain = {"weight": None, "bias": None, "grad_weight": None, "grad_bias": None, "groups": 1, "D": 1024, "WIDTH": 1024}
normed = {"state": None, "grad_last": None, "grad_state": None, "D": 384, "WIDTH": 512}
neurons = [Neuron(), Neuron(code="ternary", reset="zero", detach_reset=False, fire=">", threshold=2)]
for kind, memory, n in ((plain, "fp32", neurons[0]), (normed, "bf16", neurons[1])):
    constants = {**kind, "eps": 1e-12, "T": 4, "sums": tl.float32, "n": n}
    for kernel in (lif_triton._forward, lif_triton._backward):
        names = kernel.arg_names
        fixed = {name: value for name, value in constants.items() if name in names}
        types = {name: "*" + memory if name in pointers else "i32" for name in names}
        types |= dict.fromkeys(fixed, "constexpr")
        source = ASTSource(kernel, types, {(names.index(name),): value for name, value in fixed.items()})
        built = triton.compile(source, target=GPUTarget("cuda", 80, 32), options={"enable_fp_fusion": False})
        assert built.asm["cubin"]
        assert memory != "fp32" or "fma." not in built.asm["ptx"]  # the operations of the definition, none contracted
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    run = subprocess.run([sys.executable, "-c", code], cwd=HERE.parent, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
