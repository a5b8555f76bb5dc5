"""What was said so far. Knows messages, no ids and no terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from xverse_runtime.types import FinishReason, Message


@dataclass(frozen=True)
class Made:
    """How a reply was made: enough to make it again, and to see whether it is the same.

    Args:
        settings: sampling settings under the names users give them, with the seed in effect.
        prompt_tokens: length of the prompt; ``prompt_digest`` tells one prompt from another.
        completion_tokens: length of the reply, the end token included.
        system, summary, left_out: what stood before the turn, and how many turns did not.
        continued: the reply was gone on with, so ``settings`` are those of its first part.
    """

    model: str
    template: str
    settings: Mapping[str, object]
    prompt_tokens: int
    prompt_digest: str
    completion_tokens: int
    finish: FinishReason
    device: str = ""
    precision: str = ""
    system: str | None = None
    summary: str | None = None
    left_out: int = 0
    continued: bool = False


@dataclass(frozen=True)
class Turn:
    """A message and the reply to it; ``interrupted`` when the reply is not whole."""

    user: str
    assistant: str
    interrupted: bool = False
    made: Made | None = field(default=None, compare=False)

    @property
    def unfinished(self) -> bool:
        """Whether there may be more of the reply: it was interrupted, or reached its limit."""
        return self.interrupted or (self.made is not None and self.made.finish == "length")


@dataclass
class Conversation:
    """A system message, which is never dropped, and whole turns.

    Args:
        turns: what the model is told.
        left_out: the turns before them, which no longer fit; still part of the conversation.
        summary: what the model is told of those instead, if anything.
    """

    system: str | None = None
    turns: list[Turn] = field(default_factory=list)
    left_out: list[Turn] = field(default_factory=list)
    summary: str | None = None

    @property
    def all_turns(self) -> list[Turn]:
        return [*self.left_out, *self.turns]

    def messages(self, user: str, *, skip: int = 0) -> list[Message]:
        """The conversation as it stands when ``user`` is said next, without ``skip`` turns."""
        return [*self.past(skip=skip), Message("user", user)]

    def past(self, *, skip: int = 0, until: int | None = None) -> list[Message]:
        """System message and turns in the context, without the first ``skip``.

        Args:
            until: end before this one of the turns in the context.
        """
        head = "\n\n".join(part for part in (self.system, self.summary) if part)
        result = [Message("system", head)] if head else []
        for turn in self.turns[skip:until]:
            result += [Message("user", turn.user), Message("assistant", turn.assistant)]
        return result

    def add(self, turn: Turn) -> None:
        self.turns.append(turn)

    def take_last(self) -> Turn | None:
        """Remove and return the last turn."""
        turns = self.all_turns
        self.keep(len(turns) - 1)
        return turns[-1] if turns else None

    def drop_oldest(self, count: int) -> None:
        """Leave the oldest turns out of the context from now on."""
        self.left_out += self.turns[:count]
        del self.turns[:count]

    def keep(self, count: int) -> None:
        """Take back all turns but the first ``count``, those left out included.

        Where that reaches back before the context, the context begins anew with what is kept.
        """
        if count < len(self.left_out):
            self.turns[:] = self.left_out[: max(0, count)]
            self.left_out.clear()
            self.summary = None
        else:
            del self.turns[count - len(self.left_out) :]

    def clear(self) -> None:
        self.turns.clear()
        self.left_out.clear()
        self.summary = None

    def copy(self) -> Conversation:
        """Another one that says the same."""
        return Conversation(self.system, [*self.turns], [*self.left_out], self.summary)

    def become(self, other: Conversation) -> None:
        """Take over what ``other`` holds."""
        self.system, self.summary = other.system, other.summary
        self.turns[:] = other.turns
        self.left_out[:] = other.left_out
