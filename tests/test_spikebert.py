"""SpikeBERT: what it is made of, what it reads and answers, and the laws of SPEC section 2 on the texts we ship."""

from __future__ import annotations

import copy
import itertools
import re

import pytest
import torch
import transformers
from conftest import TINY, classifier, student_config
from huggingface_hub.errors import StrictDataclassError
from laws import (
    batch_of,
    check_neighbours_exactly,
    check_neighbours_in_float32,
    check_rates,
    encode,
    firing_rates,
    recording,
    spread,
    swap_share,
)
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from spiketext import neurons
from spiketext.batching import LengthBuckets, TextRows
from spiketext.checkpoints import load_classifier, load_encoder, load_tokenizer, save_model
from spiketext.evaluation import evaluate, model_inputs, predict
from spiketext.losses import label_loss
from spiketext.models import (
    PRESETS,
    SpikeBertConfig,
    SpikeBertForSequenceClassification,
    SpikeBertModel,
    initialise_from_teacher,
)
from spiketext.rates import RateCounter

OLD_DESIGNS = ["paper", "authors-stage1", "authors-stage2"]


def fit_labels(model, tokenizer, rows: TextRows, epochs: int, learning_rate: float):
    """A training in miniature: AdamW with a falling rate."""
    torch.manual_seed(0)
    buckets = LengthBuckets(rows.lengths, 32, seed=0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    falling = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.1, epochs * len(buckets))
    model.train()
    for epoch in range(epochs):
        buckets.set_epoch(epoch)
        for indices in buckets:
            batch = rows.collate([rows[index] for index in indices])
            loss = label_loss(model(**model_inputs(tokenizer, batch)).logits, batch["labels"], batch["gold"])
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            falling.step()
    return model.eval()


@pytest.fixture(scope="module")
def fresh(tiny_tokenizer):
    """A student of the laws with binary neurons and four steps, as it is born."""
    return classifier(tiny_tokenizer, "binary", hidden_size=48, intermediate_size=192)


@pytest.fixture(scope="module")
def trained(demo, tiny_tokenizer):
    """A ternary student; larger weights at birth let five passes over the shipped reviews teach it much."""
    part = demo.splits["train"]
    rows = TextRows(part.texts, tiny_tokenizer, 64, labels=part.labels)
    sizes = {"hidden_size": 48, "intermediate_size": 192, "initializer_range": 0.1}
    start = classifier(tiny_tokenizer, "ternary", **sizes)
    return fit_labels(start, tiny_tokenizer, rows, epochs=5, learning_rate=8e-3)


@pytest.fixture(scope="module")
def reviews(demo):
    return [text for split in demo.splits.values() for text in split.texts]


@pytest.fixture(scope="module")
def texts_of_all_lengths(tiny_tokenizer, reviews):
    return spread(tiny_tokenizer, reviews, 200)


@pytest.fixture
def batch(tiny_tokenizer, reviews):
    """Four reviews of different lengths."""
    return batch_of([encode(tiny_tokenizer, text) for text in reviews[:4]])


@pytest.mark.parametrize("preset", ["ternary", "binary", "paper", "authors-stage2"])
@torch.no_grad()
def test_every_neuron_is_a_layer_that_is_counted(preset, tiny_tokenizer, batch):
    """As many spike trains as neurons are asked to fire, those of the input among them."""
    model = classifier(tiny_tokenizer, preset)
    calls: list[int] = []
    real = [getattr(neurons, name) for name in ("lif", "norm_lif")]
    with pytest.MonkeyPatch.context() as patch:
        for name, function in zip(("lif", "norm_lif"), real, strict=True):
            patch.setattr(neurons, name, lambda *a, f=function, **k: calls.append(1) or f(*a, **k))
        counter = RateCounter()
        counter.mask = batch["attention_mask"]
        with counter.counting(model):
            model(**batch)
    rates, of_sign = counter.rates, preset.startswith("authors")  # neurons of the input without memory
    assert len(rates) == len(calls) + of_sign and ("spikebert.input" in rates) == (preset not in ("ternary", "binary"))
    if of_sign:
        shares = model.spikebert.embeddings.word(batch["input_ids"])[batch["attention_mask"] > 0] >= 0
        assert rates["spikebert.input"] == pytest.approx(float(shares.float().mean()), abs=1e-6)


@pytest.mark.parametrize("preset", ["ternary", "binary"])
def test_a_filler_row_without_any_token_is_answered_with_zeros(preset, tiny_tokenizer, batch):
    model = classifier(tiny_tokenizer, preset)
    filled = {name: torch.cat([values, torch.zeros_like(values[:1])]) for name, values in batch.items()}
    logits = model(**filled).logits
    assert torch.equal(logits[-1], torch.zeros_like(logits[-1])) and torch.isfinite(logits).all()
    torch.testing.assert_close(logits[:-1], model(**batch).logits)


def test_a_layer_of_neurons_shows_what_is_not_usual(tiny_tokenizer):
    assert repr(neurons.LIF()) == "LIF()" and repr(neurons.LIF(beta=0.5, alpha=None)) == "LIF(beta=0.5)"
    assert repr(neurons.LIF(surrogate="fast_sigmoid")) == "LIF(surrogate=fast_sigmoid)"
    shown = {repr(each) for each in classifier(tiny_tokenizer, "ternary").modules() if isinstance(each, neurons.LIF)}
    assert shown == {"NormLIF(threshold=0.6, code=ternary)"} or shown == {"NormLIF(code=ternary, threshold=0.6)"}


