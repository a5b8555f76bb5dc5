"""What of a model stands between text and ids."""

from __future__ import annotations

from dataclasses import dataclass

from xverse_runtime.chat_template import ChatFormat
from xverse_runtime.config import EngineConfig, ModelConfig
from xverse_runtime.generation_config import read_end_tokens, read_sampling_defaults
from xverse_runtime.loading import published_name
from xverse_runtime.model_dir import ModelDirectory
from xverse_runtime.template_choice import choose_chat_format
from xverse_runtime.tokenizer import Tokenizer, load_tokenizer
from xverse_runtime.types import SamplingParams, TemplateChoice


@dataclass(frozen=True)
class TextParts:
    """Everything between text and ids."""

    tokenizer: Tokenizer
    chat_format: ChatFormat
    template_choice: TemplateChoice
    default_sampling: SamplingParams
    end_token_ids: tuple[int, ...]


def load_text_parts(
    directory: ModelDirectory, model: ModelConfig, config: EngineConfig, model_name: str | None
) -> TextParts:
    """Read them from a model's files; raises what the parts raise for bad ones."""
    end_token_ids = tuple(dict.fromkeys(model.eos_token_ids + read_end_tokens(directory)))
    names = (model_name or "", published_name(directory), model.source_name)
    chat_format, choice = choose_chat_format(
        directory,
        end_token_ids[0] if end_token_ids else 3,
        config.chat_template,
        tuple(name for name in names if name),
    )
    return TextParts(
        tokenizer=load_tokenizer(directory),
        chat_format=chat_format,
        template_choice=choice,
        default_sampling=read_sampling_defaults(directory),
        end_token_ids=end_token_ids,
    )
