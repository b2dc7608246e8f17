"""Floor 6: a model for other people: a folder that needs no spiketext, its card, and the way to the Hub.

The card says what is known of the model and nothing else: scores from the run (`result.json`) and from the readings of
test (`test_reads.jsonl`), energy and purity where `spiketext energy --save` and `audit --save` have left them.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, HfApi, ModelCardData

from spiketext import checkpoints
from spiketext.about import SPIKING
from spiketext.evaluation import METRICS
from spiketext.portable import NETWORKS, file_of, make_portable
from spiketext.runs import read_json, readings_of_test

KEPT = ("config.json", "model*.safetensors", "model.safetensors.index.json", "tokenizer*", "special_tokens_map.json",
        "added_tokens.json", "vocab*", "merges.txt", "spiketext.json")  # fmt: skip
_READ = ("data", "data_hash", "time_steps", "precision", "confidence")  # readings that differ here are apart
_PRIVATE = ("out", "data", "data_dir", "corpus", "threads", "quiet", "weights")  # say nothing, or where files lie

_USE = """```python
from transformers import pipeline

classify = pipeline("text-classification", model="{name}"{trust})
classify("Not bad at all.")
```"""

_ROUNDING = "\nIn float32 the rounding of the two can flip single spikes, in float64 their logits are equal."


def export(model: str, out: str, name: str | None = None) -> dict[str, Any]:
    """Copy a trained classifier into a new folder that is complete for people without spiketext.

    Weights, config and tokenizer; README.md is its card; of a network of ours also the modelling file (`portable`).
    name: how the card calls it (None: as the folder). Returns model, out, files. The folder is written whole or not at
    all.
    Raises:  ValueError when the model cannot be read or `out` is there and not empty.
    """
    source, target = Path(model), Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"--out {out}: exists and is not empty; name a new folder")
    network = checkpoints.load_classifier(model)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".exporting-") as folder:
        there = Path(folder, "model")
        there.mkdir()
        for file in sorted({file for pattern in KEPT for file in source.glob(pattern)}):
            shutil.copyfile(file, there / file.name)
        if network.config.model_type in NETWORKS:
            make_portable(there)
        (there / "README.md").write_text(model_card(model, name or target.name), encoding="utf-8")
        os.replace(there, target)
    return {"model": model, "out": out, "files": sorted(file.name for file in target.iterdir())}


def push(model: str, repo: str, *, private: bool = False, dry_run: bool = False) -> dict[str, Any]:
    """Export a model and upload it to the Hub as `repo` ("owner/name"), made when it is not there; the token is HF's.

    dry_run: upload nothing. Returns model, repo, files, card, url (None in a dry run).
    Raises:  ValueError as `export`, and in one line for what the Hub answers (no token, no right, no network).
    """
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise ValueError(f"--repo {repo}: expected owner/name")
    with tempfile.TemporaryDirectory(prefix="spiketext-") as folder:
        files = export(model, str(Path(folder, "model")), repo)["files"]
        card = Path(folder, "model", "README.md").read_text(encoding="utf-8")
        found = {"model": model, "repo": repo, "files": files, "card": card, "url": None}
        if dry_run:
            return found
        try:
            api = HfApi(library_name="spiketext")
            url = api.create_repo(repo, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo, folder_path=Path(folder, "model"), commit_message="A model of spiketext")
        except Exception as error:
            why = " ".join(str(error).split())[:300] or type(error).__name__
            raise ValueError(f"push to {repo}: {why}; is there a network, and a token (`hf auth login`)?") from None
        return {**found, "url": str(url)}


def model_card(model: str, name: str) -> str:
    """The card of a model folder: metadata for the Hub (scores, tags) and what is known, as Markdown.

    Raises:  ValueError when the folder has no readable config.json.
    """
    folder = Path(model)
    config = read_json(folder / "config.json")
    if config is None:
        raise ValueError(f"model {model}: has no config.json; expected the folder of a model")
    result, made = read_json(folder / "result.json") or {}, read_json(folder / "spiketext.json") or {}
    run = read_json(folder / "run.json") or {}
    rows = _score_rows(result, made, folder)
    spiking = "time_steps" in config
    data = ModelCardData(
        model_name=name,
        library_name="transformers",
        pipeline_tag="text-classification",
        tags=["spiketext", *(["spiking-neural-network"] if spiking else []), str(config["model_type"])],
        eval_results=[_eval_result(row, metric) for row in rows for metric in METRICS if metric in row] or None,
    )
    sections = [
        f"---\n{data.to_yaml()}\n---\n\n# {name}",
        _what(config, made, spiking),
        "## Use\n\n" + _use(config, name),
        _scores(rows, result.get("beside", {})),
        _data(made),
        _energy(read_json(folder / "energy.json")),
        _purity(read_json(folder / "audit.json")),
        _how(run, result),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def _score_rows(result: dict, made: dict, folder: Path) -> list[dict[str, Any]]:
    """Validation as the run ended, then the newest reading of test for each set, T, precision and confidence."""
    chosen = {name: value for name, value in (result.get("validation") or {}).items() if name in METRICS}
    row = {"data": made.get("data"), "hash": made.get("data_hash"), "split": "validation", "reads": "chosen on it"}
    rows = [row | chosen] if chosen else []
    entries = readings_of_test(folder)
    newest = {tuple(e[name] for name in _READ): e for e in entries if any(m in e for m in METRICS)}
    for entry in newest.values():
        reads = sum(e["data_hash"] == entry["data_hash"] for e in entries)
        shown = {name: entry[name] for name in (*_READ[2:], *METRICS) if name in entry}
        rows.append(
            {"data": entry["data"], "hash": entry["data_hash"], "split": "test", "reads": f"read {reads} x", **shown}
        )
    return rows


def _eval_result(row: dict[str, Any], metric: str) -> EvalResult:
    return EvalResult(
        task_type="text-classification",
        dataset_type=str(row["data"]),
        dataset_name=f"{row['data']} (hash {row['hash']})",
        dataset_split=row["split"],
        metric_type=metric,
        metric_name=" ".join([metric, *_how_read(row)]),
        metric_value=row[metric],
    )


def _how_read(row: dict[str, Any]) -> list[str]:
    """At which T, in which precision and with which confidence a row was read, as far as that is not plain."""
    steps, precision, sure = (row.get(name) for name in _READ[2:])
    return [*([f"at T = {steps}"] if steps is not None else []),
            *([f"in {precision}"] if precision not in (None, "float32") else []),
            *([f"stopped at confidence {sure}"] if sure is not None else [])]  # fmt: skip


def _what(config: dict, made: dict, spiking: bool) -> str:
    parameters = f", {made['parameters']:,} parameters" if "parameters" in made else ""
    kind = "A spiking neural network" if spiking else "A dense (not spiking) network"
    lines = [f"{kind} that classifies text (`{config['model_type']}`{parameters}), trained with spiketext."]
    if spiking:
        lines.append("Its neurons: " + ", ".join(f"{name} {config[name]}" for name in SPIKING if name in config) + ".")
    labels = config.get("id2label")
    if config.get("problem_type") == "regression":
        lines.append("It answers one number.")
    elif labels:
        lines.append("Labels: " + ", ".join(f"`{label}`" for label in labels.values()) + ".")
    return "\n".join(lines)


def _use(config: dict, name: str) -> str:
    kind = config["model_type"]
    if kind not in NETWORKS:
        return _USE.format(name=name, trust="")
    words = ", and `jieba` for the words" if config.get("vectors", {}).get("language") == "chinese" else ""
    about = (
        f"\n\n`trust_remote_code` runs `{file_of(kind)}` of this repository, which needs `torch` and "
        f"`transformers`{words}.\nWith spiketext installed, `import spiketext.models` takes its place and is faster."
    )
    return _USE.format(name=name, trust=", trust_remote_code=True") + about + ("" if kind == "textcnn" else _ROUNDING)


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _scores(rows: list[dict[str, Any]], beside: dict[str, dict[str, float]]) -> str:
    if not rows:
        return "## Scores\n\nNone is known."
    metrics = [metric for metric in METRICS if any(metric in row for row in rows)]
    cells = []
    for row in rows:
        numbers = [f"{row[metric]:.4f}" if metric in row else "" for metric in metrics]
        cells.append([row["data"], row["split"], " ".join(_how_read(row)), *numbers, row["reads"]])
    others = "".join(
        f"\n- {name}: " + ", ".join(f"{metric} {value:.4f}" for metric, value in known.items())
        for name, known in beside.items()
    )
    shown = _table(["data", "split", "read", *metrics, "split was"], cells)
    return f"## Scores\n\n{shown}" + (f"\n\nBeside it, on validation:\n{others}" if others else "")


def _data(made: dict) -> str:
    if "data" not in made:
        return ""
    lines = [f"## Data\n\nTrained on `{made['data']}`; hash of the texts of its splits: `{made['data_hash']}`."]
    return "\n".join([*lines, *(["", *(f"- {note}" for note in made["notes"])] if made.get("notes") else [])])


def _energy(found: dict | None) -> str:
    if not found:
        return ""
    text = f"{found['texts']} texts of `{found['data']}` ({found['split']}), {found['tokens']:.1f} tokens each"
    if found["length"] != "real":
        text += f", padded or cut to {found['length']}"
    if found["time_steps"] is not None:
        text += f", at T = {found['time_steps']}"
    rows = [[row["as printed"], f"{row['mJ']:.4g}", f"{row['dense mJ']:.4g}"] for row in found["papers"]]
    ours = [
        [f"our account, {name}, without traffic", f"{price['sum']:.4g}", ""] for name, price in found["ours"].items()
    ]
    return (
        f"## Energy\n\nCounted, not measured: operations on {text}, priced in mJ for one text by the papers' formulas "
        "and by our account.\n\n" + _table(["formula", "mJ", "dense network of its shape, mJ"], rows + ours)
    )


def _purity(found: dict | None) -> str:
    if not found:
        return ""
    impure, layers = found["impure"], len(found["layers"])
    verdict = f"all {layers} synaptic layers read {found['declared']} inputs"
    if impure:
        verdict = (
            f"{len(impure)} of {layers} synaptic layers do not read {found['declared']} inputs: {', '.join(impure)}"
        )
    if not found["spiking"]:
        verdict = "this network is dense"
    others = f" Not spiking: {', '.join(found['not_spiking'])}." if found["not_spiking"] else ""
    return f"## Purity\n\nOn {found['texts']} texts of `{found['data']}` ({found['split']}) {verdict}.{others}"


def _how(run: dict, result: dict) -> str:
    if not run:
        return ""
    spent = f" It took {result['wall_s']:.0f} s." if "wall_s" in result else ""
    settings = "\n".join(
        f"{name} = {json.dumps(value)}" for name, value in settings_of(run).items() if name != "command"
    )
    return f"## How it was made\n\n`spiketext {run['command']}` with these settings:{spent}\n\n```toml\n{settings}\n```"


def settings_of(run: dict[str, Any]) -> dict[str, Any]:
    """What a run.json says was asked, without what says nothing to others and the folders of this machine."""
    return without_folders({k: v for k, v in run.items() if k not in _PRIVATE and v not in (None, "")})


def without_folders(value: Any) -> Any:
    """What a file of JSON holds, its texts without the folders of this machine: of a path the last name is left.

    Names with a slash, of the Hub or of sets, stay as they are.
    """
    if isinstance(value, dict):
        return {name: without_folders(part) for name, part in value.items()}
    if isinstance(value, list):
        return [without_folders(part) for part in value]
    if not isinstance(value, str):
        return value

    def local(part: str) -> bool:
        return "/" in part and (part.startswith((".", "/", "~")) or os.path.exists(part))

    return ",".join(Path(part).absolute().name if local(part) else part for part in value.split(","))