# The laws -------------------------------------------------------------------------------------------------------------


def test_the_texts_of_the_laws_go_from_4_to_256_tokens(texts_of_all_lengths):
    lengths = [len(text["input_ids"]) for text in texts_of_all_lengths]
    assert len(lengths) >= 200 and min(lengths) == 4 and max(lengths) == 256
    assert sum(length > 100 for length in lengths) >= 30


@pytest.mark.parametrize("state", ["fresh", "trained"])
def test_padding_batch_neighbours_and_order_change_no_spike_in_float64(state, request, texts_of_all_lengths):
    texts = texts_of_all_lengths if state == "trained" else texts_of_all_lengths[::4]
    result = check_neighbours_exactly(request.getfixturevalue(state), texts)
    assert result.texts == len(texts) and result.comparisons == 3 * len(texts)
    print(f"\nfloat64, {state}: {result}")


def test_padding_batch_and_neighbours_change_little_in_float32(trained, texts_of_all_lengths):
    print(f"\nfloat32, trained: {check_neighbours_in_float32(trained, texts_of_all_lengths)}")


def test_the_law_of_neighbours_holds_for_pairs(trained, tiny_tokenizer, reviews):
    check_neighbours_exactly(trained, [encode(tiny_tokenizer, reviews[i], reviews[-i - 1]) for i in range(16)])


@pytest.mark.parametrize("state", ["fresh", "trained"])
def test_no_layer_is_silent_or_saturated(state, request, tiny_tokenizer, reviews):
    rates = check_rates(request.getfixturevalue(state), tiny_tokenizer, reviews)
    print(f"\nfiring rates, {state}: {rates.extent}\n{rates}")


def test_order_matters_after_training(trained, tiny_tokenizer, reviews):
    share = swap_share(trained, tiny_tokenizer, reviews)
    print(f"\n{share:.0%} of 100 swaps of two words change the logits by more than 1e-3")
    assert share >= 0.95


def test_a_model_that_looks_at_padding_breaks_the_law_of_neighbours(tiny_tokenizer, texts_of_all_lengths):
    with pytest.raises(AssertionError, match="float64"):
        check_neighbours_exactly(classifier(tiny_tokenizer, "paper"), texts_of_all_lengths[::20])


def test_a_layer_that_never_fires_breaks_the_law_of_rates(fresh, tiny_tokenizer, reviews):
    silent = copy.deepcopy(fresh)
    nn.init.constant_(silent.spikebert.layers[1].feed_forward.input.bias, -9.0)
    with pytest.raises(AssertionError, match=r"layers\.1\.feed_forward\.input at L = 16: 0\.00%"):
        check_rates(silent, tiny_tokenizer, reviews, lengths=[16])


def test_padding_is_outside_every_firing_rate(fresh, tiny_tokenizer, reviews):
    texts = [encode(tiny_tokenizer, text) for text in reviews[:8]]
    exact = copy.deepcopy(fresh).double()
    assert firing_rates(exact, texts, size=1) == firing_rates(exact, texts, size=8, filler=7, extra=5)


def test_the_order_of_words_alone_can_be_learned(tiny_tokenizer):
    """Both orders of a pair of words are one text each, so the words without their order say nothing."""
    words = [piece for piece in tiny_tokenizer.get_vocab() if piece.isalpha() and len(piece) > 4]
    words = sorted(words)[:16]
    pairs = list(itertools.combinations(words, 2))
    held_out, known = pairs[::4], [pair for i, pair in enumerate(pairs) if i % 4]

    def rows(pairs) -> TextRows:
        texts = [f"{a} before {b}" for a, b in pairs] + [f"{b} before {a}" for a, b in pairs]
        return TextRows(texts, tiny_tokenizer, 16, labels=[1] * len(pairs) + [0] * len(pairs))

    model = fit_labels(classifier(tiny_tokenizer), tiny_tokenizer, rows(known), epochs=25, learning_rate=5e-3)
    ((numbers, batch),) = rows(held_out).batches(1000)
    assert (batch["attention_mask"].sum(1) == 5).all(), "every word is one piece"
    answered = model(**model_inputs(tiny_tokenizer, batch)).logits.argmax(-1)
    accuracy = float((answered == batch["labels"]).float().mean())
    print(f"\norder of two words: {accuracy:.0%} of {len(numbers)} held-out texts right")
    assert accuracy > 0.7


def test_the_small_model_of_the_laws_has_learned_something(trained, demo, tiny_tokenizer):
    part = demo.splits["train"]
    rows = TextRows(part.texts, tiny_tokenizer, 64, labels=part.labels)
    with torch.inference_mode():
        right = sum(
            int((trained(**model_inputs(tiny_tokenizer, batch)).logits.argmax(-1) == batch["labels"]).sum())
            for _, batch in rows.batches(64)
        )
    assert right / len(rows) > 0.7


# Purity ---------------------------------------------------------------------------------------------------------------


