"""Random conversations and their token ids: the training stream."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from tools.demo.augment import vary
from tools.demo.corpus import LANGUAGES, SPECIAL_TOPICS, Corpus, Entry, Question
from tools.demo.reframe import strange_question
from tools.demo.tokenizer import EOS_ID, Tokenizer

# Everything is learned a little, the answers above all.
QUESTION_WEIGHT = 0.05
PROSE_WEIGHT = 0.5
_PRACTICE = 0.25  # of the questions as written: those that the model missed


@dataclass(frozen=True)
class Turn:
    user: str
    answer: str


@dataclass
class Row:
    """Ids and, for each, the weight of the loss on predicting it."""

    ids: list[int]
    weights: list[float]

    def add(self, ids: list[int], weight: float) -> None:
        self.ids += ids
        self.weights += [weight] * len(ids)


class ConversationSampler:
    """Draws conversations without end; everything random comes from `rng`."""

    def __init__(self, corpus: Corpus, rng: random.Random) -> None:
        self.corpus = corpus
        self.rng = rng
        self._settled = False
        self._decks: dict[str, list[Question]] = {language: [] for language in LANGUAGES}
        self._missed: dict[str, list[Question]] = {language: [] for language in LANGUAGES}
        self._topics = {
            language: [
                entry
                for entry in corpus.entries.values()
                if entry.language == language and entry.topic not in SPECIAL_TOPICS
            ]
            for language in LANGUAGES
        }

    def settle(self) -> None:
        """From now on most questions are as they are written, all of them equally often."""
        self._settled = True

    def practise(self, missed: list[Question]) -> None:
        """Once settled, some of the written questions drawn are those of `missed`."""
        for language in LANGUAGES:
            self._missed[language] = [q for q in missed if q.language == language]

    def turns(self) -> Iterator[Turn]:
        language = self.rng.choice(LANGUAGES)
        while True:
            if self.rng.random() < 0.2:
                language = self.rng.choice(LANGUAGES)
            entry, question = self._question(language)
            yield Turn(question, entry.answer)
            if self.rng.random() < 0.2:
                yield from self._follow_ups(entry)

    def _question(self, language: str) -> tuple[Entry, str]:
        if self._settled and self.rng.random() < 0.6:
            return self._written(language)
        chance = self.rng.random()
        if chance < 0.09:
            entry, text = self._out_of_scope(language)
        elif chance < 0.12:
            entry, text = self._piped_text(language)
        else:
            entry = self.rng.choice(self._topics[language])
            text = self.rng.choice(entry.questions)
            if entry.terms and self.rng.random() < 0.3:
                term = self.rng.choice(entry.terms)
                template = self.rng.choice(self.corpus.templates(entry, term))
                text = template.replace("{term}", term)
        return entry, vary(text, language, self.rng)

    def _written(self, language: str) -> tuple[Entry, str]:
        deck, missed = self._decks[language], self._missed[language]
        if missed and self.rng.random() < _PRACTICE:
            question = self.rng.choice(missed)
        else:
            if not deck:
                deck += [q for q in self.corpus.questions() if q.language == language]
                self.rng.shuffle(deck)
            question = deck.pop()
        return self.corpus.entries[question.topic, language], question.text

    def _out_of_scope(self, language: str) -> tuple[Entry, str]:
        scope = self.corpus.out_of_scope
        chance = self.rng.random()
        if chance < 0.35:
            text = self.rng.choice(scope.questions[language])
        elif chance < 0.65:
            text = strange_question(scope.nouns[language], language, self.rng)
        else:
            pattern = self.rng.choice(scope.patterns[language])
            text = pattern.replace("{noun}", self.rng.choice(scope.nouns[language]))
        return self.corpus.entries["fallback", language], text

    def _piped_text(self, language: str) -> tuple[Entry, str]:
        scope = self.corpus.out_of_scope
        texts = scope.texts[language]
        if self.rng.random() < 0.2:
            texts = scope.texts["zh" if language == "en" else "en"]
        elif self.rng.random() < 0.3:
            texts = scope.nouns[language]
        text = self.rng.choice(texts)
        if self.rng.random() < 0.15:
            text += self.rng.choice(("\n", " ")) + self.rng.choice(texts)
        prompt = self.rng.choice(scope.prompts[language])
        return self.corpus.entries["piped_text", language], f"{prompt}\n\n{text}"

    def _follow_ups(self, entry: Entry) -> Iterator[Turn]:
        """One or two messages that refer to the answer before them."""
        language = entry.language
        answer, may_ask_more = entry.answer, True
        for _ in range(self.rng.choice((1, 1, 2))):
            kinds = ["repeat", f"to_{'zh' if language == 'en' else 'en'}"]
            kinds += ["more", "more"] if may_ask_more else []
            kind = self.rng.choice(kinds)
            asked_in = language
            if kind.startswith("to_"):
                # "Say it in Chinese" may be said in either language.
                asked_in = self.rng.choice(LANGUAGES)
                language = kind.removeprefix("to_")
                answer = self._in_language(entry, answer, language)
            elif kind == "more":
                may_ask_more = False
                nothing = self.corpus.entries["nothing_more", language].answer
                answer = self.corpus.entries[entry.topic, language].more or nothing
            message = self.rng.choice(self.corpus.follow_ups[kind][asked_in])
            yield Turn(vary(message, asked_in, self.rng), answer)

    def _in_language(self, entry: Entry, answer: str, language: str) -> str:
        """The counterpart of an answer (or of its continuation) in the other language."""
        other = "zh" if language == "en" else "en"
        was, wanted = self.corpus.entries[entry.topic, other], self.corpus.entries
        if answer == was.answer:
            return wanted[entry.topic, language].answer
        if answer == was.more:
            return wanted[entry.topic, language].more or wanted["nothing_more", language].answer
        return wanted["nothing_more", language].answer


def prompt_ids(tokenizer: Tokenizer, user: str) -> list[int]:
    """One user turn up to where the answer begins. Segments are encoded separately."""
    encode = tokenizer.encode
    return encode("Human: ") + encode(user + "\n\n") + encode("Assistant: ")


def system_ids(tokenizer: Tokenizer, system: str) -> list[int]:
    return tokenizer.encode("Human: ") + tokenizer.encode(system + "\n")


class RowSampler:
    """Fills rows of a fixed length with conversations, sometimes with prose."""

    def __init__(self, corpus: Corpus, tokenizer: Tokenizer, seed: int) -> None:
        self.rng = random.Random(seed)
        self.corpus = corpus
        self.tokenizer = tokenizer
        self._conversations = ConversationSampler(corpus, self.rng)
        self._known: dict[str, list[int]] = {}

    def settle(self) -> None:
        """For the end of training: see `ConversationSampler.settle`."""
        self._conversations.settle()

    def practise(self, missed: list[Question]) -> None:
        self._conversations.practise(missed)

    def row(self, length: int) -> Row:
        """Ids and weights, `length` of each."""
        row = Row([], [])
        if self.rng.random() < 0.06:
            while len(row.ids) < length:
                for paragraph in self.rng.sample(self.corpus.prose, len(self.corpus.prose)):
                    row.add(self.tokenizer.encode(paragraph + "\n\n"), PROSE_WEIGHT)
        else:
            if self.rng.random() < 0.08:
                system = self.rng.choice(self.corpus.systems[self.rng.choice(LANGUAGES)])
                row.add(system_ids(self.tokenizer, system), 0.0)
            for turn in self._conversations.turns():
                self._add_turn(row, turn)
                if len(row.ids) >= length:
                    break
        return Row(row.ids[:length], row.weights[:length])

    def _add_turn(self, row: Row, turn: Turn) -> None:
        row.add(self._encode("Human: "), 0.0)
        row.add(self._encode_question(turn.user), QUESTION_WEIGHT)
        row.add(self._encode("Assistant: "), 0.0)
        row.add([*self._encode(turn.answer), EOS_ID], 1.0)

    def _encode(self, text: str) -> list[int]:
        if text not in self._known:
            self._known[text] = self.tokenizer.encode(text)
        return self._known[text]

    def _encode_question(self, text: str) -> list[int]:
        """Some questions are cut before encoding: other tokens for the same words, so that
        spelling matters less."""
        text += "\n\n"
        if self.rng.random() < 0.8:
            return self.tokenizer.encode(text)
        at = self.rng.randrange(len(text))
        return self.tokenizer.encode(text[:at]) + self.tokenizer.encode(text[at:])
