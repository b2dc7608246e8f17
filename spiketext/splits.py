"""Cutting rows into train, validation and test: once, the same on every machine, and without copies across the cut.

Rows are ranked by the SHA-256 of seed and position, so the cut depends on no library's random numbers. Two rows are
copies when their texts differ in nothing but case and spacing.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

from spiketext.tables import Row, text_key

SEED = 0
SPLITS = ("train", "validation", "test")

Rows = list[Row]
Parts = dict[str, Rows]


def draw(strata: Sequence[Hashable], groups: Sequence[Hashable] | None = None) -> set[int]:
    """Draw a tenth of the positions 0..N-1, the same ones on every machine.

    strata [N]: of each stratum a tenth is drawn, rounded, at least one. groups [N]: positions of one group are drawn
    together or not at all; a group too large for what a stratum still needs is passed over.
    """
    members: dict[Hashable, list[int]] = defaultdict(list)
    for position, group in enumerate(range(len(strata)) if groups is None else groups):
        members[group].append(position)
    wanted = {stratum: max(1, (count + 5) // 10) for stratum, count in Counter(strata).items()}
    drawn: set[int] = set()
    for together in sorted(members.values(), key=lambda positions: _rank(positions[0])):
        counts = Counter(strata[position] for position in together)
        if all(count <= wanted[stratum] for stratum, count in counts.items()):
            drawn.update(together)
            for stratum, count in counts.items():
                wanted[stratum] -= count
    return drawn


def _rank(position: int) -> bytes:
    return hashlib.sha256(f"{SEED} {position}".encode()).digest()


def sentence_groups(rows: Sequence[Row]) -> list[int]:
    """Return a group number per row [N]: rows that share a sentence, directly or through other rows, share a number."""
    groups = list(range(len(rows)))

    def root(row: int) -> int:
        while groups[row] != row:
            groups[row] = groups[groups[row]]
            row = groups[row]
        return row

    first: dict[str, int] = {}
    for position, row in enumerate(rows):
        for sentence in filter(None, text_key(row)):
            groups[root(position)] = root(first.setdefault(sentence, position))
    return [root(position) for position in range(len(rows))]


def _strata(rows: Rows) -> list[str]:
    """The class of each row; scores are one stratum, so that regression is cut unstratified."""
    return [row.label if isinstance(row.label, str) else "" for row in rows]


def _split_off(rows: Rows, grouped: bool) -> tuple[Rows, Rows]:
    """Return (the rows that stay, the tenth that is drawn), both in order.

    grouped: rows that share a sentence are drawn together; unless they hang together so that half a tenth isn't to be
    had.
    """
    drawn = draw(_strata(rows))
    if grouped:
        together = draw(_strata(rows), sentence_groups(rows))
        drawn = together if 2 * len(together) >= len(drawn) else drawn
    return (
        [row for position, row in enumerate(rows) if position not in drawn],
        [row for position, row in enumerate(rows) if position in drawn],
    )


def _notes_on_pairs(parts: Parts, *splits: str) -> list[str]:
    """How many pairs of these splits share a sentence with one of train; nothing of single texts."""
    if not any(row.pair for row in parts["train"]):
        return []
    known = {sentence for row in parts["train"] for sentence in text_key(row)}
    shared = {split: sum(not known.isdisjoint(text_key(row)) for row in parts[split]) for split in splits}
    notes = [f"{count} {split} rows share a sentence with train" for split, count in shared.items() if count]
    return notes or ["rows sharing a sentence stay on one side"]


def _without_copies(rows: Rows, *others: Rows) -> Rows:
    keys = {text_key(row) for other in others for row in other}
    return [row for row in rows if text_key(row) not in keys]


def cut(rows: Rows) -> tuple[Parts, list[str]]:
    """Cut rows into train, validation and test; returns those and notes.

    A tenth is test, a tenth of the rest validation, stratified by class. Copies of test rows leave validation and
    train, copies of validation rows leave train. Pairs that share a sentence stay on one side; where so many hang
    together that less than half of a tenth is to be had so, they don't, and a note says how many.
    """
    paired = rows[0].pair is not None
    rest, test = _split_off(rows, paired)
    train, validation = _split_off(rest, paired)
    parts = {
        "train": _without_copies(train, validation, test),
        "validation": _without_copies(validation, test),
        "test": test,
    }
    stratified = "stratified" if isinstance(rows[0].label, str) else "unstratified"
    notes = [f"cut once: 10 % test, 10 % of the rest validation, {stratified}, seed {SEED}"]
    if copies := len(rows) - sum(map(len, parts.values())):
        notes.append(f"{copies} copies of test or validation rows left train or validation")
    return parts, notes + _notes_on_pairs(parts, "validation", "test")


def hold_out(train: Rows, test: Rows, *, grouped: bool) -> tuple[Parts, list[str]]:
    """Cut validation off train; the test rows are given. Copies of validation rows leave train; grouped: as `cut`."""
    rest, validation = _split_off(train, grouped)
    kept = _without_copies(rest, validation)
    stratified = "stratified" if isinstance(train[0].label, str) else "unstratified"
    notes = [f"validation: 10 % of train, {stratified}, seed {SEED}"]
    if len(kept) < len(rest):
        notes.append(f"{len(rest) - len(kept)} copies of validation rows left train")
    parts = {"train": kept, "validation": validation, "test": test}
    return parts, notes + _notes_on_pairs(parts, "validation")


def overlap_notes(parts: Parts) -> list[str]:
    """Notes on rows that occur in two splits."""
    keys = {split: {text_key(row) for row in rows} for split, rows in parts.items()}
    notes = []
    for split, other in (("validation", "train"), ("test", "train"), ("test", "validation")):
        if count := sum(text_key(row) in keys[other] for row in parts[split]):
            notes.append(f"{count} {split} rows also occur in {other} (counted, none dropped)")
    return notes