def linear_inputs(model, batch) -> dict[str, torch.Tensor]:
    """What every Linear of a model read."""
    seen = {}
    handles = [
        module.register_forward_hook(lambda module, inputs, output, name=name: seen.update({name: inputs[0]}))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    model(**batch)
    for handle in handles:
        handle.remove()
    return seen


def values(tensor: torch.Tensor) -> set[float]:
    return set(tensor.unique().tolist())


@pytest.mark.parametrize("state", ["fresh", "trained"])
def test_every_linear_reads_binary_spikes_and_so_do_both_attention_products(state, request, batch):
    model = request.getfixturevalue(state)
    seen = linear_inputs(model, batch)
    assert len(seen) == 4 * 2 + 1
    sent = {0.0, 1.0} if state == "fresh" else {-1.0, 0.0, 1.0}  # binary; or ON/OFF pairs of binary neurons
    assert {name: values(read) for name, read in seen.items()} == dict.fromkeys(seen, sent)
    with recording(model) as spikes:
        model(**batch)
    products = {name: values(s) for name, s in spikes.items() if name[-2:] in (".q", ".k", ".v")}
    assert products == dict.fromkeys(products, sent) and len(products) == 2 * 3


@pytest.mark.parametrize(
    ("changes", "allowed"),
    [
        ({"code": "ternary"}, {-1.0, 0.0, 1.0}),
        ({"code": "integer", "time_steps": 1}, {0.0, 1.0, 2.0, 3.0, 4.0}),
        ({"code": "integer", "time_steps": 1, "levels": 2, "signed": True}, {-2.0, -1.0, 0.0, 1.0, 2.0}),
    ],
)
def test_other_codes_run_and_every_linear_reads_their_alphabet(tiny_tokenizer, batch, changes, allowed):
    model = classifier(tiny_tokenizer, **changes)
    seen = linear_inputs(model, batch)
    assert all(values(read) <= allowed for read in seen.values())
    assert set().union(*map(values, seen.values())) == allowed, "the whole alphabet is in use"
    model(**batch, labels=torch.tensor([0, 1, 0, 1])).loss.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


class Shapes(TorchDispatchMode):
    """Collects the last two sizes of everything that is computed."""

    def __init__(self):
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and "mm" in func.__name__:
            self.seen.add(tuple(result.shape[-2:]))
        return result


@pytest.mark.parametrize("length", [3, 8, 9, 50])
def test_both_orders_of_the_attention_products_are_equal_and_the_cheaper_one_is_taken(tiny_tokenizer, length):
    attention = classifier(tiny_tokenizer).spikebert.layers[0].attention  # 4 heads of width 8
    draw = torch.Generator().manual_seed(length)
    qkv = (torch.rand(4, 2, length, 3, 32, generator=draw) < 0.4).float()
    mask = torch.ones(2, length, dtype=torch.long)
    mask[1, length // 2 :] = 0
    with Shapes() as shapes:
        mixed, nothing = attention.attend(qkv, mask, with_scores=False)
    assert nothing is None
    assert ((length, length) in shapes.seen) == (length <= 8), "the map [L, L] where L is up to D / H, else [D/H, D/H]"
    through_scores, scores = attention.attend(qkv, mask, with_scores=True)
    assert torch.equal(mixed, through_scores)

    q, k, v = qkv.long().unflatten(-1, (4, 8)).permute(3, 0, 1, 4, 2, 5)  # [T, B, H, L, D/H] each
    k = k * mask[None, :, None, :, None]
    counts = torch.einsum("tbhid,tbhjd->tbhij", q, k)
    expected = torch.einsum("tbhij,tbhjd->tbhid", counts, v).transpose(2, 3).flatten(-2)
    assert torch.equal(scores.long(), counts) and torch.equal(scores, scores.round())
    assert torch.equal(mixed.long(), expected) and torch.equal(mixed, mixed.round())


@pytest.mark.parametrize("preset", ["binary", "ternary", "signed"])
@pytest.mark.parametrize("length", [3, 50])
def test_squared_attention_adds_values_by_the_squares_of_positive_counts(tiny_tokenizer, preset, length):
    attention = classifier(tiny_tokenizer, preset, attention="squared").spikebert.layers[0].attention
    draw = torch.Generator().manual_seed(length)
    low, high = {"binary": (0, 1), "ternary": (-1, 1), "signed": (-2, 2)}[preset]
    qkv = torch.randint(low, high + 1, (2, 2, length, 3, 32), generator=draw).float()
    mask = torch.ones(2, length, dtype=torch.long)
    mask[1, length // 2 :] = 0
    mixed, nothing = attention.attend(qkv, mask, with_scores=False)
    q, k, v = qkv.long().unflatten(-1, (4, 8)).permute(3, 0, 1, 4, 2, 5)
    counts = torch.einsum("tbhid,tbhjd->tbhij", q, k * mask[None, :, None, :, None])
    expected = torch.einsum("tbhij,tbhjd->tbhid", counts.clamp(min=0) ** 2, v).transpose(2, 3).flatten(-2)
    assert nothing is None and torch.equal(mixed.long(), expected) and torch.equal(mixed, mixed.round())
    again, scores = attention.attend(qkv, mask, with_scores=True)
    assert torch.equal(again, mixed) and torch.equal(scores.long(), counts)
    assert bool((counts < 0).any()) == (preset != "binary")


def test_squared_attention_keeps_the_law_of_neighbours_and_learns(tiny_tokenizer, texts_of_all_lengths, batch):
    model = classifier(tiny_tokenizer, "ternary")
    check_neighbours_exactly(copy.deepcopy(model), texts_of_all_lengths[::20])
    model(**batch).logits.sum().backward()
    assert all(layer.attention.qkv.weight.grad.any() for layer in model.spikebert.layers)


@pytest.mark.parametrize("design", ["default", "paper"])
def test_a_kind_of_attention_that_a_design_does_not_have_is_refused(design):
    with pytest.raises(StrictDataclassError, match="attention: expected counts, or squared in"):
        SpikeBertConfig(design=design, attention="softmax" if design == "default" else "squared")


def test_scores_are_counts_up_to_the_width_of_a_head_and_come_only_when_asked_for(fresh, batch):
    answer = fresh(**batch, output_attentions=True)
    assert len(answer.attentions) == 2
    texts, length = batch["input_ids"].shape
    for scores in answer.attentions:
        assert scores.shape == (4, texts, 4, length, length)
        assert torch.equal(scores, scores.round()) and scores.min() == 0 and 0 < scores.max() <= 48 // 4
        padded = batch["attention_mask"][None, :, None, None, :] == 0
        assert (scores.masked_select(padded) == 0).all(), "nobody attends to padding"
    without = fresh(**batch)
    assert without.attentions is None and without.hidden_states is None
    torch.testing.assert_close(without.logits, answer.logits)


def test_attention_counts_stay_exact_under_bfloat16(tiny_tokenizer, reviews):
    """Sums beyond 256, where bfloat16 has no odd numbers any more."""
    attention = classifier(tiny_tokenizer).spikebert.layers[0].attention
    draw = torch.Generator().manual_seed(0)
    qkv = (torch.rand(2, 2, 400, 3, 32, generator=draw) < 0.8).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed, scores = attention.attend(qkv, None, with_scores=True)
        other, _ = attention.attend(qkv, None, with_scores=False)
    expected, _ = attention.attend(qkv.double(), None, with_scores=False)
    assert mixed.dtype == scores.dtype == torch.float32
    assert torch.equal(mixed.double(), expected) and torch.equal(other, mixed)
    assert mixed.max() > 256 and (mixed % 2 == 1).any()


@pytest.mark.parametrize("how", ["autocast", "weights in bfloat16"])
def test_exact_counts_reach_the_neuron_behind_the_attention(fresh, tiny_tokenizer, reviews, how):
    batch = batch_of(spread(tiny_tokenizer, reviews, 2, 200, 256))
    model = fresh if how == "autocast" else copy.deepcopy(fresh).bfloat16()
    read = []
    mixed = model.spikebert.layers[1].attention.mixed
    handle = mixed.register_forward_hook(lambda module, inputs, output: read.append(inputs[0].float()))
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=how == "autocast"):
        answer = model(**batch)
    handle.remove()
    counts = read[0] / model.config.scale
    assert torch.equal(counts, counts.round()) and (counts[counts > 256] % 2 == 1).any()
    assert answer.logits.isfinite().all()


# Shapes, gradients, inputs --------------------------------------------------------------------------------------------


def test_hidden_states_are_the_embedding_and_the_residual_after_each_block(fresh, batch):
    texts, length = batch["input_ids"].shape
    answer = fresh(**batch, output_hidden_states=True)
    assert [tuple(h.shape) for h in answer.hidden_states] == [(texts, length, 48), *[(4, texts, length, 48)] * 2]
    encoded = fresh.spikebert(**batch, output_hidden_states=True)
    assert encoded.attentions is None and len(encoded.hidden_states) == 2
    assert torch.equal(encoded.hidden_states[-1], encoded.last_hidden_state)
    assert torch.equal(encoded.last_hidden_state, answer.hidden_states[-1])
    assert torch.equal(encoded.embedding, answer.hidden_states[0])
    assert fresh.spikebert(**batch).hidden_states is None


def test_the_residual_is_the_input_and_what_both_halves_of_each_block_add(fresh, batch):
    """Every step starts with the same embedding; a block adds the output of its two last Linears."""
    added = []
    handles = [
        module.register_forward_hook(lambda module, inputs, output: added.append(output))
        for layer in fresh.spikebert.layers
        for module in (layer.attention.output, layer.feed_forward.output)
    ]
    encoded = fresh.spikebert(**batch)
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(encoded.last_hidden_state, encoded.embedding + torch.stack(added).sum(0))


@pytest.mark.parametrize("name", ["ternary", "binary", *OLD_DESIGNS])
def test_gradients_are_finite_where_a_token_sends_no_spike(tiny_tokenizer, reviews, name):
    """As padding does in the paper's design, whose vector is zero."""
    model = classifier(tiny_tokenizer, name).train()
    batch = batch_of([encode(tiny_tokenizer, text) for text in reviews[:4]], extra=4)
    model(**batch, labels=torch.tensor([0, 1, 0, 1])).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("name", ["ternary", "binary", *OLD_DESIGNS])
def test_gradients_reach_every_parameter(tiny_tokenizer, reviews, name):
    changes = {"beta": 0.9, "gain": 1.0} if name == "authors-stage1" else {}  # with tau = 10 its attention is silent
    model = classifier(tiny_tokenizer, name, max_position_embeddings=64, **changes).train()
    batch = batch_of([encode(tiny_tokenizer, reviews[i], reviews[i + 1], 64) for i in range(4)])
    model(**batch, labels=torch.tensor([0, 1, 0, 1])).loss.backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    without = [name for name, grad in grads.items() if grad is None or not grad.any() or not grad.isfinite().all()]
    assert without == []


def test_the_segments_of_a_pair_matter(fresh, tiny_tokenizer, reviews):
    pair = tiny_tokenizer([reviews[0]], [reviews[1]], return_tensors="pt")
    one = fresh(**pair).logits
    assert set(pair["token_type_ids"].flatten().tolist()) == {0, 1}
    assert not torch.allclose(one, fresh(**{**pair, "token_type_ids": 0 * pair["token_type_ids"]}).logits, atol=1e-5)
    turned = tiny_tokenizer([reviews[1]], [reviews[0]], return_tensors="pt")
    assert not torch.allclose(one, fresh(**turned).logits, atol=1e-5)


def test_inputs_that_may_be_left_out_have_the_values_of_a_single_text(fresh, tiny_tokenizer, reviews):
    whole = tiny_tokenizer([reviews[0]], return_tensors="pt")
    assert torch.equal(fresh(whole["input_ids"]).logits, fresh(**whole).logits)


def test_a_model_answers_a_regression_with_one_number_and_its_squared_error(tiny_tokenizer, batch, tmp_path):
    model = classifier(tiny_tokenizer, num_labels=1, problem_type="regression", id2label=None, label2id=None)
    labels = torch.tensor([0.0, 2.5, 4.0, 5.0])
    answer = model(**batch, labels=labels)
    assert answer.logits.shape == (4, 1)
    torch.testing.assert_close(answer.loss, (answer.logits[:, 0] - labels).square().mean())
    save_model(model, tiny_tokenizer, str(tmp_path), {})
    (guess,) = predict(str(tmp_path), ["a good film"])
    assert isinstance(guess["value"], float)


def test_a_text_beyond_the_positions_is_refused_with_both_numbers(tiny_tokenizer):
    model = classifier(tiny_tokenizer, max_position_embeddings=8)
    with pytest.raises(ValueError, match="text of 9 tokens: this model has positions for 8"):
        model(torch.ones(1, 9, dtype=torch.long))


# Folders --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(trained, tiny_tokenizer, tmp_path_factory):
    where = str(tmp_path_factory.mktemp("student"))
    save_model(trained, tiny_tokenizer, where, {"command": "test"})
    return where


def test_a_model_that_was_saved_and_loaded_gives_equal_logits(trained, folder, batch):
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert type(loaded) is SpikeBertForSequenceClassification
    assert torch.equal(loaded(**batch).logits, trained(**batch).logits)
    assert torch.equal(load_classifier(folder).eval()(**batch).logits, trained(**batch).logits)


@pytest.mark.parametrize("name", OLD_DESIGNS)
def test_the_old_designs_are_saved_and_loaded_too(tiny_tokenizer, batch, tmp_path, name):
    model = classifier(tiny_tokenizer, name)
    save_model(model, tiny_tokenizer, str(tmp_path), {})
    assert torch.equal(load_classifier(str(tmp_path)).eval()(**batch).logits, model(**batch).logits)


def test_no_weight_is_changed_by_loading_not_even_the_vector_of_the_padding(fresh, tiny_tokenizer, tmp_path):
    model = copy.deepcopy(fresh)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    save_model(model, tiny_tokenizer, str(tmp_path), {})
    for loaded in (load_classifier(str(tmp_path)), load_encoder(str(tmp_path))):
        mine = model if loaded.__class__ is model.__class__ else model.spikebert
        assert loaded.state_dict().keys() == mine.state_dict().keys()
        assert all(torch.equal(loaded.state_dict()[name], weight) for name, weight in mine.state_dict().items())


def test_one_folder_carries_tokenizer_labels_and_spike_settings(folder, tiny_tokenizer):
    config = transformers.AutoConfig.from_pretrained(folder)
    assert type(config) is SpikeBertConfig
    assert (config.time_steps, config.beta, config.threshold, config.attention_threshold) == (1, 0.9, 0.6, 0.6)
    assert config.code == "ternary"
    assert config.id2label == {0: "negative", 1: "positive"} and config.label2id == {"negative": 0, "positive": 1}
    assert load_tokenizer(folder).get_vocab() == tiny_tokenizer.get_vocab()


def test_every_setting_of_the_neurons_survives_the_folder(tiny_tokenizer, tmp_path):
    settings = {
        "time_steps": 3, "threshold": 0.75, "attention_threshold": 0.375, "scale": 0.25, "beta": 0.8, "reset": "zero",
        "reset_delay": False, "gain": 0.5, "fire": ">", "code": "ternary", "surrogate": "fast_sigmoid", "alpha": 10.0,
        "detach_reset": False,
    }  # fmt: skip
    save_model(classifier(tiny_tokenizer, **settings), tiny_tokenizer, str(tmp_path), {})
    loaded = load_classifier(str(tmp_path))
    assert {name: getattr(loaded.config, name) for name in settings} == settings
    constants = loaded.spikebert.layers[0].feed_forward.input.constants
    shared = settings.keys() & vars(constants).keys()
    assert {name: getattr(constants, name) for name in shared} == {name: settings[name] for name in shared}
    assert loaded.spikebert.layers[0].attention.mixed.constants.threshold == 0.375


def test_the_encoder_of_a_classifier_can_be_loaded_alone(trained, folder, batch):
    encoder = transformers.AutoModel.from_pretrained(folder).eval()
    assert type(encoder) is SpikeBertModel
    assert torch.equal(encoder(**batch).last_hidden_state, trained.spikebert(**batch).last_hidden_state)


def test_a_classifier_can_be_made_from_an_encoder_and_has_a_new_head(trained, tiny_tokenizer, tmp_path):
    save_model(trained.spikebert, tiny_tokenizer, str(tmp_path), {})
    with pytest.raises(ValueError, match=r"weights are missing.*expected a trained classifier"):
        load_classifier(str(tmp_path))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(str(tmp_path), num_labels=3)
    assert model.classifier.weight.shape == (3, 48) and model.classifier.weight.any()
    old = trained.spikebert.state_dict()
    assert all(torch.equal(weight, old[name]) for name, weight in model.spikebert.state_dict().items())


def test_the_pipeline_of_transformers_reads_a_folder(folder, reviews):
    pipe = transformers.pipeline("text-classification", model=folder)
    assert type(pipe.model) is SpikeBertForSequenceClassification
    answer = pipe([reviews[0], reviews[1]], batch_size=2)
    assert [a["label"] in ("negative", "positive") for a in answer] == [True, True]
    ours = predict(folder, [reviews[0], reviews[1]])
    assert [a["label"] for a in answer] == [a["labels"][0] for a in ours]
    assert [a["score"] for a in answer] == pytest.approx([a["probabilities"][0] for a in ours], abs=1e-5)


def test_another_number_of_time_steps_can_be_asked_for(folder, demo):
    result = evaluate(folder, demo, time_steps=2)
    assert result["time_steps"] == 2 and 0.3 <= result["accuracy"] <= 1
    assert set(result["layer_rates"]) and all(0 < rate < 1 for rate in result["layer_rates"].values())


# The designs of the paper and of the authors --------------------------------------------------------------------------


def thresholds(model) -> dict[str, float]:
    return {
        name.removeprefix("layers.0."): module.constants.threshold
        for name, module in model.spikebert.named_modules()
        if hasattr(module, "constants") and name.startswith("layers.0.")
    }


def test_the_paper_has_a_threshold_of_its_own_for_every_neuron_of_the_attention_block(tiny_tokenizer):
    model = classifier(tiny_tokenizer, "paper")
    assert thresholds(model) == {
        "attention.qkv_spikes": 0.25,
        "attention.output_spikes": 0.25,
        "feed_forward.expand_spikes": 1.0,
        "feed_forward.output_spikes": 1.0,
    }
    config = SpikeBertConfig(**PRESETS["paper"])
    sizes = (config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.intermediate_size)
    assert sizes == (768, 12, 12, 3072)
    assert (config.time_steps, config.beta, config.scale, config.reset, config.reset_delay) == (
        4, 0.9, 0.125, "subtract", True
    )  # fmt: skip


@pytest.mark.parametrize(("name", "tau", "time_steps"), [("authors-stage1", 10, 16), ("authors-stage2", 2, 4)])
def test_the_authors_have_one_more_neuron_at_half_the_threshold_and_reset_to_zero(
    tiny_tokenizer, name, tau, time_steps
):
    model = classifier(tiny_tokenizer, name)
    assert thresholds(model) == {
        "attention.mixed": 0.5,
        "attention.qkv_spikes": 1.0,
        "attention.output_spikes": 1.0,
        "feed_forward.expand_spikes": 1.0,
        "feed_forward.output_spikes": 1.0,
    }
    config = model.config
    assert config.time_steps == time_steps and config.reset == "zero"
    assert (config.beta, config.gain) == pytest.approx((1 - 1 / tau, 1 / tau))
    assert PRESETS[name]["num_attention_heads"] == 8


def test_ours_has_a_low_threshold_before_the_output_of_attention_alone(fresh):
    assert {name: t for name, t in thresholds(fresh).items() if t != 1.0} == {"attention.mixed": 0.25}


@pytest.mark.parametrize("name", OLD_DESIGNS)
def test_the_old_designs_add_spikes_to_spikes_so_that_a_linear_reads_integers(tiny_tokenizer, batch, name):
    model = classifier(tiny_tokenizer, name, beta=0.9, gain=1.0)  # a neuron that fires: tau = 10 is silent at birth
    hidden = model(**batch, output_hidden_states=True).hidden_states
    for block, residual in enumerate(hidden[1:], 1):
        assert torch.equal(residual, residual.round())
        assert residual.min() >= 0 and residual.max() <= 1 + 2 * block
    assert hidden[-1].max() > 1
    seen = linear_inputs(model, batch)
    assert values(seen["spikebert.layers.0.attention.qkv"]) == {0.0, 1.0}
    assert max(values(seen["spikebert.layers.1.attention.qkv"])) > 1
    counts = seen["spikebert.layers.0.attention.output"]
    if name == "paper":
        assert torch.equal(counts / 0.125, (counts / 0.125).round()) and len(values(counts)) > 2
    else:
        assert values(counts) == {0.0, 1.0}


@pytest.mark.parametrize("name", OLD_DESIGNS)
def test_gradients_of_deep_networks_of_the_old_designs_are_no_explosion(tiny_tokenizer, batch, name):
    model = classifier(tiny_tokenizer, name, num_hidden_layers=12)
    answer = model(**batch, output_hidden_states=True, labels=torch.tensor([0, 1, 0, 1]))
    (answer.loss + answer.hidden_states[-1].mean()).backward()
    length = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    assert 0 < length < 1e3


@pytest.mark.parametrize("name", ["authors-stage1", "authors-stage2"])
def test_the_input_spikes_of_the_authors_are_the_sign_of_the_embedding_at_every_step(tiny_tokenizer, batch, name):
    model = classifier(tiny_tokenizer, name)
    embedding = model.spikebert.embeddings.word(batch["input_ids"])
    expected = (embedding >= 0).float().expand(model.config.time_steps, *embedding.shape)
    assert torch.equal(model.spikebert.start(embedding), expected)
    zero = torch.zeros(1, 1, 32)
    assert (model.spikebert.start(zero) == 1).all(), "zero is not below zero"


def test_the_input_spikes_of_the_paper_are_those_of_its_neuron_on_the_embedding(tiny_tokenizer, batch):
    model = classifier(tiny_tokenizer, "paper")
    embedding = model.spikebert.embeddings.word(batch["input_ids"])
    membrane, before = torch.zeros_like(embedding), torch.zeros_like(embedding)
    for spikes in model.spikebert.start(embedding):
        membrane = embedding + 0.9 * membrane - before
        before = (membrane >= 1).float()
        assert torch.equal(spikes, before)


@pytest.mark.parametrize("name", OLD_DESIGNS)
def test_the_old_designs_do_not_see_the_order_of_tokens_and_do_see_padding(tiny_tokenizer, reviews, name):
    model = classifier(tiny_tokenizer, name, beta=0.9, gain=1.0).double()
    text = encode(tiny_tokenizer, reviews[0])
    ids = torch.tensor([text["input_ids"]])
    shuffled = ids[:, torch.randperm(ids.shape[1], generator=torch.Generator().manual_seed(0))]
    with torch.inference_mode():
        logits = model(ids).logits
        torch.testing.assert_close(model(shuffled).logits, logits, rtol=0, atol=1e-10)
        padded = model(**batch_of([text], extra=20)).logits
    assert (padded - logits).abs().max() > 1e-4


def test_ours_does_see_the_order_of_tokens(fresh, tiny_tokenizer, reviews):
    ids = torch.tensor([encode(tiny_tokenizer, reviews[0])["input_ids"]])
    assert (fresh(ids).logits - fresh(ids.flip(1)).logits).abs().max() > 1e-5


# Configs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"design": "mine"}, "design: expected default, paper or authors, got 'mine'"),
        ({"hidden_size": 30}, r"hidden_size \(30\) must be a multiple of num_attention_heads \(4\)"),
        ({"time_steps": 0}, "time_steps: expected at least 1, whole; got 0"),
        ({"code": "integer"}, "expected time_steps 1, got 4"),
        ({"code": "octal"}, "neuron code: expected one of binary, ternary, integer, got 'octal'"),
        ({"beta": 1.5}, "neuron beta: expected a share between 0 and 1, got 1.5"),
        ({"threshold": 0.0}, "neuron threshold: expected a number above 0, got 0.0"),
        ({"attention_threshold": 0.0}, "threshold: expected a number above 0, got 0.0"),
        ({"attention_threshold": -1.0}, "threshold: expected a number above 0, got -1.0"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"levels": 0}, "neuron levels: expected at least 1"),
        ({"reset": "never"}, "neuron reset: expected one of subtract, zero, got 'never'"),
        ({"fire": "="}, "neuron fire"),
        ({"surrogate": "step"}, "neuron surrogate"),
        ({"time_steps": 2.5}, "time_steps"),
    ],
)
def test_settings_that_do_not_fit_are_refused_with_their_name_and_value(wrong, message):
    with pytest.raises((ValueError, StrictDataclassError)) as caught:
        SpikeBertConfig(**{**TINY, **wrong})
    assert re.search(message, f"{caught.value} {caught.value.__cause__ or ''}")


