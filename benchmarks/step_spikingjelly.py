"""A training step of ours against the same network from SpikingJelly's LIFNode and plain modules in eager mode.

Same weights, same inputs, same optimiser (fused AdamW for both), cross-entropy alone; in float64 both networks give the
same spikes and logits, which is shown before anything is timed. Neurons that both can express: the preset
"spikingjelly" with tau 2, T = 4, firing at 18 %, and our default, ternary in one step (two LIFNodes each). saved_mib:
what one forward pass keeps for backward, without the weights.
`ratio` is seconds / those of SpikingJelly in float32, `memory_ratio` the same of saved_mib.
"""

from __future__ import annotations

from typing import Any

from benchmarks.networks import Labels, Step, batch_of, inputs_of, rate_of, student
from spiketext.about import machine
from spiketext.bench import Row, Say, absent, installed, measure
from spiketext.ops import presets
from spiketext.options import BenchOptions

TURNS = {"tiny": 1, "short": 3, "full": 5}
NEURONS = {"binary": presets("spikingjelly", tau=2.0), "ternary": {}}
SIZES = {
    "tiny": [(1, 32, 2, 8)],
    "short": [(6, 384, 32, 64), (12, 768, 4, 64)],
    "full": [(6, 384, 32, 64), (12, 768, 32, 64)],
}  # layers, width, texts, length


def run(options: BenchOptions, say: Say) -> list[Row]:
    """Rows: size x network x precision."""
    if not installed("spikingjelly"):
        return [absent("spikingjelly is not installed", network="SpikingJelly")]
    return [row for size in SIZES[options.scale] for code in NEURONS for row in _size(code, *size, options, say)]


def _size(code: str, layers: int, width: int, texts: int, length: int, options: BenchOptions, say: Say) -> list[Row]:
    from benchmarks.plain import PlainSpikeBert, check

    model = student(layers, width, **NEURONS[code])
    size = f"{layers}x{width}, B {texts}, L {length}, {code}, T {model.config.time_steps}"
    say(f"step-spikingjelly: {size}")
    same = check(model, inputs_of(batch_of(2, min(length, 16))))
    batch = batch_of(texts, length)
    rate = rate_of(model, batch_of(2, length))
    bf16 = machine()["bf16"]
    networks: dict[str, Any] = {"SpikingJelly": Labels(PlainSpikeBert(model)), "ours": Labels(model)}
    steps = {f"{name}, float32": Step(network) for name, network in networks.items()}
    if bf16:
        steps |= {f"{name}, bf16": Step(network, bf16=True) for name, network in networks.items()}
    base = "SpikingJelly, float32"
    saved = {name: step.saved_bytes(batch) / 2**20 for name, step in steps.items()}
    work = {name: lambda step=step: step(batch) for name, step in steps.items()}
    samples = measure(work, options.repeats or TURNS[options.scale], warm=0)
    rows = [samples.row(name, base, size=size, network=name) | {"saved_mib": saved[name],
            "memory_ratio": saved[name] / saved[base], "firing_rate": rate, **same} for name in steps]  # fmt: skip
    if not bf16:
        here = "this CPU has no bf16: the default precision is float32"
        rows.append(absent(here, size=size, network="ours, default precision") | {"ratio": rows[1]["ratio"]})
    return rows
