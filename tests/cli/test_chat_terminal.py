"""`xverse chat` on a real pseudo-terminal, used as a person would."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.cli.pseudo_terminal import PseudoTerminal

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX terminals")

CHAT = ("chat", "--model")


def test_a_session(tmp_path: Path) -> None:
    script = {"replies": ["混合专家模型（MoE）。", "bad \x1b[2J\x1b]0;t\x07end", "Third."]}
    with PseudoTerminal(script, *CHAT, str(tmp_path)) as terminal:
        terminal.wait_for("\n>")
        terminal.type("什么是 MoE？\r")
        terminal.wait_for("混合专家模型（MoE）。")
        terminal.type("\x1b[200~/exit\nis text\x1b[201~\r")
        terminal.wait_for("bad end")
        terminal.type("/nothing\r")
        terminal.wait_for("Unknown command /nothing.")
        terminal.type("/retry\r")
        terminal.wait_for("Third.")
        terminal.type("\x04")
        assert terminal.wait_for_end() == 0
        assert "> 什么是 MoE？" in terminal.text
        assert b"\x1b]0;t" not in terminal.output


def test_ctrl_c_stops_the_reply_and_keeps_it(tmp_path: Path) -> None:
    script = {"replies": ["abcdefghij" * 20, "Next."], "token_s": 0.03}
    with PseudoTerminal(script, *CHAT, str(tmp_path)) as terminal:
        terminal.wait_for("\n>")
        terminal.type("go\r")
        terminal.wait_for("abcdef")
        terminal.type("\x03")
        terminal.wait_for("Stopped.")
        terminal.type("half\x03")
        terminal.wait_for("To leave, press Ctrl-D")
        terminal.type("on\r")
        terminal.wait_for("Next.")
        terminal.type("/exit\r")
        assert terminal.wait_for_end() == 0
        assert "KeyboardInterrupt" not in terminal.text


def test_typing_during_a_reply_is_kept_for_the_next_prompt(tmp_path: Path) -> None:
    script = {"replies": ["abcdefghij", "Second."], "token_s": 0.05}
    with PseudoTerminal(script, *CHAT, str(tmp_path)) as terminal:
        terminal.wait_for("\n>")
        terminal.type("go\r")
        terminal.wait_for("ab")
        terminal.type("typed ahead\r")
        terminal.wait_for("Second.")
        assert "abcdefghij\n" in terminal.text
        assert "> typed ahead" in terminal.text


def test_a_failed_turn_prefills_the_prompt(tmp_path: Path) -> None:
    script = {"replies": ["Fine."], "fail": ["sampling.non_finite"]}
    with PseudoTerminal(script, *CHAT, str(tmp_path)) as terminal:
        terminal.wait_for("\n>")
        terminal.type("question\r")
        terminal.wait_for("is not a number.")
        terminal.wait_for("> question", count=2)
        terminal.type("\r")
        terminal.wait_for("Fine.")


def test_a_dumb_terminal(tmp_path: Path) -> None:
    with PseudoTerminal({}, *CHAT, str(tmp_path), env={"TERM": "dumb"}) as terminal:
        terminal.wait_for("\n>")
        terminal.type("hello\r")
        terminal.wait_for("Hello there.")
        terminal.type("\x04")
        assert terminal.wait_for_end() == 0
        # prompt-toolkit shows the cursor once, whatever the terminal.
        assert b"\x1b" not in terminal.output.replace(b"\x1b[?12l\x1b[?25h", b"", 1)


@pytest.mark.parametrize("script", [{}, {"replies": ["abc" * 99], "token_s": 0.05}])
def test_sigterm_ends_the_chat_and_restores_the_terminal(
    script: dict[str, object], tmp_path: Path
) -> None:
    with PseudoTerminal(script, *CHAT, str(tmp_path)) as terminal:
        terminal.wait_for("\n>")
        if script:
            terminal.type("go\r")
            terminal.wait_for("abcabc")
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.wait_for_end() == 130
        assert "Traceback" not in terminal.text


GENERATE = ("generate", "hi", "--model")


def test_generate_streams_to_a_terminal(tmp_path: Path) -> None:
    script = {"replies": ["a\tb 中文\n\nend"], "token_s": 0.01}
    with PseudoTerminal(script, *GENERATE, str(tmp_path), "--plain") as terminal:
        assert terminal.wait_for_end() == 0
        lines = [line for line in terminal.text.splitlines() if line]
        assert lines == ["a       b 中文", "end"]
        assert b"a\tb" in terminal.output


REPLY = """**重点：**模型把
前馈网络分成专家。

1. one
   - two

```python
def f():
    return 1
```

| a | b |
|---|--:|
| 专家 | 64 |

end"""
RENDERED = """重点：模型把前馈网络分成专家。
1. one
   • two
  python
  def f():
      return 1
a    │  b
─────┼───
专家 │ 64
end"""


def test_generate_renders_on_a_terminal(tmp_path: Path) -> None:
    script = {"replies": [REPLY], "token_s": 0.002}
    argv = (*GENERATE, str(tmp_path), "--max-tokens", "999")
    with PseudoTerminal(script, *argv, columns=40) as terminal:
        assert terminal.wait_for_end() == 0
        assert [line for line in terminal.text.splitlines() if line] == RENDERED.splitlines()
        assert b"\x1b[1m" in terminal.output


def test_a_reply_that_is_stopped_is_whole(tmp_path: Path) -> None:
    script = {"replies": ["| a | b |\n|---|---|\n" + "| 1 | 2 |\n" * 99], "token_s": 0.01}
    argv = (*CHAT, str(tmp_path), "--max-tokens", "999")
    with PseudoTerminal(script, *argv) as terminal:
        terminal.wait_for("\n>")
        terminal.type("go\r")
        terminal.wait_for("table… 2 × 2")
        terminal.type("\x03")
        terminal.wait_for("Stopped.")
        assert "…" not in terminal.text
        assert "\na │ b\n──┼──\n1 │ 2\n1 │ 2\n" in terminal.text


def test_without_colour(tmp_path: Path) -> None:
    script = {"replies": ["# A\n\n`b` **c**"]}
    with PseudoTerminal(script, *GENERATE, str(tmp_path), env={"NO_COLOR": "1"}) as terminal:
        assert terminal.wait_for_end() == 0
        assert b"\x1b[1;4mA\x1b[m" in terminal.output
        assert b"\x1b[1mc\x1b[m" in terminal.output
        assert b";9" not in terminal.output.replace(b"\x1b[?", b"")