# The start from a teacher ---------------------------------------------------------------------------------------------


@pytest.fixture
def teacher(tiny_teacher):
    return load_encoder(tiny_teacher)


PAIRS = [(1, 1), (2, 2)]


def test_a_student_of_the_teachers_sizes_takes_all_but_norms_before_neurons_and_what_is_added(
    tiny_student_config, teacher
):
    torch.manual_seed(1)
    student = SpikeBertModel(tiny_student_config)
    before = {name: parameter.clone() for name, parameter in student.named_parameters()}
    assert initialise_from_teacher(student, teacher, PAIRS) == 5 + 2 * 4
    theirs, mine = teacher.state_dict(), student.state_dict()
    for name, source in {
        "embeddings.word.weight": "embeddings.word_embeddings.weight",
        "embeddings.position.weight": "embeddings.position_embeddings.weight",
        "embeddings.segment.weight": "embeddings.token_type_embeddings.weight",
        "embeddings.norm.weight": "embeddings.LayerNorm.weight",
        "embeddings.norm.bias": "embeddings.LayerNorm.bias",
    }.items():
        assert torch.equal(mine[name], theirs[source]), name
    for number in range(2):
        here, there = f"layers.{number}.", f"encoder.layer.{number}."
        for kind in ("weight", "bias"):
            assert torch.equal(mine[f"{here}feed_forward.expand.{kind}"], theirs[f"{there}intermediate.dense.{kind}"])
            for name in ("attention.output", "feed_forward.output"):
                assert not mine[f"{here}{name}.{kind}"].any(), name
            parts = mine[f"{here}attention.qkv.{kind}"].chunk(3)
            for part, name in zip(parts, ("query", "key", "value"), strict=True):
                assert torch.equal(part, theirs[f"{there}attention.self.{name}.{kind}"]), name
    norms = [name for name in before if "spikes" in name or ".input." in name or ".mixed." in name]
    assert len(norms) == 2 * 2 * 5 and all(torch.equal(before[name], mine[name]) for name in norms)


