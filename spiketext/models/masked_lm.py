"""A spiking encoder that finds hidden tokens: the encoder of `spikebert` under a head of the vocabulary's size."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import MaskedLMOutput
from transformers.utils import can_return_tuple

from spiketext.models.spikebert import SpikeBertConfig, SpikeBertModel, SpikeBertPreTrainedModel, head_neurons
from spiketext.neurons import SpikeLinear


class SpikeBertForMaskedLM(SpikeBertPreTrainedModel):
    """Token ids [B, L] -> logits [B, L, V]: mean over steps of the head's Linear, which reads spikes.

    The Linear has weights of its own and not those of the word embedding: word vectors of the designs paper and
    authors are far too long for it, and in the default design [PAD] is to stay at zero.
    """

    def __init__(self, config: SpikeBertConfig):
        super().__init__(config)
        self.spikebert = SpikeBertModel(config)
        self.head_spikes = head_neurons(config)
        self.decoder = SpikeLinear(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The head's Linear."""
        return self.decoder

    def set_output_embeddings(self, value: Any) -> None:
        """Replace the head's Linear."""
        self.decoder = value

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> MaskedLMOutput:
        """labels [B, L], -100 where nothing is to be found: with them the mean cross-entropy over the others."""
        asked = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        encoded = self.spikebert(input_ids, attention_mask, token_type_ids, **asked, return_dict=True)
        logits = self.decoder(self.head_spikes(encoded.last_hidden_state)).mean(0)
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        hidden = None if encoded.hidden_states is None else (encoded.embedding, *encoded.hidden_states)
        return MaskedLMOutput(loss=loss, logits=logits, hidden_states=hidden, attentions=encoded.attentions)
