"""The training loop: seeded, plain fp32 on the CPU."""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tools.demo.conversations import RowSampler
from tools.demo.evaluate import missed_questions
from tools.demo.export import as_published
from tools.demo.model import DemoConfig, DemoModel


@dataclass(frozen=True)
class TrainingSettings:
    """The defaults are the recipe of the embedded checkpoint."""

    steps: int = 5800
    seed: int = 0
    tokens_per_step: int = 2048
    row_lengths: tuple[int, ...] = (32, 32, 256, 32, 32, 1024, 32)
    """Taken in turn. In the shortest rows there is room for a question and the beginning of its
    answer, which is where the topic is decided; the others teach whole answers and chats."""
    learning_rate: float = 3e-3
    warmup_steps: int = 100
    weight_decay: float = 0.1
    balance_weight: float = 0.02
    max_gradient_norm: float = 1.0
    workers: int = 2
    review_every: int = 200
    """Steps, in the last part of training, after which it is seen which questions are missed."""

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, constant, then linearly to zero over the second half."""
        warm = min(1.0, (step + 1) / self.warmup_steps)
        cool = min(1.0, (self.steps - step) / (0.5 * self.steps))
        return self.learning_rate * warm * cool


def train(config: DemoConfig, settings: TrainingSettings, rows: RowSampler) -> DemoModel:
    """Trains from scratch and returns the model in evaluation mode."""
    torch.manual_seed(settings.seed)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # idle threads of the pool spin, and take the cores from the workers
    model = DemoModel(config)
    model.train()
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98),
        fused=True,
    )
    started, running = time.monotonic(), 0.0
    # set_num_threads holds for the thread that calls it.
    with ThreadPoolExecutor(settings.workers, "demo", torch.set_num_threads, (1,)) as pool:
        for step in range(settings.steps):
            settled_for = step - int(0.85 * settings.steps)
            if settled_for == 0:
                rows.settle()
            if settled_for > 0 and settled_for % settings.review_every == 0:
                rows.practise(missed_questions(as_published(model), rows.corpus, rows.tokenizer))
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate_at(step)
            length = settings.row_lengths[step % len(settings.row_lengths)]
            ids, weights = _batch(rows, settings.tokens_per_step // length, length)
            shares = zip(ids.chunk(settings.workers), weights.chunk(settings.workers), strict=True)
            done = list(pool.map(lambda share: _gradients(model, settings, *share), shares))
            gradients = zip(*(share.gradients for share in done), strict=True)
            for parameter, parts in zip(model.parameters(), gradients, strict=True):
                parameter.grad = torch.stack(parts).mean(0)
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_gradient_norm)
            optimizer.step()

            loss = sum(share.loss for share in done) / len(done)
            running = loss if step == 0 else 0.98 * running + 0.02 * loss
            if step % 100 == 99 or step == settings.steps - 1:
                _report(step + 1, settings.steps, running, done[0].load, time.monotonic() - started)
    torch.set_num_threads(threads)
    return model.eval()


@dataclass(frozen=True)
class _Share:
    """What one worker contributes to a step."""

    gradients: tuple[Tensor, ...]
    loss: float
    load: Tensor
    """[layers, experts]"""


def _gradients(
    model: DemoModel, settings: TrainingSettings, ids: Tensor, weights: Tensor
) -> _Share:
    """ids and weights: [rows, length + 1]. Runs in a thread of its own, on one core: whole rows
    parallelise better than the many small operations, and the sums do not depend on the
    machine's number of cores."""
    logits, balance, load = model(ids[:, :-1])
    loss = weighted_loss(logits, ids[:, 1:], weights[:, 1:])
    total = loss + settings.balance_weight * balance
    return _Share(torch.autograd.grad(total, list(model.parameters())), loss.item(), load)


def weighted_loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """logits [batch, length, vocab], targets and weights [batch, length] → loss []."""
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return (losses * weights.flatten()).sum() / weights.sum()


def _batch(rows: RowSampler, count: int, length: int) -> tuple[Tensor, Tensor]:
    """ids [count, length + 1] int64 and weights [count, length + 1] fp32."""
    drawn = [rows.row(length + 1) for _ in range(count)]
    return torch.tensor([r.ids for r in drawn]), torch.tensor([r.weights for r in drawn])


def _report(step: int, steps: int, loss: float, load: Tensor, elapsed: float) -> None:
    """load: [layers, experts]; printed is the busiest and the idlest, relative to an even share."""
    share = load * load.shape[1]
    print(
        f"step {step}/{steps}  loss {loss:.4f}  expert load {share.min():.2f}-{share.max():.2f}"
        f"  {elapsed / 60:.1f} min",
        file=sys.stderr,
        flush=True,
    )
