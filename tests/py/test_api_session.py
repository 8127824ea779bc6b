"""Sessions: what they hold, what they re-use, how they end."""

from __future__ import annotations

import gc
import os
import sys
import threading
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pyinfer import Completion, Model, load
from pyinfer.completion import Timings
from pyinfer.errors import Cancelled, ContextFullError, MemoryLimitError, RequestError

ONCE = "Once upon a time"
NO_TIME = Timings(0, 0, 0, 0.0, 0.0, 0.0)
IDS = st.lists(st.integers(0, 9), min_size=1, max_size=40)


def untimed(answer: Completion) -> Completion:
    return replace(answer, timings=NO_TIME)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompts=st.lists(IDS, min_size=1, max_size=5), seed=st.integers(0, 99))
def test_answers_with_a_reused_prefix_equal_fresh_ones(
    stories: Model, prompts: list[list[int]], seed: int
) -> None:
    with stories.session() as session:
        for prompt in prompts:
            kept = session.generate(prompt, seed=seed, max_tokens=6, logprobs=3)
            assert untimed(kept) == untimed(stories.generate(prompt, seed=seed, max_tokens=6, logprobs=3))


def test_only_what_is_new_is_evaluated(stories: Model) -> None:
    with stories.session() as session:
        first = session.generate([1, 5, 6, 7, 8], temperature=0, max_tokens=4)
        assert first.timings.cached_tokens == 0
        assert session.tokens == (1, 5, 6, 7, 8, *first.tokens)
        assert session.position == 9
        again = session.generate([1, 5, 6, 9], temperature=0, max_tokens=0)
        assert again.timings.cached_tokens == 3
        same = session.generate([1, 5, 6, 9], temperature=0, max_tokens=0)
        assert same.timings.cached_tokens == 3, "the last token is always evaluated, for its logits"


def test_a_session_goes_on_where_it_stands(stories: Model) -> None:
    whole = stories.generate(ONCE, temperature=0, max_tokens=20)
    with stories.session() as session:
        first = session.generate(ONCE, temperature=0, max_tokens=8)
        second = session.generate(session.tokens, temperature=0, max_tokens=12)
        assert second.timings.cached_tokens == 5 + 8 - 1
    assert first.tokens + second.tokens == whole.tokens
    assert first.text + second.text == whole.text


def test_appended_tokens_are_a_prefix_to_be_reused(stories: Model) -> None:
    with stories.session() as session:
        session.append(ONCE)
        assert session.tokens == tuple(stories.tokenizer.encode(ONCE))
        session.append([9, 9])
        answer = session.generate([*stories.tokenizer.encode(ONCE), 9, 9, 8], temperature=0, max_tokens=5)
        assert answer.timings.cached_tokens == 7
        assert (
            answer.tokens
            == stories.generate(
                [*stories.tokenizer.encode(ONCE), 9, 9, 8], temperature=0, max_tokens=5
            ).tokens
        )


def test_tokens_appended_after_an_answer_come_after_all_of_it(stories: Model) -> None:
    with stories.session() as session:
        answer = session.generate([1, 5], temperature=0, max_tokens=4)
        session.append([6])
        assert session.tokens == (1, 5, *answer.tokens, 6)
        rows = stories.generate(session.tokens, temperature=0, max_tokens=3)
        assert session.generate(session.tokens, temperature=0, max_tokens=3).tokens == rows.tokens


def test_truncating_forgets_the_end(stories: Model) -> None:
    with stories.session() as session:
        answer = session.generate([1, 5, 6], temperature=0, max_tokens=4)
        for position in (7, 6, 4, 1, 0):
            session.truncate(position)
            assert session.tokens == (1, 5, 6, *answer.tokens)[:position]
        assert session.generate([1, 5, 6], temperature=0, max_tokens=4).tokens == answer.tokens


