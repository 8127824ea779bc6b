"""Answers outside of sessions: what is generated, how it ends, and what is refused."""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gguf_writer import write_llama
from pyinfer import Chunk, Completion, Model, SamplingParams, convert, load
from pyinfer.errors import ContextFullError, MemoryLimitError, RequestError

ONCE = "Once upon a time"


def joined(chunks: Sequence[Chunk]) -> tuple[str, tuple[int, ...]]:
    return "".join(chunk.text for chunk in chunks), tuple(token for chunk in chunks for token in chunk.tokens)


def test_a_story_is_told(stories: Model) -> None:
    answer = stories.generate(ONCE, temperature=0, max_tokens=30)
    assert answer.text.startswith(", there was a little girl named Lily.")
    assert len(answer.tokens) == 30
    assert answer.finish_reason == "length"
    assert answer.logprobs is None
    assert stories.tokenizer.encode(ONCE)[0] == stories.tokenizer.bos


def test_greedy_is_the_argmax_of_the_logits(stories: Model) -> None:
    prompt = stories.tokenizer.encode(ONCE)
    answer = stories.generate(ONCE, temperature=0, max_tokens=20)
    rows = stories.logits([*prompt, *answer.tokens])
    assert tuple(rows[len(prompt) - 1 : -1].argmax(axis=1)) == answer.tokens


def test_same_seed_same_tokens(stories: Model) -> None:
    first = stories.generate(ONCE, temperature=1.2, max_tokens=40)
    again = stories.generate(ONCE, temperature=1.2, max_tokens=40, seed=first.seed)
    assert again.tokens == first.tokens
    others = {stories.generate(ONCE, temperature=1.2, max_tokens=40, seed=seed).tokens for seed in range(5)}
    assert len(others) > 1


def test_parameters_may_be_given_as_one_value_or_one_by_one(stories: Model) -> None:
    params = SamplingParams(temperature=1.2, top_k=10, seed=3)
    whole = stories.generate(ONCE, params=params, max_tokens=20)
    single = stories.generate(ONCE, temperature=1.2, top_k=10, seed=3, max_tokens=20)
    assert whole.tokens == single.tokens
    assert stories.generate(ONCE, params=params, temperature=0, max_tokens=20).tokens != whole.tokens


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompt=st.sampled_from(["", "Lily", "Tom and 🙂", "\n"]),
    seed=st.integers(0, 1000),
    temperature=st.sampled_from([0.0, 1.0, 8.0]),
    max_tokens=st.integers(0, 60),
    stop=st.lists(st.text(alphabet="ae tL.\n", min_size=1, max_size=4), max_size=3),
)
def test_chunks_add_up_to_the_completion(
    stories: Model, prompt: str, stop: list[str], **options: Any
) -> None:
    chunks = list(stories.stream(prompt, stop=stop, logprobs=1, min_p=0, top_k=0, **options))
    whole = chunks[-1].completion
    assert whole is not None
    assert joined(chunks) == (whole.text, whole.tokens)
    assert sum((chunk.logprobs or () for chunk in chunks), ()) == whole.logprobs
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert all(chunk.text for chunk in chunks[:-1])
    whole.text.encode()
    assert not any(text in whole.text for text in stop)
    assert whole.finish_reason == ("length" if len(whole.tokens) == options["max_tokens"] else "stop") or stop
    same = stories.generate(prompt, stop=stop, logprobs=1, min_p=0, top_k=0, **options)
    assert replace(same, timings=whole.timings) == whole


def test_a_stop_string_over_several_tokens_is_no_part_of_the_text(stories: Model) -> None:
    free = stories.generate(ONCE, temperature=0, max_tokens=60).text
    assert "girl named Lily" in free
    chunks = list(stories.stream(ONCE, temperature=0, max_tokens=60, stop="girl named Li"))
    text, tokens = joined(chunks)
    assert text == free[: free.index("girl named Li")]
    assert chunks[-1].finish_reason == "stop"
    assert stories.tokenizer.decode(tokens).startswith(text.lstrip() + "girl named Li")


