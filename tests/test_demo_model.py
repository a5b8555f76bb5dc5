"""The embedded demo, through the runtime: it answers what it was trained to answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.demo.corpus import Question, held_out_questions, load_corpus
from xverse_runtime.config import EngineConfig, ModelConfig
from xverse_runtime.demo import demo_directory
from xverse_runtime.engine import Engine
from xverse_runtime.model_dir import ModelDirectory
from xverse_runtime.types import Message, SamplingParams

GREEDY = SamplingParams(temperature=0, max_new_tokens=200)
PASS_MARK = 32  # of 40 rephrasings


@pytest.fixture(scope="module")
def demo() -> Engine:
    return Engine.load(demo_directory(), EngineConfig(device="cpu"))


def reply(demo: Engine, *contents: str) -> str:
    roles = ("user", "assistant")
    messages = [Message(roles[i % 2], text) for i, text in enumerate(contents)]  # type: ignore[arg-type]
    chunks = demo.generate(demo.encode_chat(messages), GREEDY)
    return "".join(chunk.text for chunk in chunks)


def answers_right(demo: Engine, question: Question) -> bool:
    """Whether greedy decoding gives exactly the answer and then ends.

    One pass over question and answer tells: it does if and only if every token of the answer is
    the likeliest after those before it.
    """
    prompt = demo.encode_chat([Message("user", question.text)])
    answer = [*demo.tokenizer.encode(question.answer), 3]
    demo._cache.truncate(0)
    rows = slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
    logits = demo._decoder.forward([*prompt, *answer], demo._cache, logits_for=rows)
    return logits.argmax(-1).tolist() == answer


def wrongly_answered(demo: Engine, questions: list[Question]) -> list[tuple[str, str]]:
    return [(q.topic, q.text) for q in questions if not answers_right(demo, q)]


def test_questions_of_the_corpus_get_their_answers(demo: Engine) -> None:
    assert wrongly_answered(demo, list(load_corpus().questions())[::29]) == []


@pytest.mark.slow
def test_every_question_of_the_corpus_gets_its_answer(demo: Engine) -> None:
    questions = list(load_corpus().questions())
    assert len(questions) > 6000
    assert wrongly_answered(demo, questions) == []


def test_the_one_pass_check_is_what_generation_does(demo: Engine) -> None:
    for question in list(load_corpus().questions())[::211]:
        assert (reply(demo, question.text) == question.answer) == answers_right(demo, question)


def test_rephrasings_that_were_kept_out_of_training(demo: Engine) -> None:
    questions = held_out_questions()
    assert len(questions) == 40
    right = [question for question in questions if answers_right(demo, question)]
    assert len(right) >= PASS_MARK


def test_it_says_that_it_is_a_demo(demo: Engine) -> None:
    assert "demo" in reply(demo, "Who are you?").lower()
    assert "演示" in reply(demo, "你是谁？")


def test_a_conversation_with_turns_before(demo: Engine) -> None:
    first, second = "What is a router?", "什么是专家？"
    answers = {(q.text, q.language): q.answer for q in load_corpus().questions()}
    said = reply(demo, first)
    assert said == answers[first, "en"]
    assert reply(demo, first, said, second) == answers[second, "zh"]


def test_it_has_the_true_architecture_and_is_small(demo_dir: Path) -> None:
    config = ModelConfig.from_dir(ModelDirectory.open(demo_dir))
    assert config.head_dim == 80
    assert config.is_moe
    assert config.num_shared_experts == 2
    assert 1 < config.top_k < config.num_experts
    assert sum(file.stat().st_size for file in demo_dir.iterdir() if file.is_file()) < 12e6
