"""The verbs besides `run`: what they print, their JSON, and what they refuse. docs/cli.md documents the JSON."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gguf_writer
import pyinfer
from lora_golden import FOLDER, base_folder
from pyinfer import _core, convert
from pyinfer.cli.eval import summary
from pyinfer.cli.main import VERBS, main
from pyinfer.cli.options import WEIGHTS
from pyinfer.convert.landing import WEIGHTS as CONVERTED_WEIGHTS
from pyinfer.errors import ModelFileError

ROOT = Path(__file__).parents[3]
STORIES = ROOT / "tests" / "data" / "stories260K.bin"
PROSE = ROOT / "tests" / "golden" / "prose.txt"


def documented_fields(title: str) -> set[str]:
    """Field names in the first column of the table under a heading of docs/cli.md."""
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    section = text.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]
    return set(re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE))


def fields(value: object, prefix: str = "") -> set[str]:
    """Paths of all fields of a JSON value: `spec.dim`, `results[].threads`."""
    if isinstance(value, list):
        return set().union(*(fields(item, f"{prefix}[]") for item in value)) if value else {prefix}
    if not isinstance(value, dict):
        return {prefix}
    found = (fields(item, f"{prefix}.{key}" if prefix else key) for key, item in value.items())
    return set().union(*found)


def read(done) -> dict:
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return json.loads(done.stdout)


# convert


def test_convert_writes_a_model_that_runs(run, tmp_path: Path) -> None:
    output = tmp_path / "stories.bin"
    done = run("convert", STORIES, output, "--weights", "q8")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(rf"wrote {output}, [\d.]+ KiB\n", done.stderr)
    with pyinfer.load(output, threads=1) as model:
        assert model.metadata.options == {"weights": "q8"}


def test_the_formats_offered_are_those_that_can_be_asked_for() -> None:
    assert WEIGHTS == CONVERTED_WEIGHTS


@pytest.mark.parametrize("kind", ["missing", "read-only", "itself", "folder", "file as folder", "quantised"])
def test_convert_leaves_nothing_half_written(kind: str, run, tmp_path: Path) -> None:
    source, output, extra = STORIES, tmp_path / "out.bin", ()
    if kind == "missing":
        source = tmp_path / "missing.gguf"
    elif kind == "read-only":
        output = Path("/proc/out.bin")
    elif kind == "itself":
        source = output = gguf_writer.write_llama(tmp_path / "m.gguf", tokenizer=None)
    elif kind == "folder":
        output.mkdir()
    elif kind == "file as folder":
        (tmp_path / "file").touch()
        output = tmp_path / "file" / "out.bin"
    elif kind == "quantised":
        source = gguf_writer.write_llama(tmp_path / "m.gguf", gguf_writer.TinyLlama(kind="Q8_0"))
        extra = ("--weights", "q4")
    before = sorted(tmp_path.rglob("*"))
    done = run("convert", source, output, *extra)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("pyinfer: ")
    assert done.stderr.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


# info


@pytest.mark.parametrize("source", ["model.bin", "llama2c", "gguf"])
def test_info_says_the_same_of_a_source_and_of_its_conversion(source: str, run, tmp_path: Path) -> None:
    shape = gguf_writer.TinyLlama(n_vocab=300, types={"attn_q": "Q4_0", "ffn_up": "Q8_0"})
    path = (
        gguf_writer.write_llama(tmp_path / "m.gguf", shape, tokenizer="spm")
        if source != "llama2c"
        else STORIES
    )
    if source == "model.bin":
        run("convert", path, tmp_path / "m.bin")
        path = tmp_path / "m.bin"
    report = read(run("info", path, "--json"))
    assert fields(report) - {"source", "landed[].rms_error"} <= documented_fields("info") | {
        "memory.workspace"
    }
    model = run("run", path, "x", "-n", 1, "--raw")
    assert model.returncode == 0
    with pyinfer.load(path, threads=1) as loaded:
        assert report["kind"] == source
        assert report["name"] == loaded.name
        layers = ("windowed", "unrotated")
        assert [tuple(report["spec"].pop(name)) for name in layers] == [loaded.spec[name] for name in layers]
        assert report["spec"] == pytest.approx({k: v for k, v in loaded.spec.items() if k not in layers})
        memory = loaded.memory()
        assert report["memory"]["kv_cache"] == memory["kv_cache"]
        assert report["memory"]["context"] == loaded.context
        matrices = [t for t in _core.ModelFile(str(loaded.path)).tensors if t["role"] != "rope_freqs"]
        assert report["parameters"] == sum(tensor["rows"] * tensor["cols"] for tensor in matrices)
        assert sum(landed["tensors"] for landed in report["landed"]) == len(matrices) + 1


def test_info_opens_without_converting(run, own_cache: Path) -> None:
    done = run("info", STORIES)
    assert done.returncode == 0
    assert "llama, 0.3 million parameters" in done.stdout
    assert "5 layers of 64, 8 heads, 4 KV heads of 8, hidden 172" in done.stdout
    assert not own_cache.exists()


def test_info_verify_checks_every_weight(run, stories_model_bin: Path, tmp_path: Path) -> None:
    good = read(run("info", stories_model_bin, "--verify", "--json"))
    assert good["verified"] is True
    damaged = tmp_path / "damaged.bin"
    raw = bytearray(stories_model_bin.read_bytes())
    tensor = next(
        t for t in _core.ModelFile(str(stories_model_bin)).tensors if (t["role"], t["layer"]) == ("q", 3)
    )
    raw[tensor["offset"] + 5] ^= 1
    damaged.write_bytes(raw)
    assert read(run("info", damaged, "--json"))["verified"] is None
    done = run("info", damaged, "--verify")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"pyinfer: {damaged}: expected weights as their checksums say, found others in q of layer 3\n"
    )


def test_info_refuses_what_loading_refuses(run, tmp_path: Path) -> None:
    keys = {"general.architecture": "mamba"}
    path = gguf_writer.write_llama(tmp_path / "m.gguf", extra_kv=keys)
    for verb in (("info",), ("run", "--raw", "-n", "1")):
        done = run(verb[0], path, *verb[1:], *(["x"] if verb[0] == "run" else []))
        assert (done.returncode, done.stdout) == (1, "")
        assert "mamba" in done.stderr
        assert done.stderr.count("\n") == 1


def test_info_does_not_pass_on_what_a_terminal_would_obey(run, tmp_path: Path) -> None:
    keys = {"general.name": "nice\x1b]0;title\x07 model"}
    path = gguf_writer.write_llama(tmp_path / "m.gguf", extra_kv=keys)
    done = run("info", path)
    assert "nice\\x1b]0;title\\x07 model" in done.stdout


def test_info_reads_no_weights(
    stories_model_bin: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ahead: list[object] = []
    engine = _core.Engine

    def made(*given: Any, **named: Any) -> _core.Engine:
        ahead.append(named["prefetch"])
        return engine(*given, **named)

    monkeypatch.setattr(_core, "Engine", made)
    assert main(["info", str(stories_model_bin), "--json"]) == 0
    assert ahead == [False]
    with pyinfer.load(stories_model_bin) as model:
        assert json.loads(capsys.readouterr().out)["memory"].items() >= model.memory().items()


# lora


def test_the_json_of_lora_is_documented(run, tmp_path: Path) -> None:
    convert.convert(base_folder(tmp_path / "base", False), tmp_path / "base.bin")
    stack = (FOLDER / "plain", FOLDER / "alora", "--base", tmp_path / "base.bin", "--json")
    found = fields(read(run("lora", "inspect", *stack)))
    check = read(run("lora", "check", *stack[:1], *stack[2:]))
    export = read(run("lora", "export", *stack[:1], *stack[2:], "-o", tmp_path / "one"))
    assert found | fields(check) | fields(export) == documented_fields("lora")


# tokenize


def test_tokenize_prints_what_the_api_encodes(run, stories_model_bin: Path, stories: pyinfer.Model) -> None:
    text = "Once upon a time, café <s>\n"
    assert read(run("tokenize", stories_model_bin, "--ids", stdin=text)) == stories.tokenizer.encode(text)
    bare = read(run("tokenize", stories_model_bin, "--ids", "--no-special", stdin=text))
    assert bare == stories.tokenizer.encode(text, add_special=False)
    special = read(run("tokenize", stories_model_bin, "--ids", "--parse-special", stdin=text))
    assert special == stories.tokenizer.encode(text, parse_special=True)


def test_tokenize_spells_tokens_line_by_line(run, stories_model_bin: Path) -> None:
    done = run("tokenize", stories_model_bin, stdin="Once upon\n")
    assert done.stdout.splitlines()[0] == '1\t"<s>"'
    rows = [line.split("\t") for line in done.stdout.splitlines()[1:]]
    assert "".join(json.loads(piece) for _, piece in rows) == " Once upon\n"


def test_tokenize_of_nothing(run, stories_model_bin: Path) -> None:
    assert read(run("tokenize", stories_model_bin, "--ids", "--no-special")) == []


# eval


def test_eval_is_the_mean_over_the_second_halves(
    run, stories_model_bin: Path, stories: pyinfer.Model
) -> None:
    """Against the definition, computed here from all logits at once."""
    report = read(run("eval", stories_model_bin, "--perplexity", PROSE, "--ctx", 64, "-t", 1, "--json"))
    assert fields(report) == documented_fields("eval")
    tokens = stories.tokenizer.encode(PROSE.read_text(encoding="utf-8").removesuffix("\n"))
    scores: list[float] = []
    for start in range(0, len(tokens) - 63, 64):
        chunk = [stories.tokenizer.bos, *tokens[start + 1 : start + 64]]
        logits = stories.logits(chunk).astype(np.float64)
        logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        scores += [logs[i, chunk[i + 1]] for i in range(32, 63)]
    assert report["tokens"] == len(scores)
    assert (report["chunks"], report["ctx"], report["text_tokens"]) == (len(tokens) // 64, 64, len(tokens))
    assert report["perplexity"] == pytest.approx(np.exp(-np.mean(scores)), rel=1e-9)
    spread = np.exp(-np.mean(scores)) * np.std(scores, ddof=1) / np.sqrt(len(scores))
    assert report["uncertainty"] == pytest.approx(spread, rel=1e-9)


def test_eval_of_fewer_chunks(run, stories_model_bin: Path) -> None:
    report = read(run("eval", stories_model_bin, "--perplexity", PROSE, "--ctx", 64, "--chunks", 2, "--json"))
    assert report["chunks"] == 2
    done = run("eval", stories_model_bin, "--perplexity", PROSE, "--ctx", 64, "--chunks", 2)
    assert done.stdout.startswith(
        f"perplexity {report['perplexity']:.4f} +/- {report['uncertainty']:.4f}, 62 of "
    )


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        (None, (), "No such file"),
        (b"too short", (), "at least 512 tokens"),
        (b"caf\xe9", (), "UTF-8"),
        (b"x", ("--ctx", "100000"), "at most 512"),
    ],
)
def test_eval_refuses(
    text: bytes | None, options: tuple, words: str, run, stories_model_bin: Path, tmp_path: Path
) -> None:
    path = tmp_path / "text"
    if text is not None:
        path.write_bytes(text)
    done = run("eval", stories_model_bin, "--perplexity", path, *options)
    assert (done.returncode, done.stdout) == (1, "")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_eval_has_no_perplexity_for_logits_that_are_no_numbers() -> None:
    with pytest.raises(ModelFileError, match="expected finite logits"):
        summary(np.array([-1.0, np.nan]), 1, 4, 4)


@pytest.mark.parametrize("verb", ["eval", "bench"])
def test_what_does_not_fit_is_refused_before_it_is_read(
    verb: str, stories_model_bin: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same sum as `load` makes, with the session that the verb uses."""
    asked = {
        "eval": ("--perplexity", str(PROSE), "--ctx", "64", "--chunks", "1"),
        "bench": ("-p", "64", "-n", "2"),
    }
    with pyinfer.load(stories_model_bin, threads=1) as model:
        needed = sum(model.memory(64).values())
    command = [verb, str(stories_model_bin), *asked[verb], "-t", "1"]
    monkeypatch.setattr("pyinfer.memory.available_bytes", lambda: needed)
    assert main(command) == 0
    capsys.readouterr()
    monkeypatch.setattr("pyinfer.memory.available_bytes", lambda: needed - 1)
    monkeypatch.setattr(_core, "Session", None)
    assert main(command) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert re.search(
        r"^pyinfer: the model .* needs [\d.]+ MiB of memory \(.*64 tokens.*\), but only", said.err
    )


