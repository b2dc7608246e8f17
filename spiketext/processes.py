"""Floor 0: several processes that train one model, as torchrun starts them, or one model each, side by side.

Of torchrun's processes the environment says who this one is.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_GONE = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Timed out waiting",
    "Connection refused",
)


def processes() -> int:
    """How many take part; 1 for an ordinary command."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this one, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_first() -> bool:
    """Whether this is the one that writes files, logs and prints."""
    return rank() == 0


def name() -> str:
    """What a message calls this process: nothing when it is alone."""
    return f" (process {rank()} of {processes()})" if processes() > 1 else ""


def require_all(found: int) -> None:
    """Raises ValueError when fewer processes take part in the training than were started."""
    if found != processes():
        raise ValueError(
            f"processes: WORLD_SIZE says {processes()}, but {found} takes part in the training; start them with "
            f"torchrun --nproc-per-node {processes()} -m spiketext ..."
        )


def share_out(batch_size: int, micro_batch: int, count: int) -> tuple[int, int]:
    """Texts of one forward pass, and how many such passes each of `count` processes makes in a step of batch_size.

    Raises ValueError where it cannot be shared out evenly.
    """
    own = batch_size // count
    micro = min(micro_batch, own)
    if batch_size % count or not micro or own % micro:
        among = f" times the {count} processes" if count > 1 else ""
        raise ValueError(f"batch_size ({batch_size}) must be a multiple of micro_batch ({micro_batch}){among}")
    return micro, own // micro


class OtherProcessEnded(RuntimeError):
    """Another process of this training is gone, so this one stops too."""


def stop_with_the_others() -> None:
    """Let torchrun's SIGTERM, sent when another process has ended, raise OtherProcessEnded. For commands only."""
    if processes() > 1:

        def stop(number: int, frame: Any) -> None:
            raise OtherProcessEnded

        signal.signal(signal.SIGTERM, stop)


def another_ended(error: BaseException) -> bool:
    """Whether an error came about because another process of this training is gone."""
    lost = isinstance(error, RuntimeError) and any(sign in str(error) for sign in _GONE)
    return isinstance(error, OtherProcessEnded) or (processes() > 1 and lost)


def totals(counts: Iterable[Mapping[str, Any]], over_processes: Callable) -> dict[str, Any]:
    """Sums of the counts of the micro-batches of a step, over all processes; at least 1, as they divide.

    counts: for each micro-batch {term of the loss: how many (tokens, texts) its mean is over}.
    over_processes: a tensor -> its sum over the processes.
    """
    import torch

    rows = list(counts)
    names = list(rows[0])
    own = torch.stack(
        [torch.stack([torch.as_tensor(row[name], dtype=torch.float64) for name in names]) for row in rows]
    )
    return dict(zip(names, over_processes(own.sum(0)).clamp_min(1), strict=True))


def side_by_side(work: Callable[..., None], tasks: Sequence[tuple], jobs: int, say: Callable[[str], None]) -> None:
    """Call work(*task) for every task, `jobs` at a time, each in a new process with its share of the cores.

    work is a function of a module and writes its results into files; it is heard only by the first error, which is
    raised here once the tasks that had begun are over.
    """
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))  # read when a process imports torch
    say(f"{len(tasks)} to train or to find, {jobs} at a time")
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=_hush)
    try:
        for number, done in enumerate(as_completed([pool.submit(work, *task) for task in tasks]), 1):
            done.result()
            say(f"{number} of {len(tasks)} trained")
    finally:
        pool.shutdown(cancel_futures=True)
        os.environ.pop("OMP_NUM_THREADS")
        os.environ |= {"OMP_NUM_THREADS": before} if before else {}


def _hush() -> None:
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115  the bars of all of them at once are no help


_TAKEN: dict[tuple[int, int], int] = {}  # folders in which this process is at work, moved or not, and their locks


def take(folder: Path) -> bool:
    """Mark a folder as this process's place of work until it is given back; False while it is another process's."""
    if sys.platform == "win32" or _identity(folder) in _TAKEN:
        return True
    import fcntl

    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        return False
    _TAKEN[_identity(folder)] = held
    return True


def give_back(folder: Path) -> None:
    """Undo `take`."""
    held = _TAKEN.pop(_identity(folder), None)
    if held is not None:
        os.close(held)


def _identity(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino


@contextmanager
def alone(folder: str) -> Iterator[None]:
    """Wait until no other process of this machine is at work in a folder, and keep others waiting meanwhile."""
    if sys.platform == "win32" or processes() > 1:
        yield
        return
    import fcntl

    lock = Path(folder).parent / f".{Path(folder).name}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
