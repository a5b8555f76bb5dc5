"""A store of weight files that come and go: the same bytes, whatever is killed on the way."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import Timeout
from safetensors.torch import save_file
from torch import Tensor

from tests.runtime.helpers import GOLDEN
from xverse_runtime.checkpoint import read_checkpoint
from xverse_runtime.config import ModelConfig
from xverse_runtime.errors import IntegrityError, ModelNotFoundError, ResourceError, XverseError
from xverse_runtime.model_dir import ModelDirectory
from xverse_runtime.store import convert as convert_module
from xverse_runtime.store.convert import convert_checkpoint
from xverse_runtime.store.manifest import MANIFEST_FILE, StorePrecision
from xverse_runtime.store.precision import PRESETS
from xverse_runtime.store.streaming import StreamedConversion
from xverse_runtime.store.verify import verify_store
from xverse_runtime.types import LoadProgress

INT4 = PRESETS["int4"]
NAME = "org/model"
INDEXES = {"bin": "pytorch_model.bin.index.json", "safetensors": "model.safetensors.index.json"}
SINGLE = {"bin": "pytorch_model.bin", "safetensors": "model.safetensors"}
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


class Killed(BaseException):
    """Stands for a kill: nothing in the code catches it."""


def die(*_args: Any) -> None:
    raise Killed


# The far side: complete models in any number of weight files.


def save(tensors: dict[str, Tensor], file: Path) -> None:
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    if file.suffix == ".bin":
        torch.save(tensors, file)
    else:
        save_file(tensors, file)


def publish(
    golden: str, folder: Path, kind: str, count: int, scramble: bool = False
) -> dict[str, str]:
    """A golden model in ``count`` weight files, cut anywhere: layers then span two. Without an
    index if it is one. Returns the weight map."""
    folder.mkdir(parents=True)
    for file in (GOLDEN / golden).iterdir():
        if file.suffix not in (".bin", ".safetensors") and not file.name.endswith(".index.json"):
            shutil.copy(file, folder)
    (folder / "expected.json").unlink(missing_ok=True)
    (folder / "LICENSE").write_text("Apache-2.0")
    directory = ModelDirectory.open(GOLDEN / golden)
    tensors = read_checkpoint(directory, ModelConfig.from_dir(directory))
    names = sorted(tensors, key=in_reading_order)
    if scramble:
        random.Random(1).shuffle(names)
    if count == 1:
        save(tensors, folder / SINGLE[kind])
        return dict.fromkeys(names, SINGLE[kind])
    stem = SINGLE[kind].split(".")[0]
    weight_map = {
        name: f"{stem}-{number * count // len(names) + 1:05}-of-{count:05}.{kind}"
        for number, name in enumerate(names)
    }
    for shard in sorted(set(weight_map.values())):
        save({name: tensors[name] for name in names if weight_map[name] == shard}, folder / shard)
    (folder / INDEXES[kind]).write_text(json.dumps({"weight_map": weight_map}))
    return weight_map


def in_reading_order(name: str) -> tuple[int, str]:
    if name.startswith("model.embed"):
        return -1, name
    return (int(name.split(".")[2]) if ".layers." in name else 10**6), name


def weights_of(far: Path) -> list[str]:
    return sorted(file.name for file in far.iterdir() if file.suffix in (".bin", ".safetensors"))


def digests_of(far: Path) -> dict[str, str]:
    return {name: sha256((far / name).read_bytes()).hexdigest() for name in weights_of(far)}


# The near side: what the command line does.


def begin_source(far: Path, source: Path) -> None:
    source.mkdir(parents=True, exist_ok=True)
    for file in far.iterdir():
        if file.name not in weights_of(far):
            shutil.copy(file, source)


def fetch(far: Path, source: Path, name: str) -> None:
    shutil.copy(far / name, source / "incoming")
    (source / "incoming").replace(source / name)


def present_in(far: Path, source: Path) -> list[str]:
    return [name for name in weights_of(far) if (source / name).exists()]


def steps(
    far: Path, source: Path, conversion: StreamedConversion
) -> Iterator[tuple[str, list[str]]]:
    """Fetch, offer, remove; tells what was fetched and what is free, before it is removed."""

    def offer(fetched: str) -> Iterator[tuple[str, list[str]]]:
        free = conversion.offer(present_in(far, source))
        yield fetched, free
        for name in free:
            (source / name).unlink()

    yield from offer("")
    for name in conversion.needed():
        if not (source / name).exists():
            fetch(far, source, name)
        yield from offer(name)


def conversion_of(
    far: Path, output: Path, precision: StorePrecision = INT4, **options: Any
) -> StreamedConversion:
    source = output.parent / "source"
    begin_source(far, source)
    options = {"digests": digests_of(far), "source_name": NAME} | options
    return StreamedConversion(source, output, precision, **options)


def stream(far: Path, output: Path, precision: StorePrecision = INT4, **options: Any) -> list[str]:
    """Returns the weight files that were asked for."""
    source = output.parent / "source"
    with conversion_of(far, output, precision, **options) as conversion:
        fetched = [name for name, _ in steps(far, source, conversion) if name]
        conversion.finish()
    return fetched


def contents(store: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in store.iterdir()}


def expected(far: Path, folder: Path, precision: StorePrecision = INT4) -> dict[str, bytes]:
    convert_checkpoint(far, folder / "expected", precision, source_name=NAME)
    return contents(folder / "expected")


@pytest.fixture
def far(tmp_path: Path) -> Path:
    publish("moe-bin", tmp_path / "far", "bin", 5)
    return tmp_path / "far"


# The same bytes.


@pytest.mark.parametrize("precision", ["bf16", "int8", "int4"])
@pytest.mark.parametrize(
    ("golden", "kind", "count", "scramble"),
    [
        ("moe-bin", "bin", 5, False),
        ("moe-bin", "bin", 4, True),
        ("moe-safetensors", "safetensors", 7, False),
        ("moe-gqa", "safetensors", 1, False),
        ("dense-linear", "bin", 3, False),
        ("dense-dynamic", "bin", 1, False),
    ],
)
def test_the_store_is_that_of_a_conversion_at_once(
    tmp_path: Path, golden: str, kind: str, count: int, scramble: bool, precision: str
) -> None:
    far = tmp_path / "far"
    publish(golden, far, kind, count, scramble)
    output, preset = tmp_path / "out", PRESETS[precision]
    assert stream(far, output, preset) == weights_of(far)
    assert contents(output) == expected(far, tmp_path, preset)
    verify_store(output)
    assert present_in(far, tmp_path / "source") == []
    assert {entry.name for entry in tmp_path.iterdir()} == {"far", "source", "out", "expected"}


def test_any_order_of_arrival_gives_the_same_bytes(tmp_path: Path, far: Path) -> None:
    digests = dict(reversed(digests_of(far).items()))
    assert stream(far, tmp_path / "out", digests=digests) == list(digests)
    assert contents(tmp_path / "out") == expected(far, tmp_path)


def test_a_snapshot_of_the_hub_cache(tmp_path: Path, far: Path) -> None:
    model = tmp_path / "models--org--model"
    source = model / "snapshots" / "0123abcd"
    begin_source(far, source)
    (model / "blobs").mkdir()
    digests = digests_of(far)

    def link(name: str) -> None:
        shutil.copy(far / name, model / "blobs" / digests[name])
        (source / name).symlink_to(Path("../../blobs") / digests[name])

    with StreamedConversion(source, tmp_path / "out", INT4, digests=digests) as conversion:
        there: set[str] = set()
        for name in conversion.needed():
            link(name)
            there.add(name)
            for free in conversion.offer(there):
                (model / "blobs" / digests[free]).unlink()  # the link stays, and leads nowhere
                there.remove(free)
            assert set(conversion.needed()) >= there
        conversion.finish()
    for name in digests:
        (source / name).unlink()
        link(name)
    convert_checkpoint(source, tmp_path / "expected", INT4)
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")
    manifest = json.loads((tmp_path / "out" / MANIFEST_FILE).read_text())
    assert manifest["source"] == {"name": "org/model", "revision": "0123abcd"}


def test_progress_grows_from_file_to_file_up_to_the_total(tmp_path: Path, far: Path) -> None:
    told: list[LoadProgress] = []
    stream(far, tmp_path / "out", progress=told.append)
    done = [one.done_bytes for one in told]
    assert done == sorted(done)
    assert 0 < done[0] < done[-1] == told[-1].total_bytes


# As little as possible on the disk, and in memory.


@pytest.mark.parametrize(("count", "scramble"), [(3, False), (12, False), (6, True)])
def test_the_room_that_is_needed_is_what_is_taken(
    tmp_path: Path, count: int, scramble: bool
) -> None:
    far, source = tmp_path / "far", tmp_path / "source"
    publish("moe-bin", far, "bin", count, scramble)
    sizes = {name: (far / name).stat().st_size for name in weights_of(far)}

    def taken() -> int:
        weights = sum(sizes[name] for name in present_in(far, source))
        store = (tmp_path / "out.partial").glob("*.safetensors")
        return weights + sum(file.stat().st_size for file in store)

    with conversion_of(far, tmp_path / "out") as conversion:
        room, peak = conversion.room_needed(sizes), 0
        for _ in steps(far, source, conversion):
            peak = max(peak, taken())
        small = conversion._job.small_bytes
        total = conversion.plan.total_bytes
        conversion.finish()
    assert peak == room - small
    if count == 3:  # a layer is in two of them at most, as in the published files
        assert room < total + small + 2 * max(sizes.values())
    if scramble:
        assert room > total + small + 4 * min(sizes.values())


def test_the_room_after_a_restart_counts_from_what_is_there(tmp_path: Path, far: Path) -> None:
    source = tmp_path / "source"
    sizes = {name: (far / name).stat().st_size for name in weights_of(far)}
    with conversion_of(far, tmp_path / "out") as conversion:
        whole = conversion.room_needed(sizes)
        for name, _ in steps(far, source, conversion):
            if name == weights_of(far)[2]:
                break
    with conversion_of(far, tmp_path / "out") as conversion:
        assert len(present_in(far, source)) > 0
        rest = conversion.room_needed({name: sizes[name] for name in conversion.needed()})
        there = conversion.plan.done_bytes
        there += sum(sizes[name] for name in set(present_in(far, source)))
    assert whole - there == rest


@pytest.mark.parametrize("disks", [1, 2])
def test_too_little_room_is_known_before_the_download(
    tmp_path: Path, far: Path, monkeypatch: pytest.MonkeyPatch, disks: int
) -> None:
    sizes = {name: (far / name).stat().st_size for name in weights_of(far)}
    source, partial, stat = tmp_path / "source", tmp_path / "out.partial", Path.stat
    free = {partial: 0, source: 10**9}

    def stat_elsewhere(self: Path, **options: Any) -> os.stat_result:
        found = stat(self, **options)
        elsewhere = disks == 2 and self == source
        return os.stat_result((*found[:2], -1, *found[3:10])) if elsewhere else found

    def missing() -> tuple[object, object]:
        with pytest.raises(ResourceError) as caught:
            conversion.check_room(sizes)
        assert caught.value.code == "store.disk_full"
        return caught.value.params["path"], caught.value.params["needed_bytes"]

    monkeypatch.setattr(Path, "stat", stat_elsewhere)
    monkeypatch.setattr("xverse_runtime.store.place._free_bytes", free.__getitem__)
    with conversion_of(far, tmp_path / "out") as conversion:
        room = conversion.room_needed(sizes)
        store = conversion.plan.total_bytes + conversion._job.small_bytes
        assert room > store
        enough = room if disks == 1 else store
        free[partial] = enough
        conversion.check_room(sizes)
        free[partial] = enough - 1
        assert missing() == (str(partial), enough)
        if disks == 2:
            free.update({partial: enough, source: max(sizes.values()) - 1})
            assert missing()[0] == str(source)


@linux
@pytest.mark.parametrize("kind", ["bin", "safetensors"])
def test_no_weight_file_stays_open(tmp_path: Path, kind: str) -> None:
    """What is mapped keeps its space on the disk after it is removed."""
    far, source = tmp_path / "far", tmp_path / "source"
    publish("moe-bin", far, kind, 6)
    most = 0

    def opened() -> set[str]:
        lines = Path("/proc/self/maps").read_text().splitlines()
        mapped = {line.split(maxsplit=5)[-1] for line in lines}
        handles = Path("/proc/self/fd").iterdir()
        names = mapped | {os.readlink(one) for one in handles if one.is_symlink()}
        return {name for name in names if str(source) in name}

    def watch(_progress: LoadProgress) -> None:
        nonlocal most
        most = max(most, len(opened()))

    with conversion_of(far, tmp_path / "out", progress=watch, threads=2) as conversion:
        for _ in steps(far, source, conversion):
            assert opened() == set()
        conversion.finish()
    assert 1 <= most <= 3  # the check does see them, and finished ones are not kept


# Weights that do not fit.


def refused(far: Path, output: Path, **options: Any) -> XverseError:
    with pytest.raises(XverseError) as caught:
        stream(far, output, **options)
    assert not output.exists()
    return caught.value


def change_map(far: Path, change: Callable[[dict[str, str]], object]) -> None:
    path = far / INDEXES["bin"]
    data = json.loads(path.read_text())
    change(data["weight_map"])
    path.write_text(json.dumps(data))


ROTARY = "model.layers.0.self_attn.rotary_emb.inv_freq"
SHARDS = [f"pytorch_model-{number:05}-of-00005.bin" for number in range(1, 6)]


@pytest.mark.parametrize(
    ("change", "code", "params"),
    [
        (lambda m: m.pop("model.norm.weight"), "checkpoint.mismatch", ("missing", "model.norm")),
        (lambda m: m.update(extra=SHARDS[0]), "checkpoint.mismatch", ("surplus", "extra")),
        (lambda m: m.update({ROTARY: "far.bin"}), "checkpoint.missing_shards", ("names", "far")),
        (lambda m: m.update({ROTARY: "a.txt"}), "checkpoint.index_invalid", ("detail", "a.txt")),
        (lambda m: m.clear(), "checkpoint.index_invalid", ("detail", "weight_map")),
    ],
)
def test_an_index_that_does_not_fit_is_found_before_anything_is_written(
    tmp_path: Path,
    far: Path,
    change: Callable[[dict[str, str]], object],
    code: str,
    params: tuple[str, str],
) -> None:
    change_map(far, change)
    error = refused(far, tmp_path / "out")
    assert error.code == code
    assert params[1] in str(error.params[params[0]])
    assert {entry.name for entry in tmp_path.iterdir()} == {"far", "source"}


def test_an_index_that_leads_outside(tmp_path: Path, far: Path) -> None:
    change_map(far, lambda names: names.update({ROTARY: "../x.bin"}))
    digests = digests_of(far) | {"../x.bin": ""}
    assert refused(far, tmp_path / "out", digests=digests).code == "path.outside"


def test_without_names_of_weight_files(tmp_path: Path, far: Path) -> None:
    error = refused(far, tmp_path / "out", digests={})
    assert (type(error), error.code) == (ModelNotFoundError, "model.no_weights")


def change_shard(far: Path, name: str, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = torch.load(far / name, weights_only=True)
    change(tensors)
    torch.save(tensors, far / name)


def make_infinite(tensors: dict[str, Tensor]) -> None:
    tensors["lm_head.weight"].view(-1)[-1] = float("inf")


@pytest.mark.parametrize(
    ("change", "code", "where"),
    [
        (lambda t: t.pop("lm_head.weight"), "checkpoint.mismatch", "missing"),
        (lambda t: t.update({"lm_head.bias": torch.ones(3)}), "checkpoint.mismatch", "surplus"),
        (lambda t: t.update({"lm_head.weight": torch.ones(3)}), "checkpoint.mismatch", "misshaped"),
        (
            lambda t: t.update({"lm_head.weight": t["lm_head.weight"].int()}),
            "checkpoint.bad_dtype",
            "tensor",
        ),
        (make_infinite, "checkpoint.not_finite", "tensor"),
    ],
)
def test_a_weight_file_that_does_not_fit(
    tmp_path: Path,
    far: Path,
    change: Callable[[dict[str, Tensor]], object],
    code: str,
    where: str,
) -> None:
    change_shard(far, SHARDS[-1], change)
    error = refused(far, tmp_path / "out")
    assert error.code == code
    assert "lm_head." in str(error.params[where])


def test_a_tensor_that_no_model_needs_is_passed_over(tmp_path: Path, far: Path) -> None:
    change_map(far, lambda names: names.update({ROTARY: SHARDS[0]}))
    change_shard(far, SHARDS[0], lambda tensors: tensors.update({ROTARY: torch.ones(4)}))
    stream(far, tmp_path / "out")
    assert contents(tmp_path / "out") == expected(far, tmp_path)


def test_a_weight_file_of_such_tensors_alone_is_never_fetched(tmp_path: Path, far: Path) -> None:
    change_map(far, lambda names: names.update({ROTARY: "rotary.bin"}))
    torch.save({ROTARY: torch.ones(4)}, far / "rotary.bin")
    assert stream(far, tmp_path / "out") == SHARDS
    stray = tmp_path / "source" / "rotary.bin"
    stray.write_bytes(b"")
    os.utime(stray, (0, 0))
    with conversion_of(far, tmp_path / "out") as conversion:
        assert conversion.offer(["rotary.bin"]) == ["rotary.bin"]


def test_a_pickle_that_runs_something(tmp_path: Path, far: Path) -> None:
    class Runs:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, ("true",)

    torch.save({"x": Runs()}, far / SHARDS[2])
    assert refused(far, tmp_path / "out").code == "checkpoint.unsafe_pickle"


def test_a_weight_file_that_is_offered_and_not_there(tmp_path: Path, far: Path) -> None:
    with conversion_of(far, tmp_path / "out") as conversion:
        with pytest.raises(IntegrityError) as caught:
            conversion.offer([SHARDS[1]])
        assert caught.value.code == "path.missing"
        assert conversion.offer(["anything.txt"]) == []
        with pytest.raises(IntegrityError) as caught:
            conversion.finish()
    assert caught.value.params["names"] == SHARDS


# One writer, one place.


def test_the_lock_is_held_within(tmp_path: Path, far: Path) -> None:
    with conversion_of(far, tmp_path / "out"):
        assert refused(far, tmp_path / "out").code == "store.busy"
        with pytest.raises(XverseError) as caught:
            convert_checkpoint(far, tmp_path / "out", INT4)
        assert caught.value.code == "store.busy"
    stream(far, tmp_path / "out")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "far side"), Timeout("another lock")])
def test_what_the_caller_raises_stays_what_it_is(
    tmp_path: Path, far: Path, error: Exception
) -> None:
    with pytest.raises(type(error)) as caught, conversion_of(far, tmp_path / "out"):
        raise error
    assert caught.value is error
    stream(far, tmp_path / "out")


def test_the_output_is_looked_at_again_under_the_lock(
    tmp_path: Path, far: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def another_process(output: Path) -> None:
        monkeypatch.undo()
        stream(far, output)

    monkeypatch.setattr("xverse_runtime.store.streaming.refuse_existing", another_process)
    assert stream(far, tmp_path / "out") == []
    assert contents(tmp_path / "out") == expected(far, tmp_path)


def test_something_else_at_the_output(tmp_path: Path, far: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(XverseError) as caught, conversion_of(far, tmp_path / "out"):
        pass
    assert caught.value.code == "store.target_exists"
    (tmp_path / "out").rmdir()
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "mine").write_text("x")
    assert refused(far, tmp_path / "out").code == "store.target_exists"
    assert (tmp_path / "out.partial" / "mine").read_text() == "x"


def test_a_disk_that_is_full_in_the_middle(
    tmp_path: Path, far: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, left = os.fsync, 9

    def fail(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        assert refused(far, tmp_path / "out").code == "store.disk_full"
    with conversion_of(far, tmp_path / "out") as conversion:
        assert conversion.plan.done_bytes > 0
    stream(far, tmp_path / "out")
    assert contents(tmp_path / "out") == expected(far, tmp_path)


# Going on.


def test_the_same_store_is_not_made_again(tmp_path: Path, far: Path) -> None:
    stream(far, tmp_path / "out")
    fetch(far, tmp_path / "source", SHARDS[3])  # a kill before it was removed
    os.utime(tmp_path / "source" / SHARDS[3], (0, 0))
    with conversion_of(far, tmp_path / "out") as conversion:
        assert conversion.already_made is not None
        assert conversion.plan.already_there
        assert conversion.needed() == []
        assert conversion.room_needed({}) == 0
        conversion.check_room({})
        assert conversion.offer([SHARDS[3]]) == [SHARDS[3]]
        assert conversion.finish() == conversion.already_made
    assert stream(far, tmp_path / "out") == []
    assert refused_by_name(far, tmp_path / "out") == "store.target_exists"


def refused_by_name(far: Path, output: Path) -> str:
    with pytest.raises(XverseError) as caught:
        stream(far, output, source_name="org/another")
    return caught.value.code


def test_a_store_that_was_not_published_needs_nothing(
    tmp_path: Path, far: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for moment in ("_finish", "complete"):
        with monkeypatch.context() as patch:
            patch.setattr(convert_module._Job, moment, die)
            with pytest.raises(Killed):
                stream(far, tmp_path / "out")
    assert present_in(far, tmp_path / "source") == []
    with conversion_of(far, tmp_path / "out") as conversion:
        assert conversion.needed() == []
        assert conversion.already_made is None
        conversion.finish()
        assert conversion.needed() == []
    assert contents(tmp_path / "out") == expected(far, tmp_path)


def test_only_what_is_needed_is_fetched_after_a_kill(tmp_path: Path, far: Path) -> None:
    source = tmp_path / "source"
    with conversion_of(far, tmp_path / "out") as conversion:
        for name, _ in steps(far, source, conversion):
            if name == SHARDS[3]:
                break
        left = conversion.needed()
    assert SHARDS[0] not in left
    assert SHARDS[4] in left
    assert len(present_in(far, source)) > 1  # killed before what was free was removed
    assert stream(far, tmp_path / "out") == left
    assert present_in(far, source) == []
    assert contents(tmp_path / "out") == expected(far, tmp_path)


def test_damaged_files_of_the_store_are_made_again(
    tmp_path: Path, far: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(convert_module._Job, "_finish", die)
        with pytest.raises(Killed):
            stream(far, tmp_path / "out")
    for name in ("layer-00000.safetensors", "head.safetensors"):
        with (tmp_path / "out.partial" / name).open("r+b") as file:
            file.seek(-9, os.SEEK_END)
            file.write(b"damaged")
    with conversion_of(far, tmp_path / "out") as conversion:
        with pytest.raises(IntegrityError) as caught:
            conversion.finish()
        assert caught.value.code == "store.written_wrong"
        needed = conversion.needed()  # of both files at once
        assert SHARDS[0] in needed
        assert SHARDS[-1] in needed
        assert needed != SHARDS
    assert stream(far, tmp_path / "out") == needed
    assert contents(tmp_path / "out") == expected(far, tmp_path)


@pytest.mark.parametrize("what", ["weights", "index", "config"])
def test_other_weights_start_anew(tmp_path: Path, far: Path, what: str) -> None:
    with conversion_of(far, tmp_path / "out") as conversion:
        for name, _ in steps(far, tmp_path / "source", conversion):
            if name == SHARDS[2]:
                break
        assert conversion.plan.done_bytes > 0
    digests = digests_of(far)
    if what == "weights":
        digests[SHARDS[0]] = "0" * 64
    else:
        with (far / ("config.json" if what == "config" else INDEXES["bin"])).open("a") as file:
            file.write("\n")
    with conversion_of(far, tmp_path / "out", digests=digests) as conversion:
        assert conversion.needed() == SHARDS
        assert conversion.plan.done_bytes == 0


def test_each_way_of_converting_starts_over_from_the_other_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = tmp_path / "source"
    publish("moe-bin", far, "bin", 5)
    output = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(convert_module._Job, "_finish", die)
        with pytest.raises(Killed):
            convert_checkpoint(far, output, INT4, source_name=NAME)
    with StreamedConversion(
        far, output, INT4, digests=digests_of(far), source_name=NAME
    ) as conversion:
        assert conversion.needed() == SHARDS
        assert conversion.offer(SHARDS) == SHARDS
    plans: list[int] = []
    convert_checkpoint(
        far, output, INT4, source_name=NAME, on_plan=lambda plan: plans.append(plan.done_bytes)
    )
    assert plans == [0]
    with StreamedConversion(
        far, output, INT4, digests=digests_of(far), source_name=NAME
    ) as conversion:
        assert conversion.already_made is not None


# kill -9, with everything as it is in use. One process imports torch and is forked for each try:
# the child converts and kills itself at the n-th call that changes the disk, or is killed from
# outside after a while; then one that nobody kills must end with the same store.
KILLS = """
import os, random, shutil, signal, sys, time
from pathlib import Path
import torch
from tests.runtime import test_store_streaming as test

