"""Floor 0: a labelled data set of the Hugging Face Hub as files on this machine, sorted into splits by their names.

A repository says by the paths of its files what they are: `train.csv`, `data/train-00000-of-00002.parquet`,
`cola/validation-00000-of-00001.parquet`. The folder that is left without split and `data` is the part of the set.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

HUB = "hub:"
KINDS = (".csv", ".tsv", ".jsonl", ".parquet")
_ADVICE = ("Check the name (no file or folder is called that either), or fetch its train, validation and test files "
           "yourself and name their folder.")  # fmt: skip
_CONVERTED = "refs/convert/parquet"  # where the Hub keeps its own Parquet copy of most sets
_SPLIT = re.compile(r"(?:^|[/_.-])(train|training|validation|valid|val|dev|test)(?:[/_.-]|$)", re.I)
_WORD_AFTER = re.compile(r"(?:^|[/_.-])(?:validation|valid|val|dev|test)[_-]([a-z]+(?:_[a-z]+)*)[\d_.-][^/]*$", re.I)
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})")
_USUAL = {"training": "train", "valid": "validation", "val": "validation", "dev": "validation"}
_NAME = re.compile(r"(?:hub:)?([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:/([\w.-]+))?")


def looks_like_one(name: str) -> bool:
    """Whether a name can be a set of the Hub: owner/name or owner/name/part, with `hub:` before it or not."""
    return _NAME.fullmatch(name) is not None and not name.lower().endswith(KINDS)


def fetch(name: str) -> dict[str, list[Path]]:
    """The files of `hub:owner/name[/part]` by split, fetched into the cache of huggingface_hub (HF_HOME) once.

    One file whose name tells no split is "train". Offline, what was fetched before is found again.
    Raises:  FileNotFoundError in one line when the Hub cannot be reached, has no such set or keeps it closed;
             ValueError when no file can be read here, the set has several parts and none, or another, is named, or
             some of its files are missing: they were never fetched, or a split lacks one of its numbered files.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        raise ValueError(f"data {name}: expected {HUB}owner/name or {HUB}owner/name/part")
    repository, part = found.groups()
    try:
        return _fetch(name, repository, part)
    except ValueError as error:
        if type(error) is ValueError:
            raise
        raise not_reached(f"data {name}", repository, error, _ADVICE) from None
    except Exception as error:  # the Hub's own errors, and every error of the network below it
        raise not_reached(f"data {name}", repository, error, _ADVICE) from None


def _fetch(name: str, repository: str, part: str | None) -> dict[str, list[Path]]:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # of six attempts the last is told
    revision, found = "main", _kept(repository)
    parts = _parts(found)
    if not parts:
        try:
            revision = _CONVERTED
            parts = _parts(_kept(repository, _CONVERTED))
        except (RevisionNotFoundError, EntryNotFoundError):
            parts = {}
    if not parts:
        raise ValueError(f"data {name}: none of its files can be read, expected {', '.join(KINDS)} named train, "
                         f"validation or test; it has {', '.join(sorted(found)[:5]) or 'none'}")  # fmt: skip
    if part is None and len(parts) == 1:
        part = next(iter(parts))
    if part not in parts and not (part is None and "" in parts):
        asked = "has several parts" if part is None else f"has no part {part!r}"
        raise ValueError(f"data {name}: {asked}; name one of {', '.join(sorted(filter(None, parts)))}, as in "
                         f"{HUB}{repository}/{max(parts)}")  # fmt: skip
    splits = parts[part or ""]
    _require_all(name, repository, revision, [file for files in splits.values() for file in files])
    return {
        split: [Path(hf_hub_download(repository, file, repo_type="dataset", revision=revision)) for file in files]
        for split, files in splits.items()
    }


