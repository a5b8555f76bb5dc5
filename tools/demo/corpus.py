"""The questions and answers that the demo model is made of, read from `corpus/*.toml`."""

import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DIRECTORY = Path(__file__).parent / "corpus"
TOPIC_FILES = ("about", "commands", "running", "concepts", "smalltalk")
LANGUAGES = ("en", "zh")
# Topics that are reached through material of their own instead of listed questions.
SPECIAL_TOPICS = ("fallback", "piped_text", "nothing_more")

Key = tuple[str, str]
"""Topic and language, e.g. ("moe", "en")."""


@dataclass(frozen=True)
class Entry:
    """One topic in one language."""

    topic: str
    language: str
    answer: str
    more: str | None
    questions: tuple[str, ...]
    terms: tuple[str, ...]

    @property
    def key(self) -> Key:
        return self.topic, self.language


@dataclass(frozen=True)
class Question:
    text: str
    language: str
    topic: str
    answer: str


@dataclass(frozen=True)
class OutOfScope:
    """Lists by language: what the demo does not know, and texts that may be piped in."""

    questions: dict[str, tuple[str, ...]]
    patterns: dict[str, tuple[str, ...]]
    nouns: dict[str, tuple[str, ...]]
    prompts: dict[str, tuple[str, ...]]
    texts: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Phrasing:
    """Lists by language: what may stand around a question, templates, synonyms."""

    prefixes: dict[str, tuple[str, ...]]
    suffixes: dict[str, tuple[str, ...]]
    templates: dict[str, tuple[str, ...]]
    synonyms: dict[str, tuple[tuple[str, ...], ...]]


@dataclass(frozen=True)
class Corpus:
    entries: dict[Key, Entry]
    follow_ups: dict[str, dict[str, tuple[str, ...]]]
    """Kind (`more`, `repeat`, `to_zh`, `to_en`) → language → messages."""
    out_of_scope: OutOfScope
    phrasing: Phrasing
    systems: dict[str, tuple[str, ...]]
    prose: tuple[str, ...]
    """Plain paragraphs, trained on as text."""

    def questions(self) -> Iterator[Question]:
        """Every written question with the answer that belongs to it."""
        for entry in self.entries.values():
            listed = entry.questions
            if entry.topic == "fallback":
                listed = self.out_of_scope.questions[entry.language]
            for text in listed:
                yield Question(text, entry.language, entry.topic, entry.answer)

    def templates(self, entry: Entry, term: str) -> list[str]:
        """The templates that suit a term. A bare ASCII term says nothing about the language
        that is wanted, so the English answer gets it."""
        return [
            template
            for template in self.phrasing.templates[entry.language]
            if entry.language == "en" or template != "{term}" or not term.isascii()
        ]

    def texts(self) -> Iterator[str]:
        """All training text, for the tokenizer."""
        for entry in self.entries.values():
            yield from (entry.answer, entry.more or "", *entry.questions, *entry.terms)
        scope, phrasing = self.out_of_scope, self.phrasing
        tables = [scope.questions, scope.patterns, scope.nouns, scope.prompts, scope.texts]
        tables += [phrasing.prefixes, phrasing.suffixes, phrasing.templates, self.systems]
        for table in (*tables, *self.follow_ups.values()):
            for texts in table.values():
                yield from texts
        yield from self.prose
        # Frequent in every prompt, but in none of the texts above.
        yield from ["Human: ", "Assistant: "] * 50


def normalised(text: str) -> str:
    """Letters and digits alone, in lower case: two questions that agree in this are the same."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(character for character in folded if character.isalnum())


def held_out_questions() -> list[Question]:
    """Rephrasings for evaluation, which must never be trained on."""
    entries = load_corpus().entries
    return [
        Question(q["text"], q["language"], q["topic"], entries[q["topic"], q["language"]].answer)
        for q in _read("held_out_questions")["question"]
    ]


def held_out_text() -> str:
    return (DIRECTORY / "held_out_text.txt").read_text(encoding="utf-8").strip()


@cache
def load_corpus() -> Corpus:
    entries: dict[Key, Entry] = {}
    for name in TOPIC_FILES:
        for topic, table in _read(name).items():
            for language in LANGUAGES:
                entry = _entry(topic, language, table)
                entries[entry.key] = entry
    scope, phrasing = _read("out_of_scope"), _read("phrasing")
    prose = (DIRECTORY / "prose.txt").read_text(encoding="utf-8")
    return Corpus(
        entries=entries,
        follow_ups={kind: _lists(table) for kind, table in _read("follow_ups").items()},
        out_of_scope=OutOfScope(**{name: _lists(table) for name, table in scope.items()}),
        phrasing=Phrasing(
            prefixes=_lists(phrasing["prefixes"]),
            suffixes=_lists(phrasing["suffixes"]),
            templates=_templates(phrasing["templates"]),
            synonyms={
                language: tuple(tuple(line.split("|")) for line in lines)
                for language, lines in _lists(phrasing["synonyms"]).items()
            },
        ),
        systems=_lists(phrasing["systems"]),
        prose=tuple(prose.strip().split("\n\n")),
    )


def _entry(topic: str, language: str, table: dict[str, Any]) -> Entry:
    part = table[language]
    return Entry(
        topic=topic,
        language=language,
        answer=part["answer"],
        more=part.get("more"),
        questions=_lines(part["ask"]),
        terms=tuple(table.get("terms", {}).get(language, ())),
    )


def _templates(table: dict[str, str]) -> dict[str, tuple[str, ...]]:
    """One template a line; a blank line belongs to the template around it."""
    joined = {language: text.replace("\n\n", "\0") for language, text in table.items()}
    return {
        language: tuple(line.replace("\0", "\n\n") for line in _lines(text))
        for language, text in joined.items()
    }


def _read(name: str) -> dict[str, Any]:
    with (DIRECTORY / f"{name}.toml").open("rb") as file:
        table: dict[str, Any] = tomllib.load(file)
    return table


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line for line in text.splitlines() if line)


def _lists(table: dict[str, str]) -> dict[str, tuple[str, ...]]:
    return {language: _lines(text) for language, text in table.items()}
