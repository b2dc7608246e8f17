"""Floor 0: what can be asked of a training run. One dataclass for each stage; the text of a field is its --help.

A field's type and the bounds beside it are checked when options are made, so that flags, TOML and Python get the same
lines; what depends on more than one value is checked where it is used. Nothing heavy is imported here, so that the
command line answers at once.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, field, fields
from typing import Any

_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "bool": ((bool,), "true or false"),
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "str": ((str,), "text"),
}
_BOUNDS = {
    "above": operator.gt,
    "at_least": operator.ge,
    "at_most": operator.le,
    "below": operator.lt,
    "one_of": lambda value, known: value in known,
}
_TERMS = ("feature_weight", "embedding_weight", "logit_weight", "label_weight")


def _option(default: Any, text: str, **bounds: Any) -> Any:
    """A field; bounds are some of `_BOUNDS`, and hold where the value is not None."""
    return field(default=default, metadata={"help": text, "bounds": bounds})


class _Checked:
    """Options whose values are of the declared types and within their bounds."""

    def __post_init__(self) -> None:
        """Raises ValueError for the first value that is not."""
        for one in fields(self):  # type: ignore[arg-type]
            _check(one.name, str(one.type), one.metadata["bounds"], getattr(self, one.name))


def _check(name: str, declared: str, bounds: dict[str, Any], value: Any) -> None:
    kind, _, optional = declared.partition(" | ")
    if value is None and optional:
        return
    types, wanted = _KINDS[kind]
    fits = isinstance(value, types) and (kind == "bool" or not isinstance(value, bool))
    fits = fits and (isinstance(value, str) or math.isfinite(value))
    if not fits or not all(_BOUNDS[bound](value, limit) for bound, limit in bounds.items()):
        limits = [f"{bound.replace('_', ' ')} {', '.join(limit) if bound == 'one_of' else limit}"
                  for bound, limit in bounds.items()]  # fmt: skip
        raise ValueError(f"{name}: expected {', '.join([wanted, *limits])}; got {value!r}")


@dataclass(frozen=True)
class DataOptions(_Checked):
    """How labelled texts are read."""

    data: str = _option(
        "", "name of a built-in set, a .csv, .tsv, .jsonl or .parquet file, a folder of them, or owner/name of the Hub"
    )
    data_dir: str | None = _option(None, "folder of the built-in sets; default: SPIKETEXT_DATA")
    text_column: str | None = _option(None, "column of the text")
    pair_column: str | None = _option(None, "column of the second text of a pair")
    label_column: str | None = _option(None, "column of the label")
    delimiter: str | None = _option(None, "separator of the columns")
    encoding: str = _option("utf-8", "encoding of a file of yours")
    task: str | None = _option(None, "classification or regression")
    skip_bad_rows: bool = _option(False, "drop and count rows without text or label, or of one text and two labels")


@dataclass(frozen=True)
class TaskOptions(DataOptions):
    """How labelled texts are learned."""

    class_weights: str = _option("none", "none, or balanced: in the label loss a rare class counts as much as another",
                                 one_of=("none", "balanced"))  # fmt: skip


@dataclass(frozen=True)
class TrainingOptions(_Checked):
    """What every stage has."""

    out: str = _option("", "folder of the result; the same command again resumes")
    epochs: float = _option(3.0, "passes over the rows", above=0)
    batch_size: int = _option(32, "texts in one optimiser step", at_least=1)
    micro_batch: int = _option(
        32, "texts in one forward pass; smaller needs less memory and accumulates gradients", at_least=1
    )
    learning_rate: float = _option(5e-5, "peak, after the warm-up", above=0)
    weight_decay: float = _option(5e-3, "AdamW's", at_least=0)
    warmup: float = _option(
        0.05, "share of the steps with rising learning rate, which then falls linearly", at_least=0, below=1
    )
    max_grad_norm: float = _option(1.0, "clip the gradient at this length; 0: never", at_least=0)
    recompute: bool = _option(False, "keep a block's input only and run the block again in backward: memory for time")
    max_length: int = _option(128, "tokens kept of a text", at_least=2, at_most=512)
    truncation: str = _option("head", "what is kept of a longer text: head, or head-tail (half of the tokens each)",
                              one_of=("head", "head-tail"))  # fmt: skip
    seed: int = _option(0, "of all random draws", at_least=0, at_most=2**32 - 1)
    evals_per_epoch: int = _option(1, "validations (and checkpoints) in each epoch", at_least=1)
    patience: int = _option(3, "stop after so many validations without a better one", at_least=1)
    threads: int = _option(0, "threads of the computation; 0: all cores", at_least=0)
    precision: str = _option("auto", "auto (bf16 where the CPU computes in it, float32 on a GPU), float32 or bf16",
                             one_of=("auto", "float32", "bf16"))  # fmt: skip
    quiet: bool = _option(False, "no progress bar")


@dataclass(frozen=True)
class TeacherOptions(TrainingOptions, TaskOptions):
    """Fine-tune a BERT-type teacher on a task."""

    model: str = _option("minilm", "minilm (the packaged encoder), a Hugging Face name or a folder")
    epochs: float = _option(4.0, "passes over the rows", above=0)
    weight_decay: float = _option(0.01, "AdamW's", at_least=0)
    warmup: float = _option(
        0.1, "share of the steps with rising learning rate, which then falls linearly", at_least=0, below=1
    )


@dataclass(frozen=True)
class NeuronOptions(_Checked):
    """Constants of spiking neurons. A value left out is the preset's, or that of the model to start from."""

    beta: float | None = _option(None, "share of the membrane kept at a step (the preset's; spiking-textcnn 1)")
    threshold: float | None = _option(None, "membrane at which a neuron fires (the preset's; spiking-textcnn 1)")


