"""A reader of model.bin written from docs/model-file.md alone; where the core disagrees, core or page is wrong."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

HEADER_FIELDS = (
    ("magic", 0, "8s"),
    ("version", 8, "I"),
    ("header_bytes", 12, "I"),
    ("file_bytes", 16, "Q"),
    ("spec_offset", 24, "Q"),
    ("spec_bytes", 32, "Q"),
    ("table_offset", 40, "Q"),
    ("table_bytes", 48, "Q"),
    ("metadata_offset", 56, "Q"),
    ("metadata_bytes", 64, "Q"),
    ("tokenizer_offset", 72, "Q"),
    ("tokenizer_bytes", 80, "Q"),
    ("weights_offset", 88, "Q"),
    ("weights_bytes", 96, "Q"),
    ("metadata_crc", 104, "I"),
    ("tokenizer_crc", 108, "I"),
    ("head_crc", 124, "I"),
)
SPEC_FIELDS = (
    ("spec_version", 0, "I"),
    ("n_layers", 4, "I"),
    ("dim", 8, "I"),
    ("n_heads", 12, "I"),
    ("n_kv_heads", 16, "I"),
    ("head_dim", 20, "I"),
    ("n_ff", 24, "I"),
    ("n_vocab", 28, "I"),
    ("context", 32, "I"),
    ("rope_dim", 36, "I"),
    ("norm_eps", 40, "f"),
    ("rope_magnitude", 44, "f"),
    ("attention_scale", 48, "f"),
    ("flags", 52, "I"),
    ("embedding_scale", 56, "f"),
    ("attn_softcap", 60, "f"),
    ("logit_softcap", 64, "f"),
    ("window", 68, "I"),
    ("long_context", 72, "I"),
)
FLAGS = ("tied_head", "qkv_bias", "o_bias", "qk_norm", "post_norms", "gelu", "local_rope", "norm_offset")
MARKS = {"windowed": 76, "unrotated": 92}  # 16 bytes each, bit i of them for layer i
RECORD_FIELDS = (
    ("role", 0, "I"),
    ("layer", 4, "I"),
    ("format", 8, "I"),
    ("reserved", 12, "I"),
    ("rows", 16, "Q"),
    ("cols", 24, "Q"),
    ("offset", 32, "Q"),
    ("bytes", 40, "Q"),
    ("crc", 48, "I"),
)
HEADER_BYTES, SPEC_BYTES, RECORD_BYTES = 128, 128, 64
SPEC_AT, TABLE_AT, HEAD_CRC_AT = 128, 256, 124
ROLES = {
    0: "embedding", 1: "final_norm", 2: "head", 3: "rope_freqs", 4: "rope_freqs_local", 5: "rope_freqs_long",
    16: "attn_norm", 17: "q", 18: "k", 19: "v", 20: "o", 21: "ffn_norm", 22: "gate", 23: "up", 24: "down",
    25: "q_bias", 26: "k_bias", 27: "v_bias", 28: "o_bias", 29: "q_norm", 30: "k_norm",
    31: "post_attn_norm", 32: "post_ffn_norm",
}  # fmt: skip
FORMATS = {
    0: "vector", 1: "f32", 2: "f16", 3: "bf16", 4: "q4", 5: "q4m", 6: "q8", 7: "q8m",
    8: "q4k", 9: "q5k", 10: "q6k",
}  # fmt: skip
TILE_ROWS, GROUP_COLUMNS, BLOCK = 16, 64, 32


@dataclass(frozen=True)
class Record:
    """One row of the tensor table with its bytes."""

    role: str
    layer: int  # -1 outside the layers
    format: str
    rows: int
    cols: int
    crc: int
    data: NDArray[np.uint8]

    def values(self) -> NDArray[np.float32]:
        """Dequantised values, shape (rows, cols)."""
        return unpack(self.format, self.data, self.rows, self.cols)


@dataclass(frozen=True)
class ModelBin:
    """All that the page describes."""

    header: dict[str, int | bytes]
    spec: dict[str, int | float]
    records: tuple[Record, ...]
    metadata: bytes
    tokenizer: bytes
    marks: dict[str, tuple[int, ...]]  # layers by what marks them

    def has(self, flag: str) -> bool:
        """Whether a flag is set."""
        return bool(int(self.spec["flags"]) >> FLAGS.index(flag) & 1)

    def tensor(self, role: str, layer: int = -1) -> Record:
        """The record of one (role, layer)."""
        return next(r for r in self.records if (r.role, r.layer) == (role, layer))


def _fields(raw: bytes, at: int, fields: tuple[tuple[str, int, str], ...]) -> dict[str, int]:
    return {name: struct.unpack_from("<" + code, raw, at + offset)[0] for name, offset, code in fields}


def head_crc(raw: bytes) -> int:
    """The checksum that a head with these bytes must carry."""
    table_bytes = struct.unpack_from("<Q", raw, 48)[0]
    return zlib.crc32(raw[HEADER_BYTES : TABLE_AT + table_bytes], zlib.crc32(raw[:HEAD_CRC_AT]))


def read(path: str | Path) -> ModelBin:
    """Reads a file and checks what the page says of the whole of it: checksums, zero padding and order."""
    raw = Path(path).read_bytes()
    header = _fields(raw, 0, HEADER_FIELDS)
    assert header["magic"] == b"PYINFER\0" and header["version"] == 1 and header["file_bytes"] == len(raw)
    assert header["head_crc"] == head_crc(raw)
    assert raw[112:124] == bytes(12) and raw[SPEC_AT + 108 : TABLE_AT] == bytes(20)
    metadata = raw[header["metadata_offset"] :][: header["metadata_bytes"]]
    tokenizer = raw[header["tokenizer_offset"] :][: header["tokenizer_bytes"]]
    assert zlib.crc32(metadata) == header["metadata_crc"] and zlib.crc32(tokenizer) == header["tokenizer_crc"]
    tokenizer_end = header["tokenizer_offset"] + header["tokenizer_bytes"]
    assert header["weights_offset"] == -(-tokenizer_end // 4096) * 4096
    assert not any(raw[tokenizer_end : header["weights_offset"]])
    records = _records(raw, header["table_bytes"] // RECORD_BYTES, header["weights_offset"])
    spec = _fields(raw, SPEC_AT, SPEC_FIELDS)
    assert spec["spec_version"] in (1, 2) and spec["flags"] < (2, 256)[spec["spec_version"] - 1]
    assert spec["spec_version"] == 2 or raw[SPEC_AT + 56 : SPEC_AT + 108] == bytes(52)
    marks = {name: _marked(raw[SPEC_AT + at :][:16]) for name, at in MARKS.items()}
    return ModelBin(dict(header), dict(spec), records, metadata, tokenizer, marks)


def _marked(bits: bytes) -> tuple[int, ...]:
    return tuple(i for i in range(128) if bits[i // 8] >> i % 8 & 1)


def _records(raw: bytes, count: int, start: int) -> tuple[Record, ...]:
    records, end = [], start
    for i in range(count):
        at = TABLE_AT + i * RECORD_BYTES
        f = _fields(raw, at, RECORD_FIELDS)
        assert raw[at + 52 : at + 64] == bytes(12) and f["reserved"] == 0
        assert f["offset"] % 64 == 0 and 0 <= f["offset"] - end < 64 and not any(raw[end : f["offset"]])
        end = f["offset"] + f["bytes"]
        data = np.frombuffer(raw, np.uint8, f["bytes"], f["offset"])
        assert zlib.crc32(data) == f["crc"]
        layer = -1 if f["layer"] == 0xFFFFFFFF else f["layer"]
        records.append(
            Record(ROLES[f["role"]], layer, FORMATS[f["format"]], f["rows"], f["cols"], f["crc"], data)
        )
    assert 0 <= len(raw) - end < 64 and not any(raw[end:])
    return tuple(records)


def unpack(name: str, data: NDArray[np.uint8], rows: int, cols: int) -> NDArray[np.float32]:
    """Values of one packed tensor, shape (rows, cols)."""
    if name == "vector":
        return data.view("<f4").reshape(rows, cols)
    kinds = {"f32": _float_tiles, "f16": _float_tiles, "bf16": _float_tiles}
    kinds |= {"q4k": _super_tiles, "q5k": _super_tiles, "q6k": _super_tiles}
    return kinds.get(name, _quantised_tiles)(name, data, rows)[:rows, :cols]


def _float_tiles(name: str, data: NDArray[np.uint8], rows: int) -> NDArray[np.float32]:
    stored = data.view({"f32": "<f4", "f16": "<f2", "bf16": "<u2"}[name])
    if name == "bf16":
        stored = (stored.astype(np.uint32) << 16).view(np.float32)
    tiles = stored.astype(np.float32).reshape(-(-rows // TILE_ROWS), -1, TILE_ROWS)
    return tiles.transpose(0, 2, 1).reshape(-1, tiles.shape[1])


def _quantised_tiles(name: str, data: NDArray[np.uint8], rows: int) -> NDArray[np.float32]:
    has_minimum, four_bits = name.endswith("m"), name.startswith("q4")
    head = 128 if has_minimum else 64
    group = head + (512 if four_bits else 1024)
    tiles = data.reshape(-(-rows // TILE_ROWS), -1, group)
    integers = (_nibbles if four_bits else _bytes)(tiles[:, :, head:])
    if name == "q4":
        integers = integers - 8.0
    values = _per_block(tiles[:, :, :64]) * integers
    if has_minimum:
        values = values + _per_block(tiles[:, :, 64:128])
    return values.astype(np.float32).reshape(-1, tiles.shape[1] * GROUP_COLUMNS)


def _super_tiles(name: str, data: NDArray[np.uint8], rows: int) -> NDArray[np.float32]:
    """q4k, q5k and q6k: groups of 256 columns."""
    high = {"q4k": 0, "q5k": 512, "q6k": 1024}[name]
    tiles = data.reshape(-(-rows // TILE_ROWS), -1, 64 + 256 + 2048 + high)
    n, groups = tiles.shape[:2]
    low = _nibbles(tiles[:, :, 320 : 320 + 2048].reshape(n, groups * 4, 512)).reshape(
        n, TILE_ROWS, groups, 8, BLOCK
    )
    integers = low + 16 * _high_bits(name, tiles[:, :, 320 + 2048 :])
    d = _halves_of_rows(tiles[:, :, :32])
    if name == "q6k":
        assert not tiles[:, :, 32:64].any()
        scales = _bytes_of_rows(tiles[:, :, 64:320].view(np.int8), 16).repeat(16, axis=-1)
        values = d * scales.reshape(integers.shape) * (integers - 32)
    else:
        scales, least = (_bytes_of_rows(tiles[:, :, at : at + 128], 8)[..., None] for at in (64, 192))
        values = d * scales * integers - _halves_of_rows(tiles[:, :, 32:64]) * least
    return values.astype(np.float32).reshape(-1, groups * 256)


def _high_bits(name: str, bits: NDArray[np.uint8]) -> NDArray[np.float64]:
    """What stands above the low four bits, (tiles, 16 rows, groups, 8 blocks, 32 columns)."""
    n, groups = bits.shape[:2]
    found = np.zeros((n, TILE_ROWS, groups, 8, BLOCK))
    for column in range(BLOCK if bits.shape[2] else 0):
        if name == "q5k":
            four = bits.reshape(n, groups, 8, TILE_ROWS, 4)[..., column % 4]
            value = four >> (column // 4) & 1
        else:
            four = bits.reshape(n, groups, 8, 2, TILE_ROWS, 4)[:, :, :, column // 16, :, column % 4]
            value = four >> (2 * (column // 4 % 4)) & 3
        found[..., column] = value.transpose(0, 3, 1, 2)
    return found


def _halves_of_rows(halves: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(tiles, groups, 32 bytes) -> (tiles, 16 rows, groups, 1, 1)."""
    return np.ascontiguousarray(halves).view("<f2").astype(np.float64).transpose(0, 2, 1)[..., None, None]


