"""Floor 8: masked-language-model training of an encoder, dense or spiking (BERT, Devlin et al. 2019, 3.1)."""

from __future__ import annotations

from copy import copy
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase

from spiketext import checkpoints
from spiketext.batching import Rows, padded
from spiketext.evaluation import longest, model_inputs
from spiketext.fitting import fit
from spiketext.losses import at_least_float32, layer_map
from spiketext.models import SpikeBertForMaskedLM, SpikeBertModel, initialise_from_teacher
from spiketext.options import MlmOptions, StudentOptions
from spiketext.passages import TokenRows, passages
from spiketext.runs import Run
from spiketext.training import DENSE, finish, new_student, prepare

IGNORED = -100  # the target of a token that is not to be found
_MASKED, _OTHER = 0.8, 0.1  # of the tokens to be found become [MASK], or any piece; the rest stays


class MaskedRows(Rows):
    """Passages with hidden tokens. A row has `targets` beside its ids: the token to be found, elsewhere IGNORED.

    Of a passage's tokens a share (rounded, one at least) is to be found: 80 % of them are replaced by the mask, 10 % by
    any piece, 10 % stay. Special tokens, unknown ones too, are left alone. The draw is new in every epoch and keyed by
    (seed, epoch, row of the token file): it depends on no other row.
    """

    def __init__(self, rows: TokenRows, tokenizer: PreTrainedTokenizerBase, share: float, seed: int):
        self.rows, self.share, self.seed = rows, share, seed
        self.lengths, self.pad, self.mask = rows.lengths, rows.pad, tokenizer.mask_token_id
        self.special = np.asarray(tokenizer.all_special_ids)
        self.pieces = np.setdiff1d(np.arange(len(tokenizer)), self.special)

    def __getitem__(self, index: tuple[int, int]) -> dict[str, Any]:
        epoch, row = index
        found = self.rows[index]
        ids = np.asarray(found["input_ids"])
        draw = np.random.default_rng([self.seed, epoch, int(self.rows.chosen[row])])
        free = draw.permutation(self._free(ids))
        chosen = free[: max(1, round(self.share * len(free)))]
        targets = np.full_like(ids, IGNORED)
        targets[chosen] = ids[chosen]
        u, other = draw.random(len(chosen)), self.pieces[draw.integers(len(self.pieces), size=len(chosen))]
        ids[chosen] = np.select([u < _MASKED, u < _MASKED + _OTHER], [self.mask, other], ids[chosen])
        return found | {"input_ids": ids.tolist(), "targets": targets.tolist()}

    def _free(self, ids: np.ndarray) -> np.ndarray:
        """The places of tokens that may be hidden."""
        return np.flatnonzero(~np.isin(ids, self.special))

    def has_free(self) -> bool:
        """Whether there is a token that may be hidden."""
        return any(len(self._free(np.asarray(self.rows.file[row]))) for row in self.rows.chosen)

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """As `Rows.collate`, and targets [B, L]."""
        return super().collate(rows) | {"targets": padded(rows, "targets", IGNORED)}


def logits_at(model: PreTrainedModel, inputs: dict[str, Tensor], places: Tensor) -> Tensor:
    """Logits [M, V] of a masked language model at the M places [B, L] that are true, row by row.

    Only their vectors go from the encoder to the head: at 15 % of the tokens it would be most of the work of a small
    network. An encoder answers [B, L, D] or, spiking, [T, B, L, D].
    """
    wanted = places.flatten().nonzero().squeeze(-1)

    def select(module: nn.Module, arguments: tuple, answer: Any) -> Any:
        answer["last_hidden_state"] = answer[0].flatten(-3, -2).index_select(-2, wanted).unsqueeze(-3)
        return answer

    handle = model.base_model.register_forward_hook(select)
    try:
        return model(**inputs).logits.squeeze(0)
    finally:
        handle.remove()


