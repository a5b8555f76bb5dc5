"""Published checkpoints, read safely and without copying.

Tensors are views of memory-mapped files: safetensors, or ``.bin`` files through torch's
restricted unpickler, which builds tensors and runs nothing.
"""

from __future__ import annotations

import pickle
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from xverse_runtime.config import ModelConfig
from xverse_runtime.errors import IntegrityError, ModelNotFoundError
from xverse_runtime.mapped_files import MappedFiles, map_safetensors
from xverse_runtime.model_dir import ModelDirectory
from xverse_runtime.tensors import expected_tensors, is_ignorable

SAFETENSORS_INDEX = "model.safetensors.index.json"
SAFETENSORS_FILE = "model.safetensors"
BIN_INDEX = "pytorch_model.bin.index.json"
BIN_FILE = "pytorch_model.bin"
# Index and single file; safetensors win over pickles of the same weights.
LAYOUTS = ((SAFETENSORS_INDEX, SAFETENSORS_FILE), (BIN_INDEX, BIN_FILE))
ZIP_MAGIC = b"PK\x03\x04"
FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def read_checkpoint(
    directory: ModelDirectory, config: ModelConfig, files: MappedFiles | None = None
) -> dict[str, Tensor]:
    """All tensors the model needs, by published name, in the published dtype, on the CPU.

    ``files`` is told which of them are in which file.

    Raises:
        ModelNotFoundError: ``model.no_weights``.
        IntegrityError: a damaged or unsafe file, or tensors that do not fit the configuration
            (``checkpoint.mismatch`` lists every missing, surplus and mis-shaped one).
    """
    found: dict[str, Tensor] = {}
    for name in shard_names(directory):
        found |= _read_file(directory, name, files)
    wanted = expected_tensors(config)
    _check_tensors(found, wanted, config, directory.path)
    return {name: found[name] for name in wanted}


def read_weight_file(
    directory: ModelDirectory, name: str, wanted: Mapping[str, tuple[int, ...]], config: ModelConfig
) -> dict[str, Tensor]:
    """The tensors of one weight file, as `read_checkpoint` gives them.

    Args:
        directory: of the model; other weight files need not be there.
        name: of the file.
        wanted: name to shape of what the file must hold; nothing else but what can be ignored.
        config: the model's.

    Raises:
        IntegrityError: as `read_checkpoint`, and ``path.missing``.
    """
    found = _read_file(directory, name)
    _check_tensors(found, wanted, config, directory.path / name)
    return {name: found[name] for name in wanted}


def weight_files_present(directory: ModelDirectory) -> bool:
    """Whether there is anything that looks like weights."""
    candidates = (SAFETENSORS_INDEX, SAFETENSORS_FILE, BIN_INDEX, BIN_FILE)
    return any(directory.has(name) for name in candidates)


def shard_names(directory: ModelDirectory) -> list[str]:
    """The weight files in use."""
    for index, single in LAYOUTS:
        if directory.has(index):
            return _indexed_shards(directory, index, Path(single).suffix)
        if directory.has(single):
            return [single]
    raise ModelNotFoundError("model.no_weights", path=str(directory.path))


def weight_files(directory: ModelDirectory) -> list[str]:
    """`shard_names`, and their index where there is one."""
    names = shard_names(directory)
    index = BIN_INDEX if names[0].endswith(".bin") else SAFETENSORS_INDEX
    return [*names, index] if directory.has(index) else names


def planned_weights(
    directory: ModelDirectory, config: ModelConfig, files: Collection[str]
) -> dict[str, str]:
    """Which weight file holds which tensor, before the files are there.

    Args:
        directory: of the model; its index is read, no weight file.
        config: the model's.
        files: names of the weight files that there will be; without an index the only one.

    Returns:
        Name of the tensor to name of the file, of every tensor that the index lists.

    Raises:
        ModelNotFoundError: ``model.no_weights``: ``files`` has none that would be read.
        IntegrityError: an index that cannot be read or does not fit the configuration, or
            ``checkpoint.missing_shards``: it names files that there will not be.
    """
    wanted = expected_tensors(config)
    for index, single in LAYOUTS:
        suffix = Path(single).suffix
        if directory.has(index) and any(name.endswith(suffix) for name in files):
            planned = _weight_map(directory, index, suffix)
            _check_names(planned, wanted, config, directory.path / index)
            _refuse_missing(directory, set(planned.values()) - set(files))
            absent_files(directory, planned.values())  # for what it raises
            return planned
        if single in files:
            return dict.fromkeys(wanted, single)
    raise ModelNotFoundError("model.no_weights", path=str(directory.path))


