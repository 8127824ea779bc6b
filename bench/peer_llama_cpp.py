"""Drives llama.cpp through the low-level API of llama-cpp-python as llama-bench does: no sampling, no templates.

Runs under the interpreter of the environment that holds the peer (`compare.py --peer-python`).
Settings: `repack` (weights in the kernels' own layout), `flash_attn`, `kv_unified` (one cache for all sequences), each
0 or 1, `n_ubatch`, tokens computed at once, and `lora`, paths of adapters, all with weight 1.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
from typing import Any

import driver
from driver import Settings

N_BATCH = 2048  # tokens given at once, as in llama-bench
N_UBATCH = 512  # tokens computed at once, as in llama-bench


class Timeline:
    """A llama_context; sequence i has the id i."""

    def __init__(self, api: Any, model: Any, capacity: int, sequences: int, settings: Settings) -> None:
        params = api.llama_context_default_params()
        per_sequence = (capacity + 255) // 256 * 256
        params.n_ctx = per_sequence * sequences
        params.n_batch = max(N_BATCH, sequences)
        params.n_ubatch = settings.get("n_ubatch", N_UBATCH)
        params.n_seq_max = sequences
        params.flash_attn_type = settings.get("flash_attn", 1)
        params.kv_unified = bool(settings.get("kv_unified", 0))
        params.offload_kqv = False
        params.no_perf = True
        self._api = api
        self._context = api.llama_init_from_model(model, params)
        if not self._context:
            raise RuntimeError(
                f"llama.cpp refused a context of {params.n_ctx} tokens with settings {settings}"
            )
        self._attach(model, settings.get("lora", []))
        self._memory = api.llama_get_memory(self._context)
        self._n_vocab = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
        self._sequences = sequences
        self._batch = api.llama_batch_init(max(N_BATCH, sequences), 0, 1)
        self.position = 0

    def _attach(self, model: Any, paths: list[str]) -> None:
        self._adapters = [self._api.llama_adapter_lora_init(model, path.encode()) for path in paths]
        if not all(self._adapters):
            raise RuntimeError(f"llama.cpp refused an adapter of {paths}")
        n, attach = len(self._adapters), self._api.llama_set_adapters_lora
        pointers = (attach.argtypes[1]._type_ * n)(*self._adapters)
        if n and attach(self._context, pointers, n, (ctypes.c_float * n)(*[1.0] * n)):
            raise RuntimeError(f"llama.cpp cannot attach {paths}")

    def close(self) -> None:
        """Frees the context."""
        self._api.llama_batch_free(self._batch)
        self._api.llama_free(self._context)
        for adapter in self._adapters:
            self._api.llama_adapter_lora_free(adapter)

    def use_threads(self, threads: int) -> None:
        """Sets the threads of everything that follows."""
        self._api.llama_set_n_threads(self._context, threads, threads)

    def rewind(self, position: int) -> None:
        """Forgets all tokens from `position` on."""
        if position == 0:
            self._api.llama_memory_clear(self._memory, False)
        else:
            for sequence in range(self._sequences):
                if not self._api.llama_memory_seq_rm(self._memory, sequence, position, -1):
                    raise RuntimeError(f"llama.cpp cannot forget the tokens from {position} on")
        self.position = position

    def _decode(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """Computes rows of (token, position, sequence, wants logits)."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i] = token
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = wanted
        status = self._api.llama_decode(self._context, batch)
        if status != 0:
            raise RuntimeError(
                f"llama_decode of {len(rows)} tokens at position {self.position} returned {status}"
            )

    def fill(self, tokens: list[int]) -> None:
        """Appends these tokens to every sequence."""
        if self._sequences > 1:
            for sequence in range(self._sequences):
                last = len(tokens) - 1
                self._decode([(t, self.position + i, sequence, i == last) for i, t in enumerate(tokens)])
        else:
            for at in range(0, len(tokens), N_BATCH):
                part = tokens[at : at + N_BATCH]
                array = (ctypes.c_int32 * len(part))(*part)
                batch = self._api.llama_batch_get_one(array, len(part))
                if self._api.llama_decode(self._context, batch) != 0:
                    raise RuntimeError(f"llama_decode of {len(part)} tokens failed")
        self._api.llama_synchronize(self._context)
        self.position += len(tokens)

    def step(self, tokens: list[int]) -> None:
        """Appends one token to each sequence."""
        self._decode([(token, self.position, sequence, True) for sequence, token in enumerate(tokens)])
        self._api.llama_synchronize(self._context)
        self.position += 1

    def logits(self) -> list[float]:
        """Logits of the last token."""
        values = self._api.llama_get_logits_ith(self._context, -1)
        return [values[i] for i in range(self._n_vocab)]


class LlamaCpp(driver.TimelineEngine):
    """llama.cpp with one model; `repack` belongs to the model, all other settings to its contexts."""

    def __init__(self) -> None:
        package = importlib.import_module("llama_cpp")
        self._api: Any = package.llama_cpp
        self._version = package.__version__
        self._api.llama_backend_init()
        self._quiet = self._api.llama_log_callback(lambda *_: None)
        self._api.llama_log_set(self._quiet, None)
        self._timelines: dict[tuple[Any, ...], Timeline] = {}

    def open(self, model: str, settings: Settings) -> None:
        """Loads the model."""
        params = self._api.llama_model_default_params()
        params.n_gpu_layers = 0
        params.use_extra_bufts = bool(settings.get("repack", 1))
        self._model = self._api.llama_model_load_from_file(model.encode(), params)
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {model}")

    def about(self) -> dict[str, Any]:
        """Version and what llama.cpp says of its build."""
        info = self._api.llama_print_system_info().decode().strip(" |")
        return {"engine": "llama.cpp", "version": f"llama-cpp-python {self._version}", "build": info}

    def n_vocab(self) -> int:
        """Tokens of the model's vocabulary."""
        return int(self._api.llama_vocab_n_tokens(self._api.llama_model_get_vocab(self._model)))

    def timeline(self, capacity: int, sequences: int, threads: int, settings: Settings) -> Timeline:
        """A context of this size; the same one if asked again."""
        key = (capacity, sequences, repr(sorted(settings.items())))
        if key not in self._timelines:
            self._timelines[key] = Timeline(self._api, self._model, capacity, sequences, settings)
        self._timelines[key].use_threads(threads)
        return self._timelines[key]

    def forget(self) -> None:
        """Frees all contexts."""
        for timeline in self._timelines.values():
            timeline.close()
        self._timelines.clear()


if __name__ == "__main__":
    sys.exit(driver.main(LlamaCpp))