def test_the_embedding_of_such_a_student_is_the_teachers(tiny_student_config, teacher, batch):
    student = SpikeBertModel(tiny_student_config).eval()
    initialise_from_teacher(student, teacher, PAIRS)
    theirs = teacher.eval()(**batch, output_hidden_states=True).hidden_states[0]
    torch.testing.assert_close(student(**batch).embedding, theirs)


def test_such_a_student_adds_nothing_yet_but_learns_to_in_every_sublayer(tiny_student_config, teacher, batch):
    """Its first features are the embedding; after one step each weight of a sublayer has a gradient."""
    student = SpikeBertModel(tiny_student_config)
    initialise_from_teacher(student, teacher, PAIRS)
    answer = student(**batch)
    torch.testing.assert_close(answer.last_hidden_state, student.start(answer.embedding))
    step = torch.optim.SGD(student.parameters(), lr=0.1)
    for _ in range(2):
        step.zero_grad()
        student(**batch).last_hidden_state.square().mul(torch.arange(1.0, 33.0)).mean().backward()
        step.step()
    linears = [name for name, module in student.named_modules() if isinstance(module, torch.nn.Linear)]
    assert len(linears) == 2 * 4
    assert all(student.get_submodule(name).weight.grad.any() for name in linears)


def test_the_layer_pairs_say_which_layer_comes_from_which(tiny_student_config, teacher):
    student = SpikeBertModel(tiny_student_config)
    old = student.layers[0].feed_forward.expand.weight.clone()
    assert initialise_from_teacher(student, teacher, [(2, 1)]) == 5 + 4
    theirs = teacher.encoder.layer[0].intermediate.dense.weight
    assert torch.equal(student.layers[1].feed_forward.expand.weight, theirs)
    assert torch.equal(student.layers[0].feed_forward.expand.weight, old)
    assert student.layers[0].attention.output.weight.any() and not student.layers[1].attention.output.weight.any()


