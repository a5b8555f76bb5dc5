"""`xverse` with the scripted model in place of the engine: ``fake_main.py SCRIPT ARGUMENTS…``.

The script is JSON: fields of `FakeEngine`; ``fail`` is a list of error codes; ``break`` names an
exception that loading raises; ``load_s`` is how long loading takes.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "runtime"), str(ROOT / "kernels")]

from tests.cli.fake_engine import FakeEngine  # noqa: E402
from xverse_cli.app import run  # noqa: E402
from xverse_cli.host import Host  # noqa: E402
from xverse_cli.streams import standard_streams  # noqa: E402
from xverse_runtime.errors import GenerationError  # noqa: E402
from xverse_runtime.types import LoadProgress, TextGenerator  # noqa: E402


def main() -> int:
    script: dict[str, Any] = json.loads(sys.argv[1])
    broken = script.pop("break", None)
    load_s = script.pop("load_s", 0.0)
    script["fail"] = [GenerationError(code, step=3) for code in script.get("fail", [])]

    def load(model: object, settings: object, progress: Any, *_: object) -> TextGenerator:
        started = time.monotonic()
        progress(LoadProgress(50, 100))
        while time.monotonic() < started + load_s:
            progress(LoadProgress(60, 100))
            time.sleep(0.02)
        if broken:
            raise {"KeyError": KeyError, "MemoryError": MemoryError}[broken]("scripted")
        return FakeEngine(**script)

    return run(sys.argv[2:], Host(standard_streams(), os.environ, load))


if __name__ == "__main__":
    sys.exit(main())
