"""Perplexity of one GGUF file on one text by llama.cpp and by `pyinfer eval`, side by side.

    python bench/perplexity_peer.py MODEL.gguf TEXT [--ctx 512] [--chunks N] [--pyinfer COMMAND]

Runs in an environment that has llama-cpp-python; `--pyinfer` names the command of an environment that has pyinfer.
The definition is llama-perplexity's: the text's tokens in chunks of `ctx`, each from an empty cache, the model's BOS in
place of a chunk's first token if it begins texts with one, and the tokens ctx/2 + 1 … ctx - 1 of each chunk scored.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import subprocess
from pathlib import Path

import llama_cpp
import numpy as np
from numpy.typing import NDArray

LIMIT = 0.005
"""By how much of itself the perplexity may differ: both round activations, in different places."""


def peer_perplexity(model: str, text: bytes, ctx: int, chunks: int | None) -> tuple[float, int]:
    """(perplexity, tokens scored) by llama.cpp."""
    llama = llama_cpp.Llama(model, n_ctx=ctx, n_batch=ctx, logits_all=True, verbose=False)
    tokens = llama.tokenize(text, add_bos=True, special=False)
    whole = len(tokens) // ctx if chunks is None else min(chunks, len(tokens) // ctx)
    scores = np.concatenate([chunk_scores(llama, tokens[i * ctx : (i + 1) * ctx]) for i in range(whole)])
    return math.exp(-scores.mean()), len(scores)


def chunk_scores(llama: llama_cpp.Llama, chunk: list[int]) -> NDArray[np.float64]:
    """Log-likelihoods of the scored tokens of one chunk."""
    vocab = llama_cpp.llama_model_get_vocab(llama.model)
    if llama_cpp.llama_vocab_get_add_bos(vocab):
        chunk = [llama.token_bos(), *chunk[1:]]
    llama.reset()
    llama.eval(chunk)
    first = len(chunk) // 2
    logits = np.array(llama.scores[first : len(chunk) - 1], np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    picked: NDArray[np.float64] = logits[np.arange(len(logits)), chunk[first + 1 :]]
    return picked - np.log(np.exp(logits).sum(axis=1))


def our_perplexity(command: str, model: str, text: Path, ctx: int, chunks: int | None) -> tuple[float, int]:
    """(perplexity, tokens scored) by `pyinfer eval`."""
    call = [*shlex.split(command), "eval", model, "--perplexity", str(text), "--ctx", str(ctx), "--json"]
    call += ["--chunks", str(chunks)] if chunks is not None else []
    result = json.loads(subprocess.run(call, check=True, stdout=subprocess.PIPE).stdout)
    return result["perplexity"], result["tokens"]


def main() -> int:
    """Prints both figures as JSON; 1 if they differ by more than LIMIT or scored other tokens."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("text", type=Path)
    parser.add_argument("--ctx", type=int, default=512)
    parser.add_argument("--chunks", type=int)
    parser.add_argument("--pyinfer", default="pyinfer")
    given = parser.parse_args()
    text = given.text.read_bytes().removesuffix(b"\n")
    theirs, n_theirs = peer_perplexity(given.model, text, given.ctx, given.chunks)
    ours, n_ours = our_perplexity(given.pyinfer, given.model, given.text, given.ctx, given.chunks)
    difference = ours / theirs - 1
    answer = {"llama.cpp": theirs, "pyinfer": ours, "difference": difference, "tokens": [n_theirs, n_ours]}
    print(json.dumps(answer))
    return 0 if abs(difference) <= LIMIT and n_theirs == n_ours else 1


if __name__ == "__main__":
    raise SystemExit(main())
