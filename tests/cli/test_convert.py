"""`xverse convert` and `xverse verify`, and finding the stores they make."""

from __future__ import annotations

import io
import shlex
import shutil
from pathlib import Path

import pytest

from tests.runtime.helpers import GOLDEN
from xverse_cli.app import run
from xverse_cli.host import Host
from xverse_cli.models.find import find_model
from xverse_cli.models.stores import stores_dir
from xverse_cli.streams import Streams


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def xverse(*argv: str, answer: str | None = None) -> tuple[int, str, str]:
    """Exit code, stdout and stderr; ``answer`` is typed at a terminal."""
    stdin = Terminal(answer) if answer is not None else io.TextIOWrapper(io.BytesIO())
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    streams = Streams(stdin, stdout, io.StringIO())
    code = run(argv, Host(streams, {}))
    out: bytes = stdout.buffer.getvalue()  # type: ignore[attr-defined]
    return code, out.decode(), streams.stderr.getvalue()  # type: ignore[attr-defined]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "moe-bin", tmp_path / "moe-bin"))


@pytest.mark.parametrize("precision", ["bf16", "int8", "int4", "auto"])
def test_convert_verify_generate(source: Path, tmp_path: Path, precision: str) -> None:
    output = tmp_path / "store"
    code, out, err = xverse(
        "convert", str(source), "--precision", precision, "--output", str(output)
    )
    assert (code, out) == (0, f"{output}\n")
    assert "Converted and verified" in err
    code, _, err = xverse("verify", str(output))
    assert code == 0
    assert "all as written" in err
    code, out, _ = xverse("generate", "--model", str(output), "--raw", "--max-tokens", "3", "a")
    assert code == 0


