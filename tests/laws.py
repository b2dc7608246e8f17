"""The laws of SpikeBERT as functions of a model and texts: the default suite and `make test-data` check the same ones.

A text's spikes are those of its real tokens, layer by layer; q, k and v count as three layers.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from spiketext.evaluation import RateCounter
from spiketext.neurons import LIF

LOWEST, HIGHEST = 0.01, 0.6  # firing rates between silent and saturated
Text = dict[str, list[int]]  # input_ids and token_type_ids of one text


# Texts ----------------------------------------------------------------------------------------------------------------


def encode(tokenizer: Any, text: str, pair: str | None = None, longest: int = 256) -> Text:
    """The token ids of a text, cut to `longest`."""
    encoded = tokenizer(text, pair, truncation=True, max_length=longest, return_token_type_ids=True)
    return {name: encoded[name] for name in ("input_ids", "token_type_ids")}


def spread(tokenizer: Any, texts: Sequence[str], count: int, lowest: int = 4, longest: int = 256) -> list[Text]:
    """`count` texts with lengths from `lowest` to `longest` tokens, each step longer by the same factor.

    A text that has the wanted length is taken as it is; else consecutive ones are joined and cut to it.
    """
    by_length: dict[int, list[int]] = {}
    for number, ids in enumerate(tokenizer(list(texts))["input_ids"]):
        by_length.setdefault(len(ids), []).append(number)
    chosen, start = [], 0
    for i in range(count):
        length = round(lowest * (longest / lowest) ** (i / (count - 1)))
        if by_length.get(length):
            chosen.append(encode(tokenizer, texts[by_length[length].pop(0)]))
            continue
        joined, encoded = "", encode(tokenizer, "")
        while len(encoded["input_ids"]) < length:
            joined = f"{joined} {texts[start]}".strip()
            start = (start + 1) % len(texts)
            encoded = encode(tokenizer, joined, longest=length)
        chosen.append(encoded)
    return chosen


def exactly(tokenizer: Any, texts: Sequence[str], count: int, length: int) -> list[Text]:
    """`count` different joined texts of exactly `length` tokens."""
    chosen, gathered = [], ""
    for text in texts:
        gathered = f"{gathered} {text}".strip()
        encoded = encode(tokenizer, gathered, longest=length)
        if len(encoded["input_ids"]) == length:
            chosen.append(encoded)
            gathered = ""
        if len(chosen) == count:
            return chosen
    raise ValueError(f"only {len(chosen)} texts of {length} tokens, wanted {count}")


def batch_of(texts: Sequence[Text], filler: int = 0, extra: int = 0) -> dict[str, Tensor]:
    """Texts padded to the longest plus `extra`, with `filler` as the token id of the padding."""
    longest = max(len(text["input_ids"]) for text in texts) + extra
    rows: dict[str, list] = {"input_ids": [], "token_type_ids": [], "attention_mask": []}
    for text in texts:
        room = longest - len(text["input_ids"])
        rows["input_ids"].append(text["input_ids"] + [filler] * room)
        rows["token_type_ids"].append(text["token_type_ids"] + [0] * room)
        rows["attention_mask"].append([1] * (longest - room) + [0] * room)
    return {name: torch.tensor(values) for name, values in rows.items()}


# What a model did -----------------------------------------------------------------------------------------------------


@contextmanager
def recording(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """The spikes [T, B, L, D] of the last forward pass, by layer."""
    spikes: dict[str, Tensor] = {}

    def record(name: str, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        if output.dim() == 5:
            spikes.update({f"{name}.{part}": output[..., i, :] for i, part in enumerate("qkv")})
        else:
            spikes[name] = output

    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, LIF)]
    handles = [module.register_forward_hook(partial(record, name)) for name, module in layers]
    try:
        yield spikes
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class Answer:
    """Of one text: logits [K] and the spikes of its real tokens [T, L, D] by layer."""

    logits: Tensor
    spikes: dict[str, Tensor]

    def flips(self, other: Answer) -> int:
        """How many spikes differ."""
        return sum(int((self.spikes[name] != other.spikes[name]).sum()) for name in self.spikes)

    @property
    def neuron_steps(self) -> int:
        """How many spikes there could be."""
        return sum(spikes.numel() for spikes in self.spikes.values())


@torch.inference_mode()
def answers(model: nn.Module, texts: Sequence[Text], **padding: int) -> list[Answer]:
    """One forward pass over all texts together."""
    batch = batch_of(texts, **padding)
    with recording(model) as spikes:
        logits = model.eval()(**batch).logits
    lengths = batch["attention_mask"].sum(1).tolist()
    return [
        Answer(logits[i], {name: s[:, i, :length].to(torch.int8) for name, s in spikes.items()})
        for i, length in enumerate(lengths)
    ]


# The law of neighbours ------------------------------------------------------------------------------------------------


@dataclass
class Comparison:
    """Texts in batches against the same texts alone."""

    texts: int = 0
    comparisons: int = 0
    flipped: int = 0  # comparisons in which a spike flipped
    flips: int = 0
    neuron_steps: int = 0
    difference: float = 0.0  # of logits, largest, where no spike flipped
    difference_flipped: float = 0.0  # where one did

    def __str__(self) -> str:
        return (
            f"{self.texts} texts, {self.comparisons} comparisons: a spike flipped in {self.flipped} "
            f"({self.flips} of {self.neuron_steps:.2e} neuron-steps); logits differ by {self.difference:.1e}, "
            f"where a spike flipped by {self.difference_flipped:.1e}"
        )


def groups(texts: Sequence[Text], size: int) -> list[list[Text]]:
    """Batches of mixed lengths: about threefold within a batch, and one batch from the shortest to the longest."""
    by_length = sorted(texts, key=lambda text: len(text["input_ids"]))
    step = max(1, len(by_length) // size)
    mixed = by_length[step // 2 :: step][:size]
    rest = [text for text in by_length if not any(text is other for other in mixed)]
    band = max(size, len(rest) // 4)
    parts = [rest[i : i + band] for i in range(0, len(rest), band)]
    batches = [mixed]
    for part in parts:
        stride = -(-len(part) // size)
        batches += [part[i::stride] for i in range(stride)]
    return [batch for batch in batches if batch]


def compare_alone_and_in_batches(model: nn.Module, texts: Sequence[Text], size: int, thorough: bool) -> Comparison:
    """Each text alone, without padding, against itself in a padded batch with neighbours.

    thorough adds the batch in another order, and halves of it (other neighbours, another batch size) with longer
    padding that holds other token ids.
    """
    result = Comparison(texts=len(texts))
    for group in groups(texts, size):
        alone = [answers(model, [text])[0] for text in group]
        seen = [(alone, answers(model, group))]
        if thorough:
            seen.append((alone[::-1], answers(model, group[::-1])))
            halves = (slice(0, None, 2), slice(1, None, 2))
            seen += [(alone[h], answers(model, group[h], filler=7, extra=9)) for h in halves if group[h]]
        for before, after in seen:
            for one, other in zip(before, after, strict=True):
                _compare(result, one, other)
    return result


def _compare(result: Comparison, one: Answer, other: Answer) -> None:
    flips, difference = one.flips(other), float((one.logits - other.logits).abs().max())
    result.comparisons += 1
    result.neuron_steps += one.neuron_steps
    result.flips += flips
    if flips:
        result.flipped += 1
        result.difference_flipped = max(result.difference_flipped, difference)
    else:
        result.difference = max(result.difference, difference)


@torch.no_grad()
def in_float64(model: nn.Module) -> nn.Module:
    """A copy whose weights use every bit: sums of weights born in float32 are exact in float64, and show nothing."""
    exact = copy.deepcopy(model).double()
    draw = torch.Generator().manual_seed(0)
    for parameter in exact.parameters():
        parameter.mul_(1 + 1e-8 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
    return exact


def check_neighbours_exactly(model: nn.Module, texts: Sequence[Text], size: int = 8) -> Comparison:
    """float64: identical spikes, logits to 1e-10."""
    result = compare_alone_and_in_batches(in_float64(model), texts, size, thorough=True)
    assert result.flips == 0, f"float64: {result}"
    assert result.difference <= 1e-10, f"float64: {result}"
    return result


def check_neighbours_in_float32(model: nn.Module, texts: Sequence[Text], size: int = 8) -> Comparison:
    """float32: logits to 1e-4 on all but the texts where a spike flipped, which are not most of them."""
    result = compare_alone_and_in_batches(model, texts, size, thorough=False)
    assert result.difference <= 1e-4, f"float32: {result}"
    assert result.flipped <= result.comparisons / 2, f"float32: the law is empty: {result}"
    return result


# The law of order -----------------------------------------------------------------------------------------------------


def swaps(texts: Sequence[str], count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Real texts beside themselves with two different words exchanged."""
    draw = random.Random(seed)
    pairs: list[tuple[str, str]] = []
    order = list(range(len(texts)))
    draw.shuffle(order)
    for number in order:
        words = texts[number].split()
        places = [(i, j) for i in range(len(words)) for j in range(i) if words[i].lower() != words[j].lower()]
        if places:
            i, j = draw.choice(places)
            swapped = list(words)
            swapped[i], swapped[j] = words[j], words[i]
            pairs.append((" ".join(words), " ".join(swapped)))
        if len(pairs) == count:
            return pairs
    raise ValueError(f"only {len(pairs)} texts with two different words, wanted {count}")


