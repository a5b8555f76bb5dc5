"""`xverse` with little patience and small buffers, for tests that kill it. Not a test itself."""

from __future__ import annotations

import os

from xverse_cli.main import main
from xverse_cli.models import pull
from xverse_cli.models.download.patience import Patience

# Linux doubles what is asked for: 256 KB in effect.
pull.PATIENCE = Patience(tries=4, first_wait_s=0.02, longest_wait_s=0.1, receive_buffer=2**17)
if os.environ.get("TEST_NO_FIT"):  # importing torch takes longer than such a download
    pull.machine_fit_apart = lambda config, context, **_: None  # type: ignore[assignment]

if __name__ == "__main__":
    main()