def test_a_stop_string_in_what_was_held_back_stops(stories: Model) -> None:
    half = stories.tokenizer.piece_to_id("<0xC3>")
    done = stories.generate("x", stop="\ufffd", max_tokens=1, temperature=0, logit_bias={half: 1000})
    assert (done.tokens, done.text, done.finish_reason) == ((half,), "", "stop")


def test_stop_strings_that_do_not_come_hold_nothing_back(stories: Model) -> None:
    free = stories.generate(ONCE, temperature=0, max_tokens=11)
    assert (
        stories.generate(ONCE, temperature=0, max_tokens=11, stop=[free.text + "!", "zzz"]).text == free.text
    )


def test_the_end_token_ends_the_answer_and_is_no_part_of_it(stories: Model) -> None:
    end = stories.tokenizer.eos[0]
    answer = stories.generate(ONCE, logit_bias={end: 1000})
    assert (answer.text, answer.tokens, answer.finish_reason) == ("", (), "stop")


def test_a_stop_string_may_name_a_control_token(tiny_chat: Model) -> None:
    start = tiny_chat.tokenizer.piece_to_id("<|im_start|>")
    assert start is not None and start not in tiny_chat.tokenizer.eos
    bias = {start: 1000.0}
    assert tiny_chat.generate("a", logit_bias=bias, max_tokens=3).tokens == (start,) * 3
    answer = tiny_chat.generate("a", logit_bias=bias, max_tokens=3, stop="<|im_start|>")
    assert (answer.tokens, answer.finish_reason) == ((), "stop")


def test_half_characters_become_replacement_characters(stories: Model) -> None:
    byte = stories.tokenizer.piece_to_id("<0xF0>")
    assert byte is not None
    chunks = list(stories.stream(ONCE, logit_bias={byte: 1000}, max_tokens=3))
    assert joined(chunks) == ("\ufffd" * 3, (byte,) * 3)


def test_numbers_may_be_those_of_numpy(stories: Model) -> None:
    expected = stories.generate(ONCE, seed=7, max_tokens=5, logprobs=2)
    rng = np.array([7, 5, 2])
    found = stories.generate(ONCE, seed=rng[0], max_tokens=rng[1], logprobs=rng[2])
    assert (found.tokens, found.seed, found.logprobs) == (expected.tokens, 7, expected.logprobs)
    assert type(found.seed) is int
    with stories.session(context=np.int64(64)) as session:  # type: ignore[arg-type]
        session.append(ONCE)
        session.truncate(np.int64(1))  # type: ignore[arg-type]
        assert (session.context, session.position) == (64, 1)


@pytest.mark.parametrize("name", ["max_tokens", "logprobs"])
def test_a_number_that_is_too_long_to_be_printed_is_refused_too(stories: Model, name: str) -> None:
    with pytest.raises(RequestError, match=rf"^{name}: .*, found a number of 16610 bits$"):
        stories.generate(ONCE, **{name: -(10**5000)})  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=r"^prompt\[1\]: .*, found a number of 16610 bits$"):
        stories.generate([1, 10**5000])


def test_no_tokens_is_an_answer(stories: Model) -> None:
    answer = stories.generate(ONCE, max_tokens=0)
    assert (answer.text, answer.tokens, answer.finish_reason) == ("", (), "length")
    assert answer.timings.prefill_s > 0
    assert answer.timings.time_to_first_token_s == 0


def test_an_empty_prompt_begins_with_the_opening_token(stories: Model, tiny_chat: Model) -> None:
    assert stories.generate("", temperature=0, max_tokens=5).timings.prompt_tokens == 1
    assert tiny_chat.tokenizer.encode("") == []
    for prompt in ("", []):
        with pytest.raises(RequestError, match=r"^prompt: expected at least one token, found none"):
            tiny_chat.generate(prompt)
    with pytest.raises(RequestError, match=r"^prompt: expected at least one token"):
        stories.generate([])


