"""Puts the words that tell a topic into the sentence of another question.

A small model trained on a dozen wordings remembers sentences. What it should learn is which words
decide: those that occur in few topics. They are kept; the words around them are dropped at random,
or taken from a question about something else.
"""

import random
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from tools.demo.corpus import SPECIAL_TOPICS, load_corpus

_RARE_TOPICS = 3
_RARE_CHARACTERS = 20
_LATIN_OR_ONE = re.compile(r"[A-Za-z0-9][A-Za-z0-9./_-]*|.", re.DOTALL)
_EDGES = re.compile(r"^\W+|\W+$")


@dataclass(frozen=True)
class Sentence:
    """Words (characters in Chinese), and which of them tell the topic."""

    units: tuple[str, ...]
    telling: tuple[bool, ...]

    def around(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What stands before the first telling word and after the last one, without the rest."""
        first = self.telling.index(True)
        last = len(self.telling) - self.telling[::-1].index(True)
        return self.units[:first], self.units[last:]

    def core(self, rng: random.Random) -> list[str]:
        """From the first telling word to the last; of those between, about half."""
        first = self.telling.index(True)
        last = len(self.telling) - self.telling[::-1].index(True)
        inner = zip(self.units[first:last], self.telling[first:last], strict=True)
        return [unit for unit, tells in inner if tells or rng.random() < 0.5]


def reframe(text: str, language: str, rng: random.Random) -> str:
    """``text`` in other words, or as it is where no word of it tells the topic."""
    sentence = _sentence(text, language)
    if not any(sentence.telling) or "\n" in text:
        return text
    before, after = sentence.around()
    if rng.random() < 0.5:
        before, after = rng.choice(_frames(language))
    parts = [u for u in before if rng.random() < 0.8] + sentence.core(rng)
    parts += [u for u in after if rng.random() < 0.8]
    if rng.random() < 0.25:
        filler = rng.choice(_frames(language))[rng.randrange(2)]
        parts = [*filler, *parts] if rng.random() < 0.5 else [*parts, *filler]
    return _join(parts, language)


def strange_question(nouns: tuple[str, ...], language: str, rng: random.Random) -> str:
    """A question in the words of ours about something that the demo has never heard of."""
    before, after = rng.choice(_frames(language))
    noun = rng.choice(nouns) if rng.random() < 0.5 else _invented(nouns, language, rng)
    return _join([*before, noun, *after], language)


def _invented(nouns: tuple[str, ...], language: str, rng: random.Random) -> str:
    """A word that is none: pieces of two nouns, or letters."""
    first, second = rng.choice(nouns), rng.choice(nouns)
    if language == "zh":
        return first[: rng.randint(1, 2)] + second[-rng.randint(1, 2) :]
    if rng.random() < 0.5:
        return f"{first.split()[0]} {second.split()[-1]}"
    syllables = [rng.choice("bcdfgklmnprstvwz") + rng.choice("aeiou") for _ in range(3)]
    return "".join(syllables) + rng.choice(("", "n", "r", "s"))


def _join(parts: list[str], language: str) -> str:
    text = (" " if language == "en" else "").join(part for part in parts if part)
    return text.strip()


@cache
def _frames(language: str) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """What stands around the telling words of all questions of a language."""
    sentences = [
        _sentence(question.text, language)
        for question in load_corpus().questions()
        if question.language == language and "\n" not in question.text
    ]
    return [sentence.around() for sentence in sentences if any(sentence.telling)]


@cache
def _sentence(text: str, language: str) -> Sentence:
    rare = _rare(language)
    units = tuple(_units(text, language))
    if language == "en":
        return Sentence(units, tuple(_plain(unit) in rare for unit in units))
    # A Chinese character tells something when it is not everywhere and is part of a rare pair.
    neighbours = zip(("", *units), units, (*units[1:], ""), strict=False)
    telling = tuple(
        unit[0].isalnum()
        and (len(unit) > 1 or unit in rare)
        and (left + unit in rare or unit + right in rare)
        for left, unit, right in neighbours
    )
    return Sentence(units, telling)


def _units(text: str, language: str) -> list[str]:
    """Words; in Chinese characters, and words in Latin letters."""
    return text.split(" ") if language == "en" else _LATIN_OR_ONE.findall(text)


@cache
def _rare(language: str) -> frozenset[str]:
    """Words that occur in the questions of few topics; in Chinese pairs of characters, and single
    characters that do not occur in very many."""
    topics: Counter[str] = Counter()
    for entry in load_corpus().entries.values():
        if entry.language != language or entry.topic in SPECIAL_TOPICS:
            continue
        found: set[str] = set()
        for text in (*entry.questions, *entry.terms):
            units = _units(text, language)
            found |= {_plain(unit) for unit in units}
            if language == "zh":
                found |= {first + second for first, second in pairwise(units)}
        topics.update(found)
    limits = {1: _RARE_CHARACTERS if language == "zh" else _RARE_TOPICS}
    return frozenset(
        unit
        for unit, count in topics.items()
        if unit and count <= limits.get(len(unit), _RARE_TOPICS)
    )


def _plain(word: str) -> str:
    return _EDGES.sub("", word).lower() or word
