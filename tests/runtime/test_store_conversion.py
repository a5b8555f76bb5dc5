"""What a conversion refuses, what it leaves behind, and what it takes up again."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.runtime.helpers import GOLDEN
from xverse_runtime.config import EngineConfig, ModelConfig
from xverse_runtime.engine import Engine
from xverse_runtime.errors import IntegrityError, ResourceError, UsageError, XverseError
from xverse_runtime.store import convert as convert_module
from xverse_runtime.store.convert import ConversionPlan, convert_checkpoint
from xverse_runtime.store.layout import StoreLayout
from xverse_runtime.store.manifest import MANIFEST_FILE, StorePrecision
from xverse_runtime.store.precision import PRESETS
from xverse_runtime.store.synthetic import A4_2B
from xverse_runtime.store.verify import verify_store

INT4 = PRESETS["int4"]


class Killed(BaseException):
    """Stands for a kill: nothing in the code catches it."""


def die(*_args: Any) -> None:
    raise Killed


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "moe-safetensors", tmp_path / "source"))


def refused(source: Path, output: Path, precision: StorePrecision = INT4) -> XverseError:
    with pytest.raises(XverseError) as caught:
        convert_checkpoint(source, output, precision)
    return caught.value


def plan_of(source: Path, output: Path, precision: StorePrecision = INT4) -> ConversionPlan:
    plans: list[ConversionPlan] = []
    convert_checkpoint(source, output, precision, on_plan=plans.append)
    (plan,) = plans
    return plan


def left_beside(source: Path) -> set[str]:
    return {entry.name for entry in source.parent.iterdir()} - {source.name}


def change_json(path: Path, **changes: object) -> None:
    """Change keys of a JSON file that keeps its size."""
    size = path.stat().st_size
    text = json.dumps(json.loads(path.read_text()) | changes)
    path.write_text(text.ljust(size))


# One writer, and the name only at the end.


def test_the_lock_stands_beside_the_folder_and_is_held_over_the_rename(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    rename = Path.rename

    def rename_and_look(self: Path, target: Path) -> Path:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", rename)
            seen.append(refused(source, tmp_path / "out").code)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", rename_and_look)
    convert_checkpoint(source, tmp_path / "out", INT4)
    assert seen == ["store.busy"]
    assert left_beside(source) == {"out"}


@pytest.mark.parametrize("found", ["the same store", "something else"])
def test_the_output_is_looked_at_again_under_the_lock(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: str
) -> None:
    """Another process finishes between the first look and the lock."""
    read = convert_module.read_checkpoint

    def read_slowly(*args: Any) -> Any:
        monkeypatch.setattr(convert_module, "read_checkpoint", read)
        if found == "the same store":
            convert_checkpoint(source, tmp_path / "out", INT4)
        else:
            (tmp_path / "out").mkdir()
        return read(*args)

    monkeypatch.setattr(convert_module, "read_checkpoint", read_slowly)
    if found == "the same store":
        assert plan_of(source, tmp_path / "out").already_there
    else:
        assert refused(source, tmp_path / "out").code == "store.target_exists"
        assert list((tmp_path / "out").iterdir()) == []
    assert left_beside(source) == {"out"}


def test_everything_is_on_disk_before_the_rename(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[int] = set()
    before_rename: set[int] = set()
    fsync, rename = os.fsync, Path.rename

    def note(descriptor: int) -> None:
        fsync(descriptor)
        synced.add(os.fstat(descriptor).st_ino)

    def rename_noting(self: Path, target: Path) -> Path:
        before_rename.update(synced)
        synced.clear()
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(Path, "rename", rename_noting)
    convert_checkpoint(source, tmp_path / "out", INT4)
    written = [tmp_path / "out", *(tmp_path / "out").iterdir()]
    assert {path.name for path in written if path.stat().st_ino not in before_rename} == set()
    assert tmp_path.stat().st_ino in synced  # the new name


def test_a_kill_right_after_the_start_can_be_taken_up(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for moment in ("resume", "_save"):
        with monkeypatch.context() as patch:
            patch.setattr(convert_module.Journal, moment, die)
            with pytest.raises(Killed):
                convert_checkpoint(source, tmp_path / "out", INT4)
    (tmp_path / "out.partial" / "progress.json.tmp").write_text("{")
    convert_checkpoint(source, tmp_path / "out", INT4)
    assert left_beside(source) == {"out"}


def test_a_finished_file_that_was_damaged_is_made_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(convert_module._Job, "_finish", die)
        with pytest.raises(Killed):
            convert_checkpoint(source, tmp_path / "out", INT4)
    layer = tmp_path / "out.partial" / "layer-00001.safetensors"
    data = bytearray(layer.read_bytes())
    data[-9] ^= 1
    layer.write_bytes(bytes(data))
    error = refused(source, tmp_path / "out")
    assert (error.code, error.params["name"]) == ("store.written_wrong", layer.name)
    assert plan_of(source, tmp_path / "out").done_bytes > 0  # the other files are kept
    verify_store(tmp_path / "out")


def test_no_store_without_verification(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert_module, "damaged_files", die)
    with pytest.raises(Killed):
        convert_checkpoint(source, tmp_path / "out", INT4)
    assert not (tmp_path / "out.partial" / MANIFEST_FILE).exists()


# A store that is there already.


def test_a_finished_conversion_is_not_repeated(source: Path, tmp_path: Path) -> None:
    assert not plan_of(source, tmp_path / "out").already_there
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()}
    plan = plan_of(source, tmp_path / "out")
    assert plan.already_there
    assert plan.done_bytes == plan.total_bytes
    assert before == {file.name: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()}


def touch_weights(source: Path, _output: Path) -> None:
    shard = source / "model-00002-of-00002.safetensors"
    os.utime(shard, (time.time() + 3600,) * 2)


def change_settings(source: Path, _output: Path) -> None:
    (source / "generation_config.json").write_text('{"temperature": 0.1}')


def lose_a_file(_source: Path, output: Path) -> None:
    (output / "layer-00000.safetensors").unlink()


def become_another(_source: Path, output: Path) -> None:
    change_json(output / MANIFEST_FILE, source={"name": "x"})


@pytest.mark.parametrize("change", [touch_weights, change_settings, lose_a_file, become_another])
def test_a_store_of_something_else_is_in_the_way(
    source: Path, tmp_path: Path, change: Callable[[Path, Path], None]
) -> None:
    convert_checkpoint(source, tmp_path / "out", INT4)
    assert refused(source, tmp_path / "out", PRESETS["int8"]).code == "store.target_exists"
    change(source, tmp_path / "out")
    assert refused(source, tmp_path / "out").code == "store.target_exists"


def test_a_store_is_no_source(source: Path, tmp_path: Path) -> None:
    convert_checkpoint(source, tmp_path / "out", INT4)
    assert refused(tmp_path / "out", tmp_path / "again").code == "store.is_source"
    assert left_beside(source) == {"out"}


# Sources and places that do not do.


def test_a_folder_called_like_a_licence_is_no_licence(source: Path, tmp_path: Path) -> None:
    (source / "LICENSES").mkdir()
    (source / "LICENSE.txt").write_text("Apache-2.0")
    convert_checkpoint(source, tmp_path / "out", INT4)
    assert (tmp_path / "out" / "LICENSE.txt").read_text() == "Apache-2.0"
    assert not (tmp_path / "out" / "LICENSES").exists()


def test_a_small_file_that_leads_outside_is_found_before_the_work(
    source: Path, tmp_path: Path
) -> None:
    (source / "LICENSE").symlink_to(GOLDEN / "README.md")
    assert refused(source, tmp_path / "out").code == "path.outside"
    assert left_beside(source) == set()


@pytest.mark.parametrize("name", ["config.json", "model-00001-of-00002.safetensors"])
def test_a_source_that_may_not_be_read(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path.name != name and access(path, mode))
    error = refused(source, tmp_path / "out")
    assert (error.code, type(error)) == ("path.unreadable", IntegrityError)
    assert left_beside(source) == set()


def test_a_licence_larger_than_memory_is_not_read(source: Path, tmp_path: Path) -> None:
    with (source / "LICENSE").open("wb") as file:
        file.truncate(2**40)
    error = refused(source, tmp_path / "out")
    assert error.params["detail"] == "file too large"


@pytest.mark.parametrize(
    "journal",
    ["[]", "{", "[" * 100_000, '{"key": KEY, "files": [1]}', '{"key": KEY, "files": {"x": FILE}}'],
    ids=range(5),
)
def test_a_journal_of_nonsense_starts_anew(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, journal: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(convert_module._Job, "_finish", die)
        with pytest.raises(Killed):
            convert_checkpoint(source, tmp_path / "out", INT4)
    path = tmp_path / "out.partial" / "progress.json"
    (path.parent / "x").write_text("")
    key = json.dumps(json.loads(path.read_text())["key"])
    empty = '{"bytes": 0, "sha256": ""}'
    path.write_text(journal.replace("KEY", key).replace("FILE", empty))
    assert plan_of(source, tmp_path / "out").done_bytes == 0
    verify_store(tmp_path / "out")


def test_a_small_file_that_fails_while_it_is_read(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Path.read_bytes

    def fail(self: Path) -> bytes:
        if self.name == "tokenizer.json":
            raise PermissionError(errno.EACCES, "Permission denied")
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", fail)
    error = refused(source, tmp_path / "out")
    assert error.code == "path.unreadable"
    assert str(error.params["path"]).endswith("tokenizer.json")


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, "store.disk_full"),
        (errno.ENOTDIR, "store.not_writable"),
        (errno.ENAMETOOLONG, "store.not_writable"),
    ],
)
def test_a_folder_that_cannot_be_made(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: str
) -> None:
    def fail(*_args: Any, **_options: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "mkdir", fail)
    output = tmp_path / "new" / "folder" / "out"
    error = refused(source, output)
    assert error.code == code
    assert str(error.params["path"]).startswith(str(output))
    if code == "store.disk_full":
        assert isinstance(error, ResourceError)
        assert error.params["free_bytes"] > 0  # type: ignore[operator]


@pytest.mark.parametrize(("precision", "width"), [("bf16", 40), ("int8", 48), ("int4", 48)])
def test_widths_that_the_layout_cannot_hold(
    source: Path, tmp_path: Path, precision: str, width: int
) -> None:
    change_json(source / "config.json", intermediate_size=width)
    error = refused(source, tmp_path / "out", PRESETS[precision])
    assert (error.code, type(error)) == ("store.width", UsageError)
    assert str(width) in str(error.params["detail"])
    assert left_beside(source) == set()


@pytest.mark.parametrize(("precision", "width"), [("bf16", 40), ("int4", 48)])
def test_a_store_whose_config_has_another_width(
    source: Path, tmp_path: Path, precision: str, width: int
) -> None:
    convert_checkpoint(source, tmp_path / "out", PRESETS[precision])
    change_json(tmp_path / "out" / "config.json", intermediate_size=width)
    with pytest.raises(IntegrityError) as caught:
        Engine.load(tmp_path / "out", EngineConfig(device="cpu"))
    assert caught.value.code == "store.manifest_invalid"
    assert str(width) in str(caught.value.params["detail"])


LAYER = "model.layers.0."


@pytest.mark.parametrize("precision", ["bf16", "int4"])
@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "model.norm.weight",
        "lm_head.weight",
        LAYER + "input_layernorm.weight",
        LAYER + "self_attn.k_proj.weight",
        LAYER + "mlp.router.weight",
        LAYER + "mlp.experts.3.down_proj.weight",
        LAYER + "mlp.shared_experts.up_proj.weight",
    ],
)
def test_every_weight_must_be_finite(
    source: Path, tmp_path: Path, name: str, precision: str
) -> None:
    index = json.loads((source / "model.safetensors.index.json").read_text())
    shard = source / index["weight_map"][name]
    tensors = load_file(shard)
    tensors[name].view(-1)[-1] = float("inf")
    save_file(tensors, shard)
    error = refused(source, tmp_path / "out", PRESETS[precision])
    assert (error.code, error.params["tensor"]) == ("checkpoint.not_finite", name)
    assert not (tmp_path / "out").exists()


def test_a_value_too_large_for_fp16_is_named(source: Path, tmp_path: Path) -> None:
    shard = source / "model-00002-of-00002.safetensors"
    tensors = load_file(shard)
    tensors["lm_head.weight"][5, 5] = 1e30
    save_file(tensors, shard)
    error = refused(source, tmp_path / "out", StorePrecision("int4", "int8", "fp16"))
    assert error.params == {"tensor": "lm_head.weight", "detail": "1 in float16"}


def test_the_experts_in_the_making_fit_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 256)
    published = StoreLayout(ModelConfig.from_dict(A4_2B), INT4)
    assert 8 <= convert_module._threads_for(published) <= 24
    larger = ModelConfig.from_dict(A4_2B | {"hidden_size": 20480, "intermediate_size": 20480})
    assert convert_module._threads_for(StoreLayout(larger, INT4)) == 1
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert convert_module._threads_for(published) == 2


# What `verify` and opening insist on.


def test_a_manifest_must_list_all_files(source: Path, tmp_path: Path) -> None:
    store = tmp_path / "out"
    convert_checkpoint(source, store, INT4)
    files = json.loads((store / MANIFEST_FILE).read_text())["files"]
    fewer = {name: record for name, record in files.items() if name != "layer-00001.safetensors"}
    for left in ({}, fewer):
        change_json(store / MANIFEST_FILE, files=left)
        for check in (verify_store, lambda path: Engine.load(path, EngineConfig(device="cpu"))):
            with pytest.raises(IntegrityError) as caught:
                check(store)
            assert caught.value.code == "store.manifest_invalid"
            assert "layer-00001.safetensors" in str(caught.value.params["detail"])


def test_a_file_that_nobody_listed_is_found_by_verify(source: Path, tmp_path: Path) -> None:
    store = tmp_path / "out"
    convert_checkpoint(source, store, INT4)
    (store / ".DS_Store").write_text("x")
    (store / "progress.json").write_text("{}")  # a kill between the rename and the last step
    verify_store(store)
    (store / "chat_template.jinja").write_text("{{ messages }}")
    (store / "folder").mkdir()
    with pytest.raises(IntegrityError) as caught:
        verify_store(store)
    assert caught.value.code == "store.unlisted"
    assert caught.value.params["names"] == ["chat_template.jinja", "folder"]


def test_large_matrices_are_packed_in_slices(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert_checkpoint(source, tmp_path / "whole", INT4)
    monkeypatch.setattr("xverse_runtime.store.writer.SLICE_WEIGHTS", 160 * 16)
    convert_checkpoint(source, tmp_path / "slices", INT4)
    for file in (tmp_path / "whole").glob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "slices" / file.name).read_bytes()
    head = load_file(tmp_path / "slices" / "head.safetensors")["lm_head.weight"]
    assert head.dtype == torch.uint8
