"""From logits to the next token: pure functions on one row of logits [vocab] fp32."""

from __future__ import annotations

import torch
from torch import Tensor

from xverse_runtime.errors import UsageError
from xverse_runtime.types import SamplingParams, TokenLogprob

NEGATIVE_INFINITY = float("-inf")
SORTED = 1024  # likeliest tokens looked at before all are
LARGEST = 1e30  # a logit that an extreme penalty would make infinite


def check_params(params: SamplingParams) -> None:
    """Raises UsageError: ``sampling.bad_value``, naming the setting and what it takes."""
    finite = float("inf")
    rules: list[tuple[str, bool, str]] = [
        ("temperature", 0 <= params.temperature < finite, "a number from 0 up"),
        ("top_k", params.top_k >= 0, "an integer from 0 up (0: off)"),
        ("top_p", 0 < params.top_p <= 1, "a number above 0 and at most 1"),
        ("min_p", 0 <= params.min_p <= 1, "a number from 0 to 1"),
        ("repetition_penalty", 0 < params.repetition_penalty < finite, "a number above 0"),
        ("max_new_tokens", params.max_new_tokens >= 1, "an integer from 1 up"),
        ("seed", params.seed is None or 0 <= params.seed < 2**63, "an integer from 0 to 2^63 - 1"),
        ("stop", all(params.stop), "strings that are not empty"),
        ("logprobs", params.logprobs is None or params.logprobs >= 0, "an integer from 0 up"),
    ]
    for name, holds, expected in rules:
        if not holds:
            raise UsageError(
                "sampling.bad_value", name=name, value=getattr(params, name), expected=expected
            )


def penalise_repetition(logits: Tensor, history: Tensor, penalty: float) -> Tensor:
    """Divide positive and multiply negative logits of the ids in ``history`` (CTRL, 2019)."""
    if penalty == 1.0 or history.numel() == 0:
        return logits
    seen = logits[history]
    penalised = torch.where(seen < 0, seen * penalty, seen / penalty).clamp(-LARGEST, LARGEST)
    return logits.index_put((history,), penalised)


def keep_top_k(logits: Tensor, top_k: int) -> Tensor:
    """Mask all but the k largest; ties with the k-th stay."""
    if top_k == 0 or top_k >= logits.shape[-1]:
        return logits
    return logits.masked_fill(logits < logits.topk(top_k).values[-1], NEGATIVE_INFINITY)


def is_finite(logits: Tensor) -> bool:
    """Whether no logit is NaN or infinite; ten times faster than a look at each."""
    return bool(torch.isfinite(torch.stack(logits.aminmax())).all())


def keep_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Mask the least likely tokens whose probabilities together are at most 1 - top_p
    (nucleus sampling, Holtzman et al. 2019); the likeliest token always stays."""
    if top_p >= 1.0:
        return logits
    # Sorting a whole vocabulary takes longer than many a layer. Tokens beyond the first thousand
    # are hardly ever kept; where they might be, all are sorted.
    probabilities = logits.softmax(-1)
    vocab = logits.shape[-1]
    for candidates in (SORTED, vocab) if vocab > SORTED else (vocab,):
        likeliest, order = probabilities.topk(candidates)
        ascending, order = likeliest.flip(-1), order.flip(-1)
        rest = 1.0 - ascending.double().sum() if candidates < vocab else 0.0
        drop = rest + ascending.double().cumsum(-1) <= 1 - top_p
        if drop[0]:
            break
    drop[-1] = False
    kept = order[~drop]
    return torch.full_like(logits, NEGATIVE_INFINITY).index_copy_(0, kept, logits[kept])


def keep_min_p(logits: Tensor, min_p: float) -> Tensor:
    """Mask tokens less likely than ``min_p`` times the likeliest."""
    if min_p == 0.0:
        return logits
    probabilities = logits.softmax(-1)
    return logits.masked_fill(probabilities < min_p * probabilities.max(), NEGATIVE_INFINITY)


def token_probabilities(logits: Tensor, history: Tensor, params: SamplingParams) -> Tensor:
    """The distribution [vocab] that a token is drawn from; ``params.temperature`` above 0."""
    logits = penalise_repetition(logits, history, params.repetition_penalty)
    # Relative to the likeliest token, no temperature however small can overflow it.
    logits = keep_top_k((logits - logits.max()) / params.temperature, params.top_k)
    return keep_min_p(keep_top_p(logits, params.top_p), params.min_p).softmax(-1)


def choose_token(
    logits: Tensor, history: Tensor, params: SamplingParams, generator: torch.Generator
) -> int:
    """The next token.

    Args:
        logits: [vocab] fp32, finite.
        history: ids of prompt and output, int64, repeats allowed.
        params: checked settings.
        generator: on the device of ``logits``; unused at temperature 0.
    """
    if params.temperature == 0:
        penalised = penalise_repetition(logits, history, params.repetition_penalty)
        return int(penalised.argmax())
    probabilities = token_probabilities(logits, history, params)
    possible = probabilities.nonzero().squeeze(1)  # a random number is drawn for each
    drawn = torch.multinomial(probabilities[possible], 1, generator=generator)
    return int(possible[drawn])


def token_logprob(logits: Tensor, token: int, alternatives: int) -> TokenLogprob:
    """Log-probability of ``token`` and of the likeliest ``alternatives`` under the plain model."""
    logprobs = logits.log_softmax(-1)
    values, ids = logprobs.topk(min(alternatives, logprobs.shape[-1]))
    top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return TokenLogprob(token, float(logprobs[token]), top)
