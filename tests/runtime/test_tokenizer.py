"""Ids and texts of the vendor's generation of the library; streaming; both file formats."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor

from tests.runtime.helpers import GOLDEN
from xverse_runtime.errors import IntegrityError, ModelNotFoundError
from xverse_runtime.model_dir import ModelDirectory
from xverse_runtime.tokenizer import StreamDecoder, Tokenizer, load_tokenizer

CASES: list[dict[str, Any]] = json.loads((GOLDEN / "tokenizer_cases.json").read_text("utf-8"))
AWKWARD = [
    "",
    " ",
    "  two  spaces  ",
    "a\n\n b\tc\r\n",
    "中文，标点。《书》——……",
    "emoji 👩‍👩‍👧 🇨🇳",
    "e\u0301 ǹ",
    "\0\x01\x7f",
    "<0x41> ▁ <|endoftext|>",
    "1234567890",
]


@pytest.fixture(scope="module")
def published() -> Tokenizer:
    return load_tokenizer(ModelDirectory.open(GOLDEN / "moe-bin"))


@pytest.fixture(scope="module")
def sentencepiece(demo_dir: Path) -> Tokenizer:
    return load_tokenizer(ModelDirectory.open(demo_dir))


@pytest.mark.parametrize("case", CASES, ids=[str(n) for n in range(len(CASES))])
def test_the_published_form_gives_the_golden_ids_and_texts(
    published: Tokenizer, case: dict[str, Any]
) -> None:
    ids = published.encode(case["text"], parse_special=True)
    assert ids == case["ids"]
    assert published.decode(ids) == case["decoded"]
    assert published.decode(ids, skip_special=False) == case["decoded_keep_special"]


def test_the_file_itself_is_left_as_it_is() -> None:
    text = (GOLDEN / "moe-bin" / "tokenizer.json").read_text()
    assert '"add_prefix_space"' in text
    assert "prepend_scheme" not in text


@pytest.mark.parametrize("form", ["published", "sentencepiece"])
def test_special_tokens_in_a_users_text_are_text(request: pytest.FixtureRequest, form: str) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(form)
    text = "end<|endoftext|>Human: <pad>"
    plain = tokenizer.encode(text)
    assert not set(plain) & set(tokenizer.special_tokens.values())
    assert tokenizer.decode(plain) == text
    parsed = tokenizer.encode(text, parse_special=True)
    assert [one for one in parsed if one in tokenizer.special_tokens.values()] == [3, 1]
    assert tokenizer.decode(parsed) == "endHuman: "


@pytest.mark.parametrize("form", ["published", "sentencepiece"])
@pytest.mark.parametrize("text", AWKWARD)
def test_text_survives_a_round_trip(request: pytest.FixtureRequest, form: str, text: str) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(form)
    assert tokenizer.decode(tokenizer.encode(text)) == text.replace("▁", " ")


def test_lone_surrogates_do_not_crash(published: Tokenizer) -> None:
    assert published.decode(published.encode("a\ud800b")) == "a\ufffdb"


@pytest.mark.parametrize("form", ["published", "sentencepiece"])
@pytest.mark.parametrize("seed", range(20))
def test_streaming_gives_the_same_text_as_decoding_at_once(
    request: pytest.FixtureRequest, form: str, seed: int
) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(form)
    ids = [random.Random(seed).randrange(tokenizer.vocab_size) for _ in range(200)]
    stream = StreamDecoder(tokenizer)
    parts = [stream.push(token) for token in ids]
    assert "".join(parts) + stream.flush() == tokenizer.decode(ids)


def test_no_half_characters_are_emitted(published: Tokenizer) -> None:
    ids = published.encode("京👩‍👩‍👧京")
    stream, text = StreamDecoder(published), ""
    for token in ids:
        part = stream.push(token)
        assert "\ufffd" not in part
        text += part
        assert "京👩‍👩‍👧京".startswith(text)
    assert stream.flush() == ""
    assert len(ids) > len("京👩‍👩‍👧京")


def test_an_unfinished_character_at_the_end_is_one_replacement(published: Tokenizer) -> None:
    ids = published.encode("好")[:-1]
    stream = StreamDecoder(published)
    assert [stream.push(token) for token in ids] == [""] * len(ids)
    assert stream.flush() == "\ufffd"


def test_ids_beyond_the_vocabulary_have_no_text(published: Tokenizer) -> None:
    assert published.decode([320, 10**6, -1, 320]) == "aa"


def test_the_sentencepiece_ids_are_the_librarys(sentencepiece: Tokenizer, demo_dir: Path) -> None:
    library = SentencePieceProcessor(model_file=str(demo_dir / "tokenizer.model"))
    for text in AWKWARD:
        assert sentencepiece.encode(text) == library.encode(text)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ("{", "config.not_json"),
        ("{}", "tokenizer.invalid"),
        ('{"decoder": {"type": "ByteLevel"}, "model": {}}', "tokenizer.unsupported"),
    ],
)
def test_broken_tokenizer_files(tmp_path: Path, content: str, code: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(IntegrityError) as caught:
        load_tokenizer(ModelDirectory.open(tmp_path))
    assert caught.value.code == code


def test_a_broken_sentencepiece_file(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\x00nonsense")
    with pytest.raises(IntegrityError) as caught:
        load_tokenizer(ModelDirectory.open(tmp_path))
    assert caught.value.code == "tokenizer.invalid"


def test_no_tokenizer_at_all(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        load_tokenizer(ModelDirectory.open(tmp_path))
    assert caught.value.code == "tokenizer.missing"


@pytest.mark.parametrize(("old", "first"), [(False, "a"), (True, " a")])
def test_the_old_prefix_setting_keeps_its_meaning(tmp_path: Path, old: bool, first: str) -> None:
    data = json.loads((GOLDEN / "moe-bin" / "tokenizer.json").read_text())
    data["pre_tokenizer"]["pretokenizers"][0]["add_prefix_space"] = old
    data["decoder"]["decoders"][1]["add_prefix_space"] = old
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    tokenizer = load_tokenizer(ModelDirectory.open(tmp_path))
    ids = tokenizer.encode("a b")
    assert tokenizer.piece(ids[0]).decode() == first
    assert tokenizer.decode(ids) == "a b"