class MaskedObjective(nn.Module):
    """Find the hidden tokens; an objective as `training.LabelObjective`."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        super().__init__()
        self.model, self.tokenizer, self.weights = model, tokenizer, {"masked": 1.0}

    def forward(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Term: masked, the mean cross-entropy of the hidden tokens, in nats.

        Answers [B, 3]: of each passage the sum of the cross-entropies, how many tokens were found, how many hidden.
        """
        places = batch["targets"] != IGNORED
        targets = batch["targets"][places]
        logits = at_least_float32(logits_at(self.model, model_inputs(self.tokenizer, batch), places))
        losses = F.cross_entropy(logits, targets, reduction="none")
        right = logits.argmax(-1) == targets
        each = torch.stack([losses.detach(), right.to(losses), torch.ones_like(losses)], 1)
        answers = each.new_zeros(len(places), 3).index_add_(0, places.nonzero()[:, 0], each)
        return {"masked": losses.sum() / max(len(losses), 1)}, answers

    def counts(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """How many tokens the term is a mean over."""
        return {"masked": (batch["targets"] != IGNORED).sum()}


def loss_and_accuracy(answers: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Answers [N, 3] of `MaskedObjective` -> nats for each hidden token, and the share that was found."""
    loss, right, hidden = answers.sum(0, dtype=np.float64)
    return {"loss": float(loss / hidden), "accuracy": float(right / hidden)}


def mlm(options: MlmOptions) -> dict[str, Any]:
    """Train an encoder on unlabelled text to find hidden tokens; saved in options.out with its head and tokenizer.

    Sentences of a line are joined to passages of up to three quarters of max_length in words. The folder is an encoder
    for teacher and pretrain, a student for distill (spiking) and the source of an attack's candidates.
    With a model and a vocabulary the network is new in its words only: a language without an encoder starts from the
    layers of another language's (Artetxe et al. 2020, arXiv 1910.11856).
    Returns validation loss (nats for each hidden token) and accuracy, tokens, seconds, and what is new in the network.
    Raises ValueError for bad options, corpus, vocabulary or model.
    """
    run = Run("mlm", options)
    if run.result is not None:
        return run.result
    prepare(options)
    model, tokenizer, told = _network(options)
    if tokenizer.mask_token is None:
        raise ValueError(f"model {options.model}: its tokenizer has no mask token; take an encoder of BERT's type")
    if options.max_length > longest(model, tokenizer):
        raise ValueError(
            f"max_length: expected at most {longest(model, tokenizer)}, for which the network has positions, "
            f"got {options.max_length}"
        )
    if not 0 < options.hidden < 1:
        raise ValueError(f"hidden: expected a share between 0 and 1, got {options.hidden}")
    found = passages(run, tokenizer, options, size=3 * options.max_length // 4)
    rows, validation = (
        MaskedRows(part, tokenizer, options.hidden, options.seed) for part in (found.train, found.validation)
    )
    if not (rows.has_free() and validation.has_free()):
        raise ValueError(
            f"corpus {options.corpus}: expected words that {options.vocab or options.model} knows, got unknown ones "
            "only, of which none can be hidden; give a vocabulary of its language"
        )
    result = fit(MaskedObjective(model, tokenizer), rows, validation, options, run, loss_and_accuracy)
    result |= told | {"tokens": found.tokens, "passages": len(rows) + len(validation)}
    return finish(run, model, tokenizer, "mlm", None, result)


def _network(options: MlmOptions) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]:
    """The network to train, its tokenizer, and what of it is new."""
    if not options.spiking and (options.preset != MlmOptions.preset or options.time_steps):
        raise ValueError("preset and time_steps: are of a spiking network; add --spiking, or leave them out")
    if options.model is None:
        return _new_network(options)
    known = checkpoints.load_tokenizer(options.model)
    encoder = checkpoints.load_encoder(options.model) if options.spiking or options.vocab else None
    if encoder is None or (isinstance(encoder, SpikeBertModel) and not options.vocab):
        foreign = [one.name for one in fields(StudentOptions) if getattr(options, one.name) != one.default]
        if foreign:
            raise ValueError(f"{', '.join(foreign)}: the network is given by model {options.model}, expected no such "
                             "thing beside it; leave it out")  # fmt: skip
        model, new_head = checkpoints.masked_lm_for_training(options.model)
        return model, known, {"new_head": new_head}
    if isinstance(encoder, SpikeBertModel):
        raise ValueError(f"vocab: expected a dense encoder whose layers are taken over, {options.model} is spiking")
    tokenizer = checkpoints.new_tokenizer(options.vocab) if options.vocab else known
    sizes = copy(encoder.config)
    sizes.vocab_size = len(tokenizer) if options.vocab else sizes.vocab_size
    model = _new_model(options, tokenizer, sizes)
    pairs = layer_map(model.config.num_hidden_layers, encoder.config.num_hidden_layers)
    told = {"new_head": True, "initialised_tensors": initialise_from_teacher(model.base_model, encoder, pairs)}
    if options.vocab:
        told["known_pieces"] = _inherit_pieces(model, tokenizer, encoder, known)
    return model, tokenizer, told


@torch.no_grad()
def _inherit_pieces(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoder: PreTrainedModel,
    known: PreTrainedTokenizerBase,
) -> int:
    """Word vectors of another vocabulary in place: those of pieces that both have, and how many; the rest like them.

    The rest is normal with the mean and deviation of the encoder's vectors in each dimension. With another width than
    the encoder's nothing is taken over.
    """
    mine, theirs = (next(network.get_input_embeddings().parameters()) for network in (model, encoder))
    if mine.shape[1] != theirs.shape[1]:
        return 0
    mine.copy_(theirs.mean(0) + theirs.std(0) * torch.randn_like(mine))
    here, there = tokenizer.get_vocab(), known.get_vocab()
    shared = sorted(here.keys() & there.keys())
    mine[[here[piece] for piece in shared]] = theirs[[there[piece] for piece in shared]]
    return len(shared)


def _new_network(options: MlmOptions) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]:
    if not options.vocab:
        raise ValueError("mlm: expected --model NAME to start from, or --vocab FILE for a new network; give one")
    tokenizer = checkpoints.new_tokenizer(options.vocab)
    model = _new_model(options, tokenizer)
    return model, tokenizer, {"new_head": True, "lower_case": bool(tokenizer.do_lower_case)}


def _new_model(options: MlmOptions, tokenizer: PreTrainedTokenizerBase, sizes: Any = None) -> PreTrainedModel:
    config = new_student(options if options.spiking else replace(options, preset=DENSE), tokenizer, sizes)
    return BertForMaskedLM(config) if isinstance(config, BertConfig) else SpikeBertForMaskedLM(config)
