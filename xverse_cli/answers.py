"""What people answer to a question, in English and in Chinese."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping

YES, NO = "y", "n"
YES_OR_NO: Mapping[str, tuple[str, ...]] = {
    YES: (
        "y",
        "yes",
        "yep",
        "yeah",
        "ok",
        "okay",
        "是",
        "是的",
        "好",
        "好的",
        "对",
        "可以",
        "同意",
    ),
    NO: ("n", "no", "nope", "否", "不", "不是", "不要", "不用", "不好", "不同意"),
}


def understood(line: str, answers: Mapping[str, tuple[str, ...]]) -> str | None:
    """Which answer a line means: ``""`` of an empty one, ``None`` of one that means none.

    Args:
        line: as it was typed; full-width letters, as Chinese input methods write them, count too.
        answers: of each answer the words for it, in small letters.
    """
    word = unicodedata.normalize("NFKC", line).strip().strip(".!。！").lower()
    if not word:
        return ""
    return next((answer for answer, words in answers.items() if word in words), None)
