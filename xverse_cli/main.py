"""Entry point of the `xverse` command."""

from __future__ import annotations

import gc
import sys
import warnings


def main() -> None:
    """Run the command line and leave with its exit code."""
    gc.disable()  # imports leave no garbage, and looking for it is a tenth of the start; see app.py
    # torch mentions that numpy is absent; nothing here needs it.
    warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
    from xverse_cli.app import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
