"""Added tokens: a checkpoint made as large as an adapter's embedding and head are, with the adapter's tokenizer.

Only merging can do this; an attached stack has the vocabulary of its model. Must not know how weights are merged.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pyinfer import _core
from pyinfer.adapters import Adapter, Weighted
from pyinfer.convert.adapter import Replaced
from pyinfer.convert.checkpoint import Checkpoint, ReadRows, Tensor, TokenizerSource, in_file, row_bytes
from pyinfer.convert.huggingface import chat_template
from pyinfer.convert.huggingface_tokenizer import read_tokenizer
from pyinfer.convert.small_file import optional_json
from pyinfer.errors import ModelFileError, UnsupportedError
from pyinfer.vocabulary import open_vocabulary

__all__ = ["grown"]

ROLES = ("embedding", "head")


def grown(checkpoint: Checkpoint, weighted: Weighted) -> tuple[Checkpoint, Weighted]:
    """The checkpoint with rows of zeros for the tokens that an adapter adds, unless it has rows to spare, and the stack
    as it fits there.

    Raises:
        UnsupportedError: Several adapters add tokens, or one does with a weight other than 1: there is nothing of the
            base's to weigh new rows against.
        ModelFileError: The adapter has no head for its new tokens, or its tokenizer knows more of them.
    """
    spec = checkpoint.spec
    growing = [
        (adapter, weight)
        for adapter, weight in weighted
        if _n_tokens(adapter) > spec.n_vocab or _fills_spare_rows(adapter, checkpoint)
    ]
    if not growing:
        return checkpoint, weighted
    adapter, weight = growing[0]
    if len(growing) > 1 or weight != 1.0:
        found = f"{len(growing)} of them" if len(growing) > 1 else f"the weight {weight:g}"
        raise UnsupportedError(
            f"adapter {adapter.name}: expected one adapter that adds tokens, of weight 1, found {found}"
        )
    n_vocab = _n_tokens(adapter)
    if n_vocab <= spec.n_vocab:
        return _with_tokenizer(checkpoint, adapter, spec.n_vocab), weighted
    tensors = tuple(
        _padded(tensor, n_vocab) if tensor.role in ROLES else tensor for tensor in checkpoint.tensors
    )
    made = replace(checkpoint, spec=replace(spec, n_vocab=n_vocab).check(), tensors=tensors)
    whole = _with_both(adapter, n_vocab, spec.tied_head)
    stack = tuple((whole if one is adapter else one, number) for one, number in weighted)
    return _with_tokenizer(made, adapter), stack


def _fills_spare_rows(adapter: Adapter, checkpoint: Checkpoint) -> bool:
    """Whether the adapter trained rows of tokens, and its folder's tokenizer has some where the base's has fillers or
    none, as where a table is padded.
    """
    folder, base = adapter.path, checkpoint.tokenizer
    ends = [item for item in adapter.source.replaced if item.role in ROLES]
    if not ends or not folder.is_dir() or base.kind == "none":
        return False
    try:
        settings = optional_json(folder / "tokenizer_config.json")
        own = read_tokenizer(folder, {}, {}, settings, checkpoint.spec.n_vocab)
        new, old = open_vocabulary(own.kind, own.blob), open_vocabulary(base.kind, base.blob)
    except ModelFileError:  # one that cannot be read is none; the base's was read before
        return False
    if new is None or old is None:
        return False
    return any(new.piece(i) and old.piece(i) in ("", f"[PAD{i}]", f"[EMPTY_{i}]") for i in range(new.size))


def _n_tokens(adapter: Adapter) -> int:
    wholes = [item for item in adapter.source.replaced if item.rows is None and item.role in ROLES]
    return max((len(item.values) for item in wholes), default=0)


def _with_both(adapter: Adapter, n_vocab: int, tied: bool) -> Adapter:
    """The adapter with a head for its new tokens: its own, or where both are one tensor the embedding."""
    items = [item for item in adapter.source.replaced if item.rows is None and len(item.values) == n_vocab]
    roles = {item.role for item in items}
    if roles == set(ROLES):
        return adapter
    (item,) = items if len(items) == 1 else items[:1]
    if tied and item.with_head:
        return adapter
    if not tied or not item.of_base:
        other = "lm_head" if item.role == "embedding" else "embed_tokens"
        raise ModelFileError(
            f"adapter {adapter.name}: {item.name}: expected {other} with {n_vocab} tokens too, found none"
        )
    twin: Replaced = replace(item, role="head" if item.role == "embedding" else "embedding")
    source = replace(adapter.source, replaced=(*adapter.source.replaced, twin))
    return replace(adapter, source=source)


def _padded(tensor: Tensor, rows: int) -> Tensor:
    """A tensor with rows of zeros behind its own: in every format bytes of zero stand for them."""
    own = tensor.rows

    def read(start: int, stop: int) -> NDArray[np.uint8]:
        size = _size(tensor, stop - start)
        found = tensor.read(start, min(stop, own)) if start < own else np.zeros(0, np.uint8)
        return np.concatenate([found, np.zeros(size - len(found), np.uint8)])

    reader: ReadRows = read
    return replace(tensor, rows=rows, read=reader)


def _size(tensor: Tensor, rows: int) -> int:
    if tensor.packed:
        return _core.packed_bytes(tensor.source, rows, tensor.cols)
    return rows * row_bytes(tensor.source, tensor.cols)


def _with_tokenizer(checkpoint: Checkpoint, adapter: Adapter, rows: int | None = None) -> Checkpoint:
    """With the tokenizer and the chat template of the adapter's folder, where it has them; added tokens from `rows` on
    are left out.
    """
    folder = adapter.path
    if not folder.is_dir():
        return checkpoint
    with in_file(folder):
        settings = optional_json(folder / "tokenizer_config.json")
        own, base = read_tokenizer(folder, {}, {}, settings, rows), checkpoint.tokenizer
        if own.size > checkpoint.spec.n_vocab:
            raise ModelFileError(
                f"tokenizer: expected at most {checkpoint.spec.n_vocab} tokens, found {own.size}"
            )
        template = chat_template(folder, settings) or checkpoint.chat_template
    if own.kind == "none":
        return checkpoint
    return replace(checkpoint, tokenizer=_completed(own, base), chat_template=template)


def _completed(own: TokenizerSource, base: TokenizerSource) -> TokenizerSource:
    """Special tokens that the folder does not name are the base's."""
    return replace(
        own,
        bos=base.bos if own.bos is None else own.bos,
        eos=tuple(dict.fromkeys((*own.eos, *base.eos))),
        pad=base.pad if own.pad is None else own.pad,
        unk=base.unk if own.unk is None else own.unk,
    )
