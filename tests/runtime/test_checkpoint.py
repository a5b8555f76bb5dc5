"""Published layouts, and files that must be refused without running or reading anything else."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.runtime.helpers import GOLDEN
from xverse_runtime.checkpoint import read_checkpoint
from xverse_runtime.config import ModelConfig
from xverse_runtime.errors import IntegrityError, ModelNotFoundError, XverseError
from xverse_runtime.model_dir import ModelDirectory

INDEX = "model.safetensors.index.json"
BIN_INDEX = "pytorch_model.bin.index.json"
FIRST_SHARD = "model-00001-of-00002.safetensors"


def read(path: Path) -> dict[str, torch.Tensor]:
    directory = ModelDirectory.open(path)
    return read_checkpoint(directory, ModelConfig.from_dir(directory))


def refused(path: Path) -> XverseError:
    with pytest.raises(XverseError) as caught:
        read(path)
    return caught.value


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[str], Path]:
    def make(name: str) -> Path:
        return Path(shutil.copytree(GOLDEN / name, tmp_path / name))

    return make


@pytest.fixture
def safetensors_model(copy: Callable[[str], Path]) -> Path:
    return copy("moe-safetensors")


@pytest.fixture
def bin_model(copy: Callable[[str], Path]) -> Path:
    return copy("moe-bin")


def change_weight_map(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


def rewrite_first_shard(model: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(model / FIRST_SHARD)
    change(tensors)
    save_file(tensors, model / FIRST_SHARD)


def test_bin_ignores_inverse_frequencies_and_keeps_the_router_fp32(bin_model: Path) -> None:
    tensors = read(bin_model)
    assert tensors["model.layers.0.mlp.router.weight"].dtype == torch.float32
    assert tensors["model.embed_tokens.weight"].dtype == torch.bfloat16
    assert not any("inv_freq" in name for name in tensors)
    raw = torch.load(bin_model / "pytorch_model-00001-of-00002.bin", weights_only=True)
    assert any("inv_freq" in name for name in raw)


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_single_file_is_as_good_as_shards(safetensors_model: Path, form: str) -> None:
    tensors = {name: tensor.clone() for name, tensor in read(safetensors_model).items()}
    for file in safetensors_model.glob("model*"):
        file.unlink()
    if form == "safetensors":
        save_file(tensors, safetensors_model / "model.safetensors")
    else:
        torch.save(tensors, safetensors_model / "pytorch_model.bin")
    again = read(safetensors_model)
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())


def test_safetensors_win_over_pickles_of_the_same_model(safetensors_model: Path) -> None:
    (safetensors_model / "pytorch_model.bin").write_bytes(b"never opened")
    assert read(safetensors_model)


def test_missing_surplus_and_misshaped_tensors_are_all_listed(safetensors_model: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.layers.0.mlp.experts.3.up_proj.weight"]
        tensors["model.layers.0.mlp.extra.weight"] = torch.zeros(2)
        tensors["model.layers.0.self_attn.q_proj.weight"] = torch.zeros(160, 80)

    rewrite_first_shard(safetensors_model, change)
    error = refused(safetensors_model)
    assert error.code == "checkpoint.mismatch"
    assert error.params["missing"] == ["model.layers.0.mlp.experts.3.up_proj.weight"]
    assert error.params["surplus"] == ["model.layers.0.mlp.extra.weight"]
    name = "model.layers.0.self_attn.q_proj.weight"
    assert error.params["misshaped"] == [f"{name} (160, 80) instead of (160, 160)"]


def test_integer_weights_are_refused(safetensors_model: Path) -> None:
    name = "model.embed_tokens.weight"
    rewrite_first_shard(
        safetensors_model, lambda t: t.update({name: torch.zeros(1536, 160, dtype=torch.int8)})
    )
    error = refused(safetensors_model)
    assert (error.code, error.params["tensor"]) == ("checkpoint.bad_dtype", name)


class Evil:
    """Unpickling this would run a command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.marker}",))


