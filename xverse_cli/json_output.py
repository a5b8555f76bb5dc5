"""The one object that `--json` prints."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from xverse_cli.generation import Reply, sampling_settings
from xverse_cli.host import Loaded
from xverse_runtime.types import SamplingParams, TokenLogprob

# Inside JSON these only occur within strings, where an escape means the same character.
_UNSAFE = re.compile("[\x7f-\x9f\u061c\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def reply_object(
    loaded: Loaded,
    params: SamplingParams,
    prompt_ids: Sequence[int],
    reply: Reply,
) -> dict[str, Any]:
    """A reply with everything needed to understand and repeat it."""
    engine, last = loaded.engine, reply.last
    result: dict[str, Any] = {
        "model": engine.model_name,
        "text": reply.text,
        "finish_reason": reply.finish_reason,
        "prompt_token_ids": list(prompt_ids),
        "token_ids": reply.token_ids,
        "usage": {
            "prompt_tokens": last.usage.prompt_tokens,
            "completion_tokens": last.usage.completion_tokens,
            "cached_tokens": last.usage.cached_tokens,
        },
        "timings": {
            "load_s": round(loaded.load_s, 4),
            "ttft_s": round(last.timings.ttft_s, 4),
            "prefill_tokens_per_s": round(last.timings.prefill_tokens_per_s, 2),
            "decode_tokens_per_s": round(last.timings.decode_tokens_per_s, 2),
        },
        "settings": {
            **sampling_settings(params, last.seed),
            "device": engine.device,
            "precision": engine.precision,
            "chat_template": engine.template_choice.name,
        },
        "truncated": last.truncated,
    }
    statistics = engine.offload_statistics
    if statistics is not None:
        result["offload"] = {**asdict(statistics), "hit_rate": statistics.hit_rate}
    if params.logprobs is not None:
        result["logprobs"] = [_logprob(entry) for entry in reply.logprobs]
    return result


def to_json(value: object) -> str:
    """One line of strict JSON, in which nothing can steer a terminal."""
    line = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", line)


def _logprob(entry: TokenLogprob) -> dict[str, Any]:
    top = [{"token_id": token, "logprob": _finite(value)} for token, value in entry.top]
    return {"token_id": entry.token_id, "logprob": _finite(entry.logprob), "top": top}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
