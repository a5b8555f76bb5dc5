"""The `xverse` command: terminal, settings and downloads on top of the runtime."""