def absent_files(directory: ModelDirectory, names: Iterable[str]) -> list[str]:
    """Those of ``names`` that are not in the directory, sorted.

    Raises:
        IntegrityError: ``path.outside`` and ``path.unreadable``.
    """
    absent = []
    for name in sorted(set(names)):
        try:
            directory.file(name)
        except IntegrityError as error:
            if error.code != "path.missing":
                raise
            absent.append(name)
    return absent


def _indexed_shards(directory: ModelDirectory, index: str, suffix: str) -> list[str]:
    names = sorted(set(_weight_map(directory, index, suffix).values()))
    _refuse_missing(directory, absent_files(directory, names))
    return names


def _refuse_missing(directory: ModelDirectory, names: Iterable[str]) -> None:
    if missing := sorted(names):
        raise IntegrityError("checkpoint.missing_shards", names=missing, path=str(directory.path))


def _weight_map(directory: ModelDirectory, index: str, suffix: str) -> dict[str, str]:
    path = directory.path / index
    weight_map = directory.read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise IntegrityError("checkpoint.index_invalid", path=str(path), detail="no weight_map")
    files = {str(tensor): str(name) for tensor, name in weight_map.items()}
    for name in sorted(set(files.values())):
        if not name.endswith(suffix):
            detail = f"{name!r} is not a {suffix} file"
            raise IntegrityError("checkpoint.index_invalid", path=str(path), detail=detail)
    return files


def _read_file(
    directory: ModelDirectory, name: str, files: MappedFiles | None = None
) -> dict[str, Tensor]:
    file = directory.file(name)
    if not name.endswith(".safetensors"):
        tensors = _read_bin(file, name)
        if files is not None:
            files.note(file, name, tensors, _bin_offsets(file, tensors))
        return tensors
    try:
        return map_safetensors(file, name, files)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise _corrupt(name, error) from None


def _read_bin(file: Path, name: str) -> dict[str, Tensor]:
    with file.open("rb") as shard:
        if shard.read(4) != ZIP_MAGIC:
            raise _corrupt(name, ValueError("not an archive as torch.save writes it"))
    try:
        state = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        raise IntegrityError(
            "checkpoint.unsafe_pickle", path=name, detail=_unpickler_detail(error)
        ) from None
    except Exception as error:  # torch reports damage as RuntimeError, KeyError, EOFError and more
        raise _corrupt(name, error) from None
    if not isinstance(state, Mapping):
        raise _corrupt(name, TypeError(f"holds a {type(state).__name__}, not tensors"))
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise _corrupt(name, TypeError(f"{key!r} is not a tensor"))
        if value.device.type != "cpu":  # a meta tensor has no bytes to read
            raise _corrupt(name, TypeError(f"{key!r} holds no data"))
    return {key: value.detach() for key, value in state.items()}


def _bin_offsets(file: Path, tensors: Collection[str]) -> dict[str, int]:
    """Where storages begin in a file that `_read_bin` has read, if this torch tells it."""
    meta = torch.load(file, map_location="meta", weights_only=True)
    storages = {name: meta[name].untyped_storage() for name in tensors}
    return {
        name: storage._checkpoint_offset
        for name, storage in storages.items()
        if getattr(storage, "_checkpoint_offset", None) is not None
    }


def _check_tensors(
    found: Mapping[str, Tensor],
    wanted: Mapping[str, tuple[int, ...]],
    config: ModelConfig,
    path: Path,
) -> None:
    misshaped = [
        f"{name} {tuple(found[name].shape)} instead of {shape}"
        for name, shape in wanted.items()
        if name in found and tuple(found[name].shape) != shape
    ]
    _check_names(found, wanted, config, path, misshaped)
    for name in wanted:
        tensor = found[name]
        if tensor.dtype not in FLOAT_DTYPES or tensor.layout != torch.strided:
            raise IntegrityError("checkpoint.bad_dtype", tensor=name, dtype=str(tensor.dtype))


def _check_names(
    found: Iterable[str],
    wanted: Iterable[str],
    config: ModelConfig,
    path: Path,
    misshaped: Sequence[str] = (),
) -> None:
    names, expected = dict.fromkeys(found), dict.fromkeys(wanted)
    missing = [name for name in expected if name not in names]
    surplus = [name for name in names if name not in expected and not is_ignorable(name, config)]
    if missing or surplus or misshaped:
        raise IntegrityError(
            "checkpoint.mismatch",
            missing=missing,
            surplus=surplus,
            misshaped=[*misshaped],
            path=str(path),
        )


def _corrupt(name: str, error: Exception) -> IntegrityError:
    return IntegrityError("checkpoint.corrupt", path=name, detail=_first_line(error))


def _unpickler_detail(error: Exception) -> str:
    """torch wraps the one telling line in advice to load the file unsafely: leave that out."""
    for line in str(error).splitlines():
        if "GLOBAL" in line or "WeightsUnpickler error" in line:
            return line.strip()[:300]
    return "it holds more than tensors"


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