@dataclass(frozen=True)
class StudentOptions(NeuronOptions):
    """What a student looks like. Where it is given as a folder only what that says may be asked (mlm: nothing)."""

    preset: str = _option(
        "ternary",
        "of the neurons: ternary (ON/OFF pairs, one step), binary (T = 4), integer, signed; paper, authors-stage1, "
        "authors-stage2: other networks; dense: a BERT, no spikes",
    )
    layers: int = _option(0, "blocks; 0: as many as the teacher (6 without one)")
    width: int = _option(0, "features of a token; 0: as many as the teacher (384 without one)")
    heads: int = _option(
        0, "attention heads, which divide the width; 0: heads as wide as the teacher's (32 without one)"
    )
    time_steps: int = _option(0, "T; 0: the preset's")
    attention: str | None = _option(None, "squared: max(q k^T, 0)^2 v, or counts: (q k^T) v (the preset's)")
    attention_threshold: float | None = _option(None, "of the neurons in the attention (the preset's)")
    alpha: float | None = _option(None, "scale of the surrogate gradient; larger is steeper (the preset's)")


@dataclass(frozen=True)
class RateOptions(_Checked):
    """A budget of spikes: trades accuracy for energy."""

    rate_budget: float = _option(0.1, "mean spikes of a connection at a step that are free of charge")
    rate_weight: float = _option(0.0, "of (rate / budget - 1)^2 above the budget; 0 switches the term off")


@dataclass(frozen=True)
class WordOptions(NeuronOptions):
    """What a TextCNN looks like. A value left out is the default in brackets, or that of the model to start from."""

    vectors: str | None = _option(
        None, "file of word vectors (GloVe or word2vec text, .gz too), folder of `vectors`, or random (random)"
    )
    language: str | None = _option(None, "english or chinese words (what the training texts are written in)")
    activation: str | None = _option(None, "of textcnn: relu or sigmoid (relu)")
    neurons_per_class: int | None = _option(None, "output neurons that vote for each class (textcnn 1, others 10)")
    dropout: float | None = _option(None, "share of the pooled features left out in training (0.5)")
    coding: str | None = _option(None, "of spiking-textcnn: poisson or deterministic input spikes (poisson)")


@dataclass(frozen=True)
class TrainOptions(WordOptions, RateOptions, StudentOptions, TrainingOptions, TaskOptions):
    """Train a classifier without a teacher."""

    model: str = _option("spikebert", "the network: spikebert, textcnn, tailored-textcnn or spiking-textcnn")
    start: str | None = _option(None, "folder of a model to start from")
    tokenizer: str = _option("minilm", "tokenizer of a new network: minilm, a Hugging Face name or a folder")
    epochs: float = _option(5.0, "passes over the rows", above=0)
    learning_rate: float = _option(5e-4, "peak, after the warm-up", above=0)


