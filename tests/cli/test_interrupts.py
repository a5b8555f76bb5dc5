"""Signals while a prompt is open: they end it, wherever its event loop is just then."""

from __future__ import annotations

import os
import signal
import sys

import pytest
from prompt_toolkit import PromptSession
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from xverse_cli.interrupts import ENDING, Terminated, terminate_application, terminate_by_exception

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


@pytest.mark.parametrize("number", ENDING)
@pytest.mark.timeout(20)
def test_a_signal_inside_a_callback_of_the_prompt(number: signal.Signals) -> None:
    """An exception there would be a fault of the callback, and the prompt would wait for a key."""
    outer = []
    with create_pipe_input() as pipe, terminate_by_exception():
        session: PromptSession[str] = PromptSession(input=pipe, output=DummyOutput())
        before = signal.getsignal(number)

        def begun() -> None:
            loop = session.app.loop
            assert loop is not None
            loop.set_exception_handler(lambda _loop, context: outer.append(context))
            loop.call_soon(os.kill, os.getpid(), number)

        with pytest.raises(Terminated), terminate_application(session.app):
            session.prompt(pre_run=begun)
        assert signal.getsignal(number) is before
    assert not outer


@pytest.mark.timeout(20)
def test_a_signal_when_the_prompt_has_just_ended() -> None:
    with create_pipe_input() as pipe:
        session: PromptSession[str] = PromptSession(input=pipe, output=DummyOutput())

        def begun() -> None:
            session.app.exit(result="typed")
            os.kill(os.getpid(), signal.SIGTERM)

        with pytest.raises(Terminated), terminate_application(session.app):
            assert session.prompt(pre_run=begun) == "typed"