def test_answers_end_where_the_context_ends(stories: Model) -> None:
    end = stories.tokenizer.eos
    ban = {token: -math.inf for token in end}
    answer = stories.generate([5] * 500, logit_bias=ban)
    assert (len(answer.tokens), answer.finish_reason) == (12, "length")
    full = stories.generate([5] * 512, logit_bias=ban)
    assert (full.tokens, full.finish_reason) == ((), "length")


@pytest.mark.parametrize("n", [513, 10_000])
def test_a_prompt_longer_than_the_context_is_refused_before_any_work(stories: Model, n: int) -> None:
    with pytest.raises(ContextFullError, match=rf"^the prompt has {n} tokens, the context holds 512$"):
        stories.stream([5] * n)
    with pytest.raises(ContextFullError, match=rf"^the prompt has {n} tokens"):
        stories.logits([5] * n)


def test_a_model_without_a_tokenizer_answers_in_tokens(tmp_path: Path) -> None:
    convert.convert(write_llama(tmp_path / "a.gguf"), tmp_path / "a.bin")
    with load(tmp_path / "a.bin", threads=1, context=32) as model:
        answer = model.generate([1, 2, 3], max_tokens=4, temperature=0, logprobs=1)
        assert (answer.text, len(answer.tokens), answer.finish_reason) == ("", 4, "length")
        best = model.logits([1, 2, 3])[-1].argmax()
        assert answer.tokens[0] == best
        with model.session() as session:
            chunks = list(session.stream([1, 2, 3], max_tokens=4, temperature=0))
        assert [chunk.tokens for chunk in chunks] == [*((token,) for token in answer.tokens), ()]
        for call in (lambda: model.generate("a"), lambda: model.generate([1], stop="a")):
            with pytest.raises(RequestError, match="use token ids"):
                call()


def test_tokens_are_a_prompt_too(stories: Model) -> None:
    ids = stories.tokenizer.encode(ONCE)
    expected = stories.generate(ONCE, temperature=0, max_tokens=9).tokens
    for prompt in (ids, tuple(ids), np.array(ids), np.array(ids, np.uint16)):
        assert stories.generate(prompt, temperature=0, max_tokens=9).tokens == expected  # type: ignore[arg-type]


BAD_CALLS: list[tuple[Any, dict[str, Any], str]] = [
    (None, {}, "^prompt: expected text or token ids, found NoneType"),
    (5, {}, "^prompt: expected text or token ids, found int"),
    (b"x", {}, "^prompt: expected text or token ids, found bytes"),
    (np.array(5), {}, "^prompt: expected text or token ids, found ndarray"),
    ({1}, {}, "^prompt: expected text or token ids, found set"),
    ("a\ud800b", {}, "expected characters that UTF-8 can hold"),
    ([512], {}, r"^prompt\[0\]: expected a token id from 0 to 511, found 512"),
    ([1, -1], {}, r"^prompt\[1\]: expected a token id from 0 to 511, found -1"),
    ([2**40], {}, r"^prompt\[0\]: expected a token id from 0 to 511"),
    ([1.5], {}, r"^prompt\[0\]: expected a token id"),
    ([True], {}, r"^prompt\[0\]: expected a token id"),
    (["x"], {}, r"^prompt: expected one text or token ids, found a list of texts"),
    ([None], {}, r"^prompt\[0\]: expected a token id"),
    (np.zeros((2, 2), np.int64), {}, r"^prompt\[0\]: expected a token id"),
    (
        "x",
        {"max_tokens": -1},
        "^max_tokens: expected a whole number of at least 0, or None for no limit, found -1",
    ),
    ("x", {"max_tokens": 1.5}, "^max_tokens: "),
    ("x", {"max_tokens": "5"}, "^max_tokens: "),
    ("x", {"max_tokens": True}, "^max_tokens: "),
    ("x", {"logprobs": -1}, "^logprobs: expected a whole number from 0 to 1000, found -1"),
    ("x", {"logprobs": 1001}, "^logprobs: "),
    ("x", {"temperature": math.nan}, "^temperature: expected a number from 0 to 100, found nan"),
    ("x", {"top_p": 2}, "^top_p: "),
    ("x", {"seed": -1}, "^seed: "),
    ("x", {"logit_bias": {512: 1.0}}, "^logit_bias: expected token ids from 0 to 511, found 512"),
    ("x", {"stop": ""}, "^stop: "),
    ("x", {"stop": "a\ud800"}, "^stop: "),
    ("x", {"stop": [5]}, "^stop: "),
    ("x", {"stop": 5}, "^stop: "),
    ("x", {"processors": [5]}, "^processors: "),
    ("x", {"processors": len}, "^processors: "),
    ("x", {"params": {"top_k": 5}}, "^params: expected SamplingParams, found dict"),
    ("x", {"max_new_tokens": 5}, r"found 'max_new_tokens' \(is max_tokens meant\?\)"),
    (
        "x",
        {"logits_processor": []},
        r"among adapters, .*processors, .*found 'logits_processor' \(is processors",
    ),
    ("x", {"tools": []}, "found 'tools'"),
]


