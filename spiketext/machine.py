"""Floor 0: how this process uses the machine's memory."""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8  # names of glibc's mallopt


def keep_memory() -> bool:
    """Keep freed memory in the process, and ask for large pages; True where the C library can (glibc).

    A training step frees and takes again some gigabytes. By default each large tensor is given back to the kernel and
    comes back as zeroed pages of 4 KiB: a fifth of a step (benchmarks/results/step.json). The process then holds what
    it once needed at most. Call before the first large tensor. The command line does; a library leaves it to its user.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # PyTorch reads it once
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    wishes = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 64 << 20))
    return all(mallopt(name, value) == 1 for name, value in wishes)