far, work, mode, rounds = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
torch.set_num_threads(1)
output = work / "out"

def countdown(left):
    def wrap(owner, name):
        call = getattr(owner, name)
        def counted(*args, **options):
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **options)
        setattr(owner, name, counted)
    for owner, name in ((os, "fsync"), (os, "replace"), (os, "rename"), (os, "unlink"),
                        (os, "mkdir"), (shutil, "copy")):
        wrap(owner, name)

def convert(before=lambda: None):
    child = os.fork()
    if child == 0:
        try:
            before()
            test.stream(far, output, threads=1)
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    return child

def end(child):
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), status
    return status == 0

def complete():
    child = convert()
    assert end(child)
    found = test.contents(output)
    found.pop("progress.json", None)  # a kill between the rename and the last steps
    (work / "out.lock").unlink(missing_ok=True)
    assert found == test.contents(work / "expected"), "another store"
    assert sorted(path.name for path in work.iterdir()) == ["expected", "out", "source"]
    assert test.present_in(far, work / "source") == []
    shutil.rmtree(output)
    shutil.rmtree(work / "source")

killed = 0
if mode == "calls":
    step = 0
    while not end(convert(lambda: countdown(step))):
        complete()
        killed += 1
        step += rounds
else:
    begun = time.monotonic()
    complete()
    whole = time.monotonic() - begun
    chance = random.Random()
    for _ in range(rounds):
        for _ in range(3):
            child = convert()
            time.sleep(chance.random() * whole)
            os.kill(child, signal.SIGKILL)
            killed += not end(child)
        complete()
