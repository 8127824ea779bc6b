"""Models that several test files need: made or fetched once a session."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

import gguf_writer
import tiny_models
import vocabularies as llama_cpp
from pyinfer import Model, convert, hub, load

# What a shell starts in the background ignores Ctrl-C, and so would all that the tests start and then interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def smollm2_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct.Q4_1.gguf: the file that PYINFER_SMOLLM2_GGUF names, or fetched as a user's would be."""
    if given := os.environ.get("PYINFER_SMOLLM2_GGUF"):
        return Path(given)
    kept = tmp_path_factory.mktemp("smollm2") / "smollm2.gguf"
    with hub.published("smollm2") as path:
        shutil.copyfile(path, kept)
    return kept


@pytest.fixture(scope="session")
def smollm2_bin(smollm2_gguf: Path) -> Path:
    """The same model, converted."""
    return hub.resolve(smollm2_gguf)


@pytest.fixture(scope="session")
def vocabularies() -> Path:
    """A folder with the vocabularies, vectors and chat templates of llama.cpp; skips where it cannot be had."""
    return llama_cpp.folder()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[tiny_models.Shape], tuple[Path, Path]]:
    """Shape -> (GGUF file, model.bin), each made once."""

    @cache
    def made(name: str) -> tuple[Path, Path]:
        folder = tmp_path_factory.mktemp(name)
        gguf = tiny_models.write(tiny_models.named(name), folder / f"{name}.gguf")
        convert.convert(gguf, folder / f"{name}.bin")
        return gguf, folder / f"{name}.bin"

    return lambda shape: made(shape.name)


STORIES = Path(__file__).parents[1] / "data" / "stories260K.bin"
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def stories_model_bin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model of 260 thousand parameters that tells stories; SentencePiece tokenizer, no chat template."""
    path = tmp_path_factory.mktemp("stories") / "stories.bin"
    convert.convert(STORIES, path)
    return path


@pytest.fixture(scope="session")
def tiny_model_bin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with byte-level BPE tokens, a chat template and a context of 128."""
    folder = tmp_path_factory.mktemp("tiny")
    shape = gguf_writer.TinyLlama(n_vocab=270, tied=True)
    keys = {"tokenizer.chat_template": CHATML, "tokenizer.ggml.eos_token_id": 261}
    gguf = gguf_writer.write_llama(folder / "tiny.gguf", shape, tokenizer="bpe", extra_kv=keys)
    convert.convert(gguf, folder / "tiny.bin")
    return folder / "tiny.bin"


@pytest.fixture(scope="session")
def stories(stories_model_bin: Path) -> Iterator[Model]:
    """The story teller, ready."""
    with load(stories_model_bin, threads=1) as model:
        yield model


@pytest.fixture(scope="session")
def tiny_chat(tiny_model_bin: Path) -> Iterator[Model]:
    """The random model, ready."""
    with load(tiny_model_bin, threads=1) as model:
        yield model