@pytest.mark.parametrize(("prompt", "options", "message"), BAD_CALLS)
def test_bad_calls_are_refused_at_once_and_by_name(
    stories: Model, prompt: Any, options: dict[str, Any], message: str
) -> None:
    for call in (stories.generate, stories.stream, stories.session().stream):
        with pytest.raises(RequestError, match=message) as error:
            call(prompt, **options)
        assert "\n" not in str(error.value)


def test_a_processor_that_returns_logits_is_refused(stories: Model) -> None:
    """They are changed in place; elsewhere what is returned counts."""
    with pytest.raises(
        RequestError, match=r"expected logits that are changed in place, found a ndarray returned"
    ):
        stories.generate(ONCE, processors=[lambda _, logits: logits + 1], max_tokens=1)
    assert stories.generate(ONCE, processors=[lambda _, logits: logits], max_tokens=1).tokens


def test_control_tokens_in_a_prompt_are_text_unless_asked(tiny_chat: Model) -> None:
    text = "<|im_start|>user\nthe<|im_end|>\n"
    encode = tiny_chat.tokenizer.encode
    for asked, expected in ((False, encode(text)), (True, encode(text, parse_special=True))):
        seen: list[tuple[int, ...]] = []
        options: dict[str, Any] = {
            "processors": [lambda tokens, _, seen=seen: seen.append(tokens)],
            "max_tokens": 1,
        }
        tiny_chat.generate(text, parse_special=asked, **options)
        assert seen == [tuple(expected)]
    assert encode(text) != encode(text, parse_special=True)
    with pytest.raises(RequestError, match=r"^parse_special: expected none, as messages"):
        tiny_chat.chat("the", parse_special=True)


def test_logprobs_are_those_of_the_model(stories: Model) -> None:
    prompt = stories.tokenizer.encode(ONCE)
    answer = stories.generate(ONCE, temperature=2, seed=1, top_k=5, max_tokens=12, logprobs=3)
    rows = stories.logits([*prompt, *answer.tokens])[len(prompt) - 1 : -1].astype(np.float64)
    expected = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
    assert answer.logprobs is not None and len(answer.logprobs) == 12
    for token, row, logprob in zip(answer.tokens, expected, answer.logprobs, strict=True):
        assert logprob.token == token
        assert logprob.logprob == pytest.approx(row[token], abs=1e-9)
        assert [i for i, _ in logprob.top] == list(np.argsort(-row, kind="stable")[:3])
        assert [value for _, value in logprob.top] == pytest.approx(np.sort(row)[::-1][:3], abs=1e-9)


