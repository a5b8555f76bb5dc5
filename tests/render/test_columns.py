"""Widths, alignment and line breaks of texts in which characters take two columns."""

from __future__ import annotations

import importlib
import textwrap

import pytest
from wcwidth import wcswidth

from xverse_cli.messages import zh
from xverse_cli.render.columns import _pieces, columns, padded, widest, wrapped
from xverse_cli.render.markdown.cells import width_of
from xverse_cli.render.markdown.wrap import Span, row_text, wrap

MIXED = (
    "配合 --precision：每下载完一个权重文件就打包并删除，"
    "磁盘上始终只有打包模型和两个文件（见 docs/cli.md）。"
)


@pytest.mark.parametrize("text", ["", "plain", "混合专家", "a中b", "（）：，。", "e\u0301", "–·↑"])
def test_columns_are_those_of_terminals(text: str) -> None:
    assert columns(text) == wcswidth(text)


def test_padding() -> None:
    assert padded("中文", 6) == "中文  "
    assert padded("中文", 6, right=True) == "  中文"
    assert padded("中文", 2) == "中文"
    assert (widest(["ab", "中文"]), widest([])) == (4, 0)


@pytest.mark.parametrize("width", [10, 11, 24, 40, 78])
def test_no_line_is_too_wide_and_nothing_is_lost(width: int) -> None:
    for text in [MIXED, *zh.TEXTS.values()]:
        lines = wrapped(text, width)
        assert "".join(lines).replace(" ", "") == text.replace(" ", "").replace("\n", "")
        for line in lines:
            assert columns(line) <= width or len(list(_pieces(line))) == 1


def test_punctuation_stays_with_its_word() -> None:
    for width in range(12, 60):
        for line in wrapped(MIXED, width):
            assert line[0] not in "，。：）"
            assert line[-1] not in "（"
            assert line == line.strip()


def test_a_default_is_not_broken() -> None:
    assert wrapped("显示中位数。  [默认：16]", 18) == ["显示中位数。", "[默认：16]"]


def test_english_wraps_as_everywhere() -> None:
    text = "With --json: log-probabilities, with this many alternatives a token."
    assert wrapped(text, 30) == textwrap.wrap(text, 30)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_light_way_to_count_agrees_with_the_renderer(language: str) -> None:
    catalogue = importlib.import_module(f"xverse_cli.messages.{language}")
    for words in (*catalogue.TEXTS.values(), *sum(catalogue.ERRORS.values(), ())):
        for line in words.split("\n"):
            assert columns(line) == width_of(line), line


def test_the_light_way_to_wrap_agrees_with_the_renderer() -> None:
    for words in zh.TEXTS.values():
        words = words.strip()
        if "-" in words or "[" in words or "\n" in words:  # treated differently there
            continue
        for width in (16, 23, 40):
            rows = wrap([Span(words)], width)
            if all(columns(word) <= width for word in words.split()):
                assert [row_text(row) for row in rows] == wrapped(words, width), words
