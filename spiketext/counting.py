"""Floor 6: what a network did while it read texts: operations, neuron updates and bytes, layer by layer.

Everything is observed from outside, by hooks; networks hold no bookkeeping. The rules:

- Linear: an input value k that is whole is sent as |k| spikes, each of which costs one accumulation (AC) for every
  weight that it meets; a negative one uses the OFF neuron of an ON/OFF pair. A layer that reads other than whole
  numbers multiplies: one multiply-accumulate (MAC) for every input value and weight. A bias is one addition an output.
- Spiking attention, (q k^T) v or q (k^T v), whichever the network took. First product, spike times spike: one AC for
  each coincidence. Second: a spike against a stored count, one addition for each entry of the row that it meets.
  `papers` is their convention for both, always in the first order: non-zero q times L, and non-zero v times L.
- Any other product, as those of dense attention or a convolution: its MACs, whatever it reads. PyTorch's own operators
  are watched for them, so none escapes, by whichever name it was called. Softmax, activation functions and dropout are
  not counted.
- An embedding has no MACs; the bytes of its rows count. Norms: normalised values. Additions: of two float tensors.
- Neurons: one update for each neuron and step.

Padding never enters a count as long as the texts of a batch have equal lengths, so no hook needs to know a mask but the
one of attention, where a masked token sends neither key nor value. Windows that a text shorter than the filter does not
fill are computed, and left out here: the text has one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spiketext.batching import TextRows
from spiketext.evaluation import Diverged, at_least_one, longest, model_inputs, rows_for
from spiketext.models.spikebert import SpikingSelfAttention
from spiketext.neurons import LIF, NormLIF
from spiketext.values import Values, read

SYNAPTIC = ("linear", "attention", "product")
_aten = torch.ops.aten
_FLOPS = flop_registry | {  # two a product; PyTorch knows the fused attention of GPUs only
    _aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[_aten._scaled_dot_product_flash_attention]
}
_SUMS = (torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__)
_BYTES = 4  # of a float32 value


@dataclass
class Layer:
    """One layer over all texts. Units: operations, values or bytes in all; arrays [T] are by step.

    accumulations: additions that its whole-numbered inputs cost; papers: the same by the papers' convention, non-zero
    inputs only; products: what it costs when every value is multiplied, over all steps.
    """

    name: str
    kind: str
    reads: Values = field(default_factory=Values)
    accumulations: Any = 0.0
    papers: Any = 0.0
    products: float = 0.0
    biases: float = 0.0
    updates: float = 0.0
    norms: float = 0.0
    additions: float = 0.0
    bytes: float = 0.0
    rows: int = 0
    weights: int = 0

    @property
    def ac(self) -> float:
        """Accumulations."""
        return float(torch.as_tensor(self.accumulations).sum()) if self.reads.whole else 0.0

    @property
    def mac(self) -> float:
        """Multiply-accumulates."""
        return 0.0 if self.reads.whole else self.products


@torch.inference_mode()
def count(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    *,
    length: int | None = None,
    batch_size: int = 32,
    progress: bool = False,
) -> Counter:
    """Read texts and count. length None: every text at its own length, in batches of equal lengths, so that neither
    padding nor neighbours enter. A length: every text padded or cut to so many tokens, and all of them counted.

    Raises ValueError for no texts, a batch below 1 or a length beyond the model's positions, Diverged when the model
    answers NaN.
    """
    if not len(texts):
        raise ValueError("no texts to count: expected at least one")
    at_least_one(batch_size=batch_size)
    most = longest(model, tokenizer)
    if length is not None and not 1 <= length <= most:
        raise ValueError(f"length: expected 1 to {most} tokens, what the model can read; got {length}")
    rows = rows_for(model, tokenizer, texts, pairs, length)
    counter = Counter(model.eval())
    with (
        counter.counting(),
        tqdm(total=len(texts), unit="text", disable=None if progress else True, leave=False) as bar,
    ):
        for batch in _batches(rows, length, batch_size):
            batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
            if not model(**model_inputs(tokenizer, batch)).logits.isfinite().all():
                raise Diverged(
                    "the model answers NaN or infinity; it diverged: train again with a lower --learning-rate"
                )
            counter.tokens += int(batch["input_ids"].numel())
            bar.update(len(batch["input_ids"]))
    return counter


@torch.inference_mode()
def read_through(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    length: int | None,
    batch_size: int,
) -> None:
    """The work that `count` counts, batch by batch, without counting: for a meter."""
    for batch in _batches(rows_for(model, tokenizer, texts, pairs, length), length, batch_size):
        inputs = {name: tensor.to(model.device) for name, tensor in model_inputs(tokenizer, batch).items()}
        model(**inputs).logits.cpu()


def spread(rows: list, limit: int | None) -> list:
    """At most `limit` of the rows, at even distances from the first to the last. ValueError for a limit below 1."""
    if limit is not None and limit < 1:
        raise ValueError(f"limit: expected at least 1 text, got {limit}")
    if limit is None or limit >= len(rows):
        return rows
    return [rows[i] for i in np.linspace(0, len(rows) - 1, limit).round().astype(int)]


def _batches(rows: TextRows, length: int | None, size: int) -> Iterator[dict[str, Tensor]]:
    """Batches of equal lengths; with a length, padded to it."""
    fill = {"input_ids": rows.tokenizer.pad_token_id}
    for value in np.unique(rows.lengths) if length is None else (None,):
        numbers = np.flatnonzero(rows.lengths == value) if value is not None else np.arange(len(rows))
        for start in range(0, len(numbers), size):
            batch = rows.collate([rows[0, int(row)] for row in numbers[start : start + size]])
            if length is not None:
                missing = length - batch["input_ids"].shape[1]
                batch = {name: functional.pad(x, (0, missing), value=fill.get(name, 0)) if x.dim() == 2 else x
                         for name, x in batch.items()}  # fmt: skip
            yield batch


class Counter:
    """Counts a network's work while `counting` is active. `layers` by name, `texts` read so far, `steps` T."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.layers: dict[str, Layer] = {}
        self.texts, self.tokens = 0, 0
        self.spiking = any(isinstance(module, LIF) for module in model.modules())
        self.steps = int(getattr(getattr(model, "config", None), "time_steps", 1) or 1) if self.spiking else 1
        self._batch = self._length = 0  # texts of this pass and their tokens
        self._declared: dict[str, int] = {}  # products that the attention of a name may still take in this pass
        self._inside: list[tuple[str, nn.Module]] = []
        self._units: dict[
            str, float
        ] = {}  # inputs that are whole multiples of a constant, which belongs to the weights
        self._masks: dict[str, Tensor | None] = {}
        self._latest: tuple[Tensor | None, Values] = (None, Values())

    @contextmanager
    def counting(self) -> Iterator[Counter]:
        """Hooks on every layer."""
        handles = []
        rules: dict[type[nn.Module], Callable] = {
            nn.Linear: self._linear,
            nn.Embedding: self._embedding,
            nn.LayerNorm: self._norm,
            LIF: self._neurons,
        }
        for name, module in self.model.named_modules():
            handles.append(module.register_forward_pre_hook(partial(self._enter, name), with_kwargs=True))
            for kind, rule in rules.items():
                if isinstance(module, kind):
                    handles.append(module.register_forward_hook(partial(rule, name)))
            if isinstance(module, SpikingSelfAttention):
                if module.design == "paper":
                    self._units[f"{name}.output"] = module.scale
                products = partial(self._spiking_attention, name, module)
                handles.append(module.qkv_spikes.register_forward_hook(products))
            handles.append(module.register_forward_hook(self._leave))
        try:
            with _Sums(self), _Products(self):
                yield self
        finally:
            for handle in handles:
                handle.remove()
            self._inside.clear()
            self._latest = (None, Values())

    def _enter(self, name: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if not self._inside:
            first = kwargs.get("input_ids", args[0] if args else None)
            assert isinstance(first, Tensor)
            self._batch, self._length = len(first), first.shape[1]
            self.texts += self._batch
        if isinstance(module, SpikingSelfAttention):
            given = dict(zip(("x", "mask", "with_scores"), args, strict=False)) | kwargs
            self._masks[name] = given["mask"]
            steps = getattr(module, "levels", 1) * (1 + getattr(module, "signed", False))  # of `unroll`
            self._declared[name] = 2 * steps + (module.squared and given["with_scores"])
        self._inside.append((name, module))

    def _leave(self, *_: Any) -> None:
        self._inside.pop()

    def _layer(self, name: str, kind: str) -> Layer:
        return self.layers.setdefault(name, Layer(name, kind))

    def _by_step(self, x: Tensor) -> Tensor:
        """[T, B, ...] as it is, [T * B, ...] cut into steps, and one step of anything else."""
        if self.steps > 1 and x.dim() > 2 and x.shape[:2] == (self.steps, self._batch):
            return x
        if self.steps > 1 and len(x) == self.steps * self._batch:
            return x.unflatten(0, (self.steps, self._batch))
        return x[None]

    def _read(self, x: Tensor, unit: float = 1.0, spikes: bool = False) -> Values:
        """The sums of a layer's input, or of spikes [T, ...]; a tensor that was just read is not read again."""
        if x is not self._latest[0] or unit != 1.0:
            steps = x if spikes else self._by_step(x)
            self._latest = (x, read(steps.flatten(3) if steps.dim() == 5 else steps, unit))
        return self._latest[1]

    def _real(self, x: Tensor, axis: int, span: int | None) -> Tensor:
        """Neurons or their inputs along an axis, each of which sees span tokens, without those of padding alone."""
        real = x.shape[axis] if span is None else max(1, self._length - span + 1)
        return x if x.shape[axis] <= real else x.narrow(axis, 0, real)

    def _linear(self, name: str, module: nn.Linear, args: tuple, out: Tensor) -> None:
        x = args[0]
        if x.dim() > 2 and x.stride(-1) == 1 and 0 < x.stride(-2) < x.shape[-1]:  # windows, that overlap in memory
            x = self._real(x, x.dim() - 2, x.shape[-1] // x.stride(-2))
        reads = self._read(x, self._units.get(name, 1.0))
        layer = self._layer(name, "linear")
        layer.reads.add(reads)
        layer.accumulations = layer.accumulations + reads.total.sum(1) * module.out_features
        layer.papers = layer.papers + reads.nonzero.sum(1) * module.out_features
        layer.products += reads.count * module.out_features
        layer.biases += 0 if module.bias is None else x.shape[:-1].numel() * module.out_features
        layer.weights = module.weight.numel()

    def _spiking_attention(
        self, name: str, module: SpikingSelfAttention, _: nn.Module, args: tuple, qkv: Tensor
    ) -> None:
        """Qkv [T, B, L, 3, D] -> the additions of both products, in the order that the network takes."""
        steps, texts, length, _three, width = qkv.shape
        per_head = width // module.heads
        reads = self._read(qkv, spikes=True)
        mask = self._masks[name]
        if mask is not None and not mask.all():
            qkv = torch.cat([qkv[..., :1, :], qkv[..., 1:, :] * mask[:, :, None, None]], dim=3)
        binary = reads.kind == "binary"
        sizes = (qkv if binary else qkv.abs()).unflatten(-1, (module.heads, per_head))
        events = sizes if binary else (sizes != 0).to(sizes.dtype)
        q, k, v = range(3)

        def each_step(x: Tensor) -> Tensor:
            return x.flatten(1).sum(1, dtype=torch.float64)

        if module.squared:  # each count is multiplied by itself
            squares = self._layer(f"{name}.squares", "squares")
            squares.reads.whole = False
            squares.products += steps * texts * length * length * module.heads
        if module.squared or length <= per_head:  # q k^T, then that against v
            first = each_step(sizes[..., q, :, :].sum(2).double() * events[..., k, :, :].sum(2))
            second = each_step(sizes[..., v, :, :]) * length
        else:  # k^T v, then q against that
            first = each_step(sizes[..., k, :, :].sum(-1).double() * events[..., v, :, :].sum(-1))
            second = each_step(sizes[..., q, :, :]) * per_head
        papers = [each_step(events[..., part, :, :]) * length for part in (q, v)]
        for part, additions, theirs in zip(("first", "second"), (first, second), papers, strict=True):
            layer = self._layer(f"{name}.{part} product", "attention")
            layer.reads.add(reads)
            layer.accumulations = layer.accumulations + additions.cpu()
            layer.papers = layer.papers + theirs.cpu()
            layer.products += steps * texts * length * length * width

    def _neurons(self, name: str, module: LIF, args: tuple, spikes: Tensor) -> None:
        spikes = self._real(spikes, 2, module.span)
        layer = self._layer(name, "neurons")
        layer.reads.add(self._read(spikes, spikes=True))
        layer.updates += spikes.numel()
        layer.norms += spikes.numel() if isinstance(module, NormLIF) else 0

    def _norm(self, name: str, module: nn.LayerNorm, args: tuple, out: Tensor) -> None:
        self._layer(name, "norm").norms += out.numel()

    def _embedding(self, name: str, module: nn.Embedding, args: tuple, out: Tensor) -> None:
        rows = self._batch * args[0].shape[-1]  # positions are shared by a batch and read by each of its texts
        layer = self._layer(name, "embedding")
        layer.bytes += rows * module.embedding_dim * _BYTES
        layer.rows += rows

    def _sum(self, out: Tensor) -> None:
        """Residual additions and other sums that no layer makes."""
        name, module = self._inside[-1] if self._inside else ("", self.model)
        if not isinstance(module, (LIF, nn.Linear)):
            self._layer(f"{name}.additions", "additions").additions += out.numel()

    def _product(self, products: float) -> None:
        """A product that no layer makes: of dense attention, a function, or more than spiking attention declares."""
        name, module = self._inside[-1] if self._inside else ("", self.model)
        if isinstance(module, (LIF, nn.Linear)):
            return
        self._declared[name] = self._declared.get(name, 0) - 1
        if self._declared[name] < 0:
            layer = self._layer(f"{name}.products", "product")
            layer.reads.whole = False
            layer.products += products


class _Sums(TorchFunctionMode):
    """Sees additions of two float tensors."""

    def __init__(self, counter: Counter):
        super().__init__()
        self.counter = counter

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in _SUMS and all(isinstance(x, Tensor) and x.is_floating_point() for x in args[:2]):
            self.counter._sum(out)
        return out


class _Products(TorchDispatchMode):
    """Sees every product of matrices, inside what is made of several operators too."""

    def __init__(self, counter: Counter):
        super().__init__()
        self.counter = counter

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        flops = _FLOPS.get(func._overloadpacket)
        if flops is None:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        if flops is not None:
            self.counter._product(flops(*args, **kwargs, out_val=out) / 2)
        return out
