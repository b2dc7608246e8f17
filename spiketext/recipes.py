"""Floor 6: four attacks by substitution of words: how each ranks words, what it puts in and allows, how it searches.

Two settings. `own`: each recipe as its paper has it. `paper`: as SNN-TextCNN 4.4 compares them, at most 10 % of the
words changed (at least one), 15 candidates, similarity 0.8, and word vectors in place of all sources but the masked
language model; ranking and search stay each recipe's own. Values of `own` marked [recall] are from memory.

Stop words are never changed and never put in. A similarity is a level 0..1 on the scale of people, not a cosine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from spiketext.substitutes import Sentence

Ask = Callable[[list[str]], np.ndarray]  # texts [N] -> probabilities [N, K]; every text asked is a query
Allowed = Callable[[Sentence, int], tuple[list[Sentence], np.ndarray]]
# (sentence, place) -> sentences with another word there that all constraints allow, their similarities to the original


@dataclass
class Attack:
    """One text under attack: who is asked, the true class, the places that may change, how many of them, with what."""

    ask: Ask
    original: Sentence
    gold: int
    places: list[int]
    budget: int
    allowed: Allowed
    unknown: str


Order = Callable[[Attack, np.ndarray], np.ndarray]


def by_deletion(attack: Attack, base: np.ndarray) -> np.ndarray:
    """Importance of each place: how far the true class falls without the word (TextBugger)."""
    return (
        base[attack.gold] - attack.ask([attack.original.with_word(p, "").text for p in attack.places])[:, attack.gold]
    )


def by_deletion_and_turn(attack: Attack, base: np.ndarray) -> np.ndarray:
    """As `by_deletion`, and where the answer turns, how far the other class rises too (TextFooler eq. 2)."""
    answers = attack.ask([attack.original.with_word(place, "").text for place in attack.places])
    rise = np.take_along_axis(answers - base, answers.argmax(1)[:, None], 1)[:, 0]
    return base[attack.gold] - answers[:, attack.gold] + np.where(answers.argmax(1) != attack.gold, rise, 0)


def by_mask(attack: Attack, base: np.ndarray) -> np.ndarray:
    """How far the true class falls with the word masked or unknown (BERT-Attack, PWWS)."""
    masked = [attack.original.with_word(place, attack.unknown).text for place in attack.places]
    return base[attack.gold] - attack.ask(masked)[:, attack.gold]


@dataclass(frozen=True)
class Recipe:
    """Constants of an attack; source is vectors, wordnet, bugs or masked-lm.

    candidates for a word, max_changed 0..1 of the words, similarity level with the original (0: none), nearest: the
    least cosine of a word vector, same_part: of speech, most_similar: of the candidates that turn the answer.
    """

    order: Order
    search: Callable[[Recipe, Attack, np.ndarray], tuple[Sentence, bool]]
    source: str
    candidates: int
    max_changed: float
    similarity: float
    nearest: float = 0.0
    same_part: bool = False
    most_similar: bool = False


def greedy(recipe: Recipe, attack: Attack, base: np.ndarray) -> tuple[Sentence, bool]:
    """Most important word first: the candidate that turns the answer ends the search, else the one that lowers most.

    Returns the last sentence and whether it turned the answer. base: probabilities [K] of the original.
    """
    order = np.argsort(-recipe.order(attack, base), kind="stable")
    best, lowest, left = attack.original, base[attack.gold], attack.budget
    for place in (attack.places[n] for n in order):
        if left == 0:
            break
        sentences, similar = attack.allowed(best, place)
        if not sentences:
            continue
        answers = attack.ask([sentence.text for sentence in sentences])
        turned = answers.argmax(1) != attack.gold
        if turned.any():
            worth = similar if recipe.most_similar else -answers[:, attack.gold]
            return sentences[int(np.where(turned, worth, -np.inf).argmax())], True
        lower = int(answers[:, attack.gold].argmin())
        if answers[lower, attack.gold] < lowest:
            best, lowest, left = sentences[lower], answers[lower, attack.gold], left - 1
    return best, False


def weighted_saliency(recipe: Recipe, attack: Attack, base: np.ndarray) -> tuple[Sentence, bool]:
    """PWWS: the best candidate of every word, then words by softmax(saliency) * gain until the answer turns (eq. 4-9).

    Returns as `greedy`. A word whose candidate the constraints forbid beside the earlier changes is left out.
    """
    saliency = np.exp(recipe.order(attack, base))  # the softmax's sum is the same for all
    ranked = []
    for weight, place in zip(saliency, attack.places, strict=True):
        sentences, _ = attack.allowed(attack.original, place)
        if sentences:
            answers = attack.ask([sentence.text for sentence in sentences])[:, attack.gold]
            gain = base[attack.gold] - answers.min()
            if gain > 0:
                ranked.append((weight * gain, place, sentences[int(answers.argmin())].words[place]))
    sentence, left = attack.original, attack.budget
    for _, place, word in sorted(ranked, key=lambda entry: -entry[0]):
        if left == 0:
            break
        both = [s for s in attack.allowed(sentence, place)[0] if s.words[place] == word]
        if both:
            sentence, left = both[0], left - 1
            if attack.ask([sentence.text])[0].argmax() != attack.gold:
                return sentence, True
    return sentence, False


OWN = {
    "textfooler": Recipe(by_deletion_and_turn, greedy, "vectors", candidates=50, max_changed=1.0, similarity=0.84,
                         nearest=0.5, same_part=True, most_similar=True),  # the authors' program [recall]
    "bert-attack": Recipe(by_mask, greedy, "masked-lm", candidates=48, max_changed=0.4, similarity=0.2),  # [recall]
    "textbugger": Recipe(by_deletion, greedy, "bugs", candidates=9, max_changed=1.0, similarity=0.8),
    "pwws": Recipe(by_mask, weighted_saliency, "wordnet", candidates=50, max_changed=1.0, similarity=0.0),
}  # fmt: skip
SETTINGS = ("paper", "own")


def recipe_of(name: str, setting: str, **changes: Any) -> Recipe:
    """A recipe in a setting; changes of max_changed, candidates, similarity that are not None win.

    Raises ValueError for an unknown name or setting and for a value out of range.
    """
    if name not in OWN:
        raise ValueError(f"recipe: expected one of {', '.join(OWN)}; got {name!r}")
    if setting not in SETTINGS:
        raise ValueError(f"setting: expected {' or '.join(SETTINGS)}; got {setting!r}")
    recipe = OWN[name]
    if setting == "paper":
        source = recipe.source if recipe.source == "masked-lm" else "vectors"
        recipe = replace(recipe, source=source, candidates=15, max_changed=0.1, similarity=0.8)
    recipe = replace(recipe, **{field: value for field, value in changes.items() if value is not None})
    if not 0 < recipe.max_changed <= 1:
        raise ValueError(f"max_changed: expected a share above 0 and up to 1, got {recipe.max_changed}")
    if not 0 <= recipe.similarity <= 1:
        raise ValueError(f"similarity: expected a level from 0 to 1, got {recipe.similarity}")
    most = next(own.candidates for own in OWN.values() if own.source == recipe.source)  # what the source gives
    if not 1 <= recipe.candidates <= most:
        raise ValueError(f"candidates: expected 1 to {most} from {recipe.source}, got {recipe.candidates}")
    return recipe


def budget(words: Sequence[str], max_changed: float) -> int:
    """How many words of a text may change: the share rounded down, at least one."""
    return max(1, int(max_changed * len(words) + 1e-9))