@pytest.mark.parametrize(
    ("changes", "copied"),
    [
        ({"vocab_size": 50}, 5 - 1 + 2 * 4),
        ({"max_position_embeddings": 16}, 5 - 1 + 2 * 4),
        ({"intermediate_size": 48}, 5 + 2 * 2),
        ({"hidden_size": 16}, 0),
    ],
)
def test_shapes_that_do_not_fit_are_left_as_they_were(tiny_tokenizer, teacher, changes, copied):
    student = SpikeBertModel(student_config(tiny_tokenizer, **changes))
    before = {name: parameter.clone() for name, parameter in student.named_parameters()}
    assert initialise_from_teacher(student, teacher, PAIRS) == copied
    changed = {name for name, parameter in student.named_parameters() if not torch.equal(parameter, before[name])}
    zeroed = {name for name in changed if ".output." in name}  # only where the Linear before came over
    assert len(changed - zeroed) <= copied
    assert {name.replace("output", "qkv") for name in zeroed if "attention" in name} <= changed
    assert {name.replace("output", "expand") for name in zeroed if "feed" in name} <= changed
    assert all(parameter.isfinite().all() for parameter in student.parameters())


@pytest.mark.parametrize("name", OLD_DESIGNS)
def test_a_student_of_an_old_design_still_has_input_spikes_after_its_start_from_a_teacher(
    tiny_tokenizer, teacher, batch, name
):
    """The word vectors of a BERT are far below a threshold of 1: the paper's input neuron never fires on them."""
    student = classifier(tiny_tokenizer, name).spikebert
    initialise_from_teacher(student, teacher, PAIRS)
    rate = float(student.start(student.embeddings(batch["input_ids"], None)).detach().mean())
    assert 0.01 <= rate <= 0.6


