"""Malformed GGUF files by name: what must be refused, and a word that the message must hold.

Must not know pyinfer. Each case changes one thing in a tiny file that is otherwise well-formed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gguf_writer import BLOCKS, Tensor, TinyLlama, Typed, bpe_kv, pack_string, pack_value, spm_kv

HUGE = (2**31, 2**63, 2**64 - 1)
UNREADABLE_TYPES = {
    4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 16: "IQ2_XXS", 21: "IQ3_S", 34: "TQ1_0", 39: "MXFP4", 24: "I8", 28: "F64",
    41: "41", 2**31: "2147483648", 2**32 - 1: "4294967295",
}  # fmt: skip
"""Tensor type ids that are removed, not supported or unknown, and how the message names them."""
SHAPE = TinyLlama(n_layers=1, dim=32, n_heads=4, n_kv_heads=2, n_ff=32, n_vocab=270)


@dataclass(frozen=True)
class Info:
    """One record of the tensor table, any part of which may be wrong."""

    name: bytes
    dims: Sequence[int]
    type_id: int
    offset: int
    n_dims: int | None = None

    def pack(self) -> bytes:
        count = len(self.dims) if self.n_dims is None else self.n_dims
        dims = b"".join(struct.pack("<Q", n) for n in self.dims)
        return (
            pack_string(self.name)
            + struct.pack("<I", count)
            + dims
            + struct.pack("<IQ", self.type_id, self.offset)
        )


@dataclass(frozen=True)
class Parts:
    """A file in parts; counts default to what is there."""

    pairs: tuple[tuple[bytes, bytes], ...]
    infos: tuple[Info, ...]
    body: bytes
    magic: bytes = b"GGUF"
    version: int = 3
    n_tensors: int | None = None
    n_keys: int | None = None

    def pack(self) -> bytes:
        n_tensors = len(self.infos) if self.n_tensors is None else self.n_tensors
        n_keys = len(self.pairs) if self.n_keys is None else self.n_keys
        head = self.magic + struct.pack("<IQQ", self.version, n_tensors, n_keys)
        head += b"".join(pack_string(key) + value for key, value in self.pairs)
        head += b"".join(info.pack() for info in self.infos)
        return head + b"\0" * (-len(head) % 32) + self.body


def parts(tokenizer: str = "bpe", extra: Sequence[Tensor] = ()) -> Parts:
    """A well-formed tiny model in parts."""
    kv = SHAPE.kv() | (bpe_kv(SHAPE.n_vocab) if tokenizer == "bpe" else spm_kv(SHAPE.n_vocab))
    infos, body = [], b""
    for tensor in [*SHAPE.tensors(), *extra]:
        body += b"\0" * (-len(body) % 32)
        infos.append(Info(tensor.name.encode(), tensor.dims, BLOCKS[tensor.kind][0], len(body)))
        body += bytes(tensor.data)
    return Parts(tuple((key.encode(), pack_value(value)) for key, value in kv.items()), tuple(infos), body)


def set_keys(values: Mapping[str, Any], tokenizer: str = "bpe") -> Parts:
    """The tiny model with keys changed, added or (value None) removed."""
    base = parts(tokenizer)
    pairs = dict(base.pairs)
    for key, value in values.items():
        pairs.pop(key.encode(), None)
        if value is not None:
            pairs[key.encode()] = pack_value(value)
    return replace(base, pairs=tuple(pairs.items()))


def raw_key(key: bytes, value: bytes) -> Parts:
    """The tiny model with one more key in raw bytes, at the front."""
    base = parts()
    return replace(base, pairs=((key, value), *base.pairs))


def set_info(index: int, **changes: Any) -> Parts:
    """The tiny model with one record of the tensor table changed."""
    base = parts()
    infos = list(base.infos)
    infos[index] = replace(infos[index], **changes)
    return replace(base, infos=tuple(infos))


def _array(type_id: int, count: int, data: bytes = b"") -> bytes:
    return struct.pack("<IIQ", 9, type_id, count) + data


def header_cases() -> dict[str, tuple[bytes, str]]:
    whole = parts().pack()
    cases = {
        "empty": (b"", "empty"),
        "three_bytes": (b"GGU", "begins with"),
        "magic_only": (b"GGUF", "version"),
        "other_magic": (b"GGML" + whole[4:], "begins with"),
        "cut_in_counts": (whole[:20], "counts"),
        "no_keys": (Parts((), (), b"").pack(), "general.architecture"),
        "only_vocabulary": (replace(parts(), infos=(), body=b"").pack(), "only a vocabulary"),
        "big_endian": (whole[:4] + struct.pack(">I", 3) + whole[8:], "big-endian"),
        "text": (b"#!/bin/sh\necho no model here, move along\n", "begins with"),
        "zeros": (b"\0" * 4096, "begins with"),
    }
    for version in (0, 1, 4, 2**32 - 1):
        cases[f"version_{version}"] = (replace(parts(), version=version).pack(), "version")
    for count in (*HUGE, 100_000):
        cases[f"tensor_count_{count}"] = (replace(parts(), n_tensors=count).pack(), "tensors")
        cases[f"key_count_{count}"] = (replace(parts(), n_keys=count).pack(), "keys|key ")
    return cases


def key_cases() -> dict[str, tuple[bytes, str]]:
    text = struct.pack("<I", 8)
    bad = {
        "empty_key": (raw_key(b"", pack_value(1)), "key 0"),
        "key_not_utf8": (raw_key(b"a\xff", pack_value(1)), "UTF-8"),
        "duplicate_key": (raw_key(b"llama.block_count", pack_value(1)), "again"),
        "long_key": (raw_key(b"k" * 70_000, pack_value(1)), "65535"),
        "text_not_utf8": (raw_key(b"x", text + pack_string(b"\xc3\x28")), "UTF-8"),
        "tokens_not_utf8": (set_keys({"tokenizer.ggml.tokens": [b"\xff\xfe"]}), "UTF-8"),
        "bool_of_2": (raw_key(b"x", struct.pack("<IB", 7, 2)), "booleans"),
        "bools_of_2": (raw_key(b"x", _array(7, 2, b"\1\2")), "booleans"),
        "nested_array": (raw_key(b"x", _array(9, 1, struct.pack("<IQ", 4, 0))), "array of arrays"),
        "string_array_cut": (raw_key(b"x", _array(8, 2, pack_string("a") + struct.pack("<Q", 2**40))), "x"),
    }
    for type_id in (13, 255, 2**32 - 1):
        bad[f"value_type_{type_id}"] = (raw_key(b"x", struct.pack("<I", type_id)), "value type")
        bad[f"element_type_{type_id}"] = (raw_key(b"x", _array(type_id, 1)), "element type")
    for size in HUGE:
        bad[f"string_length_{size}"] = (raw_key(b"x", text + struct.pack("<Q", size)), "x:")
        for type_id in (0, 4, 8, 10, 12):
            bad[f"array_{type_id}_count_{size}"] = (raw_key(b"x", _array(type_id, size)), "elements")
    cases = {name: (made.pack(), word) for name, (made, word) in bad.items()}
    whole = parts().pack()
    for size in HUGE:
        cases[f"key_length_{size}"] = (whole[:24] + struct.pack("<Q", size) + whole[32:], "key 0")
    return cases


def setting_cases() -> dict[str, tuple[bytes, str]]:
    nan, inf = float("nan"), float("inf")
    bad: dict[str, tuple[str, Sequence[Any]]] = {
        "general.alignment": ("alignment", [0, 1, 3, 24, 2**31, "32", 32.0, Typed("i32", -32)]),
        "general.architecture": ("general.architecture", [None, "mamba", "qwen2moe", "", 1]),
        "split.count": ("split.count", [2]),
        "llama.block_count": ("llama.block_count", [None, 0, 1025, 2**31, Typed("i32", -1), 1.0, "1", [1]]),
        "llama.embedding_length": ("llama|token_embd", [None, 0, 33, 64, 2**31, Typed("u64", 2**63)]),
        "llama.feed_forward_length": ("llama|ffn", [None, 0, 33, [32], Typed("u64", 2**64 - 1)]),
        "llama.attention.head_count": ("head_count|n_kv|shape|rope_dim", [None, 0, 3, 8, 2**31, [4]]),
        "llama.attention.head_count_kv": ("head|shape", [0, 3, 4, 8, Typed("i32", -2)]),
        "llama.context_length": ("llama.context_length", [None, 0, 2**31, Typed("u64", 2**64 - 1)]),
        "llama.attention.layer_norm_rms_epsilon": ("eps", [None, nan, -1.0, inf, 1.0, "1e-5"]),
        "llama.rope.freq_base": ("rope", [nan, 0.0, -1.0, inf, "1e4"]),
        "llama.rope.dimension_count": ("rope", [3, 10, 2**31]),
        "llama.rope.scaling.type": ("rope.scaling", ["yarn", "dynamic", "longrope", "", 1]),
        "llama.rope.scaling.factor": ("factor", [nan, inf, -2.0, "2"]),
        "llama.attention.key_length": ("length|shape|head_dim", [0, 7, 16, 2**31]),
        "llama.attention.value_length": ("value_length", [16]),
        "llama.attention.scale": ("scale", [nan, -1.0, inf]),
        "llama.attention.sliding_window": ("sliding_window", [2**31, Typed("i32", -1), [4096], 1.0]),
        "llama.attention.causal": ("causal", [False]),
        "llama.expert_count": ("expert_count", [8, [8, 8]]),
        "llama.expert_used_count": ("expert_used_count", [2]),
        "llama.final_logit_softcapping": ("softcapping", [30.0]),
        "llama.residual_scale": ("residual_scale", [0.5]),
        "llama.some_new_setting": ("some_new_setting", [1]),
        "llama.vocab_size": ("vocab_size", [0, 269, 271, 2**31]),
    }  # fmt: skip
    cases = {}
    for key, (word, values) in bad.items():
        for i, value in enumerate(values):
            cases[f"{key}_{i}"] = (set_keys({key: value}).pack(), word)
    return cases


def tokenizer_cases() -> dict[str, tuple[bytes, str]]:
    bpe, spm = bpe_kv(SHAPE.n_vocab), spm_kv(SHAPE.n_vocab)
    tokens, kinds = bpe["tokenizer.ggml.tokens"], bpe["tokenizer.ggml.token_type"].value
    pieces, scores = spm["tokenizer.ggml.tokens"], spm["tokenizer.ggml.scores"]
    bad: dict[str, tuple[str, str, Sequence[Any]]] = {
        "model": ("bpe", "tokenizer.ggml.model", ["bert", "t5", "", 1]),
        "pre": ("bpe", "tokenizer.ggml.pre", [None, "no-such-pre", "Default", "", 1]),
        "tokens": ("bpe", "tokens", [None, [], tokens[:-1], [*tokens, "more"], Typed("u32", [1] * len(tokens))]),
        "duplicate_tokens": ("bpe", "once", [[tokens[1], *tokens[1:]]]),
        "token_type": ("bpe", "token_type", [None, Typed("i32", kinds[:-1]), Typed("f32", [1.0] * len(kinds))]),
        "odd_token_type": ("bpe", "token_type", [Typed("i32", [7, *kinds[1:]]), Typed("i32", [-1, *kinds[1:]])]),
        "merges": ("bpe", "merges", [None, ["t"], ["t h e"], [" t"], ["t "], [""], Typed("u32", [1])]),
        "merges_of_nothing": ("bpe", "tokenizer", [["no such"], ["t q"]]),
        "bos_token_id": ("bpe", "bos", [270, Typed("i32", -1), 2**31, "1"]),
        "eos_token_id": ("bpe", "eos", [270, Typed("u64", 2**64 - 1)]),
        "unknown_token_id": ("bpe", "unknown", [Typed("i32", -1), "1"]),
        "padding_token_id": ("bpe", "padding", [Typed("i32", -1), "1"]),
        "add_bos_token": ("bpe", "add_bos", [1, "true"]),
        "scores": ("spm", "scores", [None, scores[:-1], [*scores, 0.0], Typed("i32", [0] * len(scores))]),
        "byte_tokens": ("spm", "byte token", [[*pieces[:3], odd, *pieces[4:]] for odd in ("<0x-1>", "<0xA>", "0")]),
        "twice_a_byte": ("spm", "once", [[*pieces[:3], "<0x01>", *pieces[4:]]]),
    }  # fmt: skip
    cases = {}
    for name, (tokenizer, word, values) in bad.items():
        key = {
            "duplicate_tokens": "tokens",
            "odd_token_type": "token_type",
            "merges_of_nothing": "merges",
        }.get(name, name)
        key = {"byte_tokens": "tokens", "twice_a_byte": "tokens"}.get(key, key)
        for i, value in enumerate(values):
            cases[f"{name}_{i}"] = (set_keys({f"tokenizer.ggml.{key}": value}, tokenizer).pack(), word)
    no_bos = set_keys({"tokenizer.ggml.bos_token_id": None, "tokenizer.ggml.add_bos_token": True})
    half = set_keys({"tokenizer.ggml.token_type": Typed("i32", [2, 3, 3] + [6] * 255 + [1] * 12)}, "spm")
    return cases | {"add_bos_without_bos": (no_bos.pack(), "bos"), "half_the_bytes": (half.pack(), "byte")}


def tensor_cases() -> dict[str, tuple[bytes, str]]:
    base = parts()
    size = len(base.body)
    second = base.infos[1].offset
    bad = {
        "empty_name": (set_info(0, name=b""), "name"),
        "long_name": (set_info(0, name=b"x" * 65), "64"),
        "name_not_utf8": (set_info(0, name=b"\xff"), "UTF-8"),
        "duplicate_tensor": (set_info(1, name=b"token_embd.weight"), "once|again"),
        "unknown_tensor": (set_info(1, name=b"blk.0.attn_q_norm.weight"), "output_norm|attn_q_norm"),
        "other_layer": (set_info(4, name=b"blk.7.attn_q.weight"), "blk.0.attn_q.weight"),
        "swapped_dims": (set_info(0, dims=[270, 32]), "shape|vocab|tokens"),
        "one_dim_too_many": (set_info(0, dims=[32, 270, 1]), "matrix"),
        "norm_as_matrix": (set_info(1, dims=[16, 2]), "shape"),
        "offset_unaligned": (set_info(1, offset=second + 1), "offset"),
        "offset_overlaps": (set_info(1, offset=0), "offset"),
        "offset_with_gap": (set_info(1, offset=second + 32), "offset"),
        "offset_past_the_end": (set_info(1, offset=size + 32), "offset"),
        "offset_not_zero": (set_info(0, offset=32), "offset"),
        "out_of_order": (replace(base, infos=(base.infos[1], base.infos[0], *base.infos[2:])), "offset"),
        "cut_body": (replace(base, body=base.body[:-1]), "data up to"),
        "no_body": (replace(base, body=b""), "data up to"),
        "rows_of_no_whole_block": (set_info(0, dims=[31, 270], type_id=2), "multiple of 32"),
        "rows_of_no_whole_k_block": (set_info(0, dims=[32, 270], type_id=12), "multiple of 256"),
        "quantised_norm": (set_info(1, type_id=8, dims=[32]), "norm|offset"),
    }
    for n_dims in (0, 5, 2**31, 2**32 - 1):
        bad[f"n_dims_{n_dims}"] = (set_info(0, n_dims=n_dims), "dimensions")
    for dims in (
        [0, 270],
        [32, 0],
        [2**63, 1],
        [2**64 - 1, 1],
        [2**33, 2**33],
        [2**32, 2**32],
        [2**31, 2],
        [1, 2**63],
    ):
        bad[f"dims_{dims[0]}_{dims[1]}"] = (set_info(0, dims=dims), "token_embd")
    for type_id, word in UNREADABLE_TYPES.items():
        bad[f"type_{type_id}"] = (set_info(0, type_id=type_id), word)
    for offset in HUGE:
        bad[f"offset_{offset}"] = (set_info(1, offset=offset), "offset")
    for i, info in enumerate(base.infos):
        fewer = replace(base, infos=base.infos[:i] + base.infos[i + 1 :])
        bad[f"without_{info.name.decode()}"] = (fewer, "offset|found none|expected")
    del bad["without_output.weight"]  # dropping the head alone makes a tied model, with a gap where it was
    cases = {name: (made.pack(), word) for name, (made, word) in bad.items()}
    return cases | _extra_tensor_cases()


def _extra_tensor_cases() -> dict[str, tuple[bytes, str]]:
    def vector(name: str, values: Sequence[float]) -> Tensor:
        return Tensor(name, "F32", 0, len(values), struct.pack(f"<{len(values)}f", *values))

    extras = {
        "bias": (vector("blk.0.attn_q.bias", [0.0] * 32), "attn_k.bias"),
        "upper_bias": (vector("blk.0.ffn_up.bias", [0.0] * 31 + [1.0]), "ffn_up.bias"),
        "router": (vector("blk.0.ffn_gate_inp.weight", [0.0] * 32), "ffn_gate_inp"),
        "rope_factors_short": (vector("rope_freqs.weight", [1.0, 1.0, 1.0]), "rope_freqs"),
        "rope_factors_zero": (vector("rope_freqs.weight", [1.0, 0.0, 1.0, 1.0]), "rope_freqs"),
        "rope_factors_nan": (vector("rope_freqs.weight", [1.0, float("nan"), 1.0, 1.0]), "rope_freqs"),
        "layer_beyond": (vector("blk.1.attn_norm.weight", [1.0] * 32), "blk.1.attn_norm"),
    }
    return {f"extra_{name}": (parts(extra=[tensor]).pack(), word) for name, (tensor, word) in extras.items()}


GROUPS: tuple[Callable[[], dict[str, tuple[bytes, str]]], ...] = (
    header_cases,
    key_cases,
    setting_cases,
    tokenizer_cases,
    tensor_cases,
)


def cases() -> dict[str, tuple[bytes, str]]:
    """Name -> (file, regular expression that the message must contain)."""
    found: dict[str, tuple[bytes, str]] = {}
    for group in GROUPS:
        for name, case in group().items():
            if name in found:
                raise ValueError(f"two cases are called {name}")
            found[name] = case
    return found
