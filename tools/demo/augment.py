"""Varies written questions, so that the model learns what is asked instead of how."""

import random
import re
from functools import cache

from tools.demo.corpus import load_corpus
from tools.demo.reframe import reframe

_FULL_TO_HALF = str.maketrans("？！，。：", "?!,.:")
_HALF_TO_FULL = str.maketrans("?!,:", "？！，：")
_WORD_THAT_MAY_GO = re.compile(
    r"\b(?:the|a|an|do|does|is|it|to|of|me|for|please|my|can)\b ?", re.IGNORECASE
)
_PARTICLES = re.compile("[的吗呢了是会]")


def vary(question: str, language: str, rng: random.Random, *, unchanged: float = 0.25) -> str:
    """A question as somebody else might type it.

    Args:
        unchanged: the share of questions that stay as they are.
    """
    if rng.random() < unchanged:
        return question
    text = question
    if rng.random() < 0.5:
        text = reframe(text, language, rng)
    if rng.random() < 0.5:
        text = _replace_synonym(text, language, rng)
    if rng.random() < 0.25:
        text = _drop_small_word(text, language, rng)
    if rng.random() < 0.08:
        text = _drop_any_word(text, language, rng)
    if "\n" not in text and rng.random() < 0.35:
        text = _embed(text, language, rng)
    text = _punctuate(text, language, rng)
    if language == "en" and rng.random() < 0.3:
        text = text.lower()
    if rng.random() < 0.06:
        text = _misspell(text, rng)
    if rng.random() < 0.05:
        text += rng.choice((" ", "\n", "  "))
    return text or question


@cache
def _synonym_patterns(language: str) -> tuple[tuple[re.Pattern[str], tuple[str, ...]], ...]:
    patterns = []
    for words in load_corpus().phrasing.synonyms[language]:
        # A single Chinese character is too often a part of another word to be matched.
        found = sorted((w for w in words if len(w) > 1 or language == "en"), key=len, reverse=True)
        body = "|".join(re.escape(word) for word in found)
        # Options and commands (`--gpu-memory`, `xverse show`) keep their spelling.
        start, end = (r"(?<![-/.])(?<!xverse )\b", r"\b(?!-)") if language == "en" else ("", "")
        patterns.append((re.compile(f"{start}(?:{body}){end}", re.IGNORECASE), words))
    return tuple(patterns)


def _replace_synonym(text: str, language: str, rng: random.Random) -> str:
    patterns = [(p, words) for p, words in _synonym_patterns(language) if p.search(text)]
    for pattern, words in rng.sample(patterns, min(len(patterns), 2)):
        text = pattern.sub(rng.choice(words), text, count=1)
    return text


def _drop_small_word(text: str, language: str, rng: random.Random) -> str:
    pattern = _WORD_THAT_MAY_GO if language == "en" else _PARTICLES
    matches = list(pattern.finditer(text))
    if not matches:
        return text
    match = rng.choice(matches)
    return text[: match.start()] + text[match.end() :]


def _drop_any_word(text: str, language: str, rng: random.Random) -> str:
    if language == "en":
        words = text.split(" ")
        if len(words) < 4:
            return text
        del words[rng.randrange(len(words))]
        return " ".join(words)
    if len(text) < 7:
        return text
    at = rng.randrange(len(text) - 1)
    return text[:at] + text[at + 1 :]


def _embed(text: str, language: str, rng: random.Random) -> str:
    phrasing = load_corpus().phrasing
    if rng.random() < 0.75:
        prefix = rng.choice(phrasing.prefixes[language])
        if language == "zh":
            return prefix + text
        return f"{prefix} {text[0].lower() + text[1:] if text[1:2].islower() else text}"
    suffix = rng.choice(phrasing.suffixes[language])
    bare = text.rstrip("?？.。!！ ")
    mark = text[len(bare) :]
    return f"{bare} {suffix}{mark}" if language == "en" else f"{bare}{suffix}{mark}"


def _punctuate(text: str, language: str, rng: random.Random) -> str:
    if rng.random() < 0.35:
        text = text.rstrip("?？.。!！ ")
    elif rng.random() < 0.2 and text[-1:].isalnum():
        mark = "." if language == "en" else "。"
        text += rng.choice(("?", "?", mark, "!", "??"))
    if language == "zh":
        if rng.random() < 0.3:
            text = text.translate(_FULL_TO_HALF)
        elif rng.random() < 0.2:
            text = text.translate(_HALF_TO_FULL)
        if rng.random() < 0.2:
            # Spaces between Chinese and Latin text are a matter of taste.
            text = re.sub(r"(?<=[^\x00-\x7f]) | (?=[^\x00-\x7f])", "", text)
    return text


def _misspell(text: str, rng: random.Random) -> str:
    if len(text) < 6:
        return text
    at = rng.randrange(1, len(text) - 2)
    if rng.random() < 0.5:
        return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    return text[:at] + text[at + 1 :]
