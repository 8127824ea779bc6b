"""Reads PEFT directories: adapter_config.json with adapter_model.safetensors or adapter_model.bin.

The tensors that are there are the truth; the settings say what they mean and what is missing. What is not understood is
refused by name, never dropped. Must not know the model that the adapter is put on.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pyinfer.convert.adapter import (
    LINEAR_ROLES,
    AdapterSource,
    LowRank,
    ReadFile,
    Replaced,
    Values,
    as_float,
    read_values,
    require_finite,
    require_invocable,
    require_pair,
)
from pyinfer.convert.checkpoint import LIMITS, NO_LAYER, RawTensor, in_file
from pyinfer.convert.families import huggingface_module, huggingface_path
from pyinfer.convert.peft_config import MOST_WAYS_OF_ALL, PeftConfig, read_config
from pyinfer.convert.safetensors_file import read_safetensors
from pyinfer.convert.small_file import read_json
from pyinfer.convert.torch_pickle import read_torch
from pyinfer.errors import ModelFileError, UnsupportedError

CONFIG = "adapter_config.json"
TOKENIZER = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "added_tokens.json",
    "chat_template.jinja",
)
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

_FACTOR = re.compile(
    r"(?P<path>.+?)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(?:\.(?P<adapter>(?!weight$|bias$)[^.]+))?(?:\.(?P<leaf>weight|bias))?"
)
MAX_COLUMNS = 1 << 20
"""Of A: more than any linear of a model has inputs."""
MAX_UNPOOLED = 1 << 29
"""Values of all A together, made as wide as the inputs."""
_TOKENS = re.compile(r"(?P<path>.+)\.token_adapter\.trainable_tokens_delta(?:\.[^.]+)?")
_TABLE = re.compile(r"(?P<path>.+)\.token_adapter\.base_layer\.weight")
"""What the trained rows stand in: PEFT keeps it where the vocabulary grew."""
_WHOLE = re.compile(
    r"(?P<path>.+?)(?:\.base_layer)?(?:\.modules_to_save(?:\.(?!weight$|bias$)[^.]+)?)?\.(?P<leaf>weight|bias)"
)
_ENDS = {role: huggingface_path(role, NO_LAYER) for role in ("embedding", "head")}
"""Both ends of a model, which may be one tensor."""


def looks_like(path: Path) -> bool:
    """Whether this is a folder with an adapter_config.json."""
    return path.is_dir() and (path / CONFIG).exists()


def tokenizer_files(path: Path) -> list[Path]:
    """Files of a tokenizer in the folder: they count where the vocabulary grows."""
    return [path / name for name in TOKENIZER if (path / name).is_file()]


def open_peft(path: Path) -> AdapterSource:
    """Reads a directory."""
    weights = _weights(path)
    files = tuple(map(ReadFile.at, (path / CONFIG, weights, *tokenizer_files(path))))
    with in_file(path / CONFIG):
        config = read_config(read_json(path / CONFIG))
    with in_file(weights):
        raw = read_torch(weights, verify=True) if weights.suffix == ".bin" else read_safetensors(weights)
        modules, replaced = _sorted(raw, config)
        _check_ways(len(modules), config)
        _check_unpooled(modules, config)
        changes = tuple(_low_rank(module, config) for module in modules.values() if module.parts)
        biases = tuple(_only_bias(module) for module in modules.values() if not module.parts)
        _check_what_is_missing(modules, replaced, config)
        source = AdapterSource(
            kind="peft",
            files=files,
            changes=changes + biases,
            replaced=tuple(replaced),
            in_every_layer=_in_every_layer(changes, config) | _saved_in_every_layer(replaced, config),
            base=config.base,
            invocation=config.invocation,
            facts=_facts(config),
        )
        return require_invocable(source)


def _weights(path: Path) -> Path:
    for name in WEIGHTS:
        if (path / name).exists():
            return path / name
    raise ModelFileError(f"{path}: expected {' or '.join(WEIGHTS)}, found neither")


def _in_every_layer(changes: tuple[LowRank, ...], config: PeftConfig) -> frozenset[str]:
    """Roles of the targets that stand for a module of each layer."""
    if not isinstance(config.targets, tuple) or config.layers or config.excludes:
        return frozenset()
    general = [name for name in config.targets if not _names_a_layer(name)]
    return frozenset(
        change.role
        for change in changes
        if change.layer != NO_LAYER and any(_is_in(change.name, name) for name in general)
    )


def _saved_in_every_layer(replaced: Iterable[Replaced], config: PeftConfig) -> frozenset[str]:
    """Roles of whole tensors that stand for one in each layer."""
    general = tuple(name for name in config.saved if not _names_a_layer(name))
    return frozenset(
        item.role
        for item in replaced
        if item.layer != NO_LAYER
        and (found := _WHOLE.fullmatch(item.name))
        and found["path"].endswith(general)
    )


def _names_a_layer(name: str) -> bool:
    """Whether a name has the number of a layer in it, as `layers.3.self_attn.q_proj` does."""
    return any(part.isdigit() for part in name.split("."))


def _is_in(path: str, name: str) -> bool:
    """Whether a module is one that a name stands for: the end of its path."""
    return f".{path}".endswith(f".{name}")


def _facts(config: PeftConfig) -> dict[str, str]:
    kind = "DoRA" if config.dora else "QA-LoRA" if config.qalora_group else "LoRA"
    root = " over the root of r" if config.rslora else " over r"
    facts = {"method": kind, "r": str(config.rank), "alpha": f"{config.alpha:g}{root}"}
    if config.invocation:
        facts["invoked by"] = "tokens " + ", ".join(map(str, config.invocation))
    return facts


@dataclass
class _Module:
    """What the file has of one module."""

    path: str
    role: str
    layer: int
    parts: dict[str, RawTensor] = field(default_factory=dict)
    bias: RawTensor | None = None


def _sorted(raw: Mapping[str, RawTensor], config: PeftConfig) -> tuple[dict[str, _Module], list[Replaced]]:
    """Gives each tensor its place; an unknown one is refused by name."""
    modules: dict[str, _Module] = {}
    replaced: list[Replaced] = []
    tables: list[Replaced] = []
    named: set[str | None] = set()
    if not raw:
        raise ModelFileError("expected tensors, found none")
    for name, tensor in raw.items():
        inner = name.removeprefix("base_model.model.")
        if inner == name:
            raise UnsupportedError(
                f"{name}: expected a name that begins with base_model.model., found another"[:300]
            )
        if found := _FACTOR.fullmatch(inner):
            part = f"{found['part']}.bias" if found["leaf"] == "bias" else found["part"]
            _put(_module(modules, found["path"], name).parts, part, tensor)
            named.add(found["adapter"])
            if len(named) > 1:
                raise UnsupportedError(
                    f"{name}: expected the factors of one adapter, found those of two"[:300]
                )
        elif found := _TOKENS.fullmatch(inner):
            replaced.append(_token_rows(found["path"], tensor, config))
        elif found := _TABLE.fullmatch(inner):
            tables.append(_table(found["path"], tensor))
        elif (found := _WHOLE.fullmatch(inner)) and found["leaf"] == "bias":
            module = _module(modules, found["path"], name)
            if module.bias is not None:
                raise ModelFileError(f"{name}: expected each tensor once, found it again")
            module.bias = tensor
        elif found:
            replaced.append(_whole(found["path"], tensor, config))
        else:
            raise UnsupportedError(f"{name}: this tensor is not supported"[:300])
    _refuse_twice((item.role, item.layer, item.path) for item in modules.values())
    for whole in (replaced, tables):
        _refuse_twice((item.role, item.layer, item.name) for item in whole)
    return modules, _together(replaced, tables)


def _together(replaced: list[Replaced], tables: list[Replaced]) -> list[Replaced]:
    """Trained rows in the tables they stand in; what counts for the head too does not where the head has its own."""
    if any(item.role == "head" and not item.of_base for item in replaced):
        replaced = [replace(item, with_head=False, only_tied=False) for item in replaced]
    trained = {item.role: item for item in replaced if item.rows is not None}
    for table in tables:
        rows = trained.get(table.role)
        if rows is None:
            raise ModelFileError(f"{table.name}: expected trained rows of this table, found none")
        replaced = [_filled(table, rows) if item is rows else item for item in replaced]
    return replaced


def _filled(table: Replaced, trained: Replaced) -> Replaced:
    rows = trained.rows or ()
    if max(rows) >= len(table.values) or trained.values.shape[1] != table.values.shape[1]:
        raise ModelFileError(
            f"{trained.name}: expected rows of {table.name}, of the shape {list(table.values.shape)}, "
            f"found row {max(rows)} of {trained.values.shape[1]} values"
        )
    values = table.values.copy()
    values[list(rows)] = trained.values
    return replace(trained, values=values, rows=None, trained=rows, of_base=True)


def _put(parts: dict[str, RawTensor], part: str, tensor: RawTensor) -> None:
    if part in parts:
        raise ModelFileError(f"{tensor.name}: expected each tensor once, found it again, of another adapter")
    parts[part] = tensor


def _refuse_twice(places: Iterable[tuple[str, int, str]]) -> None:
    """Raises ModelFileError where two names stand for one place in the model."""
    seen: set[tuple[str, int]] = set()
    for role, layer, name in places:
        if (role, layer) in seen:
            raise ModelFileError(f"{name}: expected one change of this tensor, found two")
        seen.add((role, layer))


def _module(modules: dict[str, _Module], path: str, name: str) -> _Module:
    if path not in modules:
        place = huggingface_module(path)
        if place is None or place[0] not in (*LINEAR_ROLES, "embedding") or place[1] >= LIMITS["n_layers"][1]:
            raise UnsupportedError(f"{name}: this module is not part of the supported architecture"[:300])
        modules[path] = _Module(path, *place)
    return modules[path]


def _check_ways(n_modules: int, config: PeftConfig) -> None:
    """Refuses patterns that would keep the processor busy for minutes."""
    if n_modules * config.ways > MOST_WAYS_OF_ALL:
        raise UnsupportedError(
            f"rank_pattern, alpha_pattern: expected simple patterns for {n_modules} modules, "
            f"found some that may be tried in {config.ways} ways on each"
        )


def _low_rank(module: _Module, config: PeftConfig) -> LowRank:
    embedding = module.role == "embedding"
    factors = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
    needed = (*factors, "lora_B.bias") if config.lora_bias and not embedding else factors
    extra = {"lora_magnitude_vector"} if config.dora else set()
    if embedding and module.bias is not None:
        raise UnsupportedError(f"{module.bias.name}: expected no bias of an embedding, found one")
    for name in needed:
        if name not in module.parts:
            raise ModelFileError(f"{module.path}: expected {name}, found none")
    for name, tensor in module.parts.items():
        if name not in needed and name not in extra:
            raise UnsupportedError(f"{tensor.name}: adapter_config.json does not ask for this tensor")
    if embedding and config.dora:
        raise UnsupportedError(f"use_dora: {module.path} is an embedding, for which it is not supported")
    a, b = _factors(module, *factors, config)
    scaling = config.scaling_of(module.path)
    return LowRank(
        role=module.role,
        layer=module.layer,
        a=a,
        b=b,
        scaling=scaling,
        name=module.path,
        magnitude=_magnitude(module, len(b)) if config.dora else None,
        bias=_bias_of_b(module, len(b), scaling),
        new_bias=None if module.bias is None else _vector(module.bias, len(b)),
    )


def _factors(module: _Module, name_a: str, name_b: str, config: PeftConfig) -> tuple[Values, Values]:
    a, b = read_values(module.parts[name_a]), read_values(module.parts[name_b])
    require_pair(module.path, a, b)
    rank = config.rank_of(module.path)
    if a.shape[0] != rank:
        raise ModelFileError(
            f"{module.path}: expected the rank {rank} that adapter_config.json says, found {a.shape[0]}"
        )
    return (_unpooled(a, config.qalora_group), b) if config.qalora_group else (a, b)


def _unpooled(a: Values, group: int) -> NDArray[np.float32]:
    """QA-LoRA sees the mean of each group of inputs times the number of groups: the same as a wider A."""
    if a.shape[1] * group > MAX_COLUMNS:
        raise ModelFileError(
            f"qalora_group_size: expected A of at most {MAX_COLUMNS} columns, found {a.shape[1]} x {group}"
        )
    return np.repeat(as_float(a) * np.float32(a.shape[1] / group), group, axis=1)


def _check_unpooled(modules: Mapping[str, _Module], config: PeftConfig) -> None:
    """Raises ModelFileError where little in the file would become much in memory."""
    pooled = sum(
        math.prod(tensor.shape)
        for module in modules.values()
        for part, tensor in module.parts.items()
        if part == "lora_A"
    )
    if config.qalora_group and pooled * config.qalora_group > MAX_UNPOOLED:
        raise ModelFileError(
            f"qalora_group_size: expected at most {MAX_UNPOOLED} values of A together, "
            f"found {pooled} x {config.qalora_group}"
        )


def _magnitude(module: _Module, rows: int) -> NDArray[np.float32]:
    tensor = module.parts.get("lora_magnitude_vector")
    if tensor is None:
        raise ModelFileError(f"{module.path}: expected lora_magnitude_vector, as use_dora says, found none")
    return _vector(tensor, rows)


def _vector(tensor: RawTensor, length: int) -> NDArray[np.float32]:
    values = as_float(read_values(tensor)).reshape(-1)
    if len(values) != length:
        raise ModelFileError(f"{tensor.name}: expected {length} values, found {len(values)}")
    return values


def _bias_of_b(module: _Module, rows: int, scaling: float) -> NDArray[np.float32] | None:
    if "lora_B.bias" not in module.parts:
        return None
    with np.errstate(over="ignore"):
        scaled: NDArray[np.float32] = _vector(module.parts["lora_B.bias"], rows) * np.float32(scaling)
    require_finite(scaled, f"{module.path}: lora_B.bias, scaled")
    return scaled


def _only_bias(module: _Module) -> LowRank:
    """A bias without a change of the weights, as `bias: all` may train it."""
    if module.bias is None or module.role == "embedding":
        raise ModelFileError(f"{module.path}: expected tensors of a linear layer, found others")
    bias = _vector(module.bias, module.bias.shape[-1])
    empty = np.zeros((0, 0), np.float32)
    return LowRank(module.role, module.layer, empty, empty, 1.0, module.path, new_bias=bias)


def _whole(path: str, tensor: RawTensor, config: PeftConfig) -> Replaced:
    """A whole tensor: of modules_to_save, or an embedding that was stored beside its change."""
    place = huggingface_module(path)
    if place is None:
        raise UnsupportedError(f"{tensor.name}: this module is not part of the supported architecture"[:300])
    if len(tensor.shape) > 2:
        raise ModelFileError(f"{tensor.name}: expected one or two dimensions, found {len(tensor.shape)}")
    values = as_float(read_values(tensor))
    saved = _is_saved(path, place[0], config)
    if not saved and place[0] not in _ENDS:
        raise UnsupportedError(f"{tensor.name}: modules_to_save does not ask for this tensor")
    with_head = saved and config.tied and place[0] == "embedding"
    return Replaced(
        *place, values.reshape(-1, values.shape[-1]), tensor.name, with_head=with_head, of_base=not saved
    )


def _is_saved(path: str, role: str, config: PeftConfig) -> bool:
    """Whether modules_to_save names a module, as PEFT reads it: by how its path ends. With ensure_weight_tying one end
    of the model stands for both.
    """
    paths = _ENDS.values() if config.tied and role in _ENDS else (path,)
    return any(one.endswith(name) for one in paths for name in config.saved)


def _token_rows(path: str, tensor: RawTensor, config: PeftConfig) -> Replaced:
    """The rows of single tokens; a head that is not named has those of the embedding, with which it was one."""
    place = _end(path, tensor)
    named = config.token_rows or {}
    ends = (path, _ENDS["embedding"])
    rows = next((rows for end in ends for name, rows in named.items() if _is_in(end, name)), None)
    values = as_float(read_values(tensor))
    if rows is None or values.ndim != 2 or len(values) != len(rows):
        raise ModelFileError(
            f"{tensor.name}: expected the {len(rows or ())} rows that trainable_token_indices says, "
            f"found the shape {list(values.shape)}"
        )
    embedding = place[0] == "embedding"
    only_tied = embedding and any(_is_in(_ENDS["head"], name) for name in named)
    return Replaced(*place, values, tensor.name, rows=rows, with_head=embedding, only_tied=only_tied)


def _end(path: str, tensor: RawTensor) -> tuple[str, int]:
    place = huggingface_module(path)
    if place is None or place[0] not in _ENDS:
        raise UnsupportedError(f"{tensor.name}: tokens of this module are not supported"[:300])
    return place


def _table(path: str, tensor: RawTensor) -> Replaced:
    """The whole tensor that trained rows stand in, as the base had it once its vocabulary had grown."""
    place = _end(path, tensor)
    if len(tensor.shape) != 2:
        raise ModelFileError(f"{tensor.name}: expected two dimensions, found {len(tensor.shape)}")
    return Replaced(*place, as_float(read_values(tensor)), tensor.name, of_base=True)


def _check_what_is_missing(
    modules: Mapping[str, _Module], replaced: list[Replaced], config: PeftConfig
) -> None:
    """A named target without any tensor, or a layer that lacks what the others have, means a file that was cut."""
    adapted = [module for module in modules.values() if module.parts]
    wanted = _wanted(config)
    for target in wanted:
        if not any(_is_in(module.path, target) for module in adapted):
            raise ModelFileError(f"target_modules: expected tensors of {target!r}, found none"[:200])
    whole = [found["path"] for item in replaced if (found := _WHOLE.fullmatch(item.name))]
    for saved in config.saved:
        if not any(path.endswith(saved) for path in whole):
            raise ModelFileError(f"modules_to_save: expected tensors of {saved!r}, found none"[:200])
    _check_token_rows(replaced, config)
    for layer in config.layers or ():
        _check_layer(layer, adapted, wanted)


def _check_layer(layer: int, adapted: list[_Module], wanted: list[str]) -> None:
    """One of layers_to_transform has tensors, and those of each target that stands for a module of each layer."""
    here = [module for module in adapted if module.layer == layer]
    if adapted and not here:
        raise ModelFileError(f"layers_to_transform: expected tensors of layer {layer}, found none")
    for target in wanted:
        if not _names_a_layer(target) and not any(_is_in(module.path, target) for module in here):
            raise ModelFileError(
                f"layers_to_transform: expected tensors of {target!r} in layer {layer}, found none"[:200]
            )


def _wanted(config: PeftConfig) -> list[str]:
    """Targets of which there must be tensors: PEFT passes over those that other settings take out."""
    if not isinstance(config.targets, tuple) or isinstance(config.excludes, str):
        return []
    outside = [*(config.excludes or ()), *config.saved, *(_ENDS.values() if config.layers else ())]
    return [
        target
        for target in config.targets
        if not any(_is_in(target, name) or _is_in(name, target) for name in outside)
    ]


def _check_token_rows(replaced: list[Replaced], config: PeftConfig) -> None:
    """Each module that is named has its rows; a head with those of the embedding may be the same tensor."""
    named = config.token_rows or {}
    found = {_ENDS[item.role]: item.rows or item.trained for item in replaced if item.rows or item.trained}
    for name, rows in named.items():
        shared = _is_in(_ENDS["head"], name) and found.get(_ENDS["embedding"]) == rows
        if not shared and not any(_is_in(path, name) for path in found):
            raise ModelFileError(
                f"trainable_token_indices: expected trained rows of {name!r}, found none"[:200]
            )
