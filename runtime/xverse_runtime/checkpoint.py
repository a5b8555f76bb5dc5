"""Published checkpoints, read safely and without copying.

Tensors are views of memory-mapped files: safetensors, or ``.bin`` files through torch's
restricted unpickler, which builds tensors and runs nothing.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from xverse_runtime.config import ModelConfig
from xverse_runtime.errors import IntegrityError, ModelNotFoundError
from xverse_runtime.model_dir import ModelDirectory
from xverse_runtime.tensors import expected_tensors, is_ignorable

SAFETENSORS_INDEX = "model.safetensors.index.json"
SAFETENSORS_FILE = "model.safetensors"
BIN_INDEX = "pytorch_model.bin.index.json"
BIN_FILE = "pytorch_model.bin"
ZIP_MAGIC = b"PK\x03\x04"
FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def read_checkpoint(directory: ModelDirectory, config: ModelConfig) -> dict[str, Tensor]:
    """All tensors the model needs, by published name, in the published dtype, on the CPU.

    Raises:
        ModelNotFoundError: ``model.no_weights``.
        IntegrityError: a damaged or unsafe file, or tensors that do not fit the configuration
            (``checkpoint.mismatch`` lists every missing, surplus and mis-shaped one).
    """
    found: dict[str, Tensor] = {}
    for name in shard_names(directory):
        read = _read_safetensors if name.endswith(".safetensors") else _read_bin
        found |= read(directory.file(name), name)
    wanted = expected_tensors(config)
    _check_tensors(found, wanted, config, directory.path)
    return {name: found[name] for name in wanted}


def weight_files_present(directory: ModelDirectory) -> bool:
    """Whether there is anything that looks like weights."""
    candidates = (SAFETENSORS_INDEX, SAFETENSORS_FILE, BIN_INDEX, BIN_FILE)
    return any(directory.has(name) for name in candidates)


def shard_names(directory: ModelDirectory) -> list[str]:
    """The weight files in use; safetensors win over pickles of the same weights."""
    for index, single in ((SAFETENSORS_INDEX, SAFETENSORS_FILE), (BIN_INDEX, BIN_FILE)):
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


def _indexed_shards(directory: ModelDirectory, index: str, suffix: str) -> list[str]:
    path = directory.path / index
    weight_map = directory.read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise IntegrityError("checkpoint.index_invalid", path=str(path), detail="no weight_map")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if not name.endswith(suffix):
            detail = f"{name!r} is not a {suffix} file"
            raise IntegrityError("checkpoint.index_invalid", path=str(path), detail=detail)
    missing = []
    for name in names:
        try:
            directory.file(name)
        except IntegrityError as error:
            if error.code != "path.missing":
                raise
            missing.append(name)
    if missing:
        raise IntegrityError("checkpoint.missing_shards", names=missing, path=str(directory.path))
    return names


def _read_safetensors(file: Path, name: str) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt", device="cpu") as shard:
            return {key: shard.get_tensor(key) for key in shard.keys()}  # noqa: SIM118
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


def _check_tensors(
    found: Mapping[str, Tensor],
    wanted: Mapping[str, tuple[int, ...]],
    config: ModelConfig,
    path: Path,
) -> None:
    missing = [name for name in wanted if name not in found]
    surplus = [name for name in found if name not in wanted and not is_ignorable(name, config)]
    misshaped = [
        f"{name} {tuple(found[name].shape)} instead of {shape}"
        for name, shape in wanted.items()
        if name in found and tuple(found[name].shape) != shape
    ]
    if missing or surplus or misshaped:
        raise IntegrityError(
            "checkpoint.mismatch",
            missing=missing,
            surplus=surplus,
            misshaped=misshaped,
            path=str(path),
        )
    for name in wanted:
        tensor = found[name]
        if tensor.dtype not in FLOAT_DTYPES or tensor.layout != torch.strided:
            raise IntegrityError("checkpoint.bad_dtype", tensor=name, dtype=str(tensor.dtype))


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
