"""What a model answers: plain values. Must not know how they came about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Chunk", "Completion", "FinishReason", "Timings", "TokenLogprob"]

FinishReason = Literal["stop", "length", "cancelled"]
"""`stop`: the model ended or a stop string came; `length`: `max_tokens` or the context is full; `cancelled`."""


@dataclass(frozen=True)
class TokenLogprob:
    """How likely a token was, by the model itself: before processors, penalties, temperature and cuts."""

    token: int
    logprob: float
    """Natural logarithm of its probability."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens with their logarithms, likeliest first; as many as were asked for."""


@dataclass(frozen=True)
class Timings:
    """Where the time went; seconds of wall time."""

    prompt_tokens: int
    cached_tokens: int
    """Tokens of the prompt that the session held already."""
    answer_tokens: int
    prefill_s: float
    """Evaluating the prompt."""
    decode_s: float
    """From the end of the prefill to the last token, without the time that the caller held a chunk."""
    time_to_first_token_s: float
    """From the begin of the prefill to the first token; 0 when there is none."""

    @property
    def prefill_tokens_per_s(self) -> float:
        """Prompt tokens evaluated a second; 0 when there is nothing to tell."""
        return _rate(self.prompt_tokens - self.cached_tokens, self.prefill_s)

    @property
    def decode_tokens_per_s(self) -> float:
        """Answer tokens a second after the first, which the prefill pays for; 0 when there is nothing to tell."""
        return _rate(self.answer_tokens - 1, self.decode_s)


def _rate(tokens: int, seconds: float) -> float:
    return tokens / seconds if tokens > 0 and seconds > 0 else 0.0


@dataclass(frozen=True)
class Completion:
    """An answer."""

    text: str
    """Valid Unicode, without the stop string that ended it."""
    tokens: tuple[int, ...]
    """Every token produced, those of a stop string included, the end-of-text token not."""
    finish_reason: FinishReason
    seed: int
    """The seed of this answer; the same call with it gives the same tokens."""
    timings: Timings
    logprobs: tuple[TokenLogprob, ...] | None = None
    """One for each of `tokens`, if asked for."""


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer. The texts of all chunks add up to the text of the completion, the tokens to its tokens."""

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: FinishReason | None = None
    """Set on the last chunk only."""
    completion: Completion | None = None
    """The whole answer, on the last chunk only."""
