"""Floor 1: the folder of a run. The same command resumes, another one is refused, and files are written whole."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from spiketext.processes import give_back, is_first, processes, take

CHECKPOINTS = "checkpoints"
TEST_READS = "test_reads.jsonl"  # a line for each reading of a test split, see `evaluation.note_test_reading`
_WHOLE = "complete"  # the file that says that a checkpoint was written to its end
_DATA = "data.json"  # the hash of the texts that a run began with
_CACHES = ("corpus/*", ".corpus-*/*", "*.answers")  # under CHECKPOINTS: what a training reads, nothing that it learned
_UNESSENTIAL = ("out", "quiet", "data_dir", "threads")  # do not change the result on one machine: a folder may move
_READ = {  # options that may name a file, or a folder with one of these
    **dict.fromkeys(("model", "start", "teacher", "student"), ("model.safetensors",)),
    "vectors": ("vectors.txt.gz",),
    "tokenizer": ("tokenizer.json", "vocab.txt"),
    "vocab": (),
}
_WEIGHTS = "weights"  # in run.json: digests of those files


def write_whole(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}"  # opened as any file: its mode is what umask leaves
    try:
        with temporary.open("x", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> Any:
    """What a JSON file holds; None where there is no such file. Raises ValueError for a damaged one."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: is damaged ({error}); restore it, or remove its folder and make it again") from None


def readings_of_test(folder: Path) -> list[dict[str, Any]]:
    """The readings of test splits in a model's folder, oldest first; a line that a crash has torn is left out."""
    log, entries = folder / TEST_READS, []
    for line in log.read_text(encoding="utf-8", errors="replace").split("\n") if log.is_file() else ():
        with suppress(json.JSONDecodeError):
            entries.append({"precision": "float32", "confidence": None} | json.loads(line))
    return entries


