"""The cosines of MiniLM that stand for levels of similarity in the attacks (`attacks.MINILM_COSINE`).

STS-B's dev pairs, judged by people from 0 to 5: a level is a share of 5, its cosine the one that as many pairs reach
(`substitutes.calibrated`). Run with `SPIKETEXT_DATA=FOLDER python benchmarks/similarity.py`.
"""

from __future__ import annotations

import numpy as np

from spiketext.attacks import MINILM_COSINE
from spiketext.data import load
from spiketext.substitutes import Similarity, calibrated


def main() -> None:
    """Print each level with its cosine, and the one that is in use."""
    pairs = load("glue/stsb").splits["test"]  # dev serves as test there
    assert pairs.pairs is not None
    encoder = Similarity("minilm")
    cosines = (encoder.vectors(pairs.texts) * encoder.vectors(pairs.pairs)).sum(1)
    levels = [level for level in MINILM_COSINE if 0 < level < 1]
    for level, cosine in zip(levels, calibrated(cosines, np.asarray(pairs.labels) / 5, levels), strict=True):
        print(f"{level:.2f}  {cosine:.3f}  in use {MINILM_COSINE[level]:.3f}")


if __name__ == "__main__":
    main()