# bench


def test_bench_measures_every_number_of_threads(run, stories_model_bin: Path) -> None:
    report = read(run("bench", stories_model_bin, "-p", 16, "-n", 4, "-t", "1,2", "-r", 2, "--json"))
    assert fields(report) == documented_fields("bench")
    assert report["isa"] == _core.active_isa()
    assert [result["threads"] for result in report["results"]] == [1, 2]
    for result in report["results"]:
        assert (result["prompt"], result["generate"], result["repeats"]) == (16, 4, 2)
        for what in ("prefill", "decode"):
            speeds = result[f"{what}_min"], result[f"{what}_tokens_per_s"], result[f"{what}_max"]
            assert 0 < speeds[0] <= speeds[1] <= speeds[2]


def test_bench_prints_a_table(run, stories_model_bin: Path) -> None:
    done = run("bench", stories_model_bin, "-p", 4, "-n", 2, "-r", 1, "-t", 1)
    assert re.search(r"^1 +4 +[\d.]+ +[\d.]+-[\d.]+ +2 +[\d.]+ +[\d.]+-[\d.]+$", done.stdout, re.MULTILINE)


def test_bench_refuses_more_than_the_context(run, stories_model_bin: Path) -> None:
    done = run("bench", stories_model_bin, "-p", 513)
    assert (done.returncode, done.stdout) == (1, "")
    assert "at most 512" in done.stderr


