"""Speed on a GPU: `python -m bench.gpu kernels`, `python -m bench.gpu runtime`.

Runs from a plain checkout, with nothing installed but torch, triton, numpy and safetensors. Only
how long an engine takes to open is not measured without sentencepiece, which reads its tokenizer.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "kernels"), str(ROOT / "runtime")]
