"""What tensors are called: tables of role -> name, for layers with {} where the number stands, and look-ups in them.

A family that has other names than LLaMA changes some entries of a table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from pyinfer.convert.checkpoint import LAYER_ROLES, NO_LAYER

__all__ = ["FUSED_HUGGINGFACE", "FUSED_PHI3", "GGUF", "HUGGINGFACE", "LLAMA2C", "place_of"]

Names = Mapping[str, str]

GGUF: Names = {
    "embedding": "token_embd.weight",
    "final_norm": "output_norm.weight",
    "head": "output.weight",
    "attn_norm": "blk.{}.attn_norm.weight",
    "q": "blk.{}.attn_q.weight",
    "k": "blk.{}.attn_k.weight",
    "v": "blk.{}.attn_v.weight",
    "o": "blk.{}.attn_output.weight",
    "ffn_norm": "blk.{}.ffn_norm.weight",
    "gate": "blk.{}.ffn_gate.weight",
    "up": "blk.{}.ffn_up.weight",
    "down": "blk.{}.ffn_down.weight",
    "q_bias": "blk.{}.attn_q.bias",
    "k_bias": "blk.{}.attn_k.bias",
    "v_bias": "blk.{}.attn_v.bias",
    "o_bias": "blk.{}.attn_output.bias",
    "q_norm": "blk.{}.attn_q_norm.weight",
    "k_norm": "blk.{}.attn_k_norm.weight",
    "post_attn_norm": "blk.{}.post_attention_norm.weight",
    "post_ffn_norm": "blk.{}.post_ffw_norm.weight",
}
HUGGINGFACE: Names = {
    "embedding": "model.embed_tokens.weight",
    "final_norm": "model.norm.weight",
    "head": "lm_head.weight",
    "attn_norm": "model.layers.{}.input_layernorm.weight",
    "q": "model.layers.{}.self_attn.q_proj.weight",
    "k": "model.layers.{}.self_attn.k_proj.weight",
    "v": "model.layers.{}.self_attn.v_proj.weight",
    "o": "model.layers.{}.self_attn.o_proj.weight",
    "ffn_norm": "model.layers.{}.post_attention_layernorm.weight",
    "gate": "model.layers.{}.mlp.gate_proj.weight",
    "up": "model.layers.{}.mlp.up_proj.weight",
    "down": "model.layers.{}.mlp.down_proj.weight",
    "q_bias": "model.layers.{}.self_attn.q_proj.bias",
    "k_bias": "model.layers.{}.self_attn.k_proj.bias",
    "v_bias": "model.layers.{}.self_attn.v_proj.bias",
    "o_bias": "model.layers.{}.self_attn.o_proj.bias",
    "q_norm": "model.layers.{}.self_attn.q_norm.weight",
    "k_norm": "model.layers.{}.self_attn.k_norm.weight",
}
LLAMA2C: Names = {role: role for role in ("embedding", "final_norm", "head")} | {
    role: role + ".{}" for role in LAYER_ROLES
}
FUSED_HUGGINGFACE: Names = {
    "qkv": "model.layers.{}.self_attn.qkv_proj.weight",
    "gate_up": "model.layers.{}.mlp.gate_up_proj.weight",
}
FUSED_PHI3: Names = {"qkv": "blk.{}.attn_qkv.weight", "gate_up": "blk.{}.ffn_up.weight"}
"""Matrices that stand one above the other in one tensor; in GGUF files of Phi-3 with the name of another tensor."""


def place_of(name: str, names: Names) -> tuple[str, int] | None:
    """Role and layer of a tensor by its name; None if the table has no such tensor."""
    if "{" in name:
        return None
    number = re.search(r"\.(0|[1-9][0-9]{0,5})\.", name)
    template = name.replace(number[0], ".{}.", 1) if number else name
    role = next((role for role, known in names.items() if known == template), None)
    return (role, int(number[1]) if number else NO_LAYER) if role else None
