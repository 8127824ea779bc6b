"""`pyinfer run`: where the prompt comes from, the template, the options, Ctrl-C, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import gguf_writer
import pyinfer
from pyinfer import convert

STORIES = Path(__file__).parents[2] / "data" / "stories260K.bin"
BEGINNING = "a time, there was a little girl named Lily. She loved to play outside in the park."
RAW = ("--raw", "--greedy", "-t", "1", "-n", "24")


def test_a_prompt_is_answered_as_the_api_answers_it(
    run, stories_model_bin: Path, stories: pyinfer.Model
) -> None:
    done = run("run", stories_model_bin, "Once upon", *RAW)
    expected = stories.generate("Once upon", max_tokens=24, temperature=0).text
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{expected}\n", "")
    assert expected.strip().startswith("a time, there was a little girl named Lily")


def test_a_source_is_converted_once_into_the_cache(run, own_cache: Path) -> None:
    first = run("run", STORIES, "Once upon", *RAW)
    made = [path.stat().st_mtime_ns for path in (own_cache / "models").glob("*.bin")]
    assert run("run", STORIES, "Once upon", *RAW).stdout == first.stdout
    assert [path.stat().st_mtime_ns for path in (own_cache / "models").glob("*.bin")] == made
    assert len(made) == 1


def test_no_cache_leaves_nothing(run, own_cache: Path, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    done = run("run", STORIES, "Once upon", *RAW, "--no-cache", TMPDIR=str(tmp_path / "tmp"))
    assert done.returncode == 0, done.stderr
    assert not own_cache.exists()
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_pipe_is_a_prompt_and_follows_the_argument(
    run, stories_model_bin: Path, stories: pyinfer.Model
) -> None:
    piped = run("run", stories_model_bin, *RAW, stdin="Once upon")
    assert piped.stdout == run("run", stories_model_bin, "Once upon", *RAW).stdout
    both = run("run", stories_model_bin, "Once upon", *RAW, stdin="a time")
    assert both.stdout == stories.generate("Once upon\n\na time", max_tokens=24, temperature=0).text + "\n"


def test_the_template_is_used_unless_raw(run, tiny_model_bin: Path, tiny_chat: pyinfer.Model) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "the"}]
    told = run("run", tiny_model_bin, "the", "--system", "Be brief.", "--greedy", "-n", 8)
    assert told.stdout.rstrip("\n") == tiny_chat.chat(messages, max_tokens=8, temperature=0).text.rstrip("\n")
    raw = run("run", tiny_model_bin, "the", "--raw", "--greedy", "-n", 8)
    assert raw.stdout.rstrip("\n") == tiny_chat.generate("the", max_tokens=8, temperature=0).text.rstrip("\n")


def test_the_end_of_the_last_line_of_a_pipe_is_no_part_of_it(run, stories_model_bin: Path) -> None:
    expected = run("run", stories_model_bin, "Once upon", *RAW).stdout
    for piped in ("Once upon\n", "Once upon\r\n"):
        assert run("run", stories_model_bin, *RAW, stdin=piped).stdout == expected
        assert run("run", stories_model_bin, "-", *RAW, stdin=piped).stdout == expected


def test_control_tokens_in_a_raw_prompt_are_told(run, tiny_model_bin: Path, tiny_chat: pyinfer.Model) -> None:
    text, options = "<|im_start|>the", ("--raw", "--greedy", "-n", 4)
    done = run("run", tiny_model_bin, text, *options)
    assert done.stderr == "pyinfer: <|im_start|> is taken as text; --parse-special makes it a control token\n"
    parsed = run("run", tiny_model_bin, text, *options, "--parse-special")
    expected = tiny_chat.generate(text, parse_special=True, max_tokens=4, temperature=0).text
    assert (parsed.stdout.rstrip("\n"), parsed.stderr) == (expected.rstrip("\n"), "")
    assert run("run", tiny_model_bin, text, "--parse-special").stderr.startswith(
        "pyinfer: --parse-special needs --raw"
    )


def test_weights_are_chosen_where_a_model_is_run(run, own_cache: Path) -> None:
    for weights in ("q4", "q8"):
        assert run("run", STORIES, "Once upon", *RAW, "--weights", weights).returncode == 0
    listed = [pyinfer._core.ModelFile(str(path)) for path in (own_cache / "models").glob("*.bin")]
    assert {tensor["format"] for file in listed for tensor in file.tensors} == {"q4", "q8", "vector"}


@pytest.mark.parametrize(
    "name", ["format", "system", "input", "messages", "tools", "documents", "chat-template-kwargs"]
)
def test_a_conversation_is_none_with_raw(run, name: str, tiny_model_bin: Path) -> None:
    done = run("run", tiny_model_bin, "x", f"--{name}", "y", "--raw")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"pyinfer: --{name} needs a prompt format, which --raw leaves out\n"


def test_an_empty_system_message_is_one_with_raw_too(run, tiny_model_bin: Path) -> None:
    done = run("run", tiny_model_bin, "x", "--system", "", "--raw")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "pyinfer: --system needs a prompt format, which --raw leaves out\n"


def test_a_model_without_template_and_known_name_is_refused(run, stories_model_bin: Path) -> None:
    done = run("run", stories_model_bin, "x")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "has no chat template" in done.stderr and "vicuna-v0" in done.stderr


def test_a_named_format_takes_an_input(run, stories_model_bin: Path, stories: pyinfer.Model) -> None:
    say = ("--greedy", "-n", 8, "-t", 1)
    done = run("run", stories_model_bin, "Sum up.", "--format", "alpaca", "--input", "A tale.", *say)
    messages = [{"role": "user", "content": "Sum up.", "input": "A tale."}]
    answer = stories.chat(messages, format="alpaca", max_tokens=8, temperature=0)
    assert (done.returncode, done.stdout.rstrip("\n")) == (0, answer.text.rstrip("\n"))
    refused = run("run", stories_model_bin, "x", "--format", "vicuna", "--input", "y")
    assert refused.stderr.startswith("pyinfer: prompt format vicuna: expected only role, content")
    alone = run("run", stories_model_bin, "--messages", os.devnull, "--input", "y", "--format", "alpaca")
    assert alone.returncode == 1 and alone.stderr.count("\n") == 1


def test_messages_and_tools_come_from_files(run, tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.role }}={{ m.content }};{% endfor %}{{ tools|tojson }}"
    keys = {"tokenizer.chat_template": template}
    shape = gguf_writer.TinyLlama(n_vocab=270, tied=True, context=512)
    path = gguf_writer.write_llama(tmp_path / "m.gguf", shape, tokenizer="bpe", extra_kv=keys)
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    tools = [{"name": "f"}]
    (tmp_path / "said.json").write_text(json.dumps({"messages": said}))
    (tmp_path / "tools.json").write_text(json.dumps(tools))
    files = ("--messages", tmp_path / "said.json", "--tools", tmp_path / "tools.json", "--system", "s")
    done = run("run", path, "c", *files, "--greedy", "-n", 6, "-t", 1)
    whole = [{"role": "system", "content": "s"}, *said, {"role": "user", "content": "c"}]
    with pyinfer.load(path, threads=1) as model:
        answer = model.chat(whole, tools=tools, max_tokens=6, temperature=0)
        assert done.stdout.rstrip("\n") == answer.text.rstrip("\n"), done.stderr
        (tmp_path / "said.json").write_text(json.dumps(whole))
        again = run(
            "run", path, "--messages", tmp_path / "said.json", *files[2:4], "--greedy", "-n", 6, "-t", 1
        )
        assert again.stdout == done.stdout
    twice = run("run", path, "x", "--messages", tmp_path / "said.json", "--system", "s")
    assert "expected no system message beside --system" in twice.stderr


@pytest.mark.parametrize(
    "content", [b"", b"{", b"5", b"[5]", b'{"a": 1}', b"\xff", b"[" * 100_000, b'{"a":' * 100_000, None]
)
@pytest.mark.parametrize("option", ["--messages", "--tools", "--documents"])
def test_files_that_are_no_lists_are_one_line(
    run, option: str, content: bytes | None, tiny_model_bin: Path, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    done = run("run", tiny_model_bin, "x", option, tmp_path / "a.json")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "a.json" in done.stderr and "Traceback" not in done.stderr


def test_the_sampling_options_reach_the_sampler(run, stories_model_bin: Path, stories: pyinfer.Model) -> None:
    params = pyinfer.SamplingParams(
        temperature=1.5, top_k=20, top_p=0.9, min_p=0.01, typical_p=0.95, repetition_penalty=1.1,
        presence_penalty=0.2, frequency_penalty=0.1, penalty_window=32, logit_bias={403: -5.0, 410: 1.0}, seed=7,
    )  # fmt: skip
    options = (
        "--temp 1.5 --top-k 20 --top-p 0.9 --min-p 0.01 --typical-p 0.95 --repeat-penalty 1.1 --presence-penalty 0.2 "
        "--frequency-penalty 0.1 --penalty-window 32 --logit-bias 403=-5 --logit-bias 410=1 --seed 7"
    )
    done = run("run", stories_model_bin, "Once", "--raw", "-t", 1, "-n", 40, *options.split())
    assert done.stdout.rstrip("\n") == stories.generate("Once", params=params, max_tokens=40).text.rstrip(
        "\n"
    )


def test_stop_ends_the_answer_before_it(run, stories_model_bin: Path) -> None:
    done = run("run", stories_model_bin, "Once upon", "--raw", "--greedy", "-n", 60, "--stop", "Lily")
    assert done.stdout.rstrip().endswith("a little girl named")


def test_stats_are_on_standard_error(run, stories_model_bin: Path) -> None:
    done = run("run", stories_model_bin, "Once upon", *RAW, "--stats")
    assert re.search(r"prefill +\d+ tokens +[\d.]+ tokens/s", done.stderr)
    assert re.search(r"decode +24 tokens +[\d.]+ tokens/s", done.stderr)
    assert re.search(r"first token +[\d.]+ s", done.stderr)
    assert re.search(r"peak memory +[\d.]+ MiB", done.stderr)
    assert "tokens/s" not in done.stdout


def test_a_full_context_is_said(run, stories_model_bin: Path) -> None:
    done = run("run", stories_model_bin, "Once upon", "--raw", "--greedy", "--ctx", 16)
    assert done.returncode == 0
    assert done.stderr == "pyinfer: the answer was cut off, the context of 16 tokens is full; see --ctx\n"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--temp", "nan"), "temperature"),
        (("--temp", "-1"), "temperature"),
        (("--top-p", "2"), "top_p"),
        (("--top-k", "-3"), "top_k"),
        (("--repeat-penalty", "0"), "repetition_penalty"),
        (("--seed", "-1"), "seed"),
        (("--logit-bias", "100000=1"), "logit_bias"),
        (("--greedy", "--temp", "0.5"), "--greedy"),
        (("--ctx", "100000"), "context"),
        (("--ctx", "4"), "context holds 4"),
        (("--stop", ""), "stop"),
    ],
)
def test_what_cannot_be_honoured_is_one_line(
    options: tuple[str, ...], words: str, run, stories_model_bin: Path
) -> None:
    done = run("run", stories_model_bin, "Once upon a time there was", "--raw", "-n", 4, *options)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("pyinfer: ")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_empty_system_message_is_one(run, tiny_model_bin: Path, tiny_chat: pyinfer.Model) -> None:
    told = [{"role": "system", "content": ""}, {"role": "user", "content": "the"}]
    done = run("run", tiny_model_bin, "the", "--system", "", "--greedy", "-n", 4, "--stats")
    assert (done.returncode, f"{len(tiny_chat.chat_tokens(told))} tokens" in done.stderr) == (0, True), (
        done.stderr
    )


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are Unicode here")
def test_names_of_files_need_not_be_utf8(run, own_cache: Path, tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    folder.mkdir()
    gguf_writer.write_llama(folder / "a.gguf", gguf_writer.TinyLlama(n_vocab=300), tokenizer="spm")
    first = run("run", folder / "a.gguf", "the", "--raw", "--greedy", "-n", 4)
    assert (first.returncode, first.stderr) == (0, "")
    converted = run("convert", folder / "a.gguf", folder / "a.bin")
    assert converted.returncode == 0, converted.stderr
    for verb in ("info", "run"):
        done = run(verb, folder / "a.bin", *(("the", "--raw", "--greedy", "-n", 4) if verb == "run" else ()))
        assert done.returncode == 0, done.stderr
    assert done.stdout == first.stdout
    assert run("list").returncode == 0


def test_no_prompt_at_all_is_one_line(run, stories_model_bin: Path) -> None:
    done = run("run", stories_model_bin)
    assert done.returncode == 1
    assert done.stderr.startswith("pyinfer: the prompt is empty")


def test_a_pipe_that_is_not_utf8_is_one_line(run, stories_model_bin: Path) -> None:
    done = run("run", stories_model_bin, stdin=b"caf\xe9")
    assert done.returncode == 1
    assert done.stderr == "pyinfer: standard input: expected UTF-8 text, found byte 0xe9 at 3\n"


def test_activations_are_chosen_by_option_and_variable(run, stories_model_bin: Path) -> None:
    by_option = run("run", stories_model_bin, "Once upon", *RAW, "--activations", "f32")
    by_variable = run("run", stories_model_bin, "Once upon", *RAW, PYINFER_ACTIVATIONS="f32")
    assert by_option.stdout == by_variable.stdout
    wrong = run("run", stories_model_bin, "Once upon", *RAW, PYINFER_ACTIVATIONS="f64")
    assert (wrong.returncode, wrong.stderr) == (
        1,
        "pyinfer: PYINFER_ACTIVATIONS: expected int8 or f32, found 'f64'\n",
    )


def _started(*arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-u", "-m", "pyinfer", *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """A command whose answer goes on for tens of thousands of tokens."""
    folder = tmp_path_factory.mktemp("endless")
    shape = gguf_writer.TinyLlama(n_vocab=300, context=1 << 16)
    convert.convert(gguf_writer.write_llama(folder / "m.gguf", shape, tokenizer="spm"), folder / "m.bin")
    return [
        "run",
        folder / "m.bin",
        "a",
        "--raw",
        "-t",
        1,
        "--ctx",
        1 << 16,
        "--seed",
        1,
        "--logit-bias",
        "2=-inf",
    ]


@pytest.mark.parametrize(("signal_", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_it_at_once_without_a_word(signal_: int, code: int, endless: list[object]) -> None:
    process = _started(*endless)
    assert process.stdout is not None
    assert process.stdout.read(1), "the first piece is there before the answer is finished"
    process.send_signal(signal_)
    start = time.perf_counter()
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (code, b"")
    assert time.perf_counter() - start < 2


def test_a_reader_that_goes_away_is_quiet(endless: list[object]) -> None:
    process = _started(*endless)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait(timeout=30) == 141


def test_a_model_without_words_does_not_obey_the_terminal() -> None:
    from pyinfer.cli.answer import _CONTROLS

    assert "a\x1b[31m\x9b\r\b\x7f\n\tb".translate(_CONTROLS) == "a\ufffd[31m\ufffd\ufffd\ufffd\ufffd\n\tb"


@pytest.mark.parametrize(
    "kind", ["missing", "empty", "folder", "mislabelled", "cut", "fifo", "unreadable cache"]
)
def test_bad_models_are_one_line(
    kind: str, run, tmp_path: Path, stories_model_bin: Path, own_cache: Path
) -> None:
    path = tmp_path / "model.gguf"
    if kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "mislabelled":
        path.write_text("This is a text, whatever its name says.")
    elif kind == "cut":
        path.write_bytes(stories_model_bin.read_bytes()[:-1])
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "unreadable cache":
        own_cache.write_text("in the way")
        path = STORIES
    done = run("run", path, "x")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("pyinfer: ")
    assert str(own_cache if kind == "unreadable cache" else path) in done.stderr
    assert done.stderr.count("\n") == 1
