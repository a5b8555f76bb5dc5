"""Conversations on disk: one file each, to which every turn is appended (docs/chat.md)."""
