"""Markdown that arrives piece by piece, as rows of a terminal.

Text goes into `stream.MarkdownStream`, finished rows and a live tail come out; `paint.Painter` puts
both on a terminal. Nothing here knows where the text comes from.
"""
