"""Integer models sent as binary spikes: the numbers stay, every Linear and every product reads 0 and 1."""

from __future__ import annotations

import pytest
import torch

from spiketext.models import SpikeBertConfig, SpikeBertForSequenceClassification, unroll
from spiketext.models.unrolling import binary_steps
from spiketext.neurons import LIF, SpikeLinear
from spiketext.ops import kernels
from spiketext.ops import linear as room


def integer_model(tokenizer, tiny_sizes, **settings):
    torch.manual_seed(0)
    config = SpikeBertConfig(
        **tiny_sizes, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, num_labels=3,
        max_position_embeddings=256, code="integer", time_steps=1, **settings,
    )  # fmt: skip
    model = SpikeBertForSequenceClassification(config).double().eval()
    for module in model.modules():  # off the symmetric start, so that codes of all sizes and signs occur
        if isinstance(module, LIF) and hasattr(module, "weight"):
            torch.nn.init.normal_(module.weight, 1.5, 0.5)
            torch.nn.init.normal_(module.bias, 0.3, 0.5)
    return model


@pytest.mark.parametrize("attention", ["counts", "squared"])
@pytest.mark.parametrize("settings", [{"levels": 4}, {"levels": 2, "signed": True}, {"levels": 1}], ids=str)
def test_unrolled_codes_and_logits_are_the_same(
    settings, attention, tiny_tokenizer, tiny_student_config, demo, monkeypatch
):
    sizes = {k: getattr(tiny_student_config, k) for k in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    model = integer_model(tiny_tokenizer, {**sizes, "intermediate_size": 64}, attention=attention, **settings)
    twin = unroll(model)
    texts = demo.splits["test"].texts[:40]
    batch = tiny_tokenizer(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
    codes: dict = {}
    operands: list = []
    for which, network in enumerate((model, twin)):
        for name, module in network.named_modules():
            if isinstance(module, LIF):
                module.register_forward_hook(lambda m, i, o, key=(which, name): codes.update({key: o}))
    real = room.linear
    monkeypatch.setattr(kernels, "load", lambda: None)  # every Linear then runs as its definition
    with torch.inference_mode():
        expected = model(**batch).logits
        monkeypatch.setattr(room, "linear", lambda x, *rest: operands.append(x) or real(x, *rest))
        got = twin(**batch).logits
    assert torch.allclose(got, expected, atol=1e-10, rtol=0)
    names = [name for which, name in codes if which == 0]
    assert len(names) == 11
    for name in names:
        assert torch.equal(codes[0, name], codes[1, name]), name
    seen = torch.cat([codes[0, name].flatten() for name in names]).unique().tolist()
    lowest = -settings["levels"] if settings.get("signed") else 0
    assert seen == list(range(lowest, settings["levels"] + 1))
    assert len(operands) == 9 * settings["levels"] * (2 if settings.get("signed") else 1)
    assert all(set(x.unique().tolist()) <= {0.0, 1.0} for x in operands)


@pytest.mark.parametrize("attention", ["counts", "squared"])
@pytest.mark.parametrize("settings", [{"levels": 4}, {"levels": 2, "signed": True}], ids=str)
def test_unrolled_products_are_exact_in_half_precision_too(settings, attention, tiny_tokenizer, tiny_student_config):
    """Counts go beyond 256, where bf16 ends: they are added up in float32, in bf16 models and under autocast."""
    sizes = {k: getattr(tiny_student_config, k) for k in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    model = integer_model(tiny_tokenizer, {**sizes, "intermediate_size": 64}, attention=attention, **settings)
    low = -settings["levels"] if settings.get("signed") else 0
    qkv = torch.randint(low, settings["levels"] + 1, (1, 2, 200, 3, 32), generator=torch.Generator().manual_seed(0))
    networks = [each.spikebert.layers[0].attention for each in (model, unroll(model))]
    expected, _ = networks[0].attend(qkv.double(), None, with_scores=False)
    assert expected.abs().max() > 256
    for dtype, autocast in ((torch.bfloat16, False), (torch.float32, True)):
        for network in networks:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                found, _ = network.attend(qkv.to(dtype), None, with_scores=False)
            assert found.dtype == torch.float32 and torch.equal(found.double(), expected)


def test_every_linear_of_an_unrolled_model_is_swapped(tiny_tokenizer, tiny_student_config):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    twin = unroll(integer_model(tiny_tokenizer, sizes))
    assert not [name for name, module in twin.named_modules() if type(module) is SpikeLinear]
    assert type(twin.spikebert.layers[0].attention).__name__ == "UnrolledAttention"


def test_binary_steps_add_up():
    codes = torch.tensor([0.0, 1, 2, 3, 4])
    steps = binary_steps(codes, 4)
    assert torch.equal(steps.sum(0), codes) and set(steps.unique().tolist()) == {0.0, 1.0}
    signed = torch.tensor([-2.0, -1, 0, 1, 2])
    pair = binary_steps(signed, 2, signed=True)
    assert pair.shape == (2, 2, 5) and torch.equal(pair[:, 0].sum(0) - pair[:, 1].sum(0), signed)
    assert not (pair[:, 0] * pair[:, 1]).any()


def test_only_integer_models_of_our_design_unroll(tiny_tokenizer, tiny_student_config):
    with pytest.raises(ValueError, match="expected a spikebert of the default design with the integer code"):
        unroll(SpikeBertForSequenceClassification(tiny_student_config))
    with pytest.raises(ValueError, match="expected a spikebert of the default design"):
        unroll(SpikeBertForSequenceClassification(SpikeBertConfig(num_hidden_layers=1, design="paper")))


def test_an_empty_batch_has_empty_logits(tiny_tokenizer):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    model = integer_model(tiny_tokenizer, sizes)
    nothing = {"input_ids": torch.zeros(0, 5, dtype=torch.long), "attention_mask": torch.ones(0, 5)}
    assert model(**nothing).logits.shape == unroll(model)(**nothing).logits.shape == (0, 3)