@pytest.mark.parametrize("form", ["zip", "plain"])
def test_a_pickle_with_code_is_refused_and_not_run(
    bin_model: Path, tmp_path: Path, form: str
) -> None:
    marker = tmp_path / "executed"
    shard = bin_model / "pytorch_model-00001-of-00002.bin"
    if form == "zip":
        torch.save({"model.norm.weight": Evil(marker)}, shard)
    else:
        shard.write_bytes(pickle.dumps({"model.norm.weight": Evil(marker)}))
    error = refused(bin_model)
    assert isinstance(error, IntegrityError)
    if form == "zip":
        assert error.code == "checkpoint.unsafe_pickle"
        assert "system" in str(error.params["detail"])
    else:
        assert error.code == "checkpoint.corrupt"
    assert not marker.exists()


@pytest.mark.parametrize("content", [{"a": 1}, {"a": [torch.zeros(1)]}, [torch.zeros(1)], 5])
def test_a_pickle_of_something_else_is_refused(bin_model: Path, content: Any) -> None:
    torch.save(content, bin_model / "pytorch_model-00001-of-00002.bin")
    assert refused(bin_model).code == "checkpoint.corrupt"


@pytest.mark.parametrize(
    "name",
    [
        "../other.safetensors",
        "/etc/other.safetensors",
        "a/../../other.safetensors",
        "..\\x.safetensors",
    ],
)
def test_names_that_lead_outside_are_refused(safetensors_model: Path, name: str) -> None:
    shutil.copy(safetensors_model / FIRST_SHARD, safetensors_model.parent / "other.safetensors")
    change_weight_map(
        safetensors_model / INDEX, lambda weights: weights.update({"lm_head.weight": name})
    )
    error = refused(safetensors_model)
    assert (error.code, error.params["name"]) == ("path.outside", name)


def test_links_that_lead_outside_are_refused(safetensors_model: Path) -> None:
    outside = safetensors_model.parent / "elsewhere.safetensors"
    (safetensors_model / FIRST_SHARD).rename(outside)
    (safetensors_model / FIRST_SHARD).symlink_to(outside)
    assert refused(safetensors_model).code == "path.outside"


@pytest.mark.parametrize("name", ["config.json", INDEX])
def test_json_files_behind_links_are_refused_too(safetensors_model: Path, name: str) -> None:
    outside = safetensors_model.parent / name
    (safetensors_model / name).rename(outside)
    (safetensors_model / name).symlink_to(outside)
    assert refused(safetensors_model).code == "path.outside"


def test_links_inside_the_directory_are_fine(safetensors_model: Path) -> None:
    (safetensors_model / FIRST_SHARD).rename(safetensors_model / "blob")
    (safetensors_model / FIRST_SHARD).symlink_to("blob")
    assert read(safetensors_model)


def hub_cache_of(model: Path, root: Path) -> Path:
    """The model as the Hub cache stores it: a snapshot of links into blobs."""
    folder = root / "models--org--name"
    snapshot = folder / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (folder / "blobs").mkdir()
    for number, file in enumerate(sorted(model.iterdir())):
        shutil.copy(file, folder / "blobs" / f"blob{number}")
        (snapshot / file.name).symlink_to(f"../../blobs/blob{number}")
    return snapshot


def test_the_hub_cache_layout(safetensors_model: Path, bin_model: Path, tmp_path: Path) -> None:
    for number, model in enumerate((safetensors_model, bin_model)):
        snapshot = hub_cache_of(model, tmp_path / f"hub{number}")
        assert read(snapshot)
        assert ModelDirectory.open(snapshot).display_name == "org/name"


def test_a_hub_snapshot_may_not_link_into_another_model(
    safetensors_model: Path, tmp_path: Path
) -> None:
    snapshot = hub_cache_of(safetensors_model, tmp_path / "hub")
    other = tmp_path / "hub" / "models--org--other" / "blobs"
    other.mkdir(parents=True)
    shutil.copy(safetensors_model / FIRST_SHARD, other / "blob")
    (snapshot / FIRST_SHARD).unlink()
    (snapshot / FIRST_SHARD).symlink_to("../../../models--org--other/blobs/blob")
    assert refused(snapshot).code == "path.outside"


