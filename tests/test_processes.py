"""Several processes: who they are, how a step is shared out, and (slow) real ones that train, resume and die."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from spiketext import processes
from spiketext.batching import LengthBuckets
from spiketext.options import TrainOptions
from spiketext.runs import Run

HERE = Path(__file__).parent
_PATIENCE = 300.0  # seconds, for a machine that is busy with other work


def steps(count: int, size: int, parts: int, world: int) -> list[list[list[int]]]:
    """The rows of each step, and in it of each process."""
    lengths = np.random.default_rng(0).integers(4, 100, count)
    given = [list(LengthBuckets(lengths, size, 3, parts, world, rank)) for rank in range(world)]
    assert {len(batches) for batches in given} == {len(LengthBuckets(lengths, size, 3, parts))}
    return [
        [[row for batch in given[rank][start : start + parts] for _, row in batch] for rank in range(world)]
        for start in range(0, len(given[0]), parts)
    ]


def rows_of(step: list[list[int]]) -> list[int]:
    return [row for mine in step for row in mine]


@pytest.mark.parametrize(("parts", "world"), [(1, 2), (2, 2), (4, 1), (2, 4)])
@pytest.mark.parametrize("count", [320, 333])
def test_a_step_reads_the_rows_that_one_process_would_read(count, parts, world):
    alone = [set(step[0]) for step in steps(count, 32, 1, 1)]
    shared = steps(count, 32, parts, world)
    assert [set(rows_of(step)) for step in shared] == alone
    for step in shared:
        assert sum(map(len, step)) == len(set(rows_of(step))), "no row twice"
        assert max(map(len, step)) - min(map(len, step)) <= parts, "shares of about the same size"


def test_nobody_is_left_without_a_row_in_a_last_batch_of_few():
    shared = steps(33, 32, 2, 2)
    assert sorted(len(rows_of(step)) for step in shared) == [4, 32]
    assert all(mine for step in shared for mine in step)


def test_counts_are_summed_over_micro_batches_and_processes_and_never_zero():
    counts = [{"tokens": torch.tensor(7), "gold": torch.tensor(0)}, {"tokens": torch.tensor(5), "gold": 0}]
    found = processes.totals(counts, lambda own: own * 3)
    assert {name: float(total) for name, total in found.items()} == {"tokens": 36.0, "gold": 1.0}


@pytest.mark.parametrize(("batch", "micro", "count", "shares"), [(32, 32, 1, (32, 1)), (32, 8, 1, (8, 4)),
                                                                 (32, 32, 2, (16, 1)), (32, 8, 2, (8, 2))])  # fmt: skip
def test_a_step_is_shared_out(batch, micro, count, shares):
    assert processes.share_out(batch, micro, count) == shares


@pytest.mark.parametrize(("batch", "micro", "count"), [(32, 12, 1), (32, 5, 2), (3, 8, 2), (1, 1, 2)])
def test_a_batch_that_cannot_be_shared_out_is_refused(batch, micro, count):
    with pytest.raises(ValueError, match=rf"batch_size \({batch}\) must be a multiple of micro_batch \({micro}\)"):
        processes.share_out(batch, micro, count)


def test_fewer_processes_than_started_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"WORLD_SIZE says 2, but 1 takes part.*torchrun --nproc-per-node 2"):
        processes.require_all(1)


def test_only_the_first_process_writes_the_folder_and_another_number_of_them_is_refused(tmp_path, monkeypatch):
    options = TrainOptions(out=str(tmp_path / "run"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    Run("train", options).finish(lambda folder: pytest.fail("not the first"), {})
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("RANK", "0")
    Run("train", options)
    (tmp_path / "run/checkpoints/checkpoint-3").mkdir(parents=True)
    (tmp_path / "run/checkpoints/checkpoint-3/weights").touch()
    monkeypatch.setenv("RANK", "1")
    assert Run("train", options).checkpoint() is None and (tmp_path / "run/checkpoints/checkpoint-3").exists()
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.delenv("RANK")
    with pytest.raises(ValueError, match="holds a run with processes = 2, asked is 1"):
        Run("train", options)


@pytest.fixture
def torchrun():
    """Start a command in two processes; whatever is left of it at the end of the test is killed."""
    started: list[subprocess.Popen] = []

    def start(*command: str) -> subprocess.Popen:
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
        run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", *command]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(run, env=env, text=True, start_new_session=True, **pipes))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()  # torchrun ends its workers, which are in sessions of their own
            process.wait(60)


@pytest.mark.slow
def test_the_gradient_of_two_processes_is_that_of_one(torchrun, tiny_teacher, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    script = str(HERE / "one_step.py")
    two = torchrun(script, tiny_teacher, str(tmp_path / "two"))
    alone = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    subprocess.run([sys.executable, script, tiny_teacher, str(tmp_path / "one")], env=alone, check=True)
    said = two.communicate(timeout=_PATIENCE)[1]
    assert two.returncode == 0, said
    with safe_open(tmp_path / "two/step.safetensors", "pt") as file:
        assert file.metadata() == {"world": "2"}
    one, both = (load_file(tmp_path / name / "step.safetensors") for name in ("one", "two"))
    assert one.keys() == both.keys()
    assert sum(gradient.abs().sum() > 0 for gradient in one.values()) > 0.9 * len(one)
    assert max(float((one[name] - both[name]).abs().max()) for name in one) < 1e-9


@pytest.fixture(scope="module")
def command(tiny_teacher) -> list[str]:
    return ["-m", "spiketext", "distill", "--teacher", tiny_teacher, "--data", "demo", "--quiet", "--max-length", "24",
            "--batch-size", "64", "--micro-batch", "16", "--copies", "0", "--epochs", "1", "--evals-per-epoch", "4",
            "--patience", "99"]  # fmt: skip


@pytest.mark.slow
def test_two_processes_resume_exactly_after_one_has_died(torchrun, command, tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = torchrun(*command, "--out", str(killed))
    assert _until(lambda: list(killed.glob("checkpoints/*/complete")))
    children = f"/proc/{process.pid}/task/{process.pid}/children"
    workers = [int(child) for child in Path(children).read_text().split()]
    ranks = {int(_environment(worker)["RANK"]): worker for worker in workers if "RANK" in _environment(worker)}
    os.kill(ranks[1], signal.SIGKILL)
    said = process.communicate(timeout=_PATIENCE)[1]
    assert process.returncode != 0
    assert "spiketext distill (process 0 of 2): another process ended, so this one stops; the same command" in said
    assert not (killed / "model.safetensors").exists()
    kept = list(killed.glob("checkpoints/*/complete"))
    assert kept and all(load_file(path.parent / "model.safetensors") for path in kept)
    again = torchrun(*command, "--json", "--out", str(killed))
    other = torchrun(*command, "--json", "--out", str(whole))
    said = [run.communicate(timeout=_PATIENCE)[0] for run in (again, other)]
    assert again.returncode == other.returncode == 0
    assert [json.loads(text)["processes"] for text in said] == [2, 2], "one line of JSON: only the first prints"
    one, both = (load_file(folder / "model.safetensors") for folder in (whole, killed))
    assert all(torch.equal(one[name], both[name]) for name in one)


def _until(condition, seconds: float = _PATIENCE):
    deadline = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


def _environment(process: int) -> dict[str, str]:
    pairs = Path(f"/proc/{process}/environ").read_bytes().decode().split("\0")
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)
