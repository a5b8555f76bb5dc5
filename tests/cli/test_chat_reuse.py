"""The chat over a real engine: each turn computes only what is new."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.scripted_chat import Chat
from xverse_cli.chat.sessions.folder import latest_session
from xverse_runtime.config import EngineConfig
from xverse_runtime.engine import Engine


@pytest.fixture
def engine(demo_dir: Path) -> Engine:
    found = Engine.load(demo_dir, EngineConfig(device="cpu", precision="fp32"), model_name="demo")
    found.keep_conversations()
    return found


QUESTION = "What is a mixture of experts? " * 4


def computed(engine: Engine, *inputs: str, **options: object) -> list[int]:
    """How many tokens of the prompt each of the replies has computed."""
    generate, counts = engine.generate, []

    def counting(*args: object) -> object:
        for chunk in generate(*args):  # type: ignore[arg-type]
            if chunk.finish_reason:
                counts.append(chunk.usage.prompt_tokens - chunk.usage.cached_tokens)
            yield chunk

    engine.generate = counting  # type: ignore[method-assign,assignment]
    Chat(*inputs, engine=engine, seed=1, saves=True, **options)  # type: ignore[arg-type]
    engine.generate = generate  # type: ignore[method-assign]
    return counts


def test_a_turn_computes_what_is_new(engine: Engine) -> None:
    first, second, retried, edited, after_undo = computed(
        engine, QUESTION, "And?", "/retry", "/edit", "And now?", "/undo", "Or?"
    )
    assert first > 20
    assert second < first / 2
    assert retried == 1
    assert edited < first / 2
    assert after_undo < first / 2


def test_switching_sessions_and_back_computes_nothing_twice(engine: Engine) -> None:
    computed(engine, QUESTION, "/save one")
    counts = computed(engine, "Hello", "Something else", "/load one", "And?")
    assert counts[-1] < 15


def test_a_resumed_session_is_replayed_to_the_letter(engine: Engine, demo_dir: Path) -> None:
    Chat("/set temperature 1.5", QUESTION, "Why?", engine=engine, saves=True)
    saved = latest_session()
    fresh = Engine.load(demo_dir, EngineConfig(device="cpu", precision="fp32"), model_name="demo")
    chat = Chat("/replay 1", "/replay", engine=fresh, going_on=saved)
    assert chat.stderr.count("The same reply (seed ") == 2
    replies = [turn.assistant for turn in saved.conversation.turns]
    assert chat.stdout == "".join(reply.rstrip("\n") + "\n" for reply in replies)
