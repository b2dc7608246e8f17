"""Floor 1: what a teacher answers. Texts that come again are read from a file, so it is asked once for each.

An answer is the logits [K] and the features [L, D] of some layers. A text is known by its tokens, a file by the weights
of its teacher: another teacher, other layers or another format begin a new one. A file is a head and groups; a group is
what one batch added: MAGIC, bytes that follow, then for each text KEY, tokens, checksum and float32 numbers. A group
that a kill cut short is dropped whole, so that its batch is asked again as it was and a resumed run ends the same.
"""

from __future__ import annotations

import hashlib
import struct
import weakref
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

MAGIC = b"spiketext answers 1 "
_GROUP, _TEXT = struct.Struct("<20sq"), struct.Struct("<16siI")
_HEAD = len(MAGIC) + 32
Answer = np.ndarray  # float32: the logits, then [layers, L, D]


class Answers:
    """A file of answers, one for each key: `add` appends a group, `get` reads one. It grows to at most `most` bytes."""

    def __init__(self, path: Path, fingerprint: bytes, most: float):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.most, self.places = most, dict[bytes, tuple[int, int, int]]()
        self.stream = path.open("r+b" if path.exists() else "w+b")
        weakref.finalize(self, self.stream.close)
        if self.stream.read(_HEAD) != MAGIC + fingerprint:
            self.stream.seek(0)
            self.stream.write(MAGIC + fingerprint)
            self.stream.truncate()
        self.end = self._read_places()
        self.stream.truncate(self.end)

    def _read_places(self) -> int:
        """Where each answer stands; returns the end of the last whole group."""
        size, at = self.stream.seek(0, 2), _HEAD
        while at + _GROUP.size <= size:
            self.stream.seek(at)
            magic, length = _GROUP.unpack(self.stream.read(_GROUP.size))
            start, stop = at + _GROUP.size, at + _GROUP.size + length
            if magic != MAGIC or stop > size:
                break
            inside = dict[bytes, tuple[int, int, int]]()
            while start + _TEXT.size <= stop:
                self.stream.seek(start)
                key, count, checksum = _TEXT.unpack(self.stream.read(_TEXT.size))
                start += _TEXT.size
                inside[key] = (start, count, checksum)
                start += 4 * count if count > 0 else stop
            if start != stop:
                break  # what a power cut left
            self.places |= inside
            at = stop
        return at

    def get(self, key: bytes) -> Answer | None:
        """The answer; None where there is none, or one that a disk has spoilt."""
        if key not in self.places:
            return None
        at, count, checksum = self.places[key]
        self.stream.seek(at)
        found = self.stream.read(4 * count)
        return np.frombuffer(found, np.float32) if zlib.crc32(found) == checksum else None

    def add(self, answers: dict[bytes, Answer]) -> None:
        """Append answers as one group; nothing where the file would grow too large."""
        parts, places, at = [], {}, self.end + _GROUP.size
        if not answers or at + sum(_TEXT.size + answer.nbytes for answer in answers.values()) > self.most:
            return
        for key, answer in answers.items():
            content = answer.tobytes()
            checksum = zlib.crc32(content)
            parts += [_TEXT.pack(key, answer.size, checksum), content]
            places[key] = (at + _TEXT.size, answer.size, checksum)
            at += _TEXT.size + answer.nbytes
        self.stream.seek(self.end)
        self.stream.write(b"".join([_GROUP.pack(MAGIC, at - self.end - _GROUP.size), *parts]))
        self.stream.flush()
        self.places |= places
        self.end = at