class Run:
    """A run in a folder: run.json holds what was asked, result.json what came out, once it is complete.

    options is a dataclass of `spiketext.options`. Of several processes only the first writes and removes. A run that
    learned nothing yet makes way for another one, with what it had prepared. What a kill left of a complete one goes.
    Raises ValueError when the folder holds another run, one that began with other weights or vectors, or files that
    are not a run, and while another program is at work in it.
    """

    def __init__(self, command: str, options: Any):
        if not options.out:
            raise ValueError(f"{command}: --out is missing; name the folder for the result")
        self.out = Path(options.out)
        self.asked = json.loads(json.dumps({"command": command, **asdict(options), "processes": processes()}))
        self.defaults = {field.name: field.default for field in fields(options)} | {"processes": 1}
        if is_first():
            self._claim()

    def _claim(self) -> None:
        config = self.out / "run.json"
        strange = self.out.exists() and (not self.out.is_dir() or any(not _is_torn(p) for p in self.out.iterdir()))
        if not config.exists() and strange:
            raise ValueError(f"--out {self.out}: exists and is not a run of spiketext; choose a new folder")
        self.out.mkdir(parents=True, exist_ok=True)
        if not (self.out / "result.json").exists() and not take(self.out):
            raise ValueError(f"--out {self.out}: another program is at work in it; wait for its end, or stop it")
        for torn in filter(_is_torn, self.out.iterdir()):
            torn.unlink(missing_ok=True)
        before = read_json(config) or {}
        weights, began_with = _weights_below(self.asked), before.pop(_WEIGHTS, {})
        then = {name: before.get(name, self.defaults.get(name)) for name in {*before, *self.asked}}  # younger options
        others = sorted(name for name in set(then) - set(_UNESSENTIAL) if then[name] != self.asked.get(name))
        if not self._has_begun():
            if others and before:
                shutil.rmtree(self.out / CHECKPOINTS, ignore_errors=True)
            (self.out / _DATA).unlink(missing_ok=True)
            write_whole(config, json.dumps(self.asked | ({_WEIGHTS: weights} if weights else {}), indent=2))
        elif others:
            raise ValueError(
                f"--out {self.out}: holds a run with {others[0]} = {then[others[0]]!r}, asked is "
                f"{self.asked.get(others[0])!r}; choose another folder, or repeat the first command to resume"
            )
        elif changed := [name for name in weights if weights[name] != began_with.get(name, weights[name])]:
            name = changed[0]
            raise ValueError(
                f"--out {self.out}: holds a run that began with another content of {name} {self.asked[name]}, digest "
                f"{began_with[name]}, now {weights[name]}; choose another folder, or remove this one to run it again"
            )
        for unfinished in self.out.glob(".saving-*"):
            shutil.rmtree(unfinished, ignore_errors=True)
        if (self.out / "result.json").exists():
            shutil.rmtree(self.out / CHECKPOINTS, ignore_errors=True)

    def _has_begun(self) -> bool:
        """Whether the folder holds more than a command and its caches; those of several processes are kept."""
        prepared = {self.out / "run.json", self.out / _DATA}
        if processes() == 1:  # else another one may be reading them
            prepared |= {file for cache in _CACHES for file in (self.out / CHECKPOINTS).glob(cache)}
        return any(path.is_file() for path in self.out.rglob("*") if path not in prepared)

    def reads(self, name: str, text_hash: str) -> None:
        """Keep the hash of the labelled texts of a run. Raises ValueError when it has begun, or ended, with others."""
        result = self.result
        before = (read_json(self.out / _DATA) if result is None else result) or {}
        known = before.get("data_hash")
        if known not in (None, text_hash):
            raise ValueError(
                f"--out {self.out}: holds a run on texts of {name} with the hash {known}, they now have {text_hash}; "
                "choose another folder, or restore the texts"
            )
        if known is None and result is None and is_first():
            write_whole(self.out / _DATA, json.dumps({"data": name, "data_hash": text_hash}))

    @property
    def result(self) -> dict[str, Any] | None:
        """What came out; None while the run is not complete."""
        return read_json(self.out / "result.json")

    def checkpoint(self) -> str | None:
        """The newest checkpoint that was written to its end; unfinished ones are removed."""
        whole: dict[int, Path] = {}
        for folder in (self.out / CHECKPOINTS).glob("checkpoint-*"):
            if (folder / _WHOLE).exists():
                whole[int(folder.name.split("-")[1])] = folder
            elif is_first():
                shutil.rmtree(folder)
        return str(whole[max(whole)]) if whole else None

    def finish(self, save: Callable[[str], None], result: dict[str, Any]) -> dict[str, Any]:
        """Save the model beside the run, then the result, then drop the checkpoints."""
        if not is_first():
            return result
        with tempfile.TemporaryDirectory(dir=self.out, prefix=".saving-") as folder:
            save(folder)
            for file in sorted(Path(folder).iterdir()):
                os.replace(file, self.out / file.name)
        write_whole(self.out / "result.json", json.dumps(result, indent=2))
        shutil.rmtree(self.out / CHECKPOINTS, ignore_errors=True)
        give_back(self.out)
        return result


def _is_torn(path: Path) -> bool:
    """Whether `write_whole` was killed before this became a file of a run."""
    return path.name.startswith((".run.json.", f".{_DATA}.", ".result.json."))


def _weights_below(asked: dict[str, Any]) -> dict[str, str]:
    """Digests of the files that options name, or of those in folders; of what a name of the Hub means there is none."""
    digests = {}
    for name, files in _READ.items():
        places = [Path(below, asked[name]) for below in ("", asked.get("data_dir") or "") if asked.get(name)]
        found = [file for place in places for file in (place, *(place / inside for inside in files)) if file.is_file()]
        if found:
            with found[0].open("rb") as stream:
                digests[name] = hashlib.file_digest(stream, "sha256").hexdigest()[:16]
    return digests


def mark_whole(checkpoint: Path, keep: set[str]) -> None:
    """Say that a checkpoint was written to its end, on the disk too, then remove its elders except those in `keep`."""
    for file in checkpoint.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    (checkpoint / _WHOLE).touch()
    for folder in checkpoint.parent.glob("checkpoint-*"):
        if folder != checkpoint and folder.name not in keep:
            (folder / _WHOLE).unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
