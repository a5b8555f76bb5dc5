"""One file a command: its options, and what it does. A command's module registers itself."""
