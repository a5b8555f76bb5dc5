"""`kill -9` at any moment: every turn that was finished is on disk, and the file reads."""

from __future__ import annotations

import os
import random
import threading
import time
from pathlib import Path

import pytest

from tests.cli.pseudo_terminal import PseudoTerminal
from xverse_cli.chat.sessions.folder import latest_session, session_paths
from xverse_cli.chat.sessions.reading import read_session

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")

# One for each life, for the second one shows the last reply of the first when it begins.
REPLIES = ("A reply of some length, 混合专家.", "Another reply, 路由器.")
# Fast enough for many turns, slow enough to be hit at every moment of one.
SPEED = {"token_s": 0.002, "prefill_s": 0.01}
LONGEST_S = 1.5


def talk_until_killed(folder: Path, after_s: float, reply: str, *arguments: str) -> int:
    """Talk, and be killed; how many turns were finished, which is when the next prompt is there."""
    finished = 0
    script = {"replies": [reply], **SPEED}
    with PseudoTerminal(script, "chat", "--model", str(folder), *arguments) as terminal:
        terminal.wait_for("\n>")
        killer = threading.Timer(after_s, terminal.process.kill)
        killer.start()
        try:
            while terminal.process.poll() is None:
                terminal.type(f"message {finished}\r")
                if not terminal.wait_for_or_end(f"{reply}\n\n>", finished + 1):
                    break
                finished += 1
        except OSError:  # typed into a terminal that nobody reads
            pass
        killer.cancel()
    return finished


def check_killed(folder: Path, seed: int) -> None:
    """Two lives of one session: each ends by a kill, and the second goes on with the first."""
    chance = random.Random(seed)
    finished = talk_until_killed(folder, chance.uniform(0, LONGEST_S), REPLIES[0])
    (path,) = session_paths() or [None]
    first = read_session(path) if path else None
    turns = len(first.conversation.turns) if first else 0
    # One more may be on disk than the user has seen the prompt after.
    assert finished <= turns <= finished + 1, f"seed {seed}"
    assert first is None or first.damaged <= 1
    going_on = ("--continue",) if path else ()
    again = talk_until_killed(folder, chance.uniform(0, LONGEST_S), REPLIES[1], *going_on)
    saved = latest_session()
    both = saved.conversation.turns
    assert turns + again <= len(both) <= turns + again + 1, f"seed {seed}"
    assert [turn.assistant for turn in both[:turns]] == [REPLIES[0]] * turns
    assert all(turn.assistant == REPLIES[1] for turn in both[turns:])
    assert saved.damaged <= 2


@pytest.mark.parametrize("seed", range(3))
def test_a_few_kills(tmp_path: Path, seed: int) -> None:
    check_killed(tmp_path, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 125))
def test_many_kills(tmp_path: Path, seed: int) -> None:
    check_killed(tmp_path, seed)


def test_what_was_being_answered_is_back_at_the_prompt(tmp_path: Path) -> None:
    script = {"replies": ["abcdefghij" * 99], "token_s": 0.05}
    with PseudoTerminal(script, "chat", "--model", str(tmp_path)) as terminal:
        terminal.wait_for("\n>")
        terminal.type("a question that took long to write\r")
        terminal.wait_for("abc")
        terminal.process.kill()
        time.sleep(0.1)
    with PseudoTerminal({}, "chat", "--model", str(tmp_path), "--continue") as terminal:
        terminal.wait_for("back at the prompt")
        terminal.wait_for("> a question that took long to write")
        terminal.type("\r")
        terminal.wait_for("Hello there.")
