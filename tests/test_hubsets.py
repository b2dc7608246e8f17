"""Labelled sets of the Hub by name, from a server that answers as the Hub does, and what it can refuse."""

from __future__ import annotations

import hashlib
import json
from http.server import BaseHTTPRequestHandler

import pytest
from conftest import LocalServer, missing
from huggingface_hub import hf_hub_download

from spiketext.corpora import sentences
from spiketext.data import load
from spiketext.hubsets import _kept, _parts, looks_like_one
from spiketext.passages import draw
from spiketext.tables import read_table as table_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Data sets {(owner/name, revision): {path: content}}; `gated` ones are closed, `seen` are the requests."""

    def __init__(self):
        self.sets: dict[tuple[str, str], dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.seen: list[str] = []
        self.local = LocalServer(self.answer)
        self.address = self.local.address

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        with_body = request.command == "GET"
        path = request.path.split("?")[0].replace("%2F", "/")
        self.seen.append(path)
        for (name, revision), files in self.sets.items():
            if name in self.gated and path.startswith((f"/api/datasets/{name}", f"/datasets/{name}")):
                return self.send(request, 403, b"{}", {"X-Error-Code": "GatedRepo"}, with_body)
            short = f"/api/datasets/{name}"
            if path in (f"{short}/revision/{revision}", short) or path.startswith(f"{short}/tree/{revision}"):
                tree = [{"type": "file", "path": p, "size": len(c), "oid": "0" * 40} for p, c in files.items()]
                info = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": p} for p in files]}
                return self.send(request, 200, json.dumps(tree if "/tree/" in path else info).encode(), {}, with_body)
            for file, content in files.items():
                if path == f"/datasets/{name}/resolve/{revision}/{file}":
                    tags = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
                    return self.send(request, 200, content, tags, with_body)
        names = {name for name, _ in self.sets}
        known = any(path.startswith((f"/api/datasets/{name}", f"/datasets/{name}")) for name in names)
        code = "RevisionNotFound" if known else "RepoNotFound"
        return self.send(request, 404, b"{}", {"X-Error-Code": code}, with_body)

    def send(self, request, status: int, body: bytes, headers: dict[str, str], with_body: bool) -> None:
        request.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            request.send_header(name, value)
        request.end_headers()
        if with_body:
            request.wfile.write(body)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    hub = Hub()
    settings = {
        "ENDPOINT": hub.address,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.address + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
    }
    for name, value in settings.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.chdir(tmp_path)
    yield hub
    hub.local.stop()


def table(count: int, offset: int = 0, kind: str = "csv") -> bytes:
    rows = [
        (f"text number {number + offset} of it", ("sport", "world", "trade")[number % 3]) for number in range(count)
    ]
    if kind == "jsonl":
        return "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows).encode()
    return ("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows)).encode()


def test_a_set_is_fetched_once_with_its_own_splits(hub, monkeypatch):
    hub.sets["some/news", "main"] = {"train.csv": table(30), "dev.csv": table(6, 100), "test.csv": table(9, 200),
                                     "README.md": b"x"}  # fmt: skip
    found = load("hub:some/news")
    assert {split: len(part) for split, part in found.splits.items()} == {"train": 30, "validation": 6, "test": 9}
    assert found.labels == ["sport", "trade", "world"]
    hub.seen.clear()
    assert load("some/news").hash == found.hash  # `hub:` can be left out
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.seen.clear()
    assert load("some/news").hash == found.hash and not hub.seen  # offline, from the cache


def numbered(split: str, number: int) -> str:
    return f"data/{split}-{number:05}-of-00002.csv"


@pytest.mark.parametrize(("listed", "fetched", "counts"), [
    (True, [], "0 of 3"), (True, [numbered("train", 0), numbered("train", 1)], "2 of 3"),
    (True, [numbered("train", 0), "data/test.csv"], "2 of 3"),
    (False, [numbered("train", 0), "data/test.csv"], "2 of 3"),
])  # fmt: skip
def test_a_set_of_which_only_some_files_were_fetched_is_refused(listed, fetched, counts, hub, monkeypatch):
    """With the list of what the Hub has; without one, as an older version left it, by the numbers in the names."""
    hub.sets["some/news", "main"] = {numbered("train", 0): table(30), numbered("train", 1): table(30, 50),
                                     "data/test.csv": table(9, 200)}  # fmt: skip
    if listed:
        _kept("some/news")
    for file in fetched:
        hf_hub_download("some/news", file, repo_type="dataset")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=rf"^data hub:some/news: only {counts} files were fetched; go online once$"):
        load("hub:some/news")


def test_a_set_that_lacks_a_numbered_file_on_the_hub_is_refused(hub):
    hub.sets["some/news", "main"] = {numbered("train", 1): table(30)}
    with pytest.raises(ValueError, match="only 1 of 2 files are on the Hub"):
        load("some/news")


@pytest.mark.parametrize(("files", "sizes"), [
    ({"data.jsonl": table(300, kind="jsonl")}, (243, 27, 30)),
    ({"data/train.jsonl": table(100, kind="jsonl"), "data/test.jsonl": table(12, 200, "jsonl")}, (89, 11, 12)),
    ({"train.csv": table(100), "validation.csv": table(12, 200)}, (89, 11, 12)),
    ({"train-0.csv": table(20), "train-1.csv": table(20, 50), "val.csv": table(6, 100), "test.csv": table(6, 200),
      "train.jsonl": table(7, kind="jsonl")}, (40, 6, 6)),
    ({"train.csv": table(100), "dev.csv": table(12, 200), "test.csv": b"text,label\nno,\nlabel,\n"}, (89, 11, 12)),
])  # fmt: skip
def test_missing_splits_are_cut_off_train(hub, files, sizes):
    hub.sets["some/news", "main"] = files
    found = load("some/news")
    rows = tuple(len(found.splits[split]) for split in ("train", "validation", "test"))
    assert rows[2] == sizes[2] and abs(rows[1] - sizes[1]) <= 2 and sum(rows) == sum(sizes)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_split_whose_labels_are_all_minus_one_has_none_and_is_read_once(hub, kind, monkeypatch):
    rows = [{"text": f"text {n}", "label": -1} for n in range(9)]
    test = "".join(json.dumps(row) + "\n" for row in rows) if kind == "jsonl" else "text,label\n" + "a,-1\n" * 9
    hub.sets["some/news", "main"] = {f"train.{kind}": table(60, 0, kind), f"dev.{kind}": table(9, 100, kind),
                                     f"test.{kind}": test.encode()}  # fmt: skip
    read: list[str] = []
    monkeypatch.setattr(
        "spiketext.data.read_table", lambda path, **how: read.append(path.name) or table_of(path, **how)
    )
    found = load("some/news")
    assert "its test rows have no labels and are left out" in found.notes
    assert len(found.splits["test"]) == 9 and len(read) == 3


def test_a_set_of_several_parts_wants_a_name(hub):
    both = {f"{part}/{split}.csv": table(30, 100 * n) for part in ("cola", "rte")
            for n, split in enumerate(("train", "validation", "test"))}  # fmt: skip
    hub.sets["some/glue", "main"] = both
    assert len(load("some/glue/rte").splits["train"]) == 30
    with pytest.raises(ValueError, match=r"has several parts; name one of cola, rte, as in hub:some/glue/rte"):
        load("some/glue")
    with pytest.raises(ValueError, match=r"has no part 'qnli'; name one of cola, rte"):
        load("hub:some/glue/qnli")


def test_columns_and_regression_are_named_as_for_a_file(hub):
    lines = [f"a {n}\tb {n}\t{n / 7:.3f}" for n in range(40)]
    hub.sets["some/pairs", "main"] = {"train.tsv": ("one\ttwo\thow\n" + "\n".join(lines) + "\n").encode()}
    found = load("some/pairs", text_column="one", pair_column="two", label_column="how", task="regression")
    assert found.task == "regression" and found.splits["train"].pairs


def test_pairs_that_hang_together_are_cut_all_the_same_and_copies_alone_are_refused(hub):
    hub.sets["some/aspects", "main"] = {
        "train.tsv": ("text\ttext_pair\tlabel\n" + "".join(f"a {n}\tfood\t{n % 2}\n" for n in range(40))).encode(),
        "test.tsv": b"text\ttext_pair\tlabel\nb\tfood\t1\n",
    }
    found = load("some/aspects")
    assert len(found.splits["validation"]) == 4 and "4 validation rows share a sentence with train" in found.notes
    hub.sets["some/copies", "main"] = {
        "train.tsv": b"text\ttext_pair\tlabel\n" + b"a\tb\t1\n" * 9,
        "test.tsv": b"text\ttext_pair\tlabel\nb\tfood\t1\n",
    }
    with pytest.raises(
        ValueError, match="too few different texts to cut: without copies of the same text train has no"
    ):
        load("some/copies")


@pytest.mark.parametrize(("name", "expected"), [
    ("some/nothing", "there is no such data set, or it is private"),
    ("some/closed", "it is gated: ask for access on its page"),
    ("some/pictures", r"none of its files can be read, expected .* it has cat\.png"),
])  # fmt: skip
def test_what_the_hub_does_not_give_is_one_line(hub, name, expected):
    hub.sets["some/closed", "main"] = {"train.csv": table(9)}
    hub.sets["some/pictures", "main"] = {"cat.png": b"x"}
    hub.gated.add("some/closed")
    with pytest.raises((FileNotFoundError, ValueError), match=expected) as caught:
        load(name)
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_offline_with_an_empty_cache_is_one_line(hub, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = rf"HF_HUB_OFFLINE is set, and it is not in the cache {tmp_path}"
    with pytest.raises(FileNotFoundError, match=message) as found:
        load("some/news")
    assert f"{hub.address}/datasets/some/news" in str(found.value) and not hub.seen


def test_no_network_is_one_line(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # it tries six times
    with pytest.raises(FileNotFoundError, match=r"data hub:some/news: cannot be fetched from http://127\.0\.0\.1:9"):
        load("hub:some/news")


@pytest.mark.parametrize("name", ["hub:news", "hub:a/b/c/d", "hub:a b/c"])
def test_what_is_no_name_of_a_set_is_refused(name):
    with pytest.raises(ValueError, match="expected hub:owner/name"):
        load(name)


def test_paths_are_no_names_and_names_no_paths():
    assert looks_like_one("nyu-mll/glue") and looks_like_one("nyu-mll/glue/cola") and looks_like_one("hub:a/b")
    for path in ("reviews", "./runs/x", "/tmp/x", "data/reviews.csv", "a/b/c/d", "../x/y"):
        assert not looks_like_one(path)


def test_a_corpus_is_fetched_once_and_read_offline(hub, monkeypatch):
    hub.sets["some/corpus", "main"] = {"a.jsonl": table(3, 0, "jsonl"), "b.txt": b"And this is the last one.\n",
                                       "README.md": b"x"}  # fmt: skip
    expected = ["text number 0 of it", "text number 1 of it", "text number 2 of it", "And this is the last one."]
    assert list(sentences("hub:some/corpus")) == expected
    assert list(sentences("hub:some/corpus/*.txt")) == expected[3:]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.seen.clear()
    assert list(sentences("hub:some/corpus")) == expected and not hub.seen
    with pytest.raises(FileNotFoundError, match="HF_HUB_OFFLINE is set, and it is not in the cache"):
        list(sentences("hub:some/other"))


def test_of_a_corpus_no_more_files_are_fetched_than_a_budget_needs(hub, tiny_tokenizer):
    text = b"A sentence of more than four words.\n" * 5000
    hub.sets["some/corpus", "main"] = {f"{name}.txt": text for name in "abc"}
    assert sum(map(len, draw("hub:some/corpus", tiny_tokenizer, 300, 32))) >= 300
    assert [path.rsplit("/", 1)[1] for path in hub.seen if "/resolve/" in path and path.endswith(".txt")] == [
        "a.txt"
    ] * 2


def test_the_layouts_of_known_sets_are_understood():
    glue = [f"{part}/{split}-00000-of-00001.parquet" for part in ("cola", "sst2") for split in ("train", "validation")]
    assert sorted(_parts(glue)) == ["cola", "sst2"]
    assert _parts(["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "README.md"]) == {
        "": {"train": ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]}
    }
    assert _parts(["default/train/0000.parquet", "default/test/0000.parquet"])["default"]["test"]
    mnli = [f"mnli/{split}_{word}-00000-of-00001.parquet" for split in ("validation", "test")
            for word in ("matched", "mismatched")] + ["mnli/train-00000-of-00001.parquet"]  # fmt: skip
    for part, word in (("mnli", "matched"), ("mnli_mismatched", "mismatched")):
        assert _parts(mnli)[part] == {"train": mnli[4:], **{split: [f"mnli/{split}_{word}-00000-of-00001.parquet"]
                                                            for split in ("validation", "test")}}  # fmt: skip
    assert _parts(["dev_matched.tsv", "dev_mismatched.tsv", "train.tsv"])["mismatched"]["train"] == ["train.tsv"]
    shards = ["data/test-00000-of-00002-ab12.parquet", "data/test-00001-of-00002-cd34.parquet"]
    assert _parts(["data/train-00000-of-00001-ef56.parquet", *shards])[""]["test"] == shards
    assert _parts(["latest_news.csv"]) == {"": {"train": ["latest_news.csv"]}}


def test_parquet_with_class_names_and_hidden_test_labels(hub, tmp_path):
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        missing("pyarrow is not installed; pip install 'spiketext[parquet]'")
    label = {"_type": "ClassLabel", "names": ["unacceptable", "acceptable"]}
    about = {"huggingface": json.dumps({"info": {"features": {"label": label}}})}

    def written(count: int, offset: int, hidden: bool = False) -> bytes:
        columns = {"sentence": [f"sentence {n + offset}" for n in range(count)],
                   "label": [-1 if hidden else n % 2 for n in range(count)]}  # fmt: skip
        path = tmp_path / "written.parquet"
        parquet.write_table(pyarrow.table(columns).replace_schema_metadata(about), path)
        return path.read_bytes()

    hub.sets["some/cola", "main"] = {"script.py": b"x"}
    hub.sets["some/cola", "refs/convert/parquet"] = {
        "default/train/0000.parquet": written(40, 0),
        "default/validation/0000.parquet": written(8, 100),
        "default/test/0000.parquet": written(8, 200, hidden=True),
    }
    found = load("some/cola")
    assert found.labels == ["acceptable", "unacceptable"] and len(found.splits["test"]) == 8
    assert "its validation part serves as test" in found.notes
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(ValueError, match="is damaged or no Parquet file"):
        load(tmp_path / "broken.parquet")