def test_a_loop_of_links_is_a_missing_file(safetensors_model: Path) -> None:
    (safetensors_model / FIRST_SHARD).unlink()
    (safetensors_model / FIRST_SHARD).symlink_to(FIRST_SHARD)
    assert refused(safetensors_model).code == "checkpoint.missing_shards"


@pytest.mark.parametrize("keep", [0, 5, 1000, -1000, -1])
@pytest.mark.parametrize("form", ["safetensors_model", "bin_model"])
def test_a_truncated_shard_is_refused(request: pytest.FixtureRequest, form: str, keep: int) -> None:
    model: Path = request.getfixturevalue(form)
    shard = next(iter(sorted(model.glob("*-00002-of-00002.*"))))
    shard.write_bytes(shard.read_bytes()[:keep])
    error = refused(model)
    assert isinstance(error, IntegrityError)
    assert error.code == "checkpoint.corrupt"
    assert shard.name in str(error.params["path"])


def test_a_shard_that_is_not_there_is_named(bin_model: Path) -> None:
    (bin_model / "pytorch_model-00002-of-00002.bin").unlink()
    error = refused(bin_model)
    assert error.code == "checkpoint.missing_shards"
    assert error.params["names"] == ["pytorch_model-00002-of-00002.bin"]


@pytest.mark.parametrize("weight_map", [None, {}, [], "x"])
def test_an_index_without_a_weight_map(safetensors_model: Path, weight_map: Any) -> None:
    (safetensors_model / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert refused(safetensors_model).code == "checkpoint.index_invalid"


def test_an_index_may_not_name_files_of_another_kind(safetensors_model: Path) -> None:
    change_weight_map(
        safetensors_model / INDEX, lambda weights: weights.update({"lm_head.weight": "config.json"})
    )
    assert refused(safetensors_model).code == "checkpoint.index_invalid"


def header(shape: list[int], offsets: list[int]) -> bytes:
    tensors = {"model.norm.weight": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}
    text = json.dumps(tensors).encode()
    return len(text).to_bytes(8, "little") + text + bytes(64)


@pytest.mark.parametrize(
    "content",
    [
        header([-4], [0, 16]),
        header([2**62], [0, 2**64 - 1]),
        header([2**40], [0, 64]),
        header([16], [0, 2**60]),
        (2**63).to_bytes(8, "little") + bytes(100),
    ],
    ids=["negative", "overflow", "larger than its data", "beyond the file", "huge header"],
)
def test_impossible_sizes_are_refused(safetensors_model: Path, content: bytes) -> None:
    (safetensors_model / FIRST_SHARD).write_bytes(content)
    assert refused(safetensors_model).code == "checkpoint.corrupt"


def test_a_bin_tensor_larger_than_its_storage_is_refused(bin_model: Path) -> None:
    shard = bin_model / "pytorch_model-00001-of-00002.bin"
    small = torch.zeros(4)
    torch.save({"model.norm.weight": small}, shard)
    content = shard.read_bytes()
    # the shape of the tensor in the pickle: BININT1 4, TUPLE1; make it a huge one
    assert content.count(b"K\x04\x85") >= 1
    shard.write_bytes(content.replace(b"K\x04\x85", b"K\xff\x85"))
    assert refused(bin_model).code == "checkpoint.corrupt"


def test_no_weights_at_all(tmp_path: Path) -> None:
    shutil.copy(GOLDEN / "moe-bin" / "config.json", tmp_path)
    with pytest.raises(ModelNotFoundError) as caught:
        read(tmp_path)
    assert caught.value.code == "model.no_weights"


def test_a_path_that_is_no_directory(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        ModelDirectory.open(tmp_path / "nowhere")
    assert caught.value.code == "model.not_a_directory"


def test_a_tensor_without_data_is_refused(bin_model: Path) -> None:
    shard = bin_model / "pytorch_model-00001-of-00002.bin"
    torch.save({"model.norm.weight": torch.empty(160, device="meta")}, shard)
    assert refused(bin_model).code == "checkpoint.corrupt"