@dataclass(frozen=True)
class DistillationOptions(RateOptions, StudentOptions, TrainingOptions):
    """What both distillation stages share."""

    teacher: str = _option("minilm", "folder or name of the teacher")
    initialise: bool = _option(True, "start a new student from the teacher's weights where shapes allow")
    layer_map: str = _option("last", "last, first, or pairs student:teacher such as 1:2,2:4")
    teacher_cache: float = _option(
        2.0,
        "GB of a file that keeps, while the run lasts, the teacher's answers to texts that come again; 0: none",
        at_least=0,
    )
    feature_norm: str = _option("euclidean", "euclidean (eq. 6) or mse", one_of=("euclidean", "mse"))
    feature_transform: str = _option(
        "sum-linear-norm", "what is done to a student's features: sum or mean over T, then linear or mlp, norm or none"
    )

    def __post_init__(self) -> None:
        """Raises ValueError also when nothing would be learned from the teacher or the labels."""
        super().__post_init__()
        weights = [one.name for one in fields(self) if one.name in _TERMS]
        if weights and not any(getattr(self, name) for name in weights):
            raise ValueError(f"{', '.join(weights)}: expected one above 0, got 0 for all; nothing would be learned")


@dataclass(frozen=True)
class UnlabelledOptions(_Checked):
    """How unlabelled text is read."""

    corpus: str = _option("", "files and folders of text, separated by commas; .gz and .tar.gz too")
    corpus_encoding: str = _option("utf-8", "encoding of the corpus")
    leave_out: str = _option("", "sets, separated by commas, whose test and validation texts are not read")
    data_dir: str | None = _option(None, "folder of the built-in sets among them; default: SPIKETEXT_DATA")


@dataclass(frozen=True)
class VectorOptions(UnlabelledOptions):
    """Train word vectors on unlabelled text."""

    out: str = _option("", "folder of the result, which --vectors takes")
    language: str | None = _option(None, "english or chinese words (what the corpus is written in)")
    dimension: int = _option(300, "numbers of a vector")
    window: int = _option(5, "words to each side that a word is to predict, at most")
    least: int = _option(5, "how often a word must occur")
    epochs: int = _option(5, "passes over the corpus", at_least=1)
    seed: int = _option(0, "of all random draws", at_least=0, at_most=2**32 - 1)
    threads: int = _option(
        0, "threads of the computation; 0: all cores; with 1 the vectors come out the same again", at_least=0
    )
    quiet: bool = _option(False, "no progress bar")


@dataclass(frozen=True)
class CorpusOptions(UnlabelledOptions, TrainingOptions):
    """How unlabelled text is read and learned."""

    tokens: int = _option(2_000_000, "how many tokens of the corpus to read", at_least=1)
    epochs: float = _option(1.0, "passes over those tokens", above=0)
    learning_rate: float = _option(5e-4, "peak, after the warm-up", above=0)
    evals_per_epoch: int = _option(10, "validations (and checkpoints) in each epoch", at_least=1)


@dataclass(frozen=True)
class MlmOptions(StudentOptions, CorpusOptions):
    """Train an encoder, dense or spiking, to find the tokens that were hidden from it in unlabelled text."""

    model: str | None = _option(None, "encoder to start from: minilm, a Hugging Face name or a folder; else a new one")
    vocab: str | None = _option(None, "file of WordPieces, one a line, of a new network or of new words for --model")
    spiking: bool = _option(False, "train a spiking network; with a dense --model it starts from its weights")
    hidden: float = _option(0.15, "share of the tokens of a passage that are to be found")
    batch_size: int = _option(16, "passages in one optimiser step", at_least=1)
    max_length: int = _option(128, "tokens of a passage, at most as many as the network has positions", at_least=3)


@dataclass(frozen=True)
class PretrainOptions(CorpusOptions, DistillationOptions):
    """Stage 1: imitate the features of a teacher on unlabelled text."""

    batch_size: int = _option(
        8, "texts in one optimiser step; the same text teaches less in larger steps (the paper: 128)", at_least=1
    )
    learning_rate: float = _option(1e-3, "peak, after the warm-up; the paper: 5e-4", above=0)
    max_length: int = _option(64, "tokens kept of a sentence", at_least=2, at_most=512)
    pairs: bool = _option(
        False, "read two sentences as a pair of texts: one and the next that is kept, be it of another line or file"
    )
    feature_weight: float = _option(1.0, "sigma 1 of eq. 7", at_least=0)
    embedding_weight: float = _option(1.0, "sigma 2 of eq. 7", at_least=0)