class Teacher:
    """A frozen network that is asked for its logits and the features of `layers` (0: the embedding).

    With `remember` the answers to texts that come again are kept in a file. Not a module: it is neither trained nor
    saved with its student.
    """

    def __init__(self, network: nn.Module, layers: Sequence[int]):
        self.network, self.layers = network.eval().requires_grad_(False), tuple(layers)
        self.answers: Answers | None = None

    def remember(self, path: Path, most: float) -> None:
        """Keep at most so many bytes of answers in a file, which survives a restart and knows another teacher's."""
        found = hashlib.sha256(repr(self.layers).encode())
        for name, weight in self.network.state_dict().items():
            found.update(name.encode() + weight.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        self.answers = Answers(path, found.digest(), most)

    def __call__(self, inputs: dict[str, Tensor], again: Tensor) -> tuple[dict[int, Tensor], Tensor | None]:
        """Features [B, L, D] by layer, zeros or anything at padding, and logits [B, K] where the network has some.

        inputs are ids, mask and what else the network reads, [B, L]; again [B] is 1 for a text that will come again.
        Texts that come again are asked in a call of their own: so the others are always padded to the same length,
        whether their neighbours are known already, as in a resumed run, or not.
        """
        if self.answers is None:
            return self._ask(inputs)
        mask = inputs["attention_mask"]
        lengths = mask.sum(1).tolist()
        keys = [self._key(inputs, row, length) if often else None
                for row, (length, often) in enumerate(zip(lengths, again.tolist(), strict=True))]  # fmt: skip
        known = [None if key is None else self.answers.get(key) for key in keys]
        missing = [row for row, answer in enumerate(known) if answer is None]
        features, logits = self._like(inputs)
        for group in ([row for row in missing if keys[row]], [row for row in missing if not keys[row]]):
            if not group:
                continue
            longest = max(lengths[row] for row in group)
            rows = torch.tensor(group, device=mask.device)
            asked, told = self._ask({name: values[rows, :longest] for name, values in inputs.items()})
            for layer, values in asked.items():
                features[layer][rows, :longest] = values.to(features[layer])
            if logits is not None and told is not None:
                logits[rows] = told.to(logits)
        classes = 0 if logits is None else logits.shape[-1]
        for row, answer in enumerate(known):
            if answer is not None:
                self._fill(row, lengths[row], torch.tensor(answer, device=mask.device), features, logits, classes)
        new = {
            key: self._pack(row, lengths[row], features, logits) for row in missing if (key := keys[row]) is not None
        }
        self.answers.add(new)
        return features, logits

    def _ask(self, inputs: dict[str, Tensor]) -> tuple[dict[int, Tensor], Tensor | None]:
        network = self.network.to(inputs["input_ids"].device)
        with torch.no_grad():
            answer = network(**inputs, output_hidden_states=bool(self.layers))
        return {layer: answer.hidden_states[layer] for layer in self.layers}, answer.get("logits")

    def _like(self, inputs: dict[str, Tensor]) -> tuple[dict[int, Tensor], Tensor | None]:
        """Room for the answers of a batch."""
        config: Any = self.network.config
        ids = inputs["input_ids"]
        features = {layer: torch.zeros(*ids.shape, config.hidden_size, device=ids.device) for layer in self.layers}
        answers = getattr(self.network, "base_model", self.network) is not self.network
        return features, torch.zeros(len(ids), config.num_labels, device=ids.device) if answers else None

    @staticmethod
    def _key(inputs: dict[str, Tensor], row: int, length: int) -> bytes:
        tokens = torch.stack([values[row, :length].cpu() for values in inputs.values()])
        return hashlib.blake2b(tokens.numpy().tobytes(), digest_size=16).digest()

    @staticmethod
    def _pack(row: int, length: int, features: dict[int, Tensor], logits: Tensor | None) -> Answer:
        parts = [] if logits is None else [logits[row]]
        parts += [values[row, :length].flatten() for values in features.values()]
        return torch.cat([part.float() for part in parts]).cpu().numpy()

    @staticmethod
    def _fill(
        row: int, length: int, answer: Tensor, features: dict[int, Tensor], logits: Tensor | None, classes: int
    ) -> None:
        if logits is not None:
            logits[row] = answer[:classes]
        if features:
            each = answer[classes:].view(len(features), length, -1)
            for values, mine in zip(features.values(), each, strict=True):
                values[row, :length] = mine
