"""What each precision of each part costs: the demo model on held-out text.

    python -m bench.precision

For every choice of formats the demo is converted to a store and run in fp32 on the paragraphs of
``tools/demo/corpus/held_out_text.txt`` and on the corpus's answers after their questions. Printed
are the relative error of the logits against the published weights (median over tokens), the
perplexity of both, and the spread of the first over paragraphs (standard deviation of the mean).
"""

from __future__ import annotations

import argparse
import math
import shutil
import tempfile
from pathlib import Path
from statistics import mean, stdev

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from tools.demo.corpus import held_out_text, load_corpus
from xverse_kernels.quantise import quantise
from xverse_runtime.config import EngineConfig
from xverse_runtime.demo import demo_directory
from xverse_runtime.engine import Engine
from xverse_runtime.store.convert import convert_checkpoint
from xverse_runtime.store.manifest import StorePrecision
from xverse_runtime.types import Message

CHOICES = {
    "all bf16": StorePrecision("bf16", "bf16", "bf16"),
    "experts int8": StorePrecision("int8", "bf16", "bf16"),
    "attention int8": StorePrecision("bf16", "int8", "bf16"),
    "head int8": StorePrecision("bf16", "bf16", "int8"),
    "experts int4": StorePrecision("int4", "bf16", "bf16"),
    "attention int4": StorePrecision("bf16", "int4", "bf16"),
    "head int4": StorePrecision("bf16", "bf16", "int4"),
    "preset int8": StorePrecision("int8", "bf16", "int8"),
    "preset int4": StorePrecision("int4", "int8", "int8"),
    "all int4": StorePrecision("int4", "int4", "int4"),
}
# Parts of the experts by themselves, which a store cannot have: rounded in the published weights.
PARTS = {
    "experts' gate and up int4": ("gate", "up"),
    "experts' down int4": ("down",),
}


class Text:
    """Sequences of ids, and from which position on they count."""

    def __init__(self, engine: Engine) -> None:
        paragraphs = [p for p in held_out_text().split("\n\n") if p.strip()]
        self.paragraphs = [(engine.tokenizer.encode(p), 1) for p in paragraphs]
        self.answers: list[tuple[list[int], int]] = []
        for question in list(load_corpus().questions())[::25]:
            prompt = engine.encode_chat([Message("user", question.text)])
            self.answers.append((prompt + engine.tokenizer.encode(question.answer), len(prompt)))


def logits_of(engine: Engine, ids: list[int]) -> Tensor:
    engine._cache.truncate(0)
    return engine._decoder.forward(ids, engine._cache, logits_for=slice(None))


def losses(
    engine: Engine, sequences: list[tuple[list[int], int]], exact: list[Tensor] | None
) -> tuple[list[float], list[float], list[Tensor]]:
    """Mean loss of each sequence, relative logit errors of all tokens, and the logits."""
    means, errors, logits = [], [], []
    for number, (ids, start) in enumerate(sequences):
        rows = logits_of(engine, ids)
        targets = torch.tensor(ids[start:])
        means.append(float(F.cross_entropy(rows[start - 1 : -1], targets)))
        if exact is not None:
            difference = (rows - exact[number]).norm(dim=1) / exact[number].norm(dim=1)
            errors += difference.tolist()
        logits.append(rows)
    return means, errors, logits


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    config = EngineConfig(device="cpu", precision="fp32")
    published = Engine.load(demo_directory(), config)
    text = Text(published)
    _, _, exact = losses(published, text.paragraphs, None)
    print("| | logit error | perplexity, held-out text | perplexity, known answers |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        for name, precision in CHOICES.items():
            path = Path(place) / name.replace(" ", "-")
            convert_checkpoint(demo_directory(), path, precision)
            engine = Engine.load(path, config)
            report(name, engine, text, exact)
        for name, projections in PARTS.items():
            path = Path(place) / name.replace(" ", "-")
            round_experts(path, projections)
            report(name, Engine.load(path, config), text, exact)


def round_experts(path: Path, projections: tuple[str, ...]) -> None:
    """The demo with some of its experts' matrices as int4 would leave them."""
    shutil.copytree(demo_directory(), path)
    (file,) = path.glob("*.safetensors")
    tensors = load_file(file)
    for name, tensor in tensors.items():
        if ".mlp." in name and name.endswith(tuple(f"{one}_proj.weight" for one in projections)):
            rounded = quantise(tensor.float(), 4).dequantise()
            tensors[name] = rounded.to(tensor.dtype)
    save_file(tensors, file)


def report(name: str, engine: Engine, text: Text, exact: list[Tensor]) -> None:
    """One row of the table."""
    held_out, errors, _ = losses(engine, text.paragraphs, exact)
    answers, _, _ = losses(engine, text.answers, None)
    spread = math.exp(mean(held_out)) * stdev(held_out) / len(held_out) ** 0.5
    error = torch.tensor(errors).median()
    print(
        f"| {name} | {100 * error:.2f} % | {math.exp(mean(held_out)):.1f} ± {spread:.1f} "
        f"| {math.exp(mean(answers)):.4f} |"
    )


if __name__ == "__main__":
    main()