def test_parts_may_have_another_format(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "store"
    xverse("convert", str(source), "--precision", "int4", "--attention", "bf16",
           "--head", "int4", "--output", str(output))  # fmt: skip
    code, _, err = xverse("generate", "-v", "-m", str(output), "--raw", "--max-tokens", "1", "a")
    assert code == 0
    assert "experts int4, attention bf16, head int4" in err


def test_verify_finds_a_changed_byte(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "store"
    xverse("convert", str(source), "--precision", "int4", "--output", str(output))
    layer = output / "layer-00001.safetensors"
    data = bytearray(layer.read_bytes())
    data[9000] ^= 4
    layer.write_bytes(bytes(data))
    code, _, err = xverse("verify", str(output))
    assert code == 4
    assert "layer-00001.safetensors" in err


def test_verify_needs_a_store(source: Path) -> None:
    code, _, err = xverse("verify", str(source))
    assert code == 2
    assert "xverse convert" in err


def test_what_verify_says_to_do_leads_somewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(GOLDEN / "moe-bin", "my model")
    for model in ("demo", "./my model"):
        code, _, err = xverse("verify", model)
        assert code == 2
        hint = err.splitlines()[-1].partition(": ")[2]
        for command in hint.split(", then "):
            code, _, err = xverse(*shlex.split(command)[1:])
            assert code == 0, err


@pytest.mark.parametrize(("precision", "example"), [("auto", "demo-store"), ("int8", "demo-int8")])
def test_a_missing_output_is_told_before_anything_is_measured(precision: str, example: str) -> None:
    code, _, err = xverse("convert", "demo", "--precision", precision)
    assert code == 2
    assert err.startswith("error: Only a Hub id")
    assert f"--output ./{example}" in err


def test_an_existing_target_is_a_usage_error(source: Path, tmp_path: Path) -> None:
    assert xverse("convert", str(source), "--output", str(tmp_path))[0] == 2
    assert xverse("convert", str(tmp_path / "none"), "--output", "x")[0] == 3
    assert xverse("convert", str(source), "--precision", "int3")[0] == 2


@pytest.mark.parametrize(("answer", "deleted"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_the_source_is_deleted_only_when_asked(
    source: Path, tmp_path: Path, answer: str, deleted: bool
) -> None:
    code, _, err = xverse(
        "convert", str(source), "--output", str(tmp_path / "s"), "--delete-source", answer=answer
    )
    assert code == 0
    assert "[y/N]" in err
    assert bool(list(source.glob("*.bin"))) != deleted
    assert (source / "config.json").exists()
    assert xverse("verify", str(tmp_path / "s"))[0] == 0


def test_nobody_at_the_terminal_must_say_yes_beforehand(source: Path, tmp_path: Path) -> None:
    options = ("convert", str(source), "--output", str(tmp_path / "s"), "--delete-source")
    code, _, err = xverse(*options)
    assert code == 2
    assert "--yes" in err
    assert list(source.glob("*.bin"))
    assert xverse(*options, "--yes")[0] == 0
    assert not list(source.glob("*.bin"))


def hub_cache(home: Path, repo: str) -> Path:
    """A snapshot of the golden checkpoint in the Hub's cache, links and all."""
    folder = home / ".cache" / "huggingface" / "hub" / ("models--" + repo.replace("/", "--"))
    snapshot = folder / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("c0ffee")
    (folder / "blobs").mkdir()
    for number, file in enumerate(sorted((GOLDEN / "moe-bin").iterdir())):
        shutil.copy(file, folder / "blobs" / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    return snapshot


def test_a_store_of_a_hub_id_is_found_by_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = hub_cache(home, "org/Some-Chat")
    cache = home / ".cache" / "huggingface" / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    for precision in ("int4", "int8"):
        assert xverse("convert", "org/Some-Chat", "--precision", precision)[0] == 0
    stores = stores_dir()
    assert find_model("org/Some-Chat", "int4").path == stores / "org--Some-Chat-int4"
    assert find_model("org/Some-Chat", "auto").path.parent == stores
    assert find_model("org/Some-Chat", "fp32").path == snapshot
    assert find_model("org/Some-Chat@main", "int4").path == stores / "org--Some-Chat-int4"
    assert find_model("org/Some-Chat").path == snapshot
    assert xverse("verify", "org/Some-Chat")[0] == 0
    code, _, err = xverse("generate", "-v", "-m", "org/Some-Chat", "--max-tokens", "1", "a")
    assert code == 0
    assert "human-assistant" in err
    assert (
        xverse("convert", "org/Some-Chat", "--precision", "bf16", "--delete-source", "-y")[0] == 0
    )
    assert (
        len(list((snapshot.parents[1] / "blobs").iterdir())) == 7
    )  # all but two shards and their index


def test_only_the_weights_that_were_read_are_deleted(source: Path, tmp_path: Path) -> None:
    for name in ("optimizer.bin", "adapter.safetensors"):
        (source / name).write_bytes(b"x")
    options = ("--output", str(tmp_path / "s"), "--delete-source", "--yes")
    assert xverse("convert", str(source), *options)[0] == 0
    left = {file.name for file in source.iterdir()}
    assert {"optimizer.bin", "adapter.safetensors", "config.json"} <= left
    assert not any(name.startswith("pytorch_model") for name in left)


def test_a_blob_that_another_snapshot_needs_stays(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = hub_cache(home, "org/Two")
    other = Path(shutil.copytree(snapshot, snapshot.with_name("feed"), symlinks=True))
    cache = home / ".cache" / "huggingface" / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    options = ("-o", str(tmp_path / "s"), "--delete-source", "--yes")
    assert xverse("convert", "org/Two", *options)[0] == 0
    assert not list(snapshot.glob("*.bin"))
    assert all(file.is_file() for file in other.glob("*.bin"))
    assert len(list(other.glob("*.bin"))) == 2


def test_the_demo_is_never_deleted(tmp_path: Path) -> None:
    options = ("-o", str(tmp_path / "s"), "--delete-source", "--yes")
    assert xverse("convert", "demo", *options)[0] == 2


def test_a_directory_needs_an_output(source: Path) -> None:
    code, _, err = xverse("convert", str(source), "--precision", "int4")
    assert code == 2
    assert "--output ./moe-bin-int4" in err


def add_revision(snapshot: Path, ref: str, commit: str) -> Path:
    """Another revision in the cache, with other weights."""
    other = Path(shutil.copytree(snapshot, snapshot.with_name(commit)))
    reference = snapshot.parents[1] / "refs" / ref
    reference.parent.mkdir(parents=True, exist_ok=True)
    reference.write_text(commit)
    return other


@pytest.fixture
def hub(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A snapshot of org/M in the cache: ``main`` is c0ffee."""
    cache = home / ".cache" / "huggingface" / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return hub_cache(home, "org/M")


@pytest.mark.parametrize("ref", ["v1", "refs/pr/1"])
def test_a_store_belongs_to_its_revision(hub: Path, ref: str) -> None:
    other = add_revision(hub, ref, "feed")
    assert xverse("convert", f"org/M@{ref}", "--precision", "int4")[0] == 0
    made = find_model(f"org/M@{ref}", "int4").path
    assert made.parent == stores_dir()
    assert find_model("org/M", "int4").path == hub  # never the store of another revision
    assert find_model("org/M@feed", "auto").path == made  # the same commit
    assert xverse("convert", "org/M", "--precision", "int4")[0] == 0
    of_main = find_model("org/M", "int4").path
    assert of_main not in (hub, made)
    assert find_model(f"org/M@{ref}", "int4").path == made
    assert xverse("verify", f"org/M@{ref}")[0] == 0
    # without the cache the names are all that is known
    shutil.rmtree(hub.parents[1])
    assert not other.exists()
    assert find_model("org/M", "int4").path == of_main
    assert find_model(f"org/M@{ref}", "int4").path == made


def test_a_store_is_not_used_for_a_branch_that_has_moved_on(hub: Path) -> None:
    assert xverse("convert", "org/M", "--precision", "int4")[0] == 0
    store = find_model("org/M", "int4").path
    newer = add_revision(hub, "main", "feed")
    assert find_model("org/M", "int4").path == newer
    assert find_model("org/M@c0ffee", "int4").path == store


def test_an_identical_conversion_is_there_already(hub: Path) -> None:
    first = xverse("convert", "org/M", "--precision", "int4")
    code, out, err = xverse("convert", "org/M", "--precision", "int4")
    assert (code, out) == (0, first[1])
    assert "Already there" in err
    assert xverse("convert", "org/M", "--precision", "int4", "--head", "bf16")[0] == 2


def test_an_old_store_is_verified_before_the_source_goes(source: Path, tmp_path: Path) -> None:
    command = ("convert", str(source), "--precision", "int4", "-o", str(tmp_path / "s"))
    assert xverse(*command)[0] == 0
    layer = tmp_path / "s" / "layer-00001.safetensors"
    whole = layer.read_bytes()
    layer.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert xverse(*command, "--delete-source", "--yes")[0] == 4
    assert list(source.glob("*.bin"))
    layer.write_bytes(whole)
    assert xverse(*command, "--delete-source", "--yes")[0] == 0
    assert not list(source.glob("*.bin"))


def test_a_damaged_source_is_exit_code_4(source: Path, tmp_path: Path) -> None:
    shard = source / "pytorch_model-00002-of-00002.bin"
    shard.write_bytes(shard.read_bytes()[:-1000])
    code, out, err = xverse("convert", str(source), "-o", str(tmp_path / "s"))
    assert (code, out) == (4, "")
    assert shard.name in err
    assert not list(tmp_path.glob("s*"))


def test_a_full_disk_is_exit_code_5(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("xverse_runtime.store.place.shutil.disk_usage", lambda _path: usage)
    code, out, err = xverse("convert", str(source), "-o", str(tmp_path / "s"))
    assert (code, out) == (5, "")
    assert "1000 bytes free" in err
    assert "it goes on where it stopped" in err


def test_a_place_that_cannot_be_written_is_exit_code_2(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = xverse("convert", str(source), "-o", str(tmp_path / "file" / "s"))
    assert code == 2
    assert "cannot be written" in err


def test_hints_name_the_model_that_was_asked_for(source: Path) -> None:
    _, _, err = xverse("verify", str(source))
    assert f"xverse convert {source}" in err
    _, _, err = xverse("generate", "-m", "demo", "--precision", "int4", "a")
    assert "xverse convert demo --precision int4" in err
