"""The demo model's workshop: corpus, tokenizer, training, export."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tools.demo.augment import _synonym_patterns, vary
from tools.demo.conversations import ConversationSampler, RowSampler, prompt_ids
from tools.demo.corpus import (
    LANGUAGES,
    SPECIAL_TOPICS,
    held_out_questions,
    held_out_text,
    load_corpus,
    normalised,
)
from tools.demo.evaluate import Case, greedy_matches
from tools.demo.export import load_exported
from tools.demo.model import DemoConfig, DemoModel, MoE
from tools.demo.tokenizer import EOS_ID, Tokenizer, train_tokenizer
from tools.demo.training import TrainingSettings, weighted_loss
from tools.train_demo import build_demo

TINY = DemoConfig(
    vocab_size=2048, hidden_size=32, num_heads=2, num_layers=2, expert_width=32, num_experts=4,
    top_k=2,
)  # fmt: skip
FEW_STEPS = TrainingSettings(steps=4, tokens_per_step=256, row_lengths=(32, 128))
LOSSLESS = (
    "",
    " ",
    "a  b\n\n\tc \r\n",
    "  two spaces, two spaces  ",
    "你好，世界！　全角空格",
    "rare: 龘 ﬁ Ⅷ １２３ é e\u0301 🎉👩‍🚀",
    "<|endoftext|> <pad> <0x0A>",
    "Ünïcödé \u200b\x00\x7f 1234567890",
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(train_tokenizer(load_corpus().texts(), 2048))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("demo")
    build_demo(directory, FEW_STEPS, TINY)
    return directory


class TestCorpus:
    def test_every_topic_is_there_in_both_languages(self) -> None:
        entries = load_corpus().entries
        assert len({topic for topic, _ in entries}) >= 70
        for topic, language in entries:
            for other in LANGUAGES:
                assert (topic, other) in entries
            assert (entries[topic, language].more is None) == (entries[topic, "en"].more is None)

    def test_every_topic_has_enough_phrasings(self) -> None:
        for entry in load_corpus().entries.values():
            if entry.topic not in SPECIAL_TOPICS:
                assert len(entry.questions) >= 25, entry.key

    def test_no_question_belongs_to_two_answers(self) -> None:
        answers: dict[str, str] = {}
        for question in load_corpus().questions():
            key = normalised(question.text)
            assert answers.setdefault(key, question.answer) == question.answer, question.text

    def test_answers_are_short_and_chinese_ones_are_chinese(self) -> None:
        for entry in load_corpus().entries.values():
            for answer in filter(None, (entry.answer, entry.more)):
                assert answer == answer.strip()
                assert len(answer) < 400
                if entry.language == "zh":
                    assert any("\u4e00" <= character <= "\u9fff" for character in answer)

    def test_held_out_questions_are_not_trained_on(self) -> None:
        corpus = load_corpus()
        trained = {normalised(question.text) for question in corpus.questions()}
        for entry in corpus.entries.values():
            for term in entry.terms:
                for template in corpus.templates(entry, term):
                    trained.add(normalised(template.replace("{term}", term)))
        for language in LANGUAGES:
            for pattern in corpus.out_of_scope.patterns[language]:
                for noun in corpus.out_of_scope.nouns[language]:
                    trained.add(normalised(pattern.replace("{noun}", noun)))
        held_out = held_out_questions()
        assert [q.language for q in held_out].count("en") == 20
        assert [q.language for q in held_out].count("zh") == 20
        assert len({normalised(question.text) for question in held_out}) == 40
        for question in held_out:
            assert normalised(question.text) not in trained, question.text

    def test_held_out_text_is_not_trained_on(self) -> None:
        trained = {normalised(line) for text in load_corpus().texts() for line in text.splitlines()}
        for paragraph in held_out_text().split("\n\n"):
            assert normalised(paragraph) not in trained


class TestConversations:
    def test_the_same_seed_gives_the_same_rows(self, tokenizer: Tokenizer) -> None:
        first, second = (RowSampler(load_corpus(), tokenizer, seed=5) for _ in range(2))
        for length in (40, 300):
            assert first.row(length) == second.row(length)

    def test_rows_have_one_weight_an_id(self, tokenizer: Tokenizer) -> None:
        rows = RowSampler(load_corpus(), tokenizer, seed=1)
        for _ in range(50):
            row = rows.row(200)
            assert len(row.ids) == len(row.weights) == 200

    def test_every_answer_comes_from_the_corpus(self) -> None:
        import random

        entries = load_corpus().entries.values()
        known = {answer for entry in entries for answer in (entry.answer, entry.more)}
        turns = ConversationSampler(load_corpus(), random.Random(3)).turns()
        for _ in range(500):
            turn = next(turns)
            assert turn.user.strip()
            assert turn.answer in known

    @pytest.mark.parametrize("language", LANGUAGES)
    def test_synonyms_replace_words_and_never_nothing(self, language: str) -> None:
        for pattern, _ in _synonym_patterns(language):
            assert not pattern.search("。"), pattern.pattern

    def test_varying_keeps_options_and_commands(self) -> None:
        import random

        rng = random.Random(0)
        varied = [vary("What does --gpu-memory do?", "en", rng) for _ in range(300)]
        kept = [text for text in varied if "--gpu-memory" in text.lower()]
        assert len(kept) > 280  # the rest are misspelt, or lost a word
        assert len(set(varied)) > 30

    def test_segments_are_encoded_separately(self, tokenizer: Tokenizer) -> None:
        encode = tokenizer.encode
        expected = encode("Human: ") + encode("Hi\n\n") + encode("Assistant: ")
        assert prompt_ids(tokenizer, "Hi") == expected


class TestTokenizer:
    @pytest.mark.parametrize("text", LOSSLESS)
    def test_is_lossless_and_makes_no_special_ids(self, tokenizer: Tokenizer, text: str) -> None:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert min(ids, default=4) >= 4

    def test_is_lossless_on_the_corpus(self, tokenizer: Tokenizer) -> None:
        for text in (*load_corpus().texts(), held_out_text()):
            assert tokenizer.decode(tokenizer.encode(text)) == text

    def test_digits_stand_alone(self, tokenizer: Tokenizer) -> None:
        assert len(tokenizer.encode("2024")) == 4

    def test_is_deterministic_and_names_no_path(self) -> None:
        first, second = (train_tokenizer(load_corpus().texts(), 2048) for _ in range(2))
        assert first == second
        assert b"/tmp" not in first
        assert str(Path.home()).encode() not in first


class TestExport:
    def test_the_directory_is_complete(self, exported: Path) -> None:
        assert sorted(path.name for path in exported.iterdir()) == [
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "special_tokens_map.json",
            "tokenizer.model",
            "tokenizer_config.json",
        ]
        config = json.loads((exported / "config.json").read_text())
        assert config["model_type"] == "xverse"
        assert config["architectures"] == ["XverseForCausalLM"]
        assert config["vocab_size"] == TINY.vocab_size
        assert config["eos_token_id"] == EOS_ID

    def test_names_shapes_and_types_are_the_published_ones(self, exported: Path) -> None:
        tensors = load_file(exported / "model.safetensors")
        assert set(tensors) == set(_published_names(TINY))
        for name, tensor in tensors.items():
            router = name.endswith("mlp.router.weight")
            assert tensor.dtype == (torch.float32 if router else torch.bfloat16), name
        mlp = "model.layers.1.mlp"
        size, width = TINY.hidden_size, TINY.expert_width
        assert tensors[f"{mlp}.router.weight"].shape == (TINY.num_experts, size)
        assert tensors[f"{mlp}.experts.3.down_proj.weight"].shape == (size, width)
        assert tensors[f"{mlp}.shared_experts.gate_proj.weight"].shape == (2 * width, size)

    def test_the_same_seed_gives_the_same_files(self, exported: Path, tmp_path: Path) -> None:
        build_demo(tmp_path, FEW_STEPS, TINY)
        for path in exported.iterdir():
            assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name

    def test_reading_back_gives_the_same_model(self, exported: Path) -> None:
        model = load_exported(exported)
        assert model.config == TINY
        ids = torch.tensor([[442, 1127, 7, 99]])
        with torch.inference_mode():
            logits, _, load = model(ids)
        assert logits.shape == (1, 4, TINY.vocab_size)
        assert load.shape == (TINY.num_layers, TINY.num_experts)
        assert logits.isfinite().all()


class TestModel:
    def test_experts_match_the_plain_formula(self) -> None:
        torch.manual_seed(0)
        model = DemoModel(TINY)
        layer = model.layers[0].mlp
        assert isinstance(layer, MoE)
        x = torch.randn(7, TINY.hidden_size)
        output, _, load = layer(x)
        for token in range(7):
            torch.testing.assert_close(output[token], _plain_moe(layer, x[token]))
        assert load.sum().item() == pytest.approx(1.0)

    def test_the_loss_ignores_tokens_without_weight(self) -> None:
        logits = torch.randn(1, 3, 11)
        targets = torch.tensor([[4, 5, 6]])
        weights = torch.tensor([[1.0, 0.0, 1.0]])
        before = weighted_loss(logits, targets, weights)
        logits[0, 1] = float("nan")
        logits[0, 1] = 50.0
        assert weighted_loss(logits, targets, weights) == before

    def test_greedy_matches_agrees_with_decoding_step_by_step(self) -> None:
        torch.manual_seed(1)
        model = DemoModel(TINY).eval()
        prompts = [[5, 9, 30], [77, 8, 120, 9, 14, 600], [2000]]
        answers = []
        for prompt in prompts:
            ids = list(prompt)
            for _ in range(5):
                with torch.inference_mode():
                    ids.append(int(model(torch.tensor([ids]))[0][0, -1].argmax()))
            answers.append(ids[len(prompt) :])
        right = [Case(p, a, "") for p, a in zip(prompts, answers, strict=True)]
        wrong = [Case(p, [*a[:-1], a[-1] + 1], "") for p, a in zip(prompts, answers, strict=True)]
        assert greedy_matches(model, right + wrong) == [True] * 3 + [False] * 3


def _plain_moe(layer: MoE, x: torch.Tensor) -> torch.Tensor:
    """x: [hidden] → [hidden], one expert after the other."""

    def mlp(gate_up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
        gate, up = (gate_up @ x).chunk(2)
        return down @ (torch.nn.functional.silu(gate) * up)

    probabilities = torch.softmax(layer.router.weight @ x, dim=0)
    weights, chosen = probabilities.topk(layer.top_k)
    weights = weights / (weights.sum() + 1e-6)
    output = mlp(layer.shared_gate_up, layer.shared_down)
    for weight, expert in zip(weights, chosen.tolist(), strict=True):
        output = output + weight * mlp(layer.gate_up[expert], layer.down[expert])
    return output


def _published_names(config: DemoConfig) -> Iterator[str]:
    yield from ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
    for number in range(config.num_layers):
        layer = f"model.layers.{number}"
        yield f"{layer}.input_layernorm.weight"
        yield f"{layer}.post_attention_layernorm.weight"
        for name in "qkvo":
            yield f"{layer}.self_attn.{name}_proj.weight"
        yield f"{layer}.mlp.router.weight"
        experts = [f"experts.{expert}" for expert in range(config.num_experts)]
        for expert in (*experts, "shared_experts"):
            for name in ("gate", "up", "down"):
                yield f"{layer}.mlp.{expert}.{name}_proj.weight"
