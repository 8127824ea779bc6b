"""Options that several verbs share, and their limits. Must not import anything heavy: `--help` reads it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pyinfer.sampling import SamplingParams

__all__ = [
    "add_cache",
    "add_engine",
    "add_lora",
    "add_model",
    "add_sampling",
    "add_weights",
    "context",
    "count",
    "counts",
    "lora",
    "sampling_params",
]

SOURCE_HELP = "smollm2, hf:ORG/REPO[:FILE], or a path: GGUF file, Hugging Face or Meta folder, llama2.c file"
MODEL_HELP = f"{SOURCE_HELP}, model.bin"
WEIGHTS = ("q4", "q8", "f16", "bf16", "f32")
MOST = 2**31 - 1  # what the core's whole numbers hold


def count(least: int = 1) -> Callable[[str], int]:
    """An argument type: a whole number of at least `least`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, found {text!r}")
        if value > MOST:
            raise argparse.ArgumentTypeError(f"expected a whole number of at most {MOST}, found {text!r}")
        return value

    return parse


def context(text: str) -> int | Literal["fit"]:
    """An argument type: a whole number of at least 1, or `fit`."""
    return "fit" if text == "fit" else count()(text)


def counts(text: str) -> list[int]:
    """An argument type: whole numbers of at least 1 with commas between them."""
    return [count()(part) for part in text.split(",")]


def _bias(text: str) -> tuple[int, float]:
    token, equals, value = text.partition("=")
    try:
        if equals:
            return int(token), float(value)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"expected ID=VALUE, such as 42=-100, found {text!r}")


def lora(text: str) -> tuple[Path, float]:
    """An argument type: DIR or DIR:WEIGHT; a path that exists is a path, whatever its name."""
    whole, (name, colon, weight) = _path(text), text.rpartition(":")
    if not colon or not name or whole.exists():
        return whole, 1.0
    try:
        value = float(weight)
    except ValueError:
        if not _path(name).exists():
            return whole, 1.0
        value = float("nan")
    if not abs(value) < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a weight that is a number, found {weight!r}")
    return _path(name), value


def _path(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:  # nobody of that name
        return Path(text)


def add_lora(parser: argparse.ArgumentParser) -> None:
    """Adapters to put on the model."""
    parser.add_argument(
        "--lora",
        type=lora,
        action="append",
        default=[],
        metavar="DIR[:WEIGHT]",
        help="put an adapter on the model: a PEFT folder or a GGUF adapter; repeatable, weight 1 unless given",
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """The model, as the first positional argument."""
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)


def add_cache(parser: argparse.ArgumentParser) -> None:
    """Whether to keep the conversion."""
    parser.add_argument(
        "--no-cache",
        dest="cache",
        action="store_false",
        help="convert to a temporary file, removed at the end",
    )


def add_weights(parser: argparse.ArgumentParser) -> None:
    """The format of the packed weights."""
    text = "packed format, for sources in floats (default: q8 for Hugging Face and Meta, f32 for llama2.c)"
    parser.add_argument("--weights", choices=WEIGHTS, help=text)


def add_engine(parser: argparse.ArgumentParser, *, threads: bool = True) -> None:
    """How the model runs."""
    if threads:
        parser.add_argument(
            "-t", "--threads", type=count(), metavar="N", help="threads (default: physical cores)"
        )
    parser.add_argument(
        "--activations", choices=("int8", "f32"), help="int8 (default, fast) or f32 (slow, for reference)"
    )
    parser.add_argument(
        "--kv",
        choices=("auto", "f16", "i16", "q8"),
        default="auto",
        help="how keys and values are kept: in 16 bits as floats or integers (auto, the default: what this processor "
        "is faster with; the others give the same bits on every one), or q8 in half the memory",
    )
    parser.add_argument(
        "--huge-pages",
        choices=("auto", "on", "off"),
        default="auto",
        help="pages of 2 MiB for the weights: where the file's cache has them (auto, default), in a private copy "
        "of the file (on), or none (off)",
    )
    add_weights(parser)
    add_cache(parser)


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """How tokens are chosen. What is not given is left to `SamplingParams`."""
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--greedy", action="store_true", help="always the likeliest token; the same as --temp 0"
    )
    for flag, name, kind, text in _SAMPLING:
        group.add_argument(flag, dest=name, type=kind, metavar="N" if kind is int else "X", help=text)
    group.add_argument(
        "--logit-bias",
        type=_bias,
        action="append",
        metavar="ID=X",
        help="add X to the logit of token ID; repeatable",
    )


_SAMPLING: tuple[tuple[str, str, Callable[[str], Any], str], ...] = (
    ("--temp", "temperature", float, "temperature; 0 is greedy"),
    ("--top-k", "top_k", int, "keep the K likeliest tokens; 0 keeps all"),
    ("--top-p", "top_p", float, "keep the likeliest tokens that make up this much probability"),
    ("--min-p", "min_p", float, "keep tokens at least this likely relative to the likeliest"),
    ("--typical-p", "typical_p", float, "keep the most typical tokens that make up this much probability"),
    ("--repeat-penalty", "repetition_penalty", float, "divide the logits of tokens seen before by this"),
    ("--presence-penalty", "presence_penalty", float, "subtract this from the logits of tokens seen before"),
    ("--frequency-penalty", "frequency_penalty", float, "subtract this for every time a token was seen"),
    ("--penalty-window", "penalty_window", int, "how many of the last tokens count as seen"),
    ("--seed", "seed", int, "same seed, same text"),
)


def sampling_params(options: argparse.Namespace) -> SamplingParams:
    """The parameters that were given, over the defaults; RequestError for a value out of its limits."""
    from pyinfer.errors import RequestError
    from pyinfer.sampling import SamplingParams

    given = {
        name: getattr(options, name) for _, name, _, _ in _SAMPLING if getattr(options, name) is not None
    }
    if options.logit_bias:
        given["logit_bias"] = dict(options.logit_bias)
        if len(given["logit_bias"]) < len(options.logit_bias):
            raise RequestError("--logit-bias: expected each token once, found one twice")
    if options.greedy:
        if given.get("temperature", 0):
            raise RequestError(f"--greedy is --temp 0, but --temp {given['temperature']:g} was given too")
        given["temperature"] = 0.0
    return SamplingParams(**given)
