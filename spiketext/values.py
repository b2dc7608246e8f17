"""Floor 0: what a tensor of inputs or spikes holds: zeros and ones, whole numbers or floats, how many, how large."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Values:
    """What a layer read, or what neurons sent: sums over texts and tokens for every step and feature [T, D].

    total: of magnitudes, when all values are whole; nonzero: how many are not zero; count: how many there are. Features
    are dropped [T, 1] where they cannot be told apart.
    """

    count: int = 0
    total: Tensor = field(default_factory=lambda: torch.zeros(1, 1, dtype=torch.float64))
    nonzero: Tensor = field(default_factory=lambda: torch.zeros(1, 1, dtype=torch.float64))
    low: float = float("inf")
    high: float = float("-inf")
    whole: bool = True

    def add(self, other: Values) -> None:
        """Take in the values of another pass."""
        if self.count and self.total.shape != other.total.shape:  # features that move with the length: keep the steps
            self._forget_features()
            other = Values(**vars(other))
            other._forget_features()
        self.count += other.count
        self.total, self.nonzero = self.total + other.total, self.nonzero + other.nonzero
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.whole &= other.whole

    def _forget_features(self) -> None:
        self.total, self.nonzero = self.total.sum(1, keepdim=True), self.nonzero.sum(1, keepdim=True)

    @property
    def kind(self) -> str:
        """Return binary (0, 1), ternary (-1, 0, 1), integer, signed integer or float, as it was seen."""
        if not self.whole:
            return "float"
        if self.low >= 0:
            return "binary" if self.high <= 1 else "integer"
        return "ternary" if max(-self.low, self.high) <= 1 else "signed integer"

    @property
    def density(self) -> float:
        """Share of the values that are not zero, 0..1."""
        return float(self.nonzero.sum()) / self.count if self.count else 0.0

    @property
    def mean(self) -> float | None:
        """Mean magnitude; None for floats."""
        return float(self.total.sum()) / self.count if self.count and self.whole else None


def read(x: Tensor, unit: float = 1.0) -> Values:
    """x [T, ..., D], floating -> `Values` of x / unit, exact for whole numbers."""
    if x.dim() > 2 and x.shape[-2] > 1 and x.stride(-1) == 1 and 0 < x.stride(-2) < x.shape[-1]:
        return _read_windows(x, unit)
    flat = x.flatten(1, -2) if x.dim() > 2 else x[:, None]
    if not flat.numel():
        return Values()
    if unit != 1.0:
        nearest = (flat / unit).round()
        flat = nearest if torch.allclose(flat, nearest * unit, rtol=1e-5, atol=0.0) else flat
    probe = flat[:, :1]
    if not torch.equal(probe, probe.round()):
        low, high = (float(value) for value in flat.aminmax())
        nonzero = _sums((flat != 0).to(flat.dtype)).sum(1, keepdim=True)
        return Values(flat.numel(), nonzero, nonzero, low, high, False)
    squares = flat * flat
    if torch.equal(flat, squares):  # zeros and ones are their own squares, and no other finite number is
        nonzero = _sums(flat)
        fired = int(nonzero.sum())
        return Values(flat.numel(), nonzero, nonzero, float(fired == flat.numel()), float(fired > 0), True)
    low, high = (float(value) for value in flat.aminmax())
    if max(-low, high) <= 1 and torch.equal(flat, squares * flat):  # and with a sign their own cubes
        nonzero = _sums(squares)
        return Values(flat.numel(), nonzero, nonzero, low, high, True)
    nonzero = _sums((flat != 0).to(flat.dtype))
    whole = torch.equal(flat, flat.round())
    total = flat.abs().sum(1, dtype=torch.float64).cpu() if whole else nonzero
    return Values(flat.numel(), total, nonzero, low, high, whole)


def _read_windows(x: Tensor, unit: float) -> Values:
    """`read` of windows [T, ..., W, w * D] that overlap in memory: a number is read once and counts as often as seen.

    The k-th part of a window, D wide, sees positions k to k + W - 1 of W + w - 1.
    """
    features, count = x.stride(-2), x.shape[-2]
    width = x.shape[-1] // features
    if unit != 1.0 or width * features != x.shape[-1]:
        return read(x.contiguous(), unit)
    places = x.as_strided((*x.shape[:-2], count + width - 1, features), x.stride())
    if not torch.equal(places, places * places):
        return read(x.contiguous())
    sums = places.flatten(1, -3).sum(1, dtype=torch.float64).cpu()  # [T, W + w - 1, D]
    nonzero = torch.cat([sums[:, part : part + count].sum(1) for part in range(width)], -1)
    fired = int(nonzero.sum())
    return Values(x.numel(), nonzero, nonzero, float(fired == x.numel()), float(fired > 0), True)


def _sums(binary: Tensor) -> Tensor:
    """[T, N, D] of zeros and ones -> [T, D]; a product of matrices, which is exact below 2^24 in float32."""
    if binary.dtype not in (torch.float32, torch.float64) or binary.shape[1] >= 2**24:
        return binary.sum(1, dtype=torch.float64).cpu()
    return (binary.new_ones(1, binary.shape[1]) @ binary).squeeze(1).double().cpu()
