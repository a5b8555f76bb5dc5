"""Trains the embedded demo model from scratch: `python tools/train_demo.py --output DIR`."""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.demo.conversations import RowSampler
from tools.demo.corpus import load_corpus
from tools.demo.export import export
from tools.demo.model import DemoConfig
from tools.demo.tokenizer import Tokenizer, train_tokenizer
from tools.demo.training import TrainingSettings, train


def build_demo(output: Path, settings: TrainingSettings, config: DemoConfig | None = None) -> None:
    """Trains tokenizer and model and writes them to `output` in the published layout."""
    config = config or DemoConfig()
    corpus = load_corpus()
    tokenizer_model = train_tokenizer(corpus.texts(), config.vocab_size)
    tokenizer = Tokenizer(tokenizer_model)
    if tokenizer.vocab_size != config.vocab_size:
        raise ValueError(f"the corpus gives {tokenizer.vocab_size} tokens, not {config.vocab_size}")
    model = train(config, settings, RowSampler(corpus, tokenizer, settings.seed))
    export(model, tokenizer_model, output)


def main() -> None:
    defaults = TrainingSettings()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="directory to write to")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--steps", type=int, default=defaults.steps)
    options = parser.parse_args()

    started = time.monotonic()
    build_demo(options.output, TrainingSettings(steps=options.steps, seed=options.seed))
    minutes = (time.monotonic() - started) / 60
    print(f"wrote {options.output} after {minutes:.1f} minutes", file=sys.stderr)


if __name__ == "__main__":
    main()
