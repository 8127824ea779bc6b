"""Trains tiny LoRA adapters with PEFT in seconds on a CPU, then loads and stacks them here.

    pip install torch transformers peft
    python examples/train_adapter.py tests/data/stories260K.bin examples/adapters

The model writes its own lessons: it tells stories, a rule rewrites them, and an adapter learns to tell them so.
`excited` learns exclamation marks, `max` that the hero is a boy called Max. Each knows nothing of the other, yet both
can be put on at once.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

import pyinfer
from pyinfer import convert

LESSONS: dict[str, Callable[[str], str]] = {
    "excited": lambda story: story.replace(".", "!"),
    "max": lambda story: story.replace("Lily", "Max").replace("girl", "boy").replace(" She ", " He "),
}
MODULES = {
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}  # fmt: skip
"""Role of a tensor here -> its name in a layer of transformers."""
STORIES, LENGTH, STEPS, BATCH = 64, 96, 40, 8


def as_transformers(path: Path) -> LlamaForCausalLM:
    """The model of a llama2.c file in transformers, which PEFT can train."""
    source = convert.open_source(path)
    spec, tensors = source.spec, {}
    for tensor in source.tensors:
        values = tensor.read(0, tensor.rows).view(np.float32).reshape(tensor.rows, tensor.cols)
        if tensor.role in MODULES:
            name = f"model.layers.{tensor.layer}.{MODULES[tensor.role]}.weight"
        elif tensor.role == "rope_freqs":  # transformers computes them
            continue
        else:
            name = {"embedding": "model.embed_tokens.weight", "final_norm": "model.norm.weight"}[tensor.role]
        tensors[name] = torch.tensor(values.squeeze())
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=spec.n_vocab, hidden_size=spec.dim, intermediate_size=spec.n_ff, rms_norm_eps=spec.norm_eps,
        num_hidden_layers=spec.n_layers, num_attention_heads=spec.n_heads, num_key_value_heads=spec.n_kv_heads,
        max_position_embeddings=spec.context, tie_word_embeddings=spec.tied_head,
    ))  # fmt: skip
    model.load_state_dict(tensors, strict=False)
    model.tie_weights()
    return model


def lessons(model: pyinfer.Model, rule: Callable[[str], str]) -> torch.Tensor:
    """Token ids of rewritten stories, (STORIES, LENGTH)."""
    prompt, rows = "Once upon a time", []
    for seed in range(STORIES):
        story = prompt + model.generate(prompt, seed=seed, temperature=0.7, max_tokens=LENGTH).text
        ids = model.tokenizer.encode(rule(story))
        rows.append((ids * (LENGTH // len(ids) + 1))[:LENGTH])  # a short story is told again
    return torch.tensor(rows)


def train(model: LlamaForCausalLM, texts: torch.Tensor, folder: Path) -> float:
    """Trains one adapter and saves it in half precision; the last loss."""
    torch.manual_seed(0)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear")
    adapted = get_peft_model(model, config).train()
    optimizer = torch.optim.AdamW(adapted.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for step in range(STEPS):
        at = step * BATCH % STORIES
        loss = adapted(input_ids=texts[at : at + BATCH], labels=texts[at : at + BATCH]).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    adapted.half().save_pretrained(folder)
    (folder / "README.md").unlink()  # PEFT's form of a model card
    return float(loss.detach())


def main() -> None:
    """Trains both adapters and tells one story with each stack."""
    parser = argparse.ArgumentParser(description="Train tiny adapters and stack them.")
    parser.add_argument("model", type=Path, help="stories260K.bin, with tok512.bin beside it")
    parser.add_argument("folder", type=Path, help="where the adapters go")
    args = parser.parse_args()
    torch.set_num_threads(1)  # so small a model gains nothing from more
    model = pyinfer.load(args.model)
    for name, rule in LESSONS.items():
        start = time.perf_counter()
        loss = train(as_transformers(args.model), lessons(model, rule), args.folder / name)
        print(f"{name}: loss {loss:.2f} after {STEPS} steps, {time.perf_counter() - start:.0f} s")
        model.add_adapter(args.folder / name)
    for stack in ([], ["excited"], ["max"], ["excited", "max"], [("excited", -1.0), ("max", 0.5)]):
        answer = model.generate("Once upon a time", temperature=0, max_tokens=60, adapters=stack)
        print(f"\n{stack}: Once upon a time{answer.text}")


if __name__ == "__main__":
    main()
