"""Floor 0: several processes that train one model, as torchrun starts them; its environment says who this one is."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Mapping
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
