"""Ctrl-C, SIGTERM and a closed terminal: while a reply is generated they set its cancel flag."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prompt_toolkit.application import Application

    from xverse_runtime.types import CancelFlag


# What ends a program: asked to, or its terminal was closed (which Windows tells otherwise).
ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP: like Ctrl-C, but a conversation ends too."""


@contextmanager
def terminate_by_exception() -> Iterator[None]:
    """Let what ends the program unwind it as Ctrl-C does, so that the terminal is restored."""

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    with _handlers(dict.fromkeys(ENDING, terminate)):
        yield


@contextmanager
def terminate_application(app: Application[Any]) -> Iterator[None]:
    """While an application of prompt-toolkit runs, what ends the program lets it end first.

    An exception out of a signal handler could come up anywhere in its event loop, which takes it
    for a fault of its own and waits for a key.
    """
    terminated = False

    def end() -> None:
        if app.is_running and not app.is_done:
            app.exit(exception=Terminated())

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal terminated
        loop = app.loop
        if terminated or loop is None:
            raise Terminated
        terminated = True
        loop.call_soon_threadsafe(end)

    with _handlers(dict.fromkeys(ENDING, handle)):
        yield
    if terminated:  # just when it had ended by itself
        raise Terminated


@contextmanager
def cancel_on_signal(flag: CancelFlag, *, second_kills: bool) -> Iterator[None]:
    """Set ``flag`` on the first Ctrl-C, SIGTERM or SIGHUP.

    The second one kills the process where that is wanted, even inside a long computation;
    otherwise it is a `KeyboardInterrupt`, and the others become `Terminated` in the end.
    """

    terminated = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal terminated
        terminated = terminated or number in ENDING
        if flag.is_set():
            raise Terminated if terminated else KeyboardInterrupt
        flag.set()
        if second_kills:
            signal.signal(number, signal.SIG_DFL)

    with _handlers(dict.fromkeys((signal.SIGINT, *ENDING), handle)):
        yield
    if terminated and not second_kills:
        raise Terminated


@contextmanager
def _handlers(wanted: dict[signal.Signals, Any]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may, and only it receives signals
        return
    before = {number: signal.getsignal(number) for number in wanted}
    # A signal the parent has switched off (nohup, a background job) stays off.
    active = {number: old for number, old in before.items() if old is not signal.SIG_IGN}
    try:
        for number in active:
            signal.signal(number, wanted[number])
        yield
    finally:
        for number, old in active.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)