def test_the_conventions_of_hugging_face_are_kept(tiny_tokenizer):
    ids = torch.ones(2, 5, dtype=torch.long)
    model = classifier(tiny_tokenizer)
    assert isinstance(model(ids, return_dict=False), tuple) and not model.accepts_loss_kwargs
    assert model(ids).hidden_states is None and model(ids).attentions is None
    model.config.output_hidden_states = True
    layers = model.config.num_hidden_layers
    assert len(model(ids).hidden_states) == 1 + layers and len(model.spikebert(ids).hidden_states) == layers
    assert model(ids, output_hidden_states=False).hidden_states is None
    model.config.return_dict = False
    assert torch.equal(model(ids)[0], model(ids, return_dict=True).logits)


def test_several_labels_of_a_text_are_learned_by_binary_cross_entropy(tiny_tokenizer):
    ids, labels = torch.ones(2, 5, dtype=torch.long), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    answer = classifier(tiny_tokenizer, problem_type="multi_label_classification")(ids, labels=labels)
    assert torch.equal(answer.loss, nn.functional.binary_cross_entropy_with_logits(answer.logits, labels))


@pytest.mark.parametrize("design", [{}, {"design": "paper"}])
def test_an_empty_batch_has_no_logits(design, tiny_tokenizer):
    nothing = torch.zeros(0, 5, dtype=torch.long)
    assert classifier(tiny_tokenizer, **design)(nothing, torch.ones_like(nothing)).logits.shape == (0, 2)