@pytest.mark.parametrize("position", [-1, 4, 10**20, 1.0, None, True])
def test_positions_out_of_range_are_refused(stories: Model, position: Any) -> None:
    with stories.session() as session:
        session.append([1, 2, 3])
        with pytest.raises(RequestError, match=r"^position: expected 0 to 3, the tokens held, found "):
            session.truncate(position)
        assert session.position == 3


def test_a_session_has_a_context_of_its_own(stories: Model) -> None:
    with stories.session(context=16) as session:
        assert session.context == 16
        assert len(session.generate([1, 5, 6], logit_bias=_no_end(stories)).tokens) == 13
        with pytest.raises(ContextFullError, match="17 tokens, the context holds 16"):
            session.generate([1] * 17)
        assert session.position == 16, "a refused prompt changes nothing"
        session.truncate(10)
        with pytest.raises(
            ContextFullError, match=r"^7 more tokens do not fit: the session holds 10 .* context 16"
        ):
            session.append([1] * 7)
        session.append([1] * 6)


def _no_end(model: Model) -> dict[int, float]:
    return {token: -float("inf") for token in model.tokenizer.eos}


@pytest.mark.parametrize("context", [0, -1, 513, 2**70, 1.5, "x", True])
def test_bad_contexts_are_refused(stories: Model, context: Any) -> None:
    with pytest.raises(RequestError, match=r"^context: expected "):
        stories.session(context)


