"""How byte-level BPE cuts text before merging: what each name of GGUF's `tokenizer.ggml.pre` stands for.

Must not know files or vocabularies; a table of names and the stages that the `tokenizers` library runs.
The expressions are those that the models' own tokenizer.json files publish. A name that is not here is an
error, never a guess.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyinfer.errors import UnsupportedError


@dataclass(frozen=True)
class PreTokenizer:
    """Stages that each cut what the stage before left; `ignore_merges` takes a word that is a token as
    that token.
    """

    stages: tuple[dict[str, Any], ...]
    nfc: bool = False
    ignore_merges: bool = False
    add_bos: bool = False  # whether a file that does not say so wants the beginning-of-text token


def _split(regex: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def _byte_level(words: bool) -> dict[str, Any]:
    """Writes bytes in the printable alphabet; with `words`, cuts words first as GPT-2 does."""
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": words}


def _ranges(text: str) -> str:
    """`0041-005A 00B5` -> the inside of a character class."""
    return "".join("-".join(rf"\x{{{end}}}" for end in item.split("-")) for item in text.split())


def _cuts(*regexes: str) -> tuple[dict[str, Any], ...]:
    """Stages that cut at each expression in turn, then write bytes."""
    return *map(_split, regexes), _byte_level(False)


_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s+(?!\S)|\s+"
_GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|" + _SPACES


def _modern(digits: str, letters: str = r"\p{L}", lines: str = r"[\r\n]*") -> str:
    """The expression of the 100k-token generation; `digits` says how runs of digits are cut, `letters` what a word is
    made of, `lines` which ends of lines go with the signs before them.
    """
    outside = rf"\s{letters}\p{{N}}"
    words = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[{letters}]+|{digits}"
    return rf"{words}| ?[^{outside}]+{lines}|\s*[\r\n]+|{_SPACES}"


def _cased(digits: str, contractions: str) -> str:
    """The expression of the 200k-token generation, where a word is cut before a capital that follows small letters."""
    upper, lower = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    before = r"[^\r\n\p{L}\p{N}]?"
    words = rf"{before}{upper}*{lower}+{contractions}|{before}{upper}+{lower}*{contractions}"
    return rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|{_SPACES}"


_DIGITS = {"type": "Digits", "individual_digits": True}
_CASED = _ranges(
    "0041-005A 0061-007A 00B5 00C0-00D6 00D8-00F6 00F8-01BA 01BC-01BF 01C4-0293 0295-02AF 0370-0373 "
    "0376 0377 037B-037D 037F 0386 0388-038A 038C 038E-03A1 03A3-03F5 03F7-0481 048A-052F 0531-0556 "
    "10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A 1E00-1F15 "
    "1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE "
    "1FC2-1FC4 1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115 "
    "2119-211D 2124 2126 2128 212A-212D 212F-2134 2139 213C-213F 2145-2149 214E 2183 2184 2C00-2C7B "
    "2C7E-2CE4 2CEB-2CEE 2CF2 2CF3 A640-A66D A680-A69B A722-A76F A771-A787 A78B-A78E AB70-ABBF "
    "FB00-FB06 FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3 104D8-104FB 10C80-10CB2 "
    "10CC0-10CF2 118A0-118DF 1E900-1E943"
)
"""Letters with case as DeepSeek LLM lists them."""
_MARKS = _ranges("0021-002F 003A-007E FF01-FF0F FF1A-FF5E 2018-201F 3000-3002")
_EAST_ASIAN = _ranges("4E00-9FA5 0800-4E00 AC00-D7FF")

_EAST_ASIAN_3 = _ranges("4E00-9FA5 3040-309F 30A0-30FF")
_SIGNS = _ranges("0021-002F 003A-0040 005B-0060 007B-007E")
_SENTENCES = r" ?[^(\s|.,!?…。，、।۔،)]+"

_THREE = r"\p{N}{1,3}"
_GPT2 = PreTokenizer((_byte_level(True),))
_STARCODER = PreTokenizer((_DIGITS, _byte_level(True)))
_LLAMA3 = PreTokenizer(_cuts(_modern(_THREE)), ignore_merges=True, add_bos=True)
_LLAMA3_MERGED = PreTokenizer(_LLAMA3.stages)
_QWEN2 = PreTokenizer(_cuts(_modern(r"\p{N}")), nfc=True)
_QWEN2_PLAIN = PreTokenizer(_QWEN2.stages)
_GPT4O = PreTokenizer(_cuts(_cased(_THREE, _CONTRACTIONS + "?")))
_TEKKEN = PreTokenizer(_cuts(_cased(r"\p{N}", "")), ignore_merges=True, add_bos=True)
_FALCON = PreTokenizer(_cuts(r"[\p{P}\$\+<=>\^~\|`]+", _GPT2_WORDS, "[0-9][0-9][0-9]"))
_DEFAULT = PreTokenizer(_cuts(r"[\p{P}\$\+<=>\^~\|]+", _GPT2_WORDS, r"\p{N}+", "[0-9][0-9][0-9]"))
_DEEPSEEK_LLM = PreTokenizer(
    (
        _split(r"[\r\n]"),
        _split(rf"\s?[{_CASED}]+"),
        _split(rf"\s?[{_MARKS}]+"),
        _split(r"\s+$"),
        _split(rf"[{_EAST_ASIAN}]+"),
        _DIGITS,
        _byte_level(False),
    )
)
_DEEPSEEK_CODER = PreTokenizer(
    (
        _split(r"[\r\n]"),
        _split(r"\s?\p{L}+"),
        _split(r"\s?\p{P}+"),
        _split(rf"[{_EAST_ASIAN}]+"),
        _DIGITS,
        _byte_level(False),
    )
)
_DEEPSEEK_V3 = PreTokenizer(
    _cuts(
        _THREE,
        rf"[{_EAST_ASIAN_3}]+",
        rf"[{_SIGNS}][A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+[\r\n]*"
        rf"|\s*[\r\n]+|{_SPACES}",
    )
)

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "a.x-4.0": _GPT2,
    "codeshell": _STARCODER,
    "command-r": PreTokenizer(_STARCODER.stages, nfc=True),
    "dbrx": _LLAMA3_MERGED,  # Phi-4 too
    "deepseek-coder": _DEEPSEEK_CODER,
    "deepseek-llm": _DEEPSEEK_LLM,
    "deepseek-r1-qwen": _QWEN2_PLAIN,
    "deepseek-v3": _DEEPSEEK_V3,
    "default": _DEFAULT,
    "exaone": _STARCODER,
    "falcon": _FALCON,
    "falcon3": _LLAMA3,
    "gpt-2": _GPT2,
    "gpt-4o": _GPT4O,  # Phi-4-mini too
    "hunyuan": _QWEN2_PLAIN,
    "kormo": _QWEN2_PLAIN,
    "lfm2": _LLAMA3,
    "llama-bpe": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama3": _LLAMA3,
    "llama4": _GPT4O,
    "megrez": _QWEN2_PLAIN,
    "mellum": _GPT2,
    "midm-2.0": _LLAMA3,
    "minerva-7b": _STARCODER,
    "mpt": _GPT2,
    "olmo": _GPT2,
    "phi-2": _GPT2,
    "pixtral": _LLAMA3,
    "poro-chat": PreTokenizer(_cuts(_SENTENCES)),
    "qwen2": _QWEN2,
    "qwen35": PreTokenizer(_cuts(_modern(r"\p{N}", r"\p{L}\p{M}"))),
    "refact": _STARCODER,
    "seed-coder": PreTokenizer(_cuts(_modern(r"\p{N}", lines=""))),
    "smaug-bpe": _LLAMA3_MERGED,  # SmolLM3 too
    "smollm": _STARCODER,
    "stablelm2": _QWEN2_PLAIN,
    "starcoder": _STARCODER,
    "tekken": _TEKKEN,
    "trillion": _GPT2,
    "viking": PreTokenizer(_cuts(_SENTENCES, r"\p{N}")),
}


def pre_tokenizer(name: str) -> PreTokenizer:
    """The pre-tokenizer of this name; UnsupportedError names an unknown one and lists the known."""
    if name in PRE_TOKENIZERS:
        return PRE_TOKENIZERS[name]
    known = ", ".join(sorted(PRE_TOKENIZERS))
    raise UnsupportedError(f"tokenizer.ggml.pre: expected one of {known}; found {name[:64]!r}")
