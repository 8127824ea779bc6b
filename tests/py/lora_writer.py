"""Random PEFT adapters for the models of the tests, whole or with one thing wrong. Knows PEFT's files, not pyinfer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

Tensors = dict[str, NDArray[Any]]
STORIES = {"q_proj": (64, 64), "v_proj": (32, 64), "down_proj": (64, 172)}
"""(out, in) of some modules of stories260K."""
PREFIX = "base_model.model.model.layers"


def settings(**changed: Any) -> dict[str, Any]:
    """adapter_config.json of a plain adapter."""
    plain = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": list(STORIES), "bias": "none"}
    return {**plain, **changed}


def module(layer: int, name: str) -> str:
    """The full name of a module."""
    return f"{PREFIX}.{layer}.{'mlp' if name == 'down_proj' else 'self_attn'}.{name}"


def tensors(seed: int = 0, *, layers: int = 5, rank: int = 4, spread: float = 0.1) -> Tensors:
    """A and B of every module of STORIES in every layer."""
    rng = np.random.default_rng(seed)
    found: Tensors = {}
    for layer in range(layers):
        for name, (rows, cols) in STORIES.items():
            prefix = module(layer, name)
            found[f"{prefix}.lora_A.weight"] = rng.normal(0, spread, (rank, cols)).astype(np.float32)
            found[f"{prefix}.lora_B.weight"] = rng.normal(0, spread, (rows, rank)).astype(np.float32)
    return found


def write(folder: Path, config: Mapping[str, Any], values: Tensors) -> Path:
    """An adapter's folder."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(values, folder / "adapter_model.safetensors")
    return folder


def plain(folder: Path, seed: int = 0, **options: Any) -> Path:
    """A whole adapter for stories260K."""
    return write(folder, settings(), tensors(seed, **options))


def torch_bin(values: Tensors) -> bytes:
    """The archive that torch.save writes for a state dictionary, made without torch."""
    return archive(state_pickle(values), [np.ascontiguousarray(array).tobytes() for array in values.values()])


def archive(pickled: bytes, storages: Sequence[bytes], *, compression: int = 0) -> bytes:
    """The zip around a pickle and its storages."""
    import io
    import zipfile

    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as made:
        made.writestr("model/data.pkl", pickled)
        made.writestr("model/byteorder", "little")
        for key, data in enumerate(storages):
            made.writestr(f"model/data/{key}", data)
    return file.getvalue()


_STORAGE = {"float32": "FloatStorage", "float16": "HalfStorage", "uint16": "BFloat16Storage"}


def state_pickle(values: Tensors, **wrong: Any) -> bytes:
    """The pickle, opcode by opcode; `wrong` replaces the shape, strides, offset or count of every tensor."""
    made = b"\x80\x02ccollections\nOrderedDict\n)R("
    for key, (name, array) in enumerate(values.items()):
        strides = wrong.get("strides", tuple(stride // array.itemsize for stride in array.strides))
        made += _text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(("
        made += _text("storage") + f"ctorch\n{_STORAGE[array.dtype.name]}\n".encode()
        made += _text(str(key)) + _text("cpu") + _whole(wrong.get("count", array.size)) + b"tQ"
        made += _whole(wrong.get("offset", 0)) + _tuple(wrong.get("shape", array.shape)) + _tuple(strides)
        made += b"\x89ccollections\nOrderedDict\n)RtR"
    return made + b"u."


def _text(text: str) -> bytes:
    return b"X" + len(text.encode()).to_bytes(4, "little") + text.encode()


def _whole(number: int) -> bytes:
    if -(2**31) <= number < 2**31:
        return b"J" + number.to_bytes(4, "little", signed=True)
    return b"\x8a\x10" + number.to_bytes(16, "little", signed=True)


def _tuple(numbers: Sequence[int]) -> bytes:
    return b"(" + b"".join(map(_whole, numbers)) + b"t"
