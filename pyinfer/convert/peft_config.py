"""adapter_config.json: every setting is honoured, known to change nothing, or refused by name.

Must not know tensors or files. Meanings are those of PEFT's LoraConfig.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from pyinfer.errors import ModelFileError, UnsupportedError

MAX_RANK = 65536
MAX_PATTERNS = 4096
MAX_PATTERN = 256
MAX_INVOCATION = 4096

Item = TypeVar("Item")

_IGNORED = frozenset({
    "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "inference_mode", "layers_pattern",
    "loftq_config", "lora_dropout", "lora_ga_config", "megatron_core", "peft_version", "revision", "runtime_config",
    "task_type",
})  # fmt: skip
"""They describe training; which tensors there are is told by the file of tensors."""
_READ = frozenset({
    "peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules",
    "layers_to_transform", "fan_in_fan_out", "bias", "lora_bias", "use_dora", "modules_to_save",
    "trainable_token_indices", "init_lora_weights", "use_qalora", "qalora_group_size", "alora_invocation_tokens",
    "exclude_modules", "ensure_weight_tying",
})  # fmt: skip
_REFUSED = {
    "target_parameters": "changes of parameters outside of linear layers are not supported",
    "layer_replication": "a model with repeated layers is not supported",
    "megatron_config": "layers of Megatron are not supported",
}
_KEEPS_BASE = ("gaussian", "orthogonal", "eva", "mica")
"""Ways to begin that leave the base as it was."""
_NESTED_REPEAT = re.compile(r"\)[*+{]")
_SKIPPED = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
"""What stands for one character, whatever it looks like."""
MOST_WAYS = 1 << 20
"""In which the patterns of a setting may be tried on a module's name."""
MOST_WAYS_OF_ALL = 1 << 27
"""The same, on the names of all modules."""
MAX_QALORA_GROUP = 1024


Patterns: TypeAlias = tuple[tuple[re.Pattern[str], float], ...]


@dataclass(frozen=True)
class PeftConfig:
    """The settings that count."""

    rank: int
    alpha: float
    rslora: bool = False
    rank_pattern: Patterns = ()
    alpha_pattern: Patterns = ()
    targets: tuple[str, ...] | str | None = None
    layers: tuple[int, ...] | None = None
    excludes: tuple[str, ...] | str | None = None
    lora_bias: bool = False
    dora: bool = False
    saved: tuple[str, ...] = ()
    tied: bool = False
    token_rows: Mapping[str, tuple[int, ...]] | None = None
    qalora_group: int | None = None
    invocation: tuple[int, ...] = ()
    base: str | None = None
    ways: int = 0
    """In which the patterns may be tried on a name, at most."""

    def rank_of(self, path: str) -> int:
        """The rank of a module."""
        return int(_first(self.rank_pattern, path, self.rank))

    def scaling_of(self, path: str) -> float:
        """What the product of the factors of a module is multiplied by."""
        rank, alpha = self.rank_of(path), float(_first(self.alpha_pattern, path, self.alpha))
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank


def _first(patterns: Patterns, path: str, default: float) -> float:
    for pattern, value in patterns:
        if pattern.match(path):
            return float(value)
    return default


def read_config(values: Mapping[str, Any]) -> PeftConfig:
    """Checks all settings; raises ModelFileError, or UnsupportedError that names what cannot be honoured."""
    if values.get("peft_type") != "LORA":
        raise UnsupportedError(f"peft_type: expected 'LORA', found {values.get('peft_type')!r}"[:200])
    for name, value in values.items():
        if name in _READ or name in _IGNORED or value in (None, False, [], {}):
            continue
        why = _REFUSED.get(name, "this setting is not supported")
        raise UnsupportedError(f"{name}: expected none, found {value!r}"[:160] + f"; {why}")
    config = PeftConfig(
        rank=_rank("r", values.get("r", 8)),
        alpha=_number("lora_alpha", values.get("lora_alpha", 8)),
        rslora=_flag(values, "use_rslora"),
        rank_pattern=_patterns(values, "rank_pattern", _rank),
        alpha_pattern=_patterns(values, "alpha_pattern", _number),
        targets=_modules(values, "target_modules"),
        layers=_layers(values.get("layers_to_transform")),
        excludes=_modules(values, "exclude_modules"),
        lora_bias=_flag(values, "lora_bias"),
        dora=_flag(values, "use_dora"),
        saved=_strings("modules_to_save", values.get("modules_to_save")),
        tied=_flag(values, "ensure_weight_tying"),
        token_rows=_token_rows(values.get("trainable_token_indices")),
        qalora_group=_qalora_group(values),
        invocation=_invocation(values.get("alora_invocation_tokens")),
        base=values["base_model_name_or_path"]
        if isinstance(values.get("base_model_name_or_path"), str)
        else None,
        ways=sum(map(_ways, [*(values.get("rank_pattern") or {}), *(values.get("alpha_pattern") or {})])),
    )
    _flag(values, "fan_in_fan_out")  # how the base stores its weights; A and B are the same either way
    _check_bias(values.get("bias", "none"))
    _check_start(values.get("init_lora_weights", True))
    _check_together(config)
    return config


def _check_bias(bias: object) -> None:
    if bias not in ("none", "all", "lora_only"):
        raise ModelFileError(f"bias: expected none, all or lora_only, found {bias!r}"[:200])


