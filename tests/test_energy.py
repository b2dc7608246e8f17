"""The account: a network run by additions alone costs what the counter says, and other counters agree where they count.

The brute force below executes layers event by event, in plain Python, on what they read; its sums must be the layer's
own output, so an operation that it left out would show.
"""

from __future__ import annotations

import itertools
import json
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import missing, oracle
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2ForSequenceClassification

from spiketext import counting, meter
from spiketext.cli import main
from spiketext.counting import Counter, count, spread
from spiketext.energy import (
    PRECISIONS,
    SHAPES,
    _for_one,
    comparisons,
    compute,
    energy,
    ours,
    papers,
    points,
    reference,
    traffic,
    work,
)
from spiketext.figures import MARKERS, _name_points, accuracy_against_energy, canvas, capped, columns
from spiketext.models import (
    PRESETS,
    SpikeBertConfig,
    SpikeBertForSequenceClassification,
    SpikingTextCnnConfig,
    SpikingTextCnnForSequenceClassification,
    TextCnnConfig,
    TextCnnForSequenceClassification,
)
from spiketext.models.unrolling import unroll
from spiketext.neurons import LIF, NormLIF
from spiketext.rates import RateCounter

SMALL = {"vocab_size": 40, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
CODES = {
    "binary": {"time_steps": 3},
    "ternary": {"time_steps": 3, "code": "ternary"},
    "integer": {"time_steps": 1, "code": "integer"},
    "signed integer": {"time_steps": 1, "code": "integer", "signed": True, "levels": 2},
}
DESIGNS = {"default": {}, "paper": {"design": "paper", "layer_norm_eps": 1e-5}, "authors": PRESETS["authors-stage2"]}
EVERY = [(design, code) for design in DESIGNS for code in CODES if design != "authors" or code == "binary"]


def spiking(design: str = "default", code: str = "binary", **changes) -> SpikeBertForSequenceClassification:
    torch.manual_seed(3)
    settings = {**DESIGNS[design], **SMALL, **CODES[code], "initializer_range": 0.5, "scale": 0.5, **changes}
    return SpikeBertForSequenceClassification(SpikeBertConfig(**settings)).double().eval()


def ids(texts: int = 2, length: int = 5) -> torch.Tensor:
    return torch.randint(1, 40, (texts, length), generator=torch.Generator().manual_seed(length))


@torch.inference_mode()
def counted(model: nn.Module, *batches: torch.Tensor, **inputs: torch.Tensor) -> Counter:
    counter = Counter(model)
    with counter.counting():
        for batch in batches:
            model(batch, **inputs)
    return counter


@torch.inference_mode()
def recorded(model: nn.Module, batch: torch.Tensor, **inputs: torch.Tensor) -> dict[str, tuple]:
    """What every module read and wrote, as arrays."""
    seen = {}

    def record(name, module, args, out):
        if args and isinstance(args[0], torch.Tensor) and isinstance(out, torch.Tensor):
            seen[name] = args[0].numpy().copy(), out.numpy().copy()

    handles = [module.register_forward_hook(partial(record, name)) for name, module in model.named_modules()]
    model(batch, **inputs)
    for handle in handles:
        handle.remove()
    return seen


# Brute force ----------------------------------------------------------------------------------------------------------


def linear_by_additions(x, weight, bias, unit=1.0):
    """x [N, D] whole multiples of unit -> outputs [N, E] and how many additions of a weight it took."""
    out, additions = np.zeros((len(x), len(weight))), 0
    for row, values in enumerate(x):
        for i, value in enumerate(values):
            for _ in range(abs(round(value / unit))):
                for o in range(len(weight)):
                    out[row, o] += np.sign(value) * unit * weight[o, i]
                    additions += 1
    return out + bias, additions


def linear_by_products(x, weight, bias):
    out, products = np.zeros((len(x), len(weight))), 0
    for row, o, i in itertools.product(range(len(x)), range(len(weight)), range(x.shape[1])):
        out[row, o] += x[row, i] * weight[o, i]
        products += 1
    return out + bias, products


def attention_by_additions(q, k, v):
    """q, k, v [L, d] of one head -> (q k^T) v and the additions of the first and of the second product."""
    length, width = q.shape
    first = second = 0
    out = np.zeros((length, width))
    if length <= width:
        scores = np.zeros((length, length))
        for i, j, c in itertools.product(range(length), range(length), range(width)):
            for _ in range(abs(round(q[i, c]))):
                if k[j, c]:
                    scores[i, j] += np.sign(q[i, c]) * k[j, c]
                    first += 1
        for j, c in itertools.product(range(length), range(width)):
            for _ in range(abs(round(v[j, c]))):
                for i in range(length):
                    out[i, c] += np.sign(v[j, c]) * scores[i, j]
                    second += 1
    else:
        stored = np.zeros((width, width))
        for j, c, e in itertools.product(range(length), range(width), range(width)):
            for _ in range(abs(round(k[j, c]))):
                if v[j, e]:
                    stored[c, e] += np.sign(k[j, c]) * v[j, e]
                    first += 1
        for i, c in itertools.product(range(length), range(width)):
            for _ in range(abs(round(q[i, c]))):
                for e in range(width):
                    out[i, e] += np.sign(q[i, c]) * stored[c, e]
                    second += 1
    return out, first, second


@pytest.mark.parametrize("length", [3, 6], ids=["scores first", "keys and values first"])
@pytest.mark.parametrize(("design", "code"), EVERY)
def test_a_network_run_by_additions_costs_what_is_counted(design, code, length):
    model, batch = spiking(design, code), ids(2, length)
    counter, seen = counted(model, batch), recorded(model, batch)
    checked = 0
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        layer, (x, out) = counter.layers[name], seen[name]
        x, weight, bias = x.reshape(-1, x.shape[-1]), module.weight.detach().numpy(), module.bias.detach().numpy()
        unit = model.config.scale if design == "paper" and name.endswith("attention.output") else 1.0
        if layer.reads.whole:
            mine, additions = linear_by_additions(x, weight, bias, unit)
            assert (layer.ac, layer.mac) == (additions, 0), name
        else:
            mine, products = linear_by_products(x, weight, bias)
            assert (layer.ac, layer.mac) == (0, products), name
            assert name == "classifier" and design != "default"  # all others read spikes, or sums of them
        assert np.allclose(mine, out.reshape(mine.shape), atol=1e-10), name
        assert layer.biases == out.size
        checked += layer.ac > 0
    assert checked >= (5 if design == "authors" else 8)  # of four Linears in each of two blocks


@pytest.mark.parametrize("length", [3, 6], ids=["scores first", "keys and values first"])
@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("code", CODES)
def test_attention_run_by_additions_costs_what_is_counted(code, length, masked):
    model, batch = spiking("default", code), ids(2, length)
    mask = torch.ones_like(batch)
    mask[0, length - 1] = 0 if masked else 1
    counter, seen = counted(model, batch, attention_mask=mask), recorded(model, batch, attention_mask=mask)
    for block, layer in enumerate(model.spikebert.layers):
        name = f"spikebert.layers.{block}.attention"
        qkv = seen[f"{name}.qkv_spikes"][1]
        mixed = layer.attention.attend(torch.tensor(qkv), mask, False)[0].numpy()
        total = [0, 0]
        for t, b, head in itertools.product(range(len(qkv)), range(len(batch)), range(2)):
            part = slice(4 * head, 4 * head + 4)
            q, k, v = (qkv[t, b, :, i, part] * (mask[b, :, None].numpy() if i else 1) for i in range(3))
            out, first, second = attention_by_additions(q, k, v)
            assert np.array_equal(out, mixed[t, b, :, part])
            total = [total[0] + first, total[1] + second]
        assert [counter.layers[f"{name}.{part} product"].ac for part in ("first", "second")] == total
        assert total[0] > 0 and total[1] > 0


@pytest.mark.parametrize("length", [1, 4, 7], ids=["one word", "shorter than a filter", "longer"])
def test_a_spiking_textcnn_run_by_additions_costs_what_is_counted_without_the_windows_of_padding(length):
    torch.manual_seed(0)
    config = SpikingTextCnnConfig(vocab_size=40, hidden_size=6, num_filters=4, time_steps=3, num_labels=2)
    model, batch = SpikingTextCnnForSequenceClassification(config).double().eval(), ids(2, length)
    counter, seen, rates = counted(model, batch), recorded(model, batch), RateCounter()
    rates.mask = torch.ones_like(batch)
    with rates.counting(model), torch.inference_mode():
        model(batch)
    for i, width in enumerate((3, 4, 5)):
        real = max(1, length - width + 1)  # windows of the text
        x, out = (array[:, :, :real] for array in seen[f"textcnn.convolutions.{i}"])
        mine, additions = linear_by_additions(
            x.reshape(-1, width * 6), model.textcnn.convolutions[i].weight.detach().numpy(), 0.0
        )
        assert np.allclose(mine, out.reshape(mine.shape), atol=1e-12)
        layer, neurons = (counter.layers[f"textcnn.{part}.{i}"] for part in ("convolutions", "window_spikes"))
        assert (layer.ac, layer.products) == (additions, 3 * 2 * real * width * 6 * 4)
        assert len(layer.accumulations) == 3  # by step
        assert neurons.updates == 3 * 2 * real * 4
        assert neurons.reads.density == pytest.approx(rates.rates[f"textcnn.window_spikes.{i}"])
    assert work(counter).ac > 0


def test_neurons_norms_embeddings_and_additions_are_counted():
    model, batch = spiking(), ids(2, 5)
    w, steps, tokens, width, inner = work(counted(model, batch)), 3, 5, 8, 12
    neurons = 2 * (width + 3 * width + width + width + inner) + width
    norm_of_embedding, residuals, embedding_sums = tokens * width, 2 * 2 * steps * tokens * width, 2 * tokens * width
    biases = steps * tokens * (2 * (3 * width + width + inner + width) + 2)
    assert w.updates == steps * tokens * neurons
    assert w.norms == w.updates + norm_of_embedding
    assert w.additions == residuals + embedding_sums + biases
    assert w.embedding_bytes == 3 * tokens * width * 4
    seen = recorded(model, batch)
    spikes = sum(seen[name][1].sum() for name, module in model.named_modules() if isinstance(module, LIF))
    assert w.spikes * 2 == spikes > 0


# Other counters -------------------------------------------------------------------------------------------------------


def dense(attention: str = "sdpa", **changes) -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(**(SMALL | changes), attn_implementation=attention)
    return BertForSequenceClassification(config).eval()


def test_the_macs_of_a_dense_bert_are_those_of_pytorchs_flop_counter():
    model, batch = dense("eager"), ids(3, 7)
    with FlopCounterMode(display=False) as flops, torch.inference_mode():
        model(batch)
    counter = counted(model, batch)
    assert not counter.spiking
    assert 2 * 3 * work(counter).mac == flops.get_total_flops()
    assert work(counter).ac == 0


def test_products_of_functions_cost_their_macs():
    """GPT-2 calls its layers `Conv1D`, which are no Linears, and takes torch.addmm."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 40,
        "n_embd": 8,
        "n_layer": 2,
        "n_head": 2,
        "pad_token_id": 0,
        "attn_implementation": "eager",
    }
    model, batch = GPT2ForSequenceClassification(GPT2Config(**sizes)).eval(), ids(3, 7)
    with FlopCounterMode(display=False) as flops, torch.inference_mode():
        model(batch)
    assert work(counted(model, batch)).mac * 3 * 2 == flops.get_total_flops()


def test_a_dense_textcnn_costs_the_windows_of_its_text():
    config = TextCnnConfig(vocab_size=40, hidden_size=6, num_filters=4, num_labels=2)
    for length, windows in ((2, (1, 1, 1)), (7, (5, 4, 3))):
        macs = work(counted(TextCnnForSequenceClassification(config).eval(), ids(2, length))).mac
        assert macs == sum(n * width * 6 * 4 for n, width in zip(windows, (3, 4, 5), strict=True)) + 12 * 2


def test_fused_attention_costs_the_same_macs():
    """PyTorch's own counter does not know the fused attention of processors, and leaves it out."""
    fused, plain = (work(counted(dense(attention), ids(3, 7))) for attention in ("sdpa", "eager"))
    assert fused.mac == plain.mac > 0


@pytest.fixture(scope="module")
def synops():
    """SpikingJelly's counters of operations: a function of a model and its input -> {name: operations}.

    They see PyTorch's own operators, so our compiled sums of spikes are replaced by the product that they stand for.
    """
    jelly = oracle("spikingjelly.activation_based.op_counter")

    def run(model, batch):
        counters = {"AC": jelly.SynOpCounter(), "MAC": jelly.MACCounter()}
        with pytest.MonkeyPatch.context() as patch, torch.no_grad():
            for room in ("neurons", "models.unrolling"):
                patch.setattr(f"spiketext.{room}.spike_linear", nn.functional.linear)
            with jelly.DispatchCounterMode(list(counters.values())):
                model(batch)
        return {name: counter.get_total() for name, counter in counters.items()}

    return run


@pytest.mark.oracle
@pytest.mark.parametrize("length", [12, 20], ids=["scores first", "keys and values first"])
def test_spikingjelly_counts_the_same_in_a_network_of_binary_spikes(synops, length):
    """Linears and both products of the attention, coincidences of spikes included.

    Large enough for counts above one everywhere: a table of counts that happen to be 0 and 1 is taken for spikes there.
    """
    model, batch = spiking(hidden_size=32, intermediate_size=48), ids(4, length)
    w = work(counted(model, batch))
    assert synops(model, batch) == {"AC": 4 * w.ac, "MAC": 0}
    assert w.coincidences > 0


@pytest.mark.oracle
def test_spikingjelly_multiplies_where_inputs_are_sums_of_spikes(synops):
    """The difference: an integer k that enters a Linear is k additions here, and one MAC for each weight there."""
    model, batch = spiking("paper"), ids(4, 6)
    counter = counted(model, batch)
    theirs = synops(model, batch)
    layers = [layer for layer in counter.layers.values() if layer.kind in counting.SYNAPTIC]
    binary = [layer for layer in layers if layer.reads.kind == "binary"]
    others = [layer for layer in layers if layer.reads.kind != "binary"]
    assert theirs["AC"] == sum(layer.ac for layer in binary)
    assert theirs["MAC"] == sum(layer.products for layer in others)
    assert {layer.reads.kind for layer in others} == {"integer", "float"}
    assert sum(layer.ac for layer in others) > 0


@pytest.mark.oracle
@pytest.mark.parametrize("attention", ["counts", "squared"])
@pytest.mark.parametrize("code", ["integer", "signed integer"])
def test_an_integer_network_costs_what_it_costs_as_binary_spikes(synops, code, attention):
    """k additions for an integer k: SpikingJelly counts them in the network unrolled to binary spikes.

    The difference: in k^T v it adds the entries of v that are zero too, in q k^T those of k.
    """
    model, batch = spiking("default", code, attention=attention), ids(4, 6)
    counter, seen = counted(model, batch), recorded(model, batch)
    assert work(counted(unroll(model), batch)) == work(counter)
    layers = counter.layers.values()
    ours = sum(layer.ac for layer in layers if layer.kind == "linear" or layer.name.endswith("second product"))
    streamed, each = (0, 6) if attention == "squared" else (1, 4)  # q, added for each text's token; k, for each feature
    spikes = [seen[f"spikebert.layers.{block}.attention.qkv_spikes"][1][..., streamed, :] for block in range(2)]
    assert synops(unroll(model), batch) == {"AC": ours + each * sum(np.abs(block).sum() for block in spikes), "MAC": 0}


@pytest.mark.oracle
def test_neurobench_counts_the_same_in_linears_and_leaves_out_attention():
    """The differences: no attention there; non-zero values only; an integer counts once and is a MAC."""
    single = oracle("neurobench.metrics.utils.layers").single_layer_MACs
    for design in ("default", "paper"):
        model, batch = spiking(design), ids(4, 6)
        counter, seen = counted(model, batch), recorded(model, batch)
        kinds = set()
        for name, module in model.named_modules():
            if not isinstance(module, nn.Linear):
                continue
            layer = counter.layers[name]
            operations, accumulates = single(torch.tensor(seen[name][0]), module)
            assert accumulates == (layer.reads.kind == "binary"), name
            assert operations == float(layer.papers.sum()), name
            if layer.reads.kind == "binary":
                assert operations == layer.ac
            elif layer.reads.kind == "integer":
                assert operations < layer.ac
            kinds.add(layer.reads.kind)
        assert kinds == ({"binary"} if design == "default" else {"binary", "integer", "float"})


# Laws -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exact_model(tiny_tokenizer):
    torch.manual_seed(0)
    config = SpikeBertConfig(**(SMALL | {"vocab_size": len(tiny_tokenizer)}))
    return SpikeBertForSequenceClassification(config).double().eval()


def test_batch_size_neighbours_and_order_change_no_count(exact_model, tiny_tokenizer, demo):
    texts = demo.splits["test"].texts[:24]
    runs = [
        work(count(exact_model, tiny_tokenizer, texts, batch_size=1)),
        work(count(exact_model, tiny_tokenizer, texts, batch_size=16)),
        work(count(exact_model, tiny_tokenizer, texts[::-1], batch_size=5)),
    ]
    alone = [work(count(exact_model, tiny_tokenizer, [text])) for text in texts]
    for run in runs:
        assert run == pytest.approx(runs[0], rel=1e-12)
        assert run.ac == pytest.approx(sum(one.ac for one in alone) / len(texts), rel=1e-12)
    assert runs[0].ac > 0


def test_a_fixed_length_counts_its_padding_and_a_masked_token_is_not_attended_to(exact_model, tiny_tokenizer, demo):
    texts = demo.splits["test"].texts[:6]
    own, padded = count(exact_model, tiny_tokenizer, texts), count(exact_model, tiny_tokenizer, texts, length=200)
    assert padded.tokens == 6 * 200 > own.tokens
    assert work(padded).updates == pytest.approx(200 / (own.tokens / 6) * work(own).updates)
    first = "spikebert.layers.0.attention.first product"  # q may come from padding, k and v may not
    assert own.layers[first].ac == padded.layers[first].ac > 0


def test_counting_leaves_the_answers_alone(tiny_tokenizer):
    model, batch = spiking(), ids(4, 6)
    with torch.inference_mode():
        before, counter = model(batch).logits, Counter(model)
        with counter.counting():
            during = model(batch).logits
        after = model(batch).logits
    assert torch.equal(before, during) and torch.equal(before, after)
    assert counter.texts == 4  # the third pass was not counted


class _Bytes(TorchDispatchMode):
    """How many bytes the tensors have that operators take and give."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor)]
        self.total += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return out


def test_counting_moves_less_than_twice_the_bytes_of_reading():
    model, batch = SpikeBertForSequenceClassification(SpikeBertConfig(num_hidden_layers=1)).eval(), ids(16, 32)
    with torch.inference_mode():
        with _Bytes() as plain:
            model(batch)
        with Counter(model).counting(), _Bytes() as watched:
            model(batch)
    assert plain.total < watched.total < 2 * plain.total


# Prices ---------------------------------------------------------------------------------------------------------------


def test_reference_numbers_computed_by_hand():
    base = reference("bert-base", 128)
    assert base["linear MACs"] == 12 * 128 * (4 * 768 * 768 + 2 * 768 * 3072) == 10_871_635_968
    assert base["attention MACs"] == 2 * 12 * 128 * 128 * 768 == 301_989_888
    assert round(base["fp32 mJ"], 1) == 51.4
    assert reference("bert-tiny", 128)["MACs"] == 50_331_648 + 8_388_608
    assert round(reference("bert-mini", 128)["fp32 mJ"], 2) == 2.01
    assert round(reference("bert-small", 128)["fp32 mJ"], 2) == 7.72


@pytest.mark.parametrize("name", SHAPES)
def test_a_reference_is_what_a_bert_of_that_shape_is_counted_at(name):
    layers, width, inner = SHAPES[name]
    shape = {"num_hidden_layers": layers, "hidden_size": width, "intermediate_size": inner, "num_attention_heads": 2}
    with torch.device("meta"):
        model = BertForSequenceClassification(BertConfig(**(SMALL | shape))).eval()
        batch = torch.zeros(1, 9, dtype=torch.long)
    with FlopCounterMode(display=False) as flops, torch.inference_mode():
        model(batch)
    pooler_and_classifier = width * width + 2 * width
    assert flops.get_total_flops() == 2 * (reference(name, 9)["MACs"] + pooler_and_classifier)


def test_the_papers_formulas_as_printed():
    """T rate FLOPs, by hand, on a network whose every layer's rate is known."""
    model, batch = spiking("paper"), ids(2, 5)
    counter, seen = counted(model, batch), recorded(model, batch)
    share = mean = 0.0
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            x = seen[name][0]
            flops = x[0].size / 2 * module.out_features  # of one text and one step
            unit = model.config.scale if name.endswith("attention.output") else 1.0
            share += 3 * (x != 0).mean() * flops
            mean += 3 * (np.abs(x).mean() / unit if name != "classifier" else (x != 0).mean()) * flops
    for block in range(2):
        qkv = seen[f"spikebert.layers.{block}.attention.qkv_spikes"][1]
        for part in (0, 2):  # q k^T: the rate of q; that times v: the rate of v
            ssa = 3 * (qkv[..., part, :] != 0).mean() * 5 * 5 * 8
            share, mean = share + ssa, mean + ssa
    rows = papers(work(counter), spiking=True)
    found = {row["as printed"]: row["mJ"] for row in rows}
    assert found["v1 eq. 16-18, rate as share of non-zeros"] == pytest.approx(0.9e-9 * share)
    assert found["v1 eq. 16-18, rate as mean"] == pytest.approx(0.9e-9 * mean)
    assert found["v2 eq. 19"] == pytest.approx(0.9e-9 * share + 4.6e-9 * 5 * 8)
    assert found["A.4"] == pytest.approx(77e-15 * share * 1e3)
    macs = 5 * 2 * (4 * 8 * 8 + 2 * 8 * 12 + 2 * 5 * 8) + 5 * 8 * 2
    assert [row["dense mJ"] for row in rows] == pytest.approx([4.6e-9 * macs] * 3 + [12.5e-9 * macs])
    assert mean > share


def test_our_account_of_a_few_operations_by_hand():
    w = work(counted(spiking(), ids(2, 5)))._replace(
        ac=1e6, mac=2e5, updates=1e4, spikes=3e3, norms=1e4, additions=5e3, embedding_bytes=400.0, weights=700.0
    )
    parts = compute(w, PRECISIONS["fp32"])
    assert parts["matrix work"] == pytest.approx((0.9e6 + 4.6 * 2e5) * 1e-9)
    assert parts["neurons"] == pytest.approx((5.5 * 1e4 + 0.9 * 3e3) * 1e-9)
    assert parts["norms"] == pytest.approx((13.8 + 1.8) * 1e4 * 1e-9)
    assert parts["additions"] == pytest.approx(0.9 * 5e3 * 1e-9)
    assert parts["sum"] == pytest.approx(sum(value for name, value in parts.items() if name != "sum"))
    assert traffic(w, PRECISIONS["fp32"]) == 4 * (1.2e6 + 2e4) + 400
    assert traffic(w, PRECISIONS["int8"]) == 1.2e6 + 2e4 + 100
    assert traffic(w, PRECISIONS["int8"], once=True) == 700 + 2e4 + 100


def test_integers_multiplied_stand_beside_integers_sent_as_spikes():
    counter = counted(spiking("paper"), ids(2, 5))
    found = ours(work(counter))
    linears = [layer for layer in counter.layers.values() if layer.kind == "linear"]
    spikes = sum(layer.ac for layer in counter.layers.values() if "integer" not in layer.reads.kind)
    nonzero = sum(float(layer.papers.sum()) for layer in linears if layer.reads.kind == "integer")
    floats = sum(layer.mac for layer in linears)
    mine = found["fp32, integers multiplied"]["matrix work"]
    assert mine == pytest.approx((0.9 * spikes + 4.6 * (nonzero + floats)) / 2 * 1e-9)
    assert list(ours(work(counted(spiking(), ids(2, 5))))) == ["fp32", "int8"]


def test_published_points_have_what_the_picture_needs():
    found = points(str(Path(__file__).parent.parent / "experiments" / "published-energy.csv"))
    by_name = {point["name"]: point for point in found}
    assert by_name["BERT-Mini"]["millijoules"] == pytest.approx(2.01, abs=0.01)
    assert by_name["SpikeBERT"]["millijoules"] == 26.81 / 2
    assert all(50 < point["accuracy"] < 100 and point["source"] and point["kind"] in MARKERS for point in found)


def test_at_the_break_even_density_both_networks_cost_the_same():
    w = work(counted(spiking(), ids(4, 6)))._replace(updates=10.0, norms=10.0, additions=10.0)
    rows = [row for row in comparisons(w) if row["break-even density %"] is not None]
    assert len(rows) >= 10
    for number, row in enumerate(comparisons(w)):
        if row not in rows:
            continue
        factor = row["break-even density %"] / row["density %"]
        coincidences = w.coincidences * factor**2
        scaled = w._replace(
            ac=(w.ac - w.coincidences) * factor + coincidences, coincidences=coincidences, spikes=w.spikes * factor
        )
        assert comparisons(scaled)[number]["of dense %"] == pytest.approx(100)


def test_a_network_whose_neurons_alone_cost_more_never_breaks_even():
    w = work(counted(spiking(), ids(4, 6)))
    rows = comparisons(w._replace(updates=1e12))
    assert all(row["break-even density %"] is None and row["of dense %"] > 100 for row in rows)
    assert {row["cheaper"] for row in rows} == {"never"}
    few = comparisons(w._replace(ac=0.0, coincidences=0.0, mac=0.0, updates=0.0, spikes=1.0, norms=0.0, additions=0.0))
    assert few[0]["cheaper"] == "at any density"


# The command ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tiny_tokenizer, tiny_teacher, tmp_path_factory) -> dict[str, str]:
    """Saved classifiers on the labels of the demo set: dense, spiking, and one that answers NaN."""
    root, names = tmp_path_factory.mktemp("energy"), {"id2label": {0: "negative", 1: "positive"}}
    torch.manual_seed(0)
    model = SpikeBertForSequenceClassification(
        SpikeBertConfig(**(SMALL | {"vocab_size": len(tiny_tokenizer)}), **names)
    )
    for name in ("spiking", "broken"):
        if name == "broken":
            model.classifier.weight.data[0, 0] = float("nan")
        model.save_pretrained(root / name)
        tiny_tokenizer.save_pretrained(root / name)
    return {"dense": tiny_teacher, "spiking": str(root / "spiking"), "broken": str(root / "broken")}


def test_the_command_prints_an_account_and_json(folders, capsys, tmp_path):
    asked = ["energy", "--model", folders["spiking"], "--data", "demo", "--limit", "10", "--split", "test"]
    assert main([*asked, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["texts"], result["spiking"], result["length"]) == (10, True, "real")
    assert result == json.loads(json.dumps(energy(folders["spiking"], "demo", "test", limit=10)))
    fp32 = result["comparisons"][0]
    assert fp32["mJ"] == pytest.approx(result["ours"]["fp32"]["sum"])
    by_layer = sum(sum(row["microjoules by step"]) for row in result["layers"])
    assert by_layer * 1e-3 == pytest.approx(result["ours"]["fp32"]["matrix work"])
    assert main([*asked, "--layers", "--measure"]) == 0
    printed = capsys.readouterr().out
    assert "attention.first product" in printed and "measured" in printed


def test_a_dense_model_is_reported_as_dense(folders, capsys):
    assert main(["energy", "--model", folders["dense"], "--data", "demo", "--limit", "5", "--length", "16"]) == 0
    assert "dense: no layer of spiking neurons" in capsys.readouterr().out
    result = energy(folders["dense"], "demo", limit=5, length=16)
    per_block = 16 * (4 * 32**2 + 2 * 32 * 64) + 2 * 16**2 * 32
    assert result["operations"]["mac"] == 2 * per_block + 32 * 32 + 2 * 32
    assert (result["operations"]["ac"], result["comparisons"]) == (0, [])


def test_references_are_printed(capsys):
    assert main(["energy", "--reference", "bert-base", "--length", "128"]) == 0
    assert "51.4" in capsys.readouterr().out
    assert main(["energy", "--reference", "all", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == list(SHAPES)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--reference", "bert-huge"], "expected one of bert-tiny"),
        (["--reference", "bert-base", "--length", "0"], "expected at least 1 token"),
        (["--reference", "bert-base", "--model", "x"], "--reference needs no --model"),
        (
            [
                "--reference",
                "bert-base",
                "--measure",
                "--layers",
                "--plot",
                "x.png",
                "--save",
                "--limit",
                "0",
                "--time-steps",
                "2",
            ],
            "no --limit and no --time-steps and no --measure and no --layers and no --plot and no --s",
        ),
        ([], "give --model DIR"),
        (["--model", "spiking", "--data", "demo", "--limit", "0"], "expected at least 1 text"),
        (["--model", "spiking", "--data", "demo", "--length", "100000"], "expected 1 to 512 tokens"),
        (["--model", "spiking", "--data", "demo", "--split", "dev"], "expected one of train, validation, test"),
        (["--model", "broken", "--data", "demo", "--limit", "2"], "NaN"),
        (["--model", "nowhere", "--data", "demo"], "cannot be read"),
        (["--model", "spiking", "--data", "nothing", "--limit", "2", "--plot", "picture.nothing"], "picture"),
        (["--model", "spiking", "--data", "demo", "--batch-size", "0"], "batch_size: expected at least 1, got 0"),
        (["--model", "spiking", "--data", "demo", "--time-steps", "-2"], "time_steps: expected at least 1, got -2"),
        (["--model", "dense", "--data", "demo", "--time-steps", "2"], "is dense and has no time"),
        (["--model", "owner/name", "--data", "demo", "--save"], "--save: owner/name is no folder"),
    ],
)
def test_bad_input_is_one_clear_line(folders, capsys, argv, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nowhere").mkdir()
    assert main(["energy", *(folders.get(arg, arg) for arg in argv)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("spiketext energy: ") and error.count("\n") == 1 and said in error


def test_no_texts_is_an_error(exact_model, tiny_tokenizer):
    with pytest.raises(ValueError, match="no texts"):
        count(exact_model, tiny_tokenizer, [])


def test_texts_are_spread_over_a_split():
    assert spread(list(range(10)), 4) == [0, 3, 6, 9]
    assert spread([1, 2], 5) == [1, 2]


# Pictures, columns, meters --------------------------------------------------------------------------------------------


@pytest.fixture
def pictures() -> None:
    """What needs matplotlib."""
    if find_spec("matplotlib") is None:
        missing("matplotlib is not installed; pip install 'spiketext[plots]'")


def test_pictures_are_written(pictures, folders, tmp_path):
    for name in ("spiking", "dense"):
        picture = tmp_path / name / "layers.png"
        argv = ["energy", "--model", folders[name], "--data", "demo", "--limit", "3", "--plot", str(picture)]
        assert main(argv) == 0
        assert picture.read_bytes().startswith(b"\x89PNG")
    points = [{"name": "ours", "millijoules": 1.0, "accuracy": 84.0, "kind": "spiking"},
              {"name": "BERT", "millijoules": 51.4, "accuracy": 92.3, "kind": "dense"}]  # fmt: skip
    accuracy_against_energy(points, str(tmp_path / "points.svg"))
    assert "<svg" in (tmp_path / "points.svg").read_text()
    with pytest.raises(ValueError, match="expected one of spiking, dense"):
        accuracy_against_energy([points[0] | {"kind": "other"}], str(tmp_path / "no.png"))
    with pytest.raises(ValueError, match="no points"):
        accuracy_against_energy([], str(tmp_path / "no.png"))


def test_names_beside_points_cover_nothing_and_stay_inside(pictures):
    figure, (axis,) = canvas(1, 7.0)
    axis.set(xlim=(0, 1), ylim=(0, 1))
    places = [("ours", (0.5, 0.5)), ("its neighbour", (0.52, 0.5)), ("another", (0.52, 0.52)),
              ("at the right edge", (0.98, 0.2)), ("at the top", (0.2, 0.98))]  # fmt: skip
    _name_points(figure, axis, places)
    assert [text.get_text() for text in axis.texts] == [name for name, _ in places]
    boxes = [text.get_window_extent() for text in axis.texts]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert all(axis.bbox.containsx(box.x1) and axis.bbox.containsy(box.y1) for box in boxes)
    assert not any(box.contains(*axis.transData.transform(place)) for box in boxes for _, place in places)


def test_a_break_even_above_any_density_is_shown_as_such():
    rows = [{"break-even density %": value} for value in (None, 40.0, 130.0)]
    assert [row["break-even density %"] for row in capped(rows)] == [None, 40.0, "> 100"]


def test_a_meter_tells_of_one_text():
    assert _for_one({"seconds": 4.0, "meters": {"card 0": 10.0}}, 4) == {"seconds": 1.0, "meters": {"card 0": 2.5}}
    assert _for_one({"seconds": 4.0, "meters": meter.NONE}, 4)["meters"] == meter.NONE


def test_columns_are_aligned():
    table = columns([{"name": "a", "value": 1.23456}, {"name": "longer", "value": None}])
    assert table == "name    value\na       1.235\nlonger      -"


def test_joules_are_read_from_the_counters_that_exist(tmp_path, monkeypatch):
    monkeypatch.setattr(meter, "_cards", dict)
    monkeypatch.setattr(meter, "POWERCAP", tmp_path)
    assert meter.measure(lambda: None)["meters"] == meter.NONE
    for name, start in (("intel-rapl:0", 1_000_000), ("intel-rapl:1", 9_000_000), ("intel-rapl:0:0", 5)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(str(start))
        (tmp_path / name / "max_energy_range_uj").write_text("10000000")

    def work():
        (tmp_path / "intel-rapl:0" / "energy_uj").write_text("3500000")
        (tmp_path / "intel-rapl:1" / "energy_uj").write_text("500000")  # the counter started again

    assert meter.measure(work)["meters"] == {"processor 0": 2.5, "processor 1": 1.5}


def test_norms_inside_neurons_are_counted_as_norms():
    class Plain(nn.Module):
        def __init__(self, neurons):
            super().__init__()
            self.neurons = neurons

        def forward(self, current):
            return self.neurons(current)

    for neurons, norms in ((LIF(), 0), (NormLIF(4), 24)):
        counter = counted(Plain(neurons), torch.randn(1, 6, 4))
        assert counter.layers["neurons"].norms == norms
        assert counter.layers["neurons"].updates == 24