def _bytes_of_rows(numbers: NDArray[np.uint8] | NDArray[np.int8], runs: int) -> NDArray[np.float64]:
    """(tiles, groups, runs * 16) -> (tiles, 16 rows, groups, runs)."""
    n, groups = numbers.shape[:2]
    return numbers.reshape(n, groups, runs, TILE_ROWS).transpose(0, 3, 1, 2).astype(np.float64)


def _per_block(halves: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(tiles, groups, 64 bytes) -> (tiles, 16 rows, groups, 2 blocks, 1)."""
    h = np.ascontiguousarray(halves).view("<f2").astype(np.float64)
    return h.reshape(*h.shape[:2], 2, TILE_ROWS).transpose(0, 3, 1, 2)[..., None]


def _bytes(q: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(tiles, groups, 1024) -> (tiles, 16 rows, groups, 2 blocks, 32 columns)."""
    q = np.ascontiguousarray(q)
    tiles, groups = q.shape[:2]
    fours = q.view(np.int8).reshape(tiles, groups, 2, 8, TILE_ROWS, 4)
    return fours.transpose(0, 4, 1, 2, 3, 5).reshape(tiles, TILE_ROWS, groups, 2, BLOCK).astype(np.float64)


def _nibbles(q: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(tiles, groups, 512) -> (tiles, 16 rows, groups, 2 blocks, 32 columns)."""
    tiles, groups = q.shape[:2]
    packed = q.reshape(tiles, groups, 2, 1, 4, TILE_ROWS, 4)
    halves = np.concatenate([packed & 15, packed >> 4], axis=3)
    rows = halves.transpose(0, 5, 1, 2, 3, 4, 6)
    return rows.reshape(tiles, TILE_ROWS, groups, 2, BLOCK).astype(np.float64)
