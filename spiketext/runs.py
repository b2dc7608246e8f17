"""Floor 1: the folder of a run. The same command resumes, another one is refused, and files are written whole."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from spiketext.processes import is_first, processes

CHECKPOINTS = "checkpoints"
_WHOLE = "complete"  # the file that says that a checkpoint was written to its end
_UNESSENTIAL = ("quiet", "data_dir", "threads")  # do not change the result on one machine


def write_whole(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_json(path: Path) -> Any:
    """What a JSON file holds; None where there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


class Run:
    """A run in a folder: run.json holds what was asked, result.json what came out, once it is complete.

    options is a dataclass of `spiketext.options`. Of several processes only the first writes and removes.
    Raises ValueError when the folder holds another run, or files that are not a run.
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
        if not config.exists() and self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise ValueError(f"--out {self.out}: exists and is not a run of spiketext; choose a new folder")
        if not any(path.is_file() for path in self.out.rglob("*") if path != config):
            write_whole(config, json.dumps(self.asked, indent=2))  # new, or given up before its first step
            return
        before = json.loads(config.read_text(encoding="utf-8"))
        for name in sorted({*before, *self.asked} - set(_UNESSENTIAL)):
            then = before.get(name, self.defaults.get(name))  # an option that is younger than the run
            if then != self.asked.get(name):
                raise ValueError(
                    f"--out {self.out}: holds a run with {name} = {then!r}, asked is "
                    f"{self.asked.get(name)!r}; choose another folder, or repeat the first command to resume"
                )

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
        return result


def mark_whole(checkpoint: Path, keep: set[str]) -> None:
    """Say that a checkpoint was written to its end, then remove its elders except those in `keep`."""
    (checkpoint / _WHOLE).touch()
    for folder in checkpoint.parent.glob("checkpoint-*"):
        if folder != checkpoint and folder.name not in keep:
            shutil.rmtree(folder, ignore_errors=True)
