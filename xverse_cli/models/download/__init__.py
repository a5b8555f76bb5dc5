"""Fetching models: sources, a ranged downloader whose finished bytes survive anything."""