def _check_start(start: object) -> None:
    """Some ways to begin take the adapter out of the base, so that it fits only the base that is left."""
    if isinstance(start, bool) or start is None or (isinstance(start, str) and start.lower() in _KEEPS_BASE):
        return
    raise UnsupportedError(
        f"init_lora_weights: expected an adapter of the unchanged base, found {start!r:.100}, which changes the base "
        "when training begins; save it from PEFT with path_initial_model_for_weight_conversion"
    )


def _check_together(config: PeftConfig) -> None:
    if config.dora and config.lora_bias:
        raise UnsupportedError("lora_bias: expected false beside use_dora, found true")
    if config.dora and config.qalora_group:
        raise UnsupportedError("use_qalora: expected false beside use_dora, found true")


def _flag(values: Mapping[str, Any], name: str) -> bool:
    value = values.get(name)
    if value is not None and not isinstance(value, bool):
        raise ModelFileError(f"{name}: expected true or false, found {value!r}"[:200])
    return bool(value)


def _rank(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_RANK:
        raise ModelFileError(f"{name}: expected a whole number from 1 to {MAX_RANK}, found {value!r}"[:200])
    return value


def _qalora_group(values: Mapping[str, Any]) -> int | None:
    if not _flag(values, "use_qalora"):
        return None
    group = _rank("qalora_group_size", values.get("qalora_group_size", 16))
    if group > MAX_QALORA_GROUP:
        raise ModelFileError(f"qalora_group_size: expected at most {MAX_QALORA_GROUP}, found {group}")
    return group


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e9:
        raise ModelFileError(f"{name}: expected a number below 1e9, found {value!r}"[:200])
    return float(value)


def _patterns(values: Mapping[str, Any], name: str, checked: Any) -> Patterns:
    given = values.get(name) or {}
    if not isinstance(given, dict) or len(given) > MAX_PATTERNS:
        raise ModelFileError(f"{name}: expected an object of at most {MAX_PATTERNS} patterns, found another")
    patterns = tuple((_pattern(name, key), checked(f"{name}.{key}", value)) for key, value in given.items())
    if sum(map(_ways, given)) > MOST_WAYS:
        raise UnsupportedError(f"{name}: expected simple patterns, found {', '.join(given)!r}"[:200])
    return patterns


def _pattern(name: str, pattern: str) -> re.Pattern[str]:
    """A regular expression for the end of a path, whose ways can be counted: no repeated groups, no references."""
    simple = len(pattern) <= MAX_PATTERN and not _NESTED_REPEAT.search(pattern)
    if not simple or "(?" in pattern or re.search(r"\\[1-9]", pattern):
        raise UnsupportedError(f"{name}: expected simple patterns, found {pattern!r}"[:200])
    try:
        return re.compile(rf"(.*\.)?({pattern})$")
    except (re.error, RecursionError, OverflowError) as error:
        raise ModelFileError(
            f"{name}: expected a regular expression, found {pattern!r}: {error}"[:200]
        ) from None


def _ways(pattern: str) -> int:
    """How many ways a pattern without repeated groups may be tried, at most: a repetition ends at any of 64 places,
    what is optional is there or not, of the alternatives of a group each is tried.
    """
    ways, alternatives = 1, [1]
    for letter in _SKIPPED.sub(".", pattern):
        if letter in "*+{":
            ways *= 64
        elif letter == "?":
            ways *= 2
        elif letter == "|":
            alternatives[-1] += 1
        elif letter == "(":
            alternatives.append(1)
        elif letter == ")" and len(alternatives) > 1:
            ways *= alternatives.pop()
    return ways * math.prod(alternatives)


def _strings(name: str, value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ModelFileError(f"{name}: expected a list of names, found {value!r:.150}")
    return _distinct(name, value)


def _distinct(name: str, value: list[Item]) -> tuple[Item, ...]:
    """Each of a list once."""
    found = tuple(dict.fromkeys(value))
    if len(found) > MAX_PATTERNS:
        raise ModelFileError(f"{name}: expected at most {MAX_PATTERNS} of them, found {len(found)}")
    return found


def _modules(values: Mapping[str, Any], name: str) -> tuple[str, ...] | str | None:
    """Names of modules, or a pattern of them."""
    value = values.get(name)
    return (value if isinstance(value, str) else _strings(name, value)) or None


def _layers(value: object) -> tuple[int, ...] | None:
    if value is None:
        return None
    found = value if isinstance(value, list) else [value]
    if not all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in found):
        raise ModelFileError(f"layers_to_transform: expected layer numbers, found {value!r:.150}")
    return _distinct("layers_to_transform", found) or None


def _invocation(value: object) -> tuple[int, ...]:
    found: list[Any] = value if isinstance(value, list) else [] if value is None else [value]
    good = len(found) <= MAX_INVOCATION and all(type(token) is int for token in found)
    if not good or not all(0 <= token < 1 << 22 for token in found):
        raise ModelFileError(f"alora_invocation_tokens: expected token ids, found {value!r}"[:200])
    return tuple(found)


def _token_rows(value: object) -> Mapping[str, tuple[int, ...]] | None:
    """The rows of each end of the model that were trained; a plain list means those of the embedding."""
    if not value:
        return None
    named = value if isinstance(value, dict) else {"embed_tokens": value}
    found = {}
    for name, rows in named.items():
        listed = rows if isinstance(rows, list) else []
        good = listed and all(type(row) is int and 0 <= row < 1 << 22 for row in listed)
        if not good or len(set(listed)) != len(listed):
            raise ModelFileError(
                f"trainable_token_indices: expected different token ids, found {rows!r}"[:200]
            )
        found[name] = tuple(listed)
    return found