@pytest.mark.parametrize("n_top", [0, 1, 512, 1000])
def test_as_many_likeliest_tokens_as_asked_for(stories: Model, n_top: int) -> None:
    answer = stories.generate(ONCE, max_tokens=2, logprobs=n_top)
    assert answer.logprobs is not None
    assert [len(one.top) for one in answer.logprobs] == [min(n_top, 512)] * 2


def test_processors_change_the_logits_in_place(stories: Model) -> None:
    seen: list[tuple[int, ...]] = []

    def only_seven(tokens: Sequence[int], logits: NDArray[np.float32]) -> None:
        seen.append(tuple(tokens))
        assert logits.shape == (512,) and logits.dtype == np.float32
        logits[:7] = logits[8:] = -math.inf

    prompt = stories.tokenizer.encode(ONCE)
    answer = stories.generate(ONCE, processors=[only_seven], max_tokens=3, logprobs=0)
    assert answer.tokens == (7, 7, 7)
    assert seen == [tuple(prompt), (*prompt, 7), (*prompt, 7, 7)]
    assert answer.logprobs is not None
    assert answer.logprobs[0].logprob == pytest.approx(_logprob(stories, prompt, 7), abs=1e-9)


def _logprob(model: Model, prompt: list[int], token: int) -> float:
    row = model.logits(prompt)[-1].astype(np.float64)
    return float(row[token] - np.log(np.exp(row).sum()))


def test_processors_run_in_order(stories: Model) -> None:
    def ban_all(_: Sequence[int], logits: NDArray[np.float32]) -> None:
        logits[:] = -math.inf

    def allow_nine(_: Sequence[int], logits: NDArray[np.float32]) -> None:
        logits[9] = 0

    assert stories.generate(ONCE, processors=[ban_all, allow_nine], max_tokens=2).tokens == (9, 9)


def test_an_exception_of_a_processor_comes_through_and_frees_the_session(stories: Model) -> None:
    def fail(_: Sequence[int], __: NDArray[np.float32]) -> None:
        raise LookupError("mine")

    with stories.session() as session:
        with pytest.raises(LookupError, match="mine"):
            session.generate(ONCE, processors=[fail])
        assert session.generate(ONCE, temperature=0, max_tokens=5).tokens == _five(stories)


def _five(model: Model) -> tuple[int, ...]:
    return model.generate(ONCE, temperature=0, max_tokens=5).tokens


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_broken_logits_of_a_processor_are_refused(stories: Model, value: float) -> None:
    def spoil(_: Sequence[int], logits: NDArray[np.float32]) -> None:
        logits[3] = value

    with pytest.raises(RequestError):
        stories.generate(ONCE, processors=[spoil], max_tokens=2)
    assert _five(stories) == _five(stories)


def test_penalties_see_the_prompt(stories: Model) -> None:
    token = int(stories.logits(ONCE)[-1].argmax())
    plain = stories.generate(ONCE, temperature=0, max_tokens=1)
    assert plain.tokens == (token,)
    prompt = [token, *stories.tokenizer.encode(ONCE)[1:]]
    top = int(stories.logits(prompt)[-1].argmax())
    seen = [top, *prompt[1:]]
    penalised = stories.generate(seen, temperature=0, max_tokens=1, presence_penalty=100)
    assert penalised.tokens[0] not in seen
    window = stories.generate(seen, temperature=0, max_tokens=1, presence_penalty=100, penalty_window=0)
    assert window.tokens == stories.generate(seen, temperature=0, max_tokens=1).tokens


def test_logits_have_a_row_a_token(stories: Model) -> None:
    ids = stories.tokenizer.encode(ONCE)
    rows = stories.logits(ids)
    assert rows.shape == (len(ids), 512) and rows.dtype == np.float32
    assert np.array_equal(rows[:3], stories.logits(ids[:3]))
    assert np.array_equal(rows, stories.logits(ONCE))