# pull and list


def test_pull_prints_the_path_and_list_shows_it(run, own_cache: Path) -> None:
    assert read(run("list", "--json")) == {"folder": str(own_cache), "bytes": 0, "models": []}
    path = Path(run("pull", STORIES).stdout.strip())
    assert path.parent == own_cache / "models"
    report = read(run("list", "--json"))
    assert fields(report) == documented_fields("list")
    [model] = report["models"]
    assert (model["path"], model["name"], model["source"]) == (str(path), "stories260K.bin", str(STORIES))
    assert model["bytes"] == report["bytes"] == path.stat().st_size
    text = run("list").stdout
    assert "stories260K.bin" in text
    assert f"1 model, 1.0 MiB in {own_cache}" in text


def test_list_refuses_a_folder_that_is_none(run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run("list", PYINFER_CACHE=str(tmp_path / "file"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(
        f"pyinfer: cannot read the cache folder {tmp_path}/file/models: Not a directory"
    )


def test_pull_of_an_unknown_name_says_the_known_ones(run) -> None:
    done = run("pull", "smollm3")
    assert done.returncode == 1
    assert "'smollm3'" in done.stderr
    assert "smollm2" in done.stderr


# cpu


def test_cpu_says_what_the_core_says(run) -> None:
    report = read(run("cpu", "--json"))
    assert fields(report) == documented_fields("cpu")
    assert report["isa"] == _core.active_isa()
    assert [(isa["name"], isa["runs_here"]) for isa in report["isas"]] == _core.isas()
    assert report["threads"] == _core.default_threads()
    assert f"threads       {report['threads']}" in run("cpu").stdout


def test_the_instruction_set_can_be_forced(run) -> None:
    assert read(run("cpu", "--json", PYINFER_ISA="scalar"))["isa"] == "scalar"
    done = run("cpu", PYINFER_ISA="quantum")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("pyinfer: ")
    assert "quantum" in done.stderr
    assert "scalar" in done.stderr
    assert done.stderr.count("\n") == 1


# documentation


def test_every_verb_is_documented() -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    for verb in VERBS:
        assert f"\n## {verb}\n" in text


def test_progress_bars_keep_off_pipes(run, own_cache: Path) -> None:
    """Whatever takes long: standard error of a pipe stays empty."""
    done = run("pull", STORIES, PYTHONHASHSEED="0")
    assert done.stderr == ""
    assert os.path.isfile(done.stdout.strip())