@dataclass(frozen=True)
class DistillOptions(DistillationOptions, TaskOptions):
    """Stage 2: learn a task from a teacher fine-tuned on it."""

    student: str | None = _option(None, "folder of stage 1; without it a new student is made")
    epochs: float = _option(3.0, "passes over the rows", above=0)
    learning_rate: float = _option(5e-4, "peak, after the warm-up; the paper's 5e-5 needs many more steps", above=0)
    feature_weight: float = _option(0.1, "of the features, eq. 8; 0 switches the term off", at_least=0)
    embedding_weight: float = _option(0.1, "of the embedding, eq. 8", at_least=0)
    logit_weight: float = _option(1.0, "of KL(teacher || student), eq. 8", at_least=0)
    label_weight: float = _option(0.1, "of the cross-entropy with the gold label, eq. 8", at_least=0)
    temperature: float = _option(1.0, "of the logits", above=0)
    copies: int = _option(3, "augmented texts for each original, others in each epoch; worth more than more epochs")
    p_mask: float = _option(0.1, "chance that a word is masked")
    p_pos: float = _option(0.1, "chance that a word is replaced by another of its part of speech")
    p_ngram: float = _option(0.25, "chance that a text is cut to a random n-gram, n from 1 to 5")
    unlabelled: str = _option("", "more texts, without labels, for the teacher to answer: files and folders, CSV too")
    unlabelled_tokens: int = _option(1_000_000, "how many tokens of them to read", at_least=1)
    unlabelled_encoding: str = _option("utf-8", "encoding of their files")


@dataclass(frozen=True)
class ConvertOptions(DataOptions):
    """Make a spiking TextCNN of a tailored one."""

    model: str = _option("", "folder of the tailored TextCNN")
    out: str = _option("", "folder of the result")
    normalize: str = _option("none", "none, model (largest possible sum), data (largest activation) or percentile")
    percentile: float = _option(99.9, "of the activations above zero, for normalize percentile")
    time_steps: int = _option(50, "T")
    coding: str = _option("poisson", "poisson or deterministic input spikes")
    beta: float = _option(1.0, "share of the membrane kept at a step; a rate is an activation at 1 only")
    threshold: float = _option(1.0, "membrane at which a neuron fires")
    seed: int = _option(0, "of the Poisson spikes", at_least=0, at_most=2**32 - 1)
    limit_law: str | None = _option(
        None, "picture (.png, .svg, .pdf) of how close it comes to the dense network as T grows; reads --data"
    )


@dataclass(frozen=True)
class AttackOptions(DataOptions):
    """Attack a classifier by substituting words."""

    model: str = _option("", "folder of the model")
    recipe: str = _option(
        "textfooler",
        "textfooler, bert-attack, textbugger or pwws; a row of a result, pwws[...], asks for its resources",
    )
    setting: str = _option("paper", "paper (all as SNN-TextCNN compares them) or own (each as its own paper has it)")
    noise: str = _option("fixed", "of Poisson spikes: fixed (for a text), fresh (at every query) or expectation")
    draws: int = _option(8, "noises of an expectation, and of the check after an attack", at_least=1)
    limit: int = _option(1000, "so many texts, drawn from the split", at_least=1)
    split: str = _option("validation", "train, validation or test; a reading of test is logged")
    out: str = _option("", "folder of the result; the same command again resumes")
    vectors: str = _option("vectors/enwiki.sgns.300d.txt.gz", "word vectors that candidates come from")
    masked_lm: str | None = _option(None, "masked language model of bert-attack: a folder or a Hugging Face name")
    encoder: str = _option("minilm", "sentence encoder of the similarity: minilm, a folder or a Hugging Face name")
    max_changed: float | None = _option(None, "share of words that may change, at least one (the setting's)")
    candidates: int | None = _option(None, "candidates for each word (the setting's)")
    similarity: float | None = _option(None, "least similarity with the original, 0..1; 0 is none (the setting's)")
    batch_size: int = _option(64, "queries at once", at_least=1)
    seed: int = _option(0, "of the texts drawn and of TextBugger's letters", at_least=0, at_most=2**32 - 1)
    threads: int = _option(0, "threads of the computation; 0: all cores", at_least=0)
    quiet: bool = _option(False, "no progress bar")


@dataclass(frozen=True)
class BenchOptions(_Checked):
    """What can be asked of a benchmark."""

    scale: str = _option("short", "tiny (only shows that it runs), short (a minute or two) or full")
    repeats: int = _option(0, "turns of each candidate; 0: the benchmark's own number", at_least=0)
    threads: int = _option(0, "threads of the computation; 0: all cores", at_least=0)
    model: str | None = _option(None, "folder of a spiking classifier, where a benchmark can use a trained one")
    teacher: str | None = _option(None, "folder of a dense classifier, its teacher")
    data: str = _option("sst2", "the set whose texts are read")
    data_dir: str | None = _option(None, "folder of the built-in sets; default: SPIKETEXT_DATA")
    split: str = _option("validation", "the part of the set whose texts are timed; a reading of test is logged")
    limit: int = _option(0, "read only so many texts; 0: as many as the scale says", at_least=0)
