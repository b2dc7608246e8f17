"""The audit: what is not spiking is not called so, and the doctor's threshold revives the layer it was written for."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn import functional

from spiketext.audit import HIGHEST, LOWEST, audit, require_spiking, suggest
from spiketext.checkpoints import load_classifier, load_tokenizer
from spiketext.cli import main
from spiketext.counting import count
from spiketext.energy import work
from spiketext.models.spikebert import SpikingFeedForward, SpikingSelfAttention
from spiketext.neurons import LIF, NormLIF
from spiketext.values import Values, read


def test_every_layer_of_the_default_network_reads_binary_spikes(saved):
    result = audit(saved(), "demo", limit=12, strict=True)
    assert result["impure"] == [] and result["declared"] == "binary"
    assert {row["reads"] for row in result["layers"]} == {"binary"}
    assert len(result["layers"]) == 2 * (4 + 2) + 1  # Linears and products of each block, the classifier
    assert result["not_spiking"] == ["additions", "embedding", "norm"]


def test_squares_of_counts_are_named_as_not_spiking_and_priced_as_multiplications(saved, demo):
    folder = saved("ternary")
    result = audit(folder, "demo", limit=12, strict=True)
    assert result["impure"] == [] and result["not_spiking"] == ["additions", "embedding", "norm", "squares"]
    texts = demo.splits["validation"].texts[:5]
    network, tokenizer = load_classifier(folder), load_tokenizer(folder)
    lengths = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    account = work(count(network, tokenizer, texts))
    assert account.mac == pytest.approx(2 * 4 * sum(length**2 for length in lengths) / 5)  # 2 blocks of 4 heads
    assert work(count(load_classifier(saved("ternary", attention="counts")), tokenizer, texts)).mac == 0


def test_the_published_network_is_found_to_read_integers(saved, capsys):
    folder = saved("paper")
    result = audit(folder, "demo", limit=12)
    reads = {row["layer"]: row["reads"] for row in result["layers"]}
    assert reads["spikebert.layers.0.attention.qkv"] == "binary"  # the input spikes
    assert reads["spikebert.layers.1.attention.qkv"] == "integer"  # spikes added to spikes
    assert reads["spikebert.layers.0.attention.output"] == "integer"
    assert reads["classifier"] == "float"
    impure = {name for name, kind in reads.items() if kind not in ("binary",)}
    assert set(result["impure"]) == impure
    assert main(["audit", "--model", folder, "--data", "demo", "--limit", "12", "--strict"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"{len(impure)} of 13 layers that must be spiking are not" in error
    assert main(["audit", "--model", folder, "--data", "demo", "--limit", "12"]) == 0


@pytest.mark.parametrize(
    ("code", "kind"),
    [({"code": "ternary"}, "ternary"), ({"code": "integer", "time_steps": 1, "signed": True}, "signed integer"),
     ({"code": "integer", "time_steps": 1}, "integer")],
    ids=["ternary", "signed", "integer"],
)  # fmt: skip
def test_a_declared_code_is_accepted_and_named(saved, code, kind):
    result = audit(saved(**code), "demo", limit=12, strict=True)
    assert kind in result["declared"]
    row = next(row for row in result["layers"] if row["layer"].endswith("layers.1.feed_forward.expand"))
    assert row["reads"] == kind
    if kind != "integer":
        assert row["sent as"] == "ON/OFF pairs" and row["density"] < 0.5  # of twice as many binary inputs


def test_a_declared_code_does_not_excuse_sums_of_spikes(saved):
    result = audit(saved("paper", code="integer", time_steps=1, levels=1), "demo", limit=12)
    above = [row["layer"] for row in result["layers"] if row["reads"] == "integer" and row["high"] > 1]
    assert "spikebert.layers.1.attention.qkv" in above
    assert set(above) <= set(result["impure"])


PLANTS = {  # what a feed-forward multiplies by the weight of its first Linear, which nobody calls
    "functional.linear": lambda x, w: functional.linear(x, w),
    "mm": lambda x, w: torch.mm(x.flatten(0, -2), w.T).view(*x.shape[:-1], -1),
    "addmm": lambda x, w: torch.addmm(w.new_zeros(()), x.flatten(0, -2), w.T).view(*x.shape[:-1], -1),
    "baddbmm": lambda x, w: x.flatten(0, 1).new_zeros(1, 1, 1).baddbmm(x.flatten(0, -2)[None], w.T[None])[0].view(
        *x.shape[:-1], -1),
    "einsum": lambda x, w: torch.einsum("tbld,ed->tble", x, w),
    "conv1d": lambda x, w: functional.conv1d(x.flatten(0, 1).mT, w[..., None]).mT.unflatten(0, x.shape[:2]),
}  # fmt: skip


@pytest.mark.parametrize("product", PLANTS.values(), ids=list(PLANTS))
def test_a_function_that_multiplies_floats_in_place_of_a_layer_is_found(saved, monkeypatch, product):
    def forward(self, x):
        return self.output(self.expand_spikes(product(x, self.expand.weight)))

    monkeypatch.setattr(SpikingFeedForward, "forward", forward)
    result = audit(saved(), "demo", limit=4)
    blocks = [f"spikebert.layers.{block}.feed_forward" for block in range(2)]
    assert set(result["impure"]) == {f"{block}.{name}" for block in blocks for name in ("products", "expand")}
    with pytest.raises(ValueError, match=r"4 of 15 layers .*first \S+products: expected binary inputs, a product that"):
        require_spiking(result)
    result["impure"] = [name for name in result["impure"] if name.endswith("expand")]
    with pytest.raises(ValueError, match=r"feed_forward\.expand: expected binary inputs, it was never called"):
        require_spiking(result)


@pytest.mark.parametrize("attention", ["counts", "squared"])
def test_a_product_more_than_spiking_attention_declares_is_found(saved, monkeypatch, attention):
    attend = SpikingSelfAttention.attend

    def planted(self, qkv, mask, with_scores):
        mixed, scores = attend(self, qkv, mask, with_scores)
        return mixed + mixed.softmax(-1) @ torch.eye(mixed.shape[-1]), scores

    folder = saved("ternary", attention=attention)
    assert audit(folder, "demo", limit=4, strict=True)["impure"] == []
    monkeypatch.setattr(SpikingSelfAttention, "attend", planted)
    found = [f"spikebert.layers.{block}.attention.products" for block in range(2)]
    assert audit(folder, "demo", limit=4)["impure"] == found


def test_a_dense_network_is_reported_as_dense(tiny_teacher, capsys):
    result = audit(tiny_teacher, "demo", limit=5)
    assert (result["spiking"], result["declared"], result["neurons"], result["impure"]) == (False, "dense", [], [])
    assert {row["spiking"] for row in result["layers"]} == {"dense"}
    with pytest.raises(ValueError, match="is dense"):
        require_spiking(result)
    assert main(["audit", "--model", tiny_teacher, "--data", "demo", "--limit", "5"]) == 0
    assert "dense: no layer of spiking neurons" in capsys.readouterr().out


def test_silent_and_saturated_neurons_are_counted(saved):
    def change(model):
        bias = model.spikebert.layers[0].feed_forward.expand_spikes.bias
        bias[:3], bias[3:8] = -100.0, 100.0

    rows = {row["neurons"]: row for row in audit(saved(change=change), "demo", limit=12)["neurons"]}
    row = rows["spikebert.layers.0.feed_forward.expand_spikes"]
    assert (row["silent"], row["saturated"], row["count"]) == (3, 5, 64)
    assert len(rows) == 2 * 5 + 1


@pytest.mark.parametrize(("state", "scale", "shift"), [("silent", 0.01, 0.0), ("saturated", 3.0, 20.0)])
def test_the_threshold_of_the_doctor_revives_a_layer(saved, state, scale, shift):
    name = "spikebert.layers.1.feed_forward.input"

    def ill(model):
        layer = model.get_submodule(name)
        layer.weight.mul_(scale)
        layer.bias.add_(shift)

    folder = saved(change=ill)
    row = next(row for row in audit(folder, "demo", limit=12)["neurons"] if row["neurons"] == name)
    assert not LOWEST <= row["rate"] <= HIGHEST
    assert row["advice"].startswith(f"{state}: threshold ")

    def cured(model):
        ill(model)
        factor = row["threshold"] / row["suggested"]  # the same as another threshold: what the advice says
        model.get_submodule(name).weight.mul_(factor)
        model.get_submodule(name).bias.mul_(factor)

    again = next(row for row in audit(saved(change=cured), "demo", limit=12)["neurons"] if row["neurons"] == name)
    assert LOWEST < again["rate"] < HIGHEST
    assert again["advice"] == ""


def test_the_doctor_gives_up_where_no_threshold_helps():
    assert suggest(LIF(), torch.zeros(4, 8, 3))[0] is None
    assert suggest(LIF(reset="zero"), torch.full((4, 8, 3), -1.0))[0] is None


def test_densities_are_those_of_the_spikes(saved, tiny_tokenizer, demo):
    folder = saved()
    texts = demo.splits["validation"].texts
    result = audit(folder, "demo", limit=None)
    model, fired, places = load_classifier(folder).eval(), {}, {}

    def record(name):
        def hook(module, args, out):
            fired[name] = fired.get(name, 0) + int((out != 0).sum())
            places[name] = places.get(name, 0) + out.numel()

        return hook

    for name, module in model.named_modules():
        if isinstance(module, NormLIF):
            module.register_forward_hook(record(name))
    with torch.inference_mode():
        for text in texts:
            model(**tiny_tokenizer(text, return_tensors="pt", truncation=True))
    rates = {row["neurons"]: row["rate"] for row in result["neurons"]}
    assert set(rates) == set(fired)
    assert rates == pytest.approx({name: fired[name] / places[name] for name in fired}, abs=1e-4)  # flips in float32


def test_the_command_prints_tables_and_json(saved, capsys):
    folder = saved()
    assert main(["audit", "--model", folder, "--data", "demo", "--limit", "4", "--json", "--strict"]) == 0
    assert json.loads(capsys.readouterr().out)["texts"] == 4
    assert main(["audit", "--model", folder, "--data", "demo", "--limit", "4"]) == 0
    assert "all 13 layers that must be spiking read binary inputs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--split", "dev"], "expected one of"),
        (["--limit", "0"], "at least 1 text"),
        (["--data", "nothing"], "nothing"),
        (["--batch-size", "-32", "--strict"], "batch_size: expected at least 1, got -32"),
    ],
)
def test_bad_input_is_one_clear_line(saved, capsys, argv, said):
    assert main(["audit", "--model", saved(), "--data", "demo", *argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("spiketext audit: ") and error.count("\n") == 1 and said in error


@pytest.mark.parametrize(
    ("values", "kind"),
    [([0.0, 1.0], "binary"), ([0.0, 0.0], "binary"), ([-1.0, 1.0], "ternary"), ([0.0, 2.0], "integer"),
     ([-2.0, 1.0], "signed integer"), ([0.0, 0.5], "float"), ([1.0, 1.0 - 2**-24], "float"), ([0.0, -0.5], "float")],
)  # fmt: skip
def test_kinds_of_values(values, kind):
    padding = [0.0, 1.0]  # the first row, which is looked at first, is whole
    found = read(torch.tensor([[padding, values]]))
    assert found.kind == kind
    assert (found.count, found.low, found.high) == (4, min(values + padding), max(values + padding))
    assert found.density == sum(v != 0 for v in values + padding) / 4
    assert found.mean == (sum(map(abs, values + padding)) / 4 if kind != "float" else None)


@pytest.mark.parametrize("kind", ["binary", "ones", "ternary", "integer", "float"])
def test_windows_that_overlap_are_read_as_their_copies_are(kind):
    draw = torch.Generator().manual_seed(0)
    values = {"binary": torch.randint(0, 2, (4, 3, 9, 5), generator=draw).float(), "ones": torch.ones(4, 3, 9, 5),
              "ternary": torch.randint(-1, 2, (4, 3, 9, 5), generator=draw).float(),
              "integer": torch.randint(0, 4, (4, 3, 9, 5), generator=draw).float(),
              "float": torch.rand(4, 3, 9, 5, generator=draw)}[kind]  # fmt: skip
    windows = values.flatten(-2).unfold(-1, 15, 5)
    found, expected = read(windows), read(windows.contiguous())
    assert found.kind == expected.kind == ("binary" if kind == "ones" else kind)
    assert all(torch.equal(a, b) for a, b in ((found.total, expected.total), (found.nonzero, expected.nonzero)))
    assert (found.count, found.low, found.high) == (expected.count, expected.low, expected.high)
    assert found.total.shape[0] == 4 and found.count == 4 * 3 * 7 * 15


def test_whole_multiples_of_a_constant_are_read_as_whole():
    assert read(torch.tensor([[[0.3, 0.0], [0.7, 0.1]]]), unit=0.1).mean == pytest.approx(11 / 4)
    assert read(torch.tensor([[[0.3, 0.0], [0.75, 0.1]]]), unit=0.1).kind == "float"


def test_sums_over_passes_keep_what_was_seen():
    both = Values()
    both.add(read(torch.tensor([[[0.0, 1.0]]])))
    both.add(read(torch.tensor([[[3.0, 1.0]]])))
    assert (both.kind, both.total.tolist(), both.nonzero.tolist()) == ("integer", [[3.0, 2.0]], [[1.0, 2.0]])
    both.add(read(torch.ones(1, 2, 5)))  # as many features as positions: only the steps are kept
    assert (both.total.tolist(), both.count, both.density) == ([[15.0]], 14, 13 / 14)