def test_logits_that_do_not_fit_into_memory_are_refused(
    stories: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyinfer.memory.available_bytes", lambda: 3 << 19)
    assert stories.logits([5] * 512).shape == (512, 512)
    monkeypatch.setattr("pyinfer.memory.available_bytes", lambda: 1 << 19)
    with pytest.raises(
        MemoryLimitError, match=r"^logits of 512 tokens needs 1\.0 MiB of memory, but only 0\.5 MiB"
    ):
        stories.logits([5] * 512)


def test_timings_are_plausible(stories: Model) -> None:
    timings = stories.generate("Far away", temperature=0, max_tokens=20).timings
    n, held = timings.prompt_tokens, timings.cached_tokens
    assert (n, timings.answer_tokens) == (len(stories.tokenizer.encode("Far away")), 20)
    assert held <= 1  # the opening token
    assert 0 < timings.prefill_s <= timings.time_to_first_token_s
    assert timings.prefill_tokens_per_s == pytest.approx((n - held) / timings.prefill_s)
    assert timings.decode_tokens_per_s == pytest.approx(19 / timings.decode_s)


def test_what_was_computed_for_the_beginning_of_a_prompt_is_used_again(stories_model_bin: Path) -> None:
    """Of the two answers before; with the same bits, whatever was held."""
    ids = [1, 403, 407, 261, 378]
    with load(stories_model_bin, threads=1) as model, load(stories_model_bin, threads=1) as fresh:

        def answer(prompt: list[int]) -> tuple[int, tuple[int, ...], Any]:
            given = model.generate(prompt, max_tokens=6, temperature=0, logprobs=3)
            with fresh.session() as session:
                expected = session.generate(prompt, max_tokens=6, temperature=0, logprobs=3)
            assert (given.tokens, given.logprobs) == (expected.tokens, expected.logprobs)
            return given.timings.cached_tokens, given.tokens, given.logprobs

        held, said, _ = answer(ids)
        assert held == 0
        assert answer(ids)[0] == 4  # the last one is evaluated for its logits
        longer = [*ids, *said, 9, 10]
        assert answer(longer)[0] == 5 + 6 - 1  # the last token of an answer is not evaluated
        with model.stream([2, 3, 4], max_tokens=2, temperature=0) as other:  # holds that timeline
            assert answer([7, 8, 9])[0] == 0
            other.finish()
        assert answer([7, 8, 9, 10])[0] == 3
        assert np.array_equal(model.logits(ids), fresh.logits(ids))


def test_the_step_that_ends_an_answer_is_not_timed(stories: Model) -> None:
    """It gives no token."""
    (end, *_) = stories.tokenizer.eos

    def ends_slowly(tokens: Sequence[int], logits: NDArray[np.float32]) -> None:
        if len(tokens) == prompt + said:
            time.sleep(0.3)
            logits[end] = 1e9

    prompt = len(stories.tokenizer.encode(ONCE))
    for said in (0, 2):
        answer = stories.generate(ONCE, processors=[ends_slowly])
        assert (answer.finish_reason, len(answer.tokens)) == ("stop", said)
        assert answer.timings.decode_s < 0.3
        assert (answer.timings.time_to_first_token_s > 0) == (said > 0)


def test_the_time_a_caller_holds_a_chunk_is_not_counted(stories: Model) -> None:
    whole: Completion | None = None
    for chunk in stories.stream(ONCE, temperature=0, max_tokens=10):
        time.sleep(0.05)
        whole = chunk.completion
    assert whole is not None and whole.timings.decode_s < 0.25


def test_answers_can_be_pickled(stories: Model) -> None:
    answer = stories.generate(ONCE, max_tokens=3, logprobs=2)
    assert pickle.loads(pickle.dumps(answer)) == answer
