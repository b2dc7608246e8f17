"""Fixtures for all tests: memory that shows when it is read unwritten, and what must not be missing in CI.

What takes seconds to import is imported where it is used: the process that hands out tests reads this file too.
"""

from __future__ import annotations

import importlib
import os
import re
import threading
import warnings
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, NoReturn

import pytest

if TYPE_CHECKING:
    from spiketext.data import TextSet
    from spiketext.models import SpikeBertConfig, SpikeBertForSequenceClassification


def pytest_configure(config):
    """Workers side by side (pytest -n) share the cores, and so do the processes that they start."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        import torch

        threads = max(1, (os.cpu_count() or 1) // workers)
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)


def pytest_collection_modifyitems(items):
    """The longest files first, so that workers which take whole files end together."""
    items.sort(key=lambda item: item.path.stem not in ("test_triton", "test_spikebert"))


def missing(what: str) -> NoReturn:
    """A test that cannot run: a visible skip on a laptop, a failure where the environment variable CI is set."""
    if os.environ.get("CI"):
        pytest.fail(f"{what} (CI is set: this may not be skipped)", pytrace=False)
    pytest.skip(what)


def oracle(*modules: str):
    """Import the modules of an outside library and return the last one. Oracles are never runtime dependencies."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # their warnings are not ours
            return [importlib.import_module(module) for module in modules][-1]
    except ImportError as error:
        missing(f"oracle {modules[-1]} cannot be imported: {error}; pip install --no-deps -r requirements-oracles.txt")


@pytest.fixture(scope="session")
def spikingjelly():
    """SpikingJelly's `activation_based`, with `neuron` and `surrogate`."""
    part = "spikingjelly.activation_based"
    return oracle(f"{part}.neuron", f"{part}.surrogate", part)


@pytest.fixture(scope="session")
def snntorch():
    """snnTorch, with `surrogate`."""
    return oracle("snntorch.surrogate", "snntorch")


@pytest.fixture(scope="session")
def compiled():
    """The name of the compiled library; a machine that cannot build it says so."""
    from spiketext.ops import kernels

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it warns of is repeated below
        name = kernels.load()
    if name is None:
        missing(f"the compiled back end cannot run here: {kernels.why_not() or 'the build failed'}")
    return name


@pytest.fixture(autouse=True)
def compiled_where_named(request):
    """A test whose parameter `backend` is "cpp" needs the compiled back end, whatever else it asks for."""
    call = getattr(request.node, "callspec", None)
    if call is not None and call.params.get("backend") == "cpp":
        request.getfixturevalue("compiled")


class LocalServer:
    """A web server of this machine: `answer` gets each request, HEAD as well as GET; `address` is where it listens."""

    def __init__(self, answer: Callable[[BaseHTTPRequestHandler], None]):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                answer(self)

            do_HEAD = do_GET

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        self.address = f"http://127.0.0.1:{self.http.server_port}"

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def poisoned_memory(monkeypatch):
    """New memory is full of NaN, so that an entry which nobody writes is seen.

    Covers torch.empty, torch.empty_like, Tensor.new_empty of floating dtype, called from Python. Memory that C++ code
    allocates for itself (at::empty in lif.cpp, the results of torch's own operators) is not covered.
    """
    import torch

    def poisoned(allocate):
        def allocate_and_poison(*args, **kwargs):
            memory = allocate(*args, **kwargs)
            return memory.fill_(float("nan")) if memory.is_floating_point() else memory

        return allocate_and_poison

    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))


# A model house in miniature: nothing of it comes from a network -------------------------------------------------------


TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "id2label": {0: "negative", 1: "positive"},
    "label2id": {"negative": 0, "positive": 1},
}


@pytest.fixture(scope="session")
def demo() -> TextSet:
    """The reviews that are shipped with the package."""
    from spiketext.data import load

    return load("demo")


@pytest.fixture(scope="session")
def tiny_tokenizer(demo, tmp_path_factory):
    """A BERT tokenizer whose pieces are the characters and the 500 most frequent words of the shipped reviews."""
    import transformers

    texts = [text.lower() for split in demo.splits.values() for text in split.texts]
    counts = Counter(word for text in texts for word in re.findall(r"\w+|[^\w\s]", text))
    words = [word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if len(word) > 1]
    letters = sorted(set("".join(texts)) - {" "})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters), *words[:500]]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    folder = tmp_path_factory.mktemp("tokenizer")
    transformers.BertTokenizerFast(vocab=vocabulary, do_lower_case=True, model_max_length=512).save_pretrained(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_vectors(demo, tmp_path_factory) -> str:
    """A file in GloVe's format: 8 dimensions for the words of the shipped reviews, every tenth left out."""
    import torch

    from spiketext.words import segment

    known = sorted({word for text in demo.splits["train"].texts for word in segment(text, "english")})
    draw = torch.Generator().manual_seed(0)
    lines = [f"{w} " + " ".join(f"{v:.3f}" for v in torch.randn(8, generator=draw).tolist())
             for i, w in enumerate(known) if i % 10]  # fmt: skip
    path = tmp_path_factory.mktemp("vectors") / "tiny.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture(scope="session")
def tiny_teacher(tiny_tokenizer, tmp_path_factory) -> str:
    """The folder of a BERT classifier of 2 layers and width 32 with random weights, and its tokenizer."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(**TINY, vocab_size=len(tiny_tokenizer), pad_token_id=tiny_tokenizer.pad_token_id)
    folder = str(tmp_path_factory.mktemp("teacher"))
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def student_config(tokenizer, preset: str = "binary", **changes) -> SpikeBertConfig:
    """A student of the tiny teacher's sizes."""
    from spiketext.models import PRESETS, SpikeBertConfig

    own = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    return SpikeBertConfig(**{**PRESETS[preset], **TINY, **own, **changes})


def classifier(tokenizer, preset: str = "binary", **changes) -> SpikeBertForSequenceClassification:
    """A spiking classifier of the tiny teacher's sizes with random weights, the same ones each time."""
    import torch

    from spiketext.models import SpikeBertForSequenceClassification

    torch.manual_seed(0)
    return SpikeBertForSequenceClassification(student_config(tokenizer, preset, **changes)).eval()


@pytest.fixture
def tiny_student_config(tiny_tokenizer) -> SpikeBertConfig:
    """A student of the teacher's sizes."""
    return student_config(tiny_tokenizer)


@pytest.fixture(scope="session")
def saved(tiny_tokenizer, tmp_path_factory) -> Callable[..., str]:
    """Save a classifier of these settings, whose weights a function may change first, and return its folder."""
    import torch

    def save(preset: str = "binary", change=lambda model: None, **changes) -> str:
        model, folder = classifier(tiny_tokenizer, preset, **changes), str(tmp_path_factory.mktemp("model"))
        with torch.no_grad():
            change(model)
        model.save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)
        return folder

    return save