def _require_all(name: str, repository: str, revision: str, files: list[str]) -> None:
    """Raises ValueError when a split lacks one of its numbered files or, offline, one that was not fetched."""
    from huggingface_hub import is_offline_mode, try_to_load_from_cache

    numbered: dict[tuple[str, int], set[str]] = defaultdict(set)
    for file in files:
        if shard := _SHARD.search(file):
            numbered[file[: shard.start()], int(shard[2])].add(shard[1])
    there, whole = len(files), len(files) + sum(total - len(numbers) for (_, total), numbers in numbered.items())
    if is_offline_mode():
        found = [try_to_load_from_cache(repository, file, revision=revision, repo_type="dataset") for file in files]
        there = sum(isinstance(path, str) for path in found)
    if there < whole:
        so = "were fetched; go online once" if is_offline_mode() else f"are on the Hub; {_ADVICE}"
        raise ValueError(f"data {name}: only {there} of {whole} files {so}")


def _kept(repository: str, revision: str = "main") -> list[str]:
    """`listed`, which is kept in the cache: offline it says what a set has, fetched or not."""
    from huggingface_hub import constants, file_download, is_offline_mode

    folder = Path(constants.HF_HUB_CACHE, file_download.repo_folder_name(repo_id=repository, repo_type="dataset"))
    kept = folder / f"spiketext-{revision.replace('/', '-')}.txt"
    if is_offline_mode():
        return kept.read_text(encoding="utf-8").split("\n") if kept.is_file() else listed(repository, revision)
    found = listed(repository, revision)
    with suppress(OSError):  # a cache that is only read does without
        folder.mkdir(parents=True, exist_ok=True)
        written = kept.with_suffix(f".{os.getpid()}")
        written.write_text("\n".join(found), encoding="utf-8")
        os.replace(written, kept)
    return found


def listed(repository: str, revision: str = "main") -> list[str]:
    """The paths of a repository's files; offline, of those that were fetched before."""
    from huggingface_hub import HfApi, is_offline_mode, snapshot_download

    if not is_offline_mode():
        return HfApi().list_repo_files(repository, repo_type="dataset", revision=revision)
    folder = Path(snapshot_download(repository, repo_type="dataset", revision=revision, local_files_only=True))
    return [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]


def _parts(files: list[str]) -> dict[str, dict[str, list[str]]]:
    """Data files as {part: {split: paths}}; of a split in several formats the first of KINDS.

    Held-out files with a word after the split (validation_matched, validation_mismatched) are kept apart: those of the
    first word are the part's, those of another, with the same train, are a part of its own: mnli_mismatched.
    """
    data = sorted(file for file in files if file.lower().endswith(KINDS))
    if len(data) == 1 and not _SPLIT.search(data[0]):
        return {"": {"train": data}}
    found: dict[str, dict[str, list[str]]] = defaultdict(dict)
    whole: dict[str, str] = {}  # of which part a part is one word
    for kind in KINDS:
        here: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for file in data:
            splits = _SPLIT.findall(file)
            if file.lower().endswith(kind) and splits:
                folders = [f for f in file.split("/")[:-1] if f != "data" and not _SPLIT.fullmatch(f)]
                split = _USUAL.get(splits[-1].lower(), splits[-1].lower())
                after = _WORD_AFTER.search(file) if split != "train" else None
                here["/".join(folders), split][after[1] if after else ""].append(file)
        for (part, split), by_word in here.items():
            first = min(by_word)
            for word, paths in by_word.items():
                own = part if word == first else f"{part}_{word}".strip("_")
                found[own].setdefault(split, paths)
                whole.setdefault(own, part)
    for own, part in whole.items():
        if "train" in found[part]:
            found[own].setdefault("train", found[part]["train"])
    return {part: splits for part, splits in found.items() if "train" in splits}


def not_reached(name: str, repository: str, error: Exception, advice: str) -> FileNotFoundError:
    """Why a data set of the Hub cannot be had, in one line."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    reason = " ".join(str(error).split())[:200] or type(error).__name__
    if isinstance(error, GatedRepoError):
        reason = "it is gated: ask for access on its page, then `hf auth login`"
    elif isinstance(error, RepositoryNotFoundError):
        reason = "there is no such data set, or it is private: then `hf auth login`"
    elif isinstance(error, LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE:
        reason = f"HF_HUB_OFFLINE is set, and it is not in the cache {constants.HF_HUB_CACHE}"
    return FileNotFoundError(
        f"{name}: cannot be fetched from {constants.ENDPOINT}/datasets/{repository} ({reason}). {advice}"
    )
