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


def test_nobody_imports_triton_unasked():
    code = """
import sys, torch, spiketext
from spiketext.ops import kernels, lif
kernels.load = lambda: None
lif(torch.zeros(2, 3))
assert "spiketext.ops.lif_triton" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=HERE.parent, timeout=300)