def swap_share(model: nn.Module, tokenizer: Any, texts: Sequence[str], count: int = 100) -> float:
    """Share of swaps of two words that change a logit by more than 1e-3, in float64."""
    exact = copy.deepcopy(model).double()
    changed = 0
    for before, after in swaps(texts, count):
        one, other = answers(exact, [encode(tokenizer, before), encode(tokenizer, after)])
        changed += bool((one.logits - other.logits).abs().max() > 1e-3)
    return changed / count


# The law of rates -----------------------------------------------------------------------------------------------------


@dataclass
class Rates:
    """Firing rates of each layer at each length."""

    by_length: dict[int, dict[str, float]] = field(default_factory=dict)

    def outside(self) -> list[str]:
        """Layers that are silent or saturated."""
        return [
            f"{name} at L = {length}: {rate:.2%}"
            for length, rates in self.by_length.items()
            for name, rate in rates.items()
            if not LOWEST <= rate <= HIGHEST
        ]

    def __str__(self) -> str:
        lengths = list(self.by_length)
        names = list(self.by_length[lengths[0]])
        lines = [f"{'layer':52}" + "".join(f"  L={length:<5}" for length in lengths)]
        return "\n".join(
            lines
            + [f"{name:52}" + "".join(f"{self.by_length[length][name]:8.1%} " for length in lengths) for name in names]
        )

    @property
    def extent(self) -> str:
        """Lowest and highest rate."""
        every = [rate for rates in self.by_length.values() for rate in rates.values()]
        return f"{min(every):.1%} to {max(every):.1%}"