def test_a_session_that_does_not_fit_into_memory_is_refused(
    stories: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyinfer.memory.available_bytes", lambda: 100 << 10)
    with pytest.raises(
        MemoryLimitError, match=r"^a session of 512 tokens needs [\d.]+ MiB of memory, but only 0\.1 MiB"
    ):
        stories.session()


def test_an_exception_between_a_step_and_its_note_leaves_no_stray_tokens(stories: Model) -> None:
    expected = stories.generate([1, 5, 6], temperature=0, max_tokens=5).tokens
    with stories.session() as session:
        session.append([1, 5])
        core = session._timeline._core
        assert core is not None
        core.eval(np.array([7, 7, 7], np.int32))
        assert session.generate([1, 5, 6], temperature=0, max_tokens=5).tokens == expected


def test_appending_nothing_is_nothing(stories: Model) -> None:
    with stories.session() as session:
        session.append([])
        assert session.tokens == ()
        session.append([1, 5])
        session.append("")
        assert session.tokens == (1, 5)


# One user at a time


def test_an_open_stream_owns_the_session(stories: Model) -> None:
    with stories.session() as session:
        stream = session.stream(ONCE, max_tokens=50)
        next(stream)
        for call in (
            lambda: session.generate(ONCE),
            lambda: session.append([5]),
            lambda: session.truncate(0),
        ):
            with pytest.raises(
                RequestError, match=r"^the session is in use: finish or close its stream first"
            ):
                call()
        stream.close()
        assert session.generate(ONCE, max_tokens=2).finish_reason == "length"


@pytest.mark.parametrize("chunks", [0, 1])
def test_a_forgotten_stream_frees_the_session(stories: Model, chunks: int) -> None:
    with stories.session() as session:
        stream = session.stream(ONCE)
        for _ in range(chunks):
            next(stream)
        del stream
        session.append([5])


def test_a_finished_stream_frees_the_session_at_its_last_chunk(stories: Model) -> None:
    with stories.session() as session:
        stream = session.stream(ONCE, max_tokens=3)
        while next(stream).finish_reason is None:
            pass
        session.append([5])
        assert list(stream) == []
        assert stream.completion.finish_reason == "length"


def test_a_stream_that_is_not_at_its_end_has_no_completion(stories: Model) -> None:
    stream = stories.stream(ONCE, max_tokens=9)
    with pytest.raises(RequestError, match="no completion"):
        _ = stream.completion
    next(stream)
    stream.close()
    stream.close()
    with pytest.raises(StopIteration):
        next(stream)
    with pytest.raises(RequestError, match="no completion"):
        stream.finish()


# Cancellation


def test_a_cancelled_prefill_gives_an_empty_answer(stories: Model) -> None:
    with stories.session() as session:
        stream = session.stream(ONCE)
        stream.cancel()
        (chunk,) = stream
        assert (chunk.text, chunk.tokens, chunk.finish_reason) == ("", (), "cancelled")
        assert session.position == 0
        assert session.generate(ONCE, max_tokens=2).finish_reason == "length"


def test_a_cancelled_answer_keeps_what_was_said(stories: Model) -> None:
    expected = stories.generate(ONCE, temperature=0, max_tokens=10)
    with stories.session() as session:
        stream = session.stream(ONCE, temperature=0)
        first = [next(stream), next(stream)]
        stream.cancel()
        last = list(stream)[-1]
        assert last.finish_reason == "cancelled"
        assert "".join(chunk.text for chunk in first) + last.text == stream.completion.text
        assert stream.completion.tokens == expected.tokens[: len(stream.completion.tokens)]
        rest = session.generate(session.tokens, temperature=0, max_tokens=10 - len(stream.completion.tokens))
        assert stream.completion.tokens + rest.tokens == expected.tokens


def test_text_held_back_for_a_stop_string_comes_when_cancelled(stories: Model) -> None:
    def cancel_at_third(tokens: Sequence[int], _: NDArray[np.float32]) -> None:
        if len(tokens) == 5 + 2:
            stream.cancel()

    stream = stories.stream(ONCE, temperature=0, stop=", there was nothing", processors=[cancel_at_third])
    (chunk,) = stream
    assert (chunk.text, chunk.finish_reason) == (", there was", "cancelled")


def test_a_late_cancel_does_not_touch_the_next_answer(stories: Model) -> None:
    def cancel_at_last(tokens: Sequence[int], _: NDArray[np.float32]) -> None:
        if len(tokens) == 6:
            session.cancel()

    expected = stories.generate(ONCE, temperature=0, max_tokens=5).tokens
    with stories.session() as session:
        answer = session.generate(ONCE, temperature=0, max_tokens=2, processors=[cancel_at_last])
        assert answer.finish_reason == "length"
        session.cancel()
        assert session.generate(ONCE, temperature=0, max_tokens=5).tokens == expected


def test_cancelling_a_finished_stream_does_not_touch_the_next_user_of_its_session(stories: Model) -> None:
    first = stories.stream(ONCE, max_tokens=1)
    first.finish()
    second = stories.stream(ONCE, max_tokens=3)
    assert second._lease.timeline is first._lease.timeline, "the session is lent again"
    next(second)
    first.cancel()
    first.close()
    assert second.finish().finish_reason == "length"


def test_append_can_be_cancelled_and_changes_nothing(stories: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    with stories.session() as session:
        answer = session.generate([1, 5, 6], temperature=0, max_tokens=4)
        before = session.tokens
        evaluate = session._timeline._evaluate

        def cancelled(*arguments: Any) -> Any:
            session.cancel()
            return evaluate(*arguments)

        monkeypatch.setattr(session._timeline, "_evaluate", cancelled)
        with pytest.raises(Cancelled):
            session.append([7] * 300)
        monkeypatch.undo()
        assert session.tokens == before
        assert session.generate([1, 5, 6], temperature=0, max_tokens=4).tokens == answer.tokens


def test_a_processor_may_stop_its_own_stream(stories: Model) -> None:
    def close(tokens: Sequence[int], _: NDArray[np.float32]) -> None:
        if len(tokens) > 8:
            stream.close()

    stream = stories.stream(ONCE, processors=[close])
    assert stream.finish().finish_reason == "cancelled"


def test_a_processor_may_not_read_its_own_stream(stories: Model) -> None:
    def read(_: Sequence[int], __: NDArray[np.float32]) -> None:
        next(stream)

    stream = stories.stream(ONCE, processors=[read])
    with pytest.raises(RequestError, match="asked for the chunk that is being made"):
        next(stream)


def test_closing_from_another_thread_ends_the_step_under_way(stories: Model) -> None:
    inside, closing = threading.Event(), threading.Event()

    def wait(_: Sequence[int], __: NDArray[np.float32]) -> None:
        inside.set()
        assert closing.wait(10)

    stream = stories.stream(ONCE, processors=[wait])
    reasons: list[str | None] = []
    reader = threading.Thread(target=lambda: reasons.extend(chunk.finish_reason for chunk in stream))
    reader.start()
    assert inside.wait(10)
    closer = threading.Thread(target=stream.close)
    closer.start()
    while not stream._lease.timeline._cancelled:
        closer.join(0.01)
    closing.set()
    closer.join(10)
    reader.join(10)
    assert not closer.is_alive() and not reader.is_alive()
    assert reasons in ([None], [None, "cancelled"], ["cancelled"])


# Ends


def test_a_closed_session_says_so(stories: Model) -> None:
    session = stories.session()
    session.generate(ONCE, max_tokens=2)
    session.close()
    session.close()
    assert session.closed and session.tokens == ()
    session.cancel()
    for call in (lambda: session.generate(ONCE), lambda: session.append([5]), lambda: session.truncate(0)):
        with pytest.raises(RequestError, match=r"^the session is closed$"):
            call()


def test_closing_a_session_ends_its_open_stream(stories: Model) -> None:
    session = stories.session()
    stream = session.stream(ONCE)
    next(stream)
    session.close()
    assert [chunk.finish_reason for chunk in stream] == ["cancelled"]
    with pytest.raises(RequestError, match=r"^the session is closed$"):
        session.append([5])


def test_a_closed_model_closes_all(stories_model_bin: Path) -> None:
    model = load(stories_model_bin, threads=1)
    session, idle = model.session(), model.session()
    stream = session.stream(ONCE)
    next(stream)
    model.generate(ONCE, max_tokens=1)
    model.close()
    model.close()
    assert model.closed and session.closed and idle.closed
    assert "closed" in repr(model) and "closed" in repr(session)
    assert [chunk.finish_reason for chunk in stream] == ["cancelled"]
    for call in (model.generate, model.stream, model.chat, model.logits, session.generate, idle.append):
        with pytest.raises(RequestError, match=r"is closed$"):
            call(ONCE)
    with pytest.raises(RequestError, match=r"^the model is closed$"):
        model.session()


def test_a_stream_outlives_the_names_of_its_model(stories_model_bin: Path, stories: Model) -> None:
    stream = load(stories_model_bin, threads=1).stream(ONCE, temperature=0, max_tokens=9)
    session = load(stories_model_bin, threads=1).session()
    gc.collect()
    assert stream.finish().tokens == stories.generate(ONCE, temperature=0, max_tokens=9).tokens
    assert session.generate(ONCE, temperature=0, max_tokens=9).tokens == stream.completion.tokens


def test_a_forgotten_model_is_freed_at_once(stories_model_bin: Path) -> None:
    gc.collect()
    gc.disable()
    try:
        model = load(stories_model_bin, threads=1)
        model.generate(ONCE, max_tokens=3)
        session = model.session()
        session.generate(ONCE, max_tokens=3)
        next(model.stream(ONCE))
        ref, core = weakref.ref(model), weakref.ref(session._timeline)
        del model, session
        assert ref() is None and core() is None
    finally:
        gc.enable()


def test_thousands_of_abandoned_streams_leave_nothing(stories_model_bin: Path) -> None:
    with load(stories_model_bin, threads=1) as model:
        handles = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
        for i in range(5000):
            stream = model.stream(ONCE, max_tokens=2)
            if i % 2:
                next(stream)
            if i % 3 == 0:
                stream.cancel()
            del stream
        assert len(model._lent) == len(model._idle) == 1
        assert handles == 0 or len(os.listdir("/proc/self/fd")) == handles
