"""Makes the golden files of model families: tiny random models and their logits by `transformers`; run it only
to change them.

    pip install torch==2.13.0 transformers==5.24.0 safetensors numpy
    python tests/golden/make_families.py [NAME ...]

families/NAME/ holds config.json, model.safetensors (float16, which the model's float32 values are) and
logits.npz: for each text its tokens, some positions, and the float32 logits after those. Windows are shorter
than the texts, caps lie where scores are, biases and norms are far from 0 and 1: what a reader forgets shows.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

FOLDER = Path(__file__).parent / "families"
TEXT = 100  # tokens: more than a page of the cache
EVERY = 3  # positions of which logits are kept

SHAPE: dict[str, Any] = {
    "vocab_size": 264, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 256, "tie_word_embeddings": False,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64, "rope_theta": 500.0,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 2.0,
    "beta_slow": 0.25,
    "rope_theta": 1000.0,
}  # fmt: skip
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1000.0, "partial_rotary_factor": 0.75,
    "original_max_position_embeddings": 64, "short_factor": [1.0, 1.0, 1.125, 1.25, 1.5, 1.75],
    "long_factor": [1.0, 1.5, 2.5, 3.5, 4.5, 5.0],
}  # fmt: skip

CASES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "tie_word_embeddings": True, "rope_parameters": LLAMA3},
    "llama_linear": {
        "model_type": "llama", "attention_bias": True,
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
    },
    "llama_dynamic": {
        "model_type": "llama", "max_position_embeddings": 50,
        "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
        "texts": (50, 100),
    },
    "llama_yarn": {"model_type": "llama", "rope_parameters": YARN},
    "mistral": {"model_type": "mistral", "sliding_window": 21},
    "qwen2": {"model_type": "qwen2"},
    "qwen2_windows": {
        "model_type": "qwen2", "use_sliding_window": True, "sliding_window": 33, "max_window_layers": 1,
        "num_hidden_layers": 2,
    },
    "qwen3": {"model_type": "qwen3", "tie_word_embeddings": True},
    "phi3": {
        "model_type": "phi3", "num_key_value_heads": 1, "sliding_window": 40, "rope_parameters": LONGROPE,
        "original_max_position_embeddings": 64, "hidden_size": 64, "texts": (60, 100),
    },
    "gemma2": {
        "model_type": "gemma2", "tie_word_embeddings": True, "sliding_window": 18, "query_pre_attn_scalar": 16,
        "attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0,
    },
    "gemma3": {
        "model_type": "gemma3_text", "tie_word_embeddings": True, "sliding_window": 15, "num_hidden_layers": 7,
        "query_pre_attn_scalar": 16, "vocab_size": 264,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    },
    "smollm3": {"model_type": "smollm3", "tie_word_embeddings": True, "num_hidden_layers": 4},
}  # fmt: skip


def spread(name: str, shape: torch.Size, config: Any) -> tuple[float, float]:
    """Mean and standard deviation of a tensor."""
    offset = config.model_type.startswith("gemma")
    if name.endswith("norm.weight"):
        return (0.0 if offset else 1.0), 0.3
    if name.endswith("bias"):
        return 0.0, 0.5
    into = shape[-1] ** -0.5
    if "embed_tokens" in name:
        return 0.0, 2 * into if config.tie_word_embeddings else 1.0
    if "lm_head" in name:
        return 0.0, 2 * into
    return 0.0, into


def make(name: str, changes: dict[str, Any]) -> None:
    """Writes one folder."""
    settings = {**SHAPE, **changes}
    lengths = settings.pop("texts", (TEXT,))
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    random = torch.Generator().manual_seed(sum(name.encode()))
    with torch.no_grad():
        for key, value in model.named_parameters():
            mean, deviation = spread(key, value.shape, config)
            fresh = mean + deviation * torch.randn(value.shape, generator=random)
            value.copy_(fresh.half().float())
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config.architectures = [type(model).__name__]
    kept = config.to_dict()
    for key in ("_name_or_path", "transformers_version", "dtype", "torch_dtype"):
        kept.pop(key, None)
    (folder / "config.json").write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    save_file(
        {key: value.detach().half() for key, value in model.named_parameters()}, folder / "model.safetensors"
    )
    arrays: dict[str, np.ndarray] = {}
    for i, length in enumerate(lengths):
        tokens = torch.randint(0, config.vocab_size, (1, length), generator=random)
        positions = np.unique(np.append(np.arange(0, length, EVERY), length - 1))
        with torch.no_grad():
            logits = model(tokens).logits[0].numpy()[positions]
        arrays |= {f"tokens{i}": tokens[0].numpy(), f"positions{i}": positions, f"logits{i}": logits}
        print(
            f"{name}: {length} tokens, logits spread {logits.std():.2f}, {float(np.abs(logits).max()):.2f} at most"
        )
    np.savez_compressed(folder / "logits.npz", **arrays)


if __name__ == "__main__":
    for wanted in sys.argv[1:] or CASES:
        make(wanted, CASES[wanted])
