"""Floor 0: how this process uses the machine's memory."""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of glibc's mallopt


def keep_memory() -> bool:
    """Keep freed memory in the process, and ask for large pages; True where the C library can (glibc).

    A training step frees and takes again some gigabytes. By default each tensor of more than 128 KiB is given back to
    the kernel and comes back as zeroed pages of 4 KiB; with this, those above 32 MiB only (what it is worth:
    benchmarks/results/step.json). Call before the first large tensor. The command line does; a library leaves it to
    its user.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # PyTorch reads it once
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    wishes = ((_MMAP_THRESHOLD, 32 << 20), (_TRIM_THRESHOLD, 2**31 - 1))  # 32 MiB is the most that it takes
    return all(mallopt(name, value) == 1 for name, value in wishes)