print("killed", killed)
"""


def kill_and_go_on(tmp_path: Path, mode: str, rounds: int) -> int:
    far, work = tmp_path / "far", tmp_path / "work"
    publish("dense-linear", far, "bin", 3)
    work.mkdir()
    expected(far, work)
    command = [sys.executable, "-c", KILLS, str(far), str(work), mode, str(rounds)]
    path = os.pathsep.join(filter(None, [os.getcwd(), *sys.path]))
    environment: Mapping[str, str] = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return int(done.stdout.split()[-1])


@linux
def test_killed_again_and_again(tmp_path: Path) -> None:
    assert kill_and_go_on(tmp_path, "times", 8) > 0  # how many it survives depends on the machine


@linux
def test_killed_at_some_changes_of_the_disk(tmp_path: Path) -> None:
    assert kill_and_go_on(tmp_path, "calls", 7) > 6


@linux
@pytest.mark.slow
def test_killed_at_every_change_of_the_disk(tmp_path: Path) -> None:
    assert kill_and_go_on(tmp_path, "calls", 1) > 40


# A store of which files are damaged.


def test_damaged_files_are_made_again_from_what_they_need(tmp_path: Path, far: Path) -> None:
    stream(far, tmp_path / "out")
    whole = contents(tmp_path / "out")
    damaged = ["layer-00001.safetensors"]
    (tmp_path / "out" / damaged[0]).write_bytes(b"")
    conversion = conversion_of(far, tmp_path / "out", damaged=damaged)
    needed = conversion.outstanding()
    assert 0 < len(needed) < len(weights_of(far))
    assert (tmp_path / "out" / "xverse.json").exists()  # nothing was changed so far
    assert stream(far, tmp_path / "out", damaged=damaged) == needed
    assert contents(tmp_path / "out") == whole


def test_a_reopened_store_is_an_interrupted_conversion(tmp_path: Path, far: Path) -> None:
    stream(far, tmp_path / "out")
    whole = contents(tmp_path / "out")
    damaged = ["layer-00001.safetensors"]
    with conversion_of(far, tmp_path / "out", damaged=damaged) as conversion:
        needed = conversion.needed()
    assert not (tmp_path / "out").exists()
    assert conversion_of(far, tmp_path / "out").outstanding() == needed
    assert stream(far, tmp_path / "out") == needed
    assert contents(tmp_path / "out") == whole
    assert conversion_of(far, tmp_path / "out").outstanding() == []


def test_another_store_is_not_reopened(tmp_path: Path, far: Path) -> None:
    stream(far, tmp_path / "out")
    whole = contents(tmp_path / "out")
    options = {"damaged": ["layer-00001.safetensors"], "source_name": "another/model"}
    with pytest.raises(XverseError) as caught, conversion_of(far, tmp_path / "out", **options):
        pass
    assert caught.value.code == "store.target_exists"
    assert contents(tmp_path / "out") == whole
