"""What was said so far. Knows messages, no ids and no terminal."""

from __future__ import annotations

from dataclasses import dataclass, field

from xverse_runtime.types import Message


@dataclass(frozen=True)
class Turn:
    """A message and the reply to it; ``interrupted`` when the reply is not whole."""

    user: str
    assistant: str
    interrupted: bool = False


@dataclass
class Conversation:
    """A system message, which is never dropped, and whole turns."""

    system: str | None = None
    turns: list[Turn] = field(default_factory=list)

    def messages(self, user: str, *, skip: int = 0) -> list[Message]:
        """The conversation as it stands when ``user`` is said next, without ``skip`` turns."""
        result = [Message("system", self.system)] if self.system else []
        for turn in self.turns[skip:]:
            result += [Message("user", turn.user), Message("assistant", turn.assistant)]
        return [*result, Message("user", user)]

    def add(self, turn: Turn) -> None:
        self.turns.append(turn)

    def take_last(self) -> Turn | None:
        """Remove and return the last turn."""
        return self.turns.pop() if self.turns else None

    def drop_oldest(self, count: int) -> None:
        del self.turns[:count]

    def clear(self) -> None:
        self.turns.clear()
