"""Evaluates an exported demo: `python tools/demo/evaluate.py DIR`.

Everything runs on the exported bf16 weights, upcast to fp32, at temperature 0.
"""

import argparse
import random
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from tools.demo.conversations import ConversationSampler, Turn, prompt_ids, system_ids
from tools.demo.corpus import Corpus, Question, held_out_questions, held_out_text, load_corpus
from tools.demo.export import load_exported
from tools.demo.model import DemoModel
from tools.demo.tokenizer import EOS_ID, Tokenizer

_ROWS_AT_ONCE = 64
_MAX_NEW_TOKENS = 160


@dataclass(frozen=True)
class Case:
    """A prompt and the answer that it must get; `about` says where it comes from."""

    prompt: list[int]
    answer: list[int]
    about: str


@dataclass(frozen=True)
class HeldOutResult:
    question: Question
    reply: str
    replied_topic: str | None

    @property
    def passed(self) -> bool:
        return self.reply == self.question.answer


class Evaluation:
    def __init__(self, directory: Path) -> None:
        self.model = load_exported(directory)
        self.tokenizer = Tokenizer.from_dir(directory)
        self.corpus = load_corpus()

    def single_turn(self) -> list[tuple[Case, bool]]:
        """Every written question on its own."""
        cases = [
            Case(
                prompt_ids(self.tokenizer, question.text),
                self._answer(question.answer),
                f"{question.topic}.{question.language}: {question.text}",
            )
            for question in self.corpus.questions()
        ]
        return self._check(cases)

    def with_system_message(self) -> list[tuple[Case, bool]]:
        """Some questions after a system message that was not trained on."""
        cases = [
            Case(
                system_ids(self.tokenizer, system) + prompt_ids(self.tokenizer, question.text),
                self._answer(question.answer),
                f"system, {question.topic}.{question.language}: {question.text}",
            )
            for system in ("You are a careful and kind assistant.", "你是一位耐心的老师。")
            for question in list(self.corpus.questions())[::23]
        ]
        return self._check(cases)

    def later_turns(self, conversations: int = 60, seed: int = 99) -> list[tuple[Case, bool]]:
        """Turns 3 to 6 of random conversations, follow-ups included. Questions are varied the
        way they are in training, with other random choices."""
        cases = []
        for number in range(conversations):
            sampler = ConversationSampler(self.corpus, random.Random(f"{seed}-{number}"))
            history: list[int] = []
            for position, turn in enumerate(sampler.turns(), start=1):
                prompt = history + prompt_ids(self.tokenizer, turn.user)
                answer = self._answer(turn.answer)
                history = prompt + answer
                if position > 6 or len(history) > self.model.config.max_positions:
                    break
                if position >= 3:
                    cases.append(Case(prompt, answer, f"turn {position}: {turn.user}"))
        return self._check(cases)

    def held_out(self, earlier: tuple[Turn, ...] = ()) -> list[HeldOutResult]:
        """The rephrasings, answered for real, optionally after other turns."""
        history: list[int] = []
        for turn in earlier:
            history += prompt_ids(self.tokenizer, turn.user) + self._answer(turn.answer)
        topics = {entry.answer: entry.topic for entry in self.corpus.entries.values()}
        results = []
        for question in held_out_questions():
            reply = self.reply(history + prompt_ids(self.tokenizer, question.text))
            results.append(HeldOutResult(question, reply, topics.get(reply)))
        return results

    def perplexity(self) -> tuple[float, int]:
        """Of the held-out text, as one sequence of plain text, and its number of tokens."""
        ids = torch.tensor([self.tokenizer.encode(held_out_text())])
        ids = ids[:, : self.model.config.max_positions]
        with torch.inference_mode():
            logits, _, _ = self.model(ids[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits[0], ids[0, 1:])
        return float(loss.exp()), ids.shape[1]

    def expert_load(self) -> torch.Tensor:
        """[layers, experts]: the share of routed tokens, over one pass of all written answers,
        times the number of experts; 1.0 is an even share."""
        ids = [i for q in self.corpus.questions() for i in self._answer(q.answer)]
        usable = len(ids) // 512 * 512
        with torch.inference_mode():
            _, _, load = self.model(torch.tensor(ids[:usable]).view(-1, 512)[::8])
        share: torch.Tensor = load * load.shape[1]
        return share

    def reply(self, prompt: list[int]) -> str:
        """Greedy decoding, the whole sequence again for each token."""
        ids = list(prompt)
        with torch.inference_mode():
            while len(ids) < len(prompt) + _MAX_NEW_TOKENS:
                logits, _, _ = self.model(torch.tensor([ids]))
                ids.append(int(logits[0, -1].argmax()))
                if ids[-1] == EOS_ID:
                    return self.tokenizer.decode(ids[len(prompt) : -1])
        return self.tokenizer.decode(ids[len(prompt) :])

    def _answer(self, text: str) -> list[int]:
        return [*self.tokenizer.encode(text), EOS_ID]

    def _check(self, cases: list[Case]) -> list[tuple[Case, bool]]:
        return list(zip(cases, greedy_matches(self.model, cases), strict=True))


def greedy_matches(model: DemoModel, cases: list[Case]) -> list[bool]:
    """Whether greedy decoding of each prompt gives exactly its answer. One pass suffices: that
    is the case if and only if every answer token is the best one after those before it."""
    order = sorted(range(len(cases)), key=lambda i: len(cases[i].prompt + cases[i].answer))
    passed = [False] * len(cases)
    for start in range(0, len(order), _ROWS_AT_ONCE):
        chunk = order[start : start + _ROWS_AT_ONCE]
        length = max(len(cases[i].prompt + cases[i].answer) for i in chunk)
        ids = torch.zeros(len(chunk), length, dtype=torch.long)
        for row, i in enumerate(chunk):
            both = cases[i].prompt + cases[i].answer
            ids[row, : len(both)] = torch.tensor(both)
        with torch.inference_mode():
            best = model(ids)[0].argmax(-1)  # [rows, length]
        for row, i in enumerate(chunk):
            first = len(cases[i].prompt) - 1
            predicted = best[row, first : first + len(cases[i].answer)].tolist()
            passed[i] = predicted == cases[i].answer
    return passed


def missed_questions(model: DemoModel, corpus: Corpus, tokenizer: Tokenizer) -> list[Question]:
    """The written questions that get another answer than their own."""
    questions = list(corpus.questions())
    cases = [
        Case(prompt_ids(tokenizer, q.text), [*tokenizer.encode(q.answer), EOS_ID], q.text)
        for q in questions
    ]
    passed = greedy_matches(model, cases)
    return [question for question, right in zip(questions, passed, strict=True) if not right]


def default_earlier_turns(corpus: Corpus) -> tuple[Turn, ...]:
    """Three turns on other subjects, before the held-out questions are asked again."""
    picked = (("hello", "en"), ("attention", "en"), ("config", "zh"))
    return tuple(
        Turn(corpus.entries[key].questions[0], corpus.entries[key].answer) for key in picked
    )


def _summary(title: str, results: list[tuple[Case, bool]]) -> str:
    good = sum(passed for _, passed in results)
    failed = "".join(f"\n    {case.about!r}" for case, passed in results if not passed)
    return f"{title}: {good} of {len(results)}{failed}"


def _held_out_summary(title: str, results: list[HeldOutResult]) -> str:
    good = sum(result.passed for result in results)
    failed = "".join(
        f"\n    {r.question.text!r}: {r.replied_topic or r.reply!r} instead of {r.question.topic}"
        for r in results
        if not r.passed
    )
    return f"{title}: {good} of {len(results)}{failed}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, help="an exported demo")
    parser.add_argument("--blind", action="store_true", help="do not look at held-out questions")
    options = parser.parse_args()

    evaluation = Evaluation(options.directory)
    print(_summary("written questions", evaluation.single_turn()))
    print(_summary("turns 3 to 6", evaluation.later_turns()))
    print(_summary("after a system message", evaluation.with_system_message()))
    perplexity, tokens = evaluation.perplexity()
    print(f"perplexity of the held-out text: {perplexity:.1f} over {tokens} tokens")
    load = evaluation.expert_load()
    print(f"expert load: {load.min():.2f} to {load.max():.2f} of an even share")
    if not options.blind:
        earlier = default_earlier_turns(evaluation.corpus)
        print(_held_out_summary("held-out questions", evaluation.held_out()))
        print(_held_out_summary("the same as fourth turn", evaluation.held_out(earlier)))


if __name__ == "__main__":
    main()
