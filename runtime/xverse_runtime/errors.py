"""Typed errors with a stable code and parameters.

The runtime never words a message for the user: it raises an error whose ``code`` names what went
wrong and whose ``params`` hold the facts. The command line turns both into text in the user's
language, a hint, and an exit code (``xverse_cli/messages``). Codes are part of the interface:
they are never renamed, and each one is raised with the same parameters everywhere.
"""

from __future__ import annotations


class XverseError(Exception):
    """Base of every error the runtime raises on purpose.

    Args:
        code: stable dotted name, for example ``"config.unsupported"``.
        **params: facts for the message: strings, numbers, or lists of them.
    """

    def __init__(self, code: str, **params: object) -> None:
        self.code = code
        self.params = params
        facts = ", ".join(f"{key}={value!r}" for key, value in params.items())
        super().__init__(f"{code} ({facts})" if facts else code)


class UsageError(XverseError):
    """A request that cannot be right whatever the model: exit code 2."""


class ModelNotFoundError(XverseError):
    """The model is not on this machine: exit code 3."""


class IntegrityError(XverseError):
    """Model files that are damaged, incomplete, inconsistent or unsafe: exit code 4."""


class UnsupportedModelError(XverseError):
    """A well-formed model that this runtime cannot run: exit code 1."""


class DeviceError(XverseError):
    """A device or kernel backend that was asked for and cannot be used: exit code 1."""


class ResourceError(XverseError):
    """Not enough memory or disk: exit code 5."""


class ContextOverflowError(XverseError):
    """A prompt that does not fit the context: exit code 6."""


class GenerationError(XverseError):
    """A failure while generating, such as non-finite logits: exit code 1."""
