"""Floor 0: what the energies that SpikeBERT prints become when its integers are counted. By formula, nothing measured.

Its table 2 (v1) says GSOP and millijoules; eq. 16-18 say SOPs = T rate FLOPs at 0.9 pJ. In its network spikes are added
to spikes, so the Linears behind a residual read whole numbers, and a rate that is a share of non-zeros misses what is
above one. Here every neuron is taken to fire at one rate r, independently: block i = 1..N reads the sum of 2 i - 1
trains of spikes before Q, K, V and of 2 i before W_1. r is found so that the shares of non-zeros give the printed GSOP;
then each whole number k is counted as k additions. W_o reads Q K^T V times the scale, which is no spike: it is priced
as an accumulation by the paper and as a multiply-accumulate beside that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scipy.optimize import brentq

SOP, MAC = 0.9e-3, 4.6e-3  # mJ for each million, SpikeBERT v1 eq. 16 and 18
SIZE = {"layers": 12, "width": 768, "inner": 3072, "length": 256, "steps": 4}
TABLE2 = {  # SpikeBERT v1 table 2: GSOP, mJ
    "chnsenti": (28.47, 27.62),
    "waimai": (27.81, 26.97),
    "mr": (26.94, 25.63),
    "sst2": (27.46, 26.81),
    "subj": (25.92, 23.34),
    "sst5": (26.01, 23.60),
}


def macs(layers: int, width: int, inner: int, length: int, steps: int) -> list[tuple[str, int, int]]:
    """(kind, trains of spikes in its input, MACs of one step) of every Linear and product of the encoder."""
    square, wide, product = length * width**2, length * width * inner, length**2 * width
    found = []
    for block in range(1, layers + 1):
        found += [("qkv", 2 * block - 1, 3 * square), ("products", 1, 2 * product), ("w_o", 1, square),
                  ("w_1", 2 * block, wide), ("w_2", 1, wide)]  # fmt: skip
    return found


def recount(gsop: float, **size: int) -> dict[str, float]:
    """The rate that gives these GSOP as a share of non-zeros; additions (G) and mJ when whole numbers are counted.

    size: layers, width, inner, length, steps (`SIZE`). Raises ValueError when no rate below 1 gives so many.
    """
    parts, steps = macs(**size), size["steps"]
    share: Callable[[float], float] = lambda r: steps * 1e-9 * sum(m * (1 - (1 - r) ** n) for _, n, m in parts)  # noqa: E731
    if not 0 < gsop < share(1.0):
        raise ValueError(f"{gsop} GSOP: expected more than 0 and fewer than the {share(1.0):.1f} of full rate")
    rate = float(brentq(lambda r: share(r) - gsop, 0.0, 1.0))
    additions = steps * 1e-9 * sum(m * n * rate for _, n, m in parts)
    product = steps * 1e-9 * sum(m for kind, _, m in parts if kind == "w_o")
    return {
        "rate": rate,
        "additions": additions,
        "counted": additions * 1e3 * SOP,
        "multiplied": ((additions - product * rate) * SOP + product * MAC) * 1e3,
    }


def table2() -> list[dict[str, Any]]:
    """A line for each set: what is printed, 0.9 pJ times it, and `recount`; energies in mJ, shares of dense in %."""
    dense = sum(part[2] for part in macs(**SIZE)) * 1e-6 * MAC
    rows = []
    for data, (gsop, printed) in TABLE2.items():
        found = recount(gsop, **SIZE)
        rows.append({
            "set": data,
            "GSOP": gsop,
            "printed mJ": printed,
            "0.9 pJ a SOP": gsop * 1e3 * SOP,
            "of dense %": 100 * gsop * 1e3 * SOP / dense,
            "rate %": 100 * found["rate"],
            "integers counted, mJ": found["counted"],
            "of dense %, counted": 100 * found["counted"] / dense,
            "and W_o multiplied, mJ": found["multiplied"],
            "of dense %, multiplied": 100 * found["multiplied"] / dense,
        })  # fmt: skip
    return rows
