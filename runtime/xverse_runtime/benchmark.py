"""Speed of a loaded model beside the memory bandwidth measured in the same run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from xverse_runtime.engine import Engine
from xverse_runtime.errors import ContextOverflowError
from xverse_runtime.store.precision import measure_read_bandwidth
from xverse_runtime.types import SamplingParams

FIRST_PLAIN_TOKEN = 4


@dataclass(frozen=True)
class BenchmarkResult:
    """What each round measured: rates in tokens per second, ``bandwidths`` in
    bytes per second. The figures are their medians."""

    prompt_tokens: int
    new_tokens: int
    prefills: tuple[float, ...]
    decodes: tuple[float, ...]
    bandwidths: tuple[float, ...]
    bytes_per_token: int

    @property
    def rounds(self) -> int:
        return len(self.decodes)

    @property
    def prefill(self) -> float:
        return median(self.prefills)

    @property
    def decode(self) -> float:
        return median(self.decodes)

    @property
    def read_bandwidth(self) -> float:
        return median(self.bandwidths)

    @property
    def bandwidth_share(self) -> float:
        """The part of the measured bandwidth that decoding used for weights."""
        return self.decode * self.bytes_per_token / self.read_bandwidth


def run_benchmark(
    engine: Engine,
    bytes_per_token: int,
    *,
    prompt_tokens: int = 128,
    new_tokens: int = 16,
    rounds: int = 3,
    on_round: Callable[[int], None] = lambda number: None,
) -> BenchmarkResult:
    """Time prefill and greedy decoding.

    The bandwidth is measured before each round: it changes from second to second on a shared
    machine, so only figures of the same run can be compared.

    Args:
        engine: any model.
        bytes_per_token: weights that one decoded token reads.
        prompt_tokens: length of the prompt; another prompt in each round, so nothing is cached.
        new_tokens: at least 2.
        rounds: how often.
        on_round: told the number of each round as it begins.

    Raises:
        ContextOverflowError: ``bench.overflow``: what is to be measured does not fit the context.
    """
    if prompt_tokens + new_tokens > engine.context_length:
        raise ContextOverflowError(
            "bench.overflow",
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            context_length=engine.context_length,
        )
    prefill, decode, bandwidth = [], [], []
    params = SamplingParams(temperature=0, max_new_tokens=new_tokens)
    for number in range(rounds):
        on_round(number)
        bandwidth.append(measure_read_bandwidth(engine.device))
        # scattered over the vocabulary, beyond the special tokens
        span = engine.vocab_size - FIRST_PLAIN_TOKEN
        places = [number * 7919 + 10007 * position for position in range(prompt_tokens)]
        ids = [FIRST_PLAIN_TOKEN + place % span for place in places]
        *_, last = engine.generate(ids, params, ignore_end=True, lookup=False)
        prefill.append(last.timings.prefill_tokens_per_s)
        decode.append(last.timings.decode_tokens_per_s)
    return BenchmarkResult(
        prompt_tokens,
        new_tokens,
        tuple(prefill),
        tuple(decode),
        tuple(bandwidth),
        bytes_per_token,
    )