@torch.inference_mode()
def firing_rates(model: nn.Module, texts: Sequence[Text], size: int = 16, **padding: int) -> dict[str, float]:
    """Rates of real tokens by layer, counted here one by one and by RateCounter, which must agree.

    A ternary spike is sent by an ON or an OFF neuron: the rate is that of the busier kind.
    """
    fired: dict[str, float] = {}
    positive: dict[str, float] = {}
    possible: dict[str, float] = {}
    counter = RateCounter()
    with counter.counting(model), recording(model) as spikes:
        for start in range(0, len(texts), size):
            batch = batch_of(texts[start : start + size], **padding)
            real = batch["attention_mask"].bool()
            counter.mask = batch["attention_mask"]
            model.eval()(**batch)
            for name, layer in spikes.items():
                fired[name] = fired.get(name, 0.0) + float((layer[:, real] != 0).sum())
                positive[name] = positive.get(name, 0.0) + float((layer[:, real] > 0).sum())
                possible[name] = possible.get(name, 0.0) + layer[:, real].numel()
    whole: dict[str, list[str]] = {}
    for name in fired:
        whole.setdefault(name.removesuffix(".q").removesuffix(".k").removesuffix(".v"), []).append(name)
    assert set(whole) == set(counter.rates)
    for name, parts in whole.items():
        mine = sum(fired[part] for part in parts) / sum(possible[part] for part in parts)
        assert abs(counter.rates[name] - mine) < 1e-5, name
    assert counter.rate is not None
    assert abs(counter.rate - sum(fired.values()) / sum(possible.values())) < 1e-5
    return {name: max(positive[name], fired[name] - positive[name]) / possible[name] for name in fired}


def check_rates(model: nn.Module, tokenizer: Any, texts: Sequence[str], lengths: Sequence[int] = (16, 256)) -> Rates:
    """No layer is silent or saturated."""
    rates = Rates()
    for length in lengths:
        rates.by_length[length] = firing_rates(model, exactly(tokenizer, texts, 1024 // length, length))
    assert not rates.outside(), "silent or saturated: " + "; ".join(rates.outside())
    return rates
