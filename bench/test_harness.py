"""The harness itself: models, cases, drivers and reports, without a peer and without the compiled core."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader, dequantize

import cases
import compare
import driver
import gguf_model
import limits
import make_adapter
import make_model
import peer_llama_bench
import plot
import results
import tables
from participant import Participant, ParticipantError
from results import Series
from shapes import SHAPES, Shape

TINY = Shape(dim=256, n_layers=8, n_heads=4, n_kv_heads=2, n_ff=512, n_vocab=512)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("prefill-512", cases.Case("prefill-512", "prefill", 512)),
        ("decode-128", cases.Case("decode-128", "decode", 128)),
        ("decode-32@4096", cases.Case("decode-32@4096", "decode", 32, 4096)),
        ("batch-16", cases.Case("batch-16", "batch", 32, 32, 16)),
    ],
)
def test_case_names(name: str, expected: cases.Case) -> None:
    assert cases.parse(name) == expected


@pytest.mark.parametrize(
    "name", ["", "prefill", "prefill-0", "decode-x", "batch-0", "decode-1@", "prefill-512 "]
)
def test_unknown_cases_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="expected prefill-N"):
        cases.parse(name)


def test_macs_of_known_models() -> None:
    assert SHAPES["smollm2-135m"].layer_macs == 106_168_320
    assert SHAPES["1.1b"].layer_macs == 968_884_224
    assert SHAPES["7b"].layer_macs == 6_476_005_376


def test_layers_with_more_bits() -> None:
    chosen = [layer for layer in range(22) if make_model.gets_more_bits(layer, 22)]
    assert chosen == [0, 1, 4, 7, 10, 13, 16, 19, 20, 21]


@pytest.mark.parametrize("mix", sorted(make_model.MIXES))
def test_random_weights_have_the_spread_asked_for(mix: str, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    make_model.write_random(TINY, mix, path, seed=3)
    for tensor in GGUFReader(path).tensors:
        values = dequantize(np.asarray(tensor.data), tensor.tensor_type)
        assert np.isfinite(values).all()
        if tensor.tensor_type.name == "F32":
            assert (values == 1).all()
            continue
        spread = make_model.spread(tensor.name, int(tensor.shape[0]))
        assert abs(values.std() / spread - 1) < 0.15, tensor.name
        assert abs(values.mean()) < 0.1 * spread, tensor.name
        if tensor.tensor_type.name == "Q8_0":
            assert np.asarray(tensor.data).reshape(-1, 34)[:, 2:].view(np.int8).min() == -127


def test_mix_of_a_random_model(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    make_model.write_random(TINY, "q4_k_m", path, seed=3)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(path).tensors}
    assert kinds["output.weight"] == "Q6_K"
    assert [kinds[f"blk.{i}.attn_v.weight"] for i in range(4)] == ["Q6_K", "Q4_K", "Q4_K", "Q6_K"]
    assert {kinds[f"blk.{i}.attn_q.weight"] for i in range(8)} == {"Q4_K"}


def test_narrow_rows_fall_back() -> None:
    kinds = [
        make_model.matrix_type("q4_k_m", f"blk.9.{name}.weight", 576, 30, True).name
        for name in ("attn_q", "attn_v")
    ]
    assert kinds == ["Q5_0", "Q8_0" if make_model.gets_more_bits(9, 30) else "Q5_0"]
    assert make_model.matrix_type("q4_0", "token_embd.weight", 576, 30, True).name == "Q8_0"


def test_requantizing_changes_values_by_half_a_step_and_a_rounded_scale(tmp_path: Path) -> None:
    source, target = tmp_path / "f16.gguf", tmp_path / "q8.gguf"
    make_model.write_random(TINY, "f16", source, seed=3)
    make_model.write_requantized(source, "q8_0", target)
    before, after = GGUFReader(source), GGUFReader(target)
    assert before.get_field("llama.block_count").contents() == after.get_field("llama.block_count").contents()  # type: ignore[union-attr]
    for old, new in zip(before.tensors, after.tensors, strict=True):
        assert old.name == new.name
        a, b = (dequantize(np.asarray(t.data), t.tensor_type) for t in (old, new))
        step = np.abs(a).max() / 127
        assert np.abs(a - b).max() <= (0.5 + 127 / 2048) * step  # the scale is a half with 11 bits


def test_work_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    make_model.write_random(TINY, "q8_0", path, seed=3)
    model = gguf_model.read(path)
    matrices = TINY.layer_macs + TINY.n_vocab * TINY.dim
    norms = 4 * TINY.dim * (2 * TINY.n_layers + 1)
    assert model.weight_bytes == matrices * 34 // 32 + norms
    work = model.work(cases.parse("decode-2@10"))
    assert work.macs == 2 * matrices
    assert work.bytes == 2 * model.weight_bytes + (10 + 11) * 2 * 2 * 128 * 8


class FakeTimeline:
    """Remembers what was asked of it."""

    def __init__(self, log: list[tuple[str, int]]) -> None:
        self.position = 0
        self._log = log

    def rewind(self, position: int) -> None:
        self._log.append(("rewind", position))
        self.position = position

    def fill(self, tokens: list[int]) -> None:
        self._log.append(("fill", len(tokens)))
        self.position += len(tokens)

    def step(self, tokens: list[int]) -> None:
        self._log.append(("step", len(tokens)))
        self.position += 1

    def logits(self) -> list[float]:
        return [0.0, 1.0]


class FakeEngine(driver.TimelineEngine):
    """Keeps one timeline."""

    def __init__(self) -> None:
        self.log: list[tuple[str, int]] = []
        self._timeline = FakeTimeline(self.log)

    def open(self, model: str, settings: driver.Settings) -> None:
        self.log.append((model, 0))

    def about(self) -> dict[str, Any]:
        return {"engine": "fake"}

    def n_vocab(self) -> int:
        return 1000

    def timeline(
        self, capacity: int, sequences: int, threads: int, settings: driver.Settings
    ) -> driver.Timeline:
        return self._timeline

    def forget(self) -> None:
        self.log.append(("forget", 0))


def test_driver_fills_to_a_depth_once() -> None:
    engine = FakeEngine()
    case = cases.parse("decode-3@20")
    assert engine.run(case, 1, {}) > 0
    assert engine.log == [("rewind", 0), ("fill", 20), ("step", 1), ("step", 1), ("step", 1)]
    engine.log.clear()
    engine.run(case, 1, {})
    assert engine.log == [("rewind", 20), ("step", 1), ("step", 1), ("step", 1)]


def test_driver_answers_requests() -> None:
    engine = FakeEngine()
    reply = driver.answer(engine, {"op": "run", "case": "batch-4", "threads": 1, "settings": {}})
    assert reply["tokens"] == 128
    assert engine.log.count(("step", 4)) == 32
    assert driver.answer(engine, {"op": "logits", "n": 5, "threads": 1, "settings": {}}) == {
        "logits": [0.0, 1.0]
    }
    with pytest.raises(ValueError, match="expected open, run"):
        driver.answer(engine, {"op": "dance"})


FAKE_LLAMA_BENCH = """#!{python}
import json, sys
if "--help" in sys.argv:
    print("--flash-attn <on|off|auto>")
else:
    assert "--repack" not in sys.argv
    if "--flash-attn" in sys.argv:
        assert sys.argv[sys.argv.index("--flash-attn") + 1] == "1"
    prompt = int(sys.argv[sys.argv.index("-p") + 1])
    print(json.dumps([{{"n_prompt": prompt, "samples_ns": [250000000], "build_commit": "abc"}}]))
"""


def test_llama_bench_is_driven_by_its_options(tmp_path: Path) -> None:
    binary = tmp_path / "llama-bench"
    binary.write_text(FAKE_LLAMA_BENCH.format(python=sys.executable))
    binary.chmod(binary.stat().st_mode | stat.S_IXUSR)
    engine = peer_llama_bench.LlamaBench(str(binary))
    engine.open("model.gguf", {"repack": 1})
    assert engine.about()["build"] == "abc"
    assert engine.run(cases.parse("prefill-512"), 2, {"flash_attn": 1}) == 0.25
    with pytest.raises(driver.Unsupported, match="no --repack"):
        engine.run(cases.parse("prefill-512"), 2, {"repack": 0})
    with pytest.raises(driver.Unsupported, match="batched"):
        engine.run(cases.parse("batch-4"), 2, {"flash_attn": 1})


class FakeProcess:
    """Answers with speeds and logits that were laid down for each of its settings."""

    def __init__(self, engine: str, speeds: dict[str, list[float]], logits: list[float]) -> None:
        settings = tuple({"way": way} for way in speeds)
        self.participant = Participant(engine, (), Path("x"), run_settings=settings, batch_settings=settings)
        self._speeds, self._logits = speeds, logits

    def run(self, case: str, threads: int, settings: dict[str, Any]) -> float:
        speeds = self._speeds[settings["way"]]
        if not speeds:
            raise ParticipantError("out of memory")
        return speeds.pop(0)

    def ask(self, **request: Any) -> dict[str, Any]:
        return {"logits": self._logits} if request["op"] == "logits" else {}


def test_settings_that_are_far_behind_twice_are_dropped() -> None:
    case = cases.parse("decode-128")
    ours = FakeProcess("pyinfer", {"only": [10.0]}, [])
    peer = FakeProcess("peer", {"a": [5.0, 9.0], "b": [10.0, 9.0], "c": [7.0, 7.9], "broken": []}, [])
    stay = compare.first_round(compare.entries([ours, peer], case, 1), case, 1)  # type: ignore[list-item]
    assert [(entry.series.engine, entry.settings["way"]) for entry in stay] == [
        ("pyinfer", "only"),
        ("peer", "a"),
        ("peer", "b"),
    ]


def test_every_setting_must_compute_the_same() -> None:
    ours = FakeProcess("pyinfer", {"only": []}, [0.0, 1.0, 2.0])
    near, far = (FakeProcess("peer", {"a": [], "b": []}, [0.0, 1.0, last]) for last in (2.01, -5.0))
    found = compare.agreement([ours, near], 1, adapted=False)  # type: ignore[list-item]
    assert [entry["settings"]["way"] for entry in found] == ["a", "b"]
    compare.check_agreement(found)
    with pytest.raises(SystemExit, match=r"peer way=a: expected logits within a divergence of 0.1 of ours"):
        compare.check_agreement(compare.agreement([ours, far], 1, adapted=False))  # type: ignore[list-item]
    with pytest.raises(SystemExit, match="found nan"):
        compare.check_agreement([{**found[0], "kl": float("nan")}])


def test_an_engine_that_goes_away_is_named_in_the_result() -> None:
    ours, peer = (FakeProcess(name, {"a": []}, [0.0, 1.0]) for name in ("pyinfer", "peer"))

    def ask(**request: Any) -> dict[str, Any]:
        raise ParticipantError("peer ended with code -11")

    peer.ask = ask  # type: ignore[method-assign]
    found = compare.agreement([ours, peer], 1, adapted=False)  # type: ignore[list-item]
    assert found == [{"peer": "peer", "settings": {"way": "a"}, "failed": "peer ended with code -11"}]
    compare.check_agreement(found)
    report = sample_report()
    report["models"][0]["agreement"] = found
    assert "Not compared: peer way=a, which gives no logits: peer ended with code -11." in tables.render(
        report
    )


def test_ratio_is_taken_round_by_round() -> None:
    ours = Series("decode-128", 2, "pyinfer", {}, [20.0, 40.0, 30.0])
    theirs = Series("decode-128", 2, "peer", {"repack": 1}, [10.0, 10.0, 10.0])
    slow = Series("decode-128", 2, "peer", {"repack": 0}, [9.0, 9.5, 9.0])
    dropped = Series("decode-128", 2, "peer", {"repack": 2}, [99.0], first_round_only=True)
    assert results.best([slow, theirs, dropped], "peer") is theirs
    found = results.ratio(ours, theirs)
    assert (found["median"], found["low"], found["high"], found["rounds"]) == (3.0, 2.0, 4.0, 3)


def test_adapters_are_compared_with_the_same_engine_without() -> None:
    lora = {"lora": ["a.gguf"]}
    bare = Series("decode-128", 2, "pyinfer", {}, [20.0, 40.0, 30.0])
    adapted = Series("decode-128", 2, "pyinfer", lora, [10.0, 20.0, 24.0])
    peer = Series("decode-128", 2, "peer", {"repack": 1, **lora}, [5.0, 5.0, 5.0])
    assert [(one["engine"], one["median"]) for one in compare.all_overheads([bare, adapted, peer])] == [
        ("pyinfer", 0.5)
    ]
    ratios = compare.all_ratios([bare, adapted, peer])
    assert [(one["settings"], one["median"]) for one in ratios] == [(lora, 4.0)]


def test_adapter_changes_every_matrix_of_the_layers(tmp_path: Path) -> None:
    reader = GGUFReader(make_adapter.write(TINY, 3, tmp_path / "adapter.gguf"))
    shapes = {tensor.name: tuple(map(int, tensor.shape)) for tensor in reader.tensors}
    for layer in range(TINY.n_layers):
        for name, rows, cols in TINY.matrices(layer):
            assert shapes.pop(f"{name}.lora_a") == (cols, 3)
            assert shapes.pop(f"{name}.lora_b") == (3, rows)
    assert not shapes


def test_peak_of_an_instruction_set_that_was_not_measured() -> None:
    with pytest.raises(limits.LimitError, match="avx2 with 2 threads"):
        limits.int8_peak([limits.Limit("vpmaddubsw-256", 1, "GMAC/s", 200.0)], "avx2", 2)


def sample_report() -> dict[str, Any]:
    """A small result with every kind of row."""
    series, ratios = [], []
    for case, speed in (("prefill-512", 1000.0), ("decode-128", 200.0), ("decode-32@4096", 100.0)):
        ours = Series(case, 2, "pyinfer", {}, [2 * speed, 2 * speed], [0.5, 0.7])
        theirs = Series(case, 2, "llama.cpp", {"repack": 1, "flash_attn": 0}, [speed, speed], [0.3, 0.3])
        series += [ours.to_json(), theirs.to_json()]
        ratios.append(results.ratio(ours, theirs))
    memory = {"peak": 500_000_000, "file": 100_000_000}
    start = {
        "engine": "pyinfer",
        "settings": {},
        "file": "warm",
        "total": 0.2,
        "open": 0.1,
        "first_token": 0.05,
    }
    events = {
        "case": "decode-128",
        "threads": 2,
        "engine": "pyinfer",
        "settings": {},
        "per_token": {"instructions": 5e6},
    }
    model = {
        "file": "tiny.gguf",
        "weight_bytes": 90_000_000,
        "layer_macs": 106_000_000,
        "types": {"Q4_0": 90_000_000},
        "isa": "avx2",
        "convert": {"seconds": 0.5, "copy_seconds": 0.1, "bytes": 91_000_000},
        "agreement": [{"peer": "llama.cpp", "settings": {"repack": 1}, "kl": 0.001, "same_token": True}],
        "series": series,
        "ratios": ratios,
        "starts": [{**start, "memory": memory}],
        "counters": [events],
        "work": {r["case"]: {"bytes": 9e9, "macs": 5e10} for r in ratios},
    }
    rows = [("vpmaddubsw-256", 400.0, "GMAC/s"), ("read-4k", 35.0, "GB/s")]
    limit_rows = [{"probe": p, "threads": 2, "unit": u, "median": v, "low": v, "high": v} for p, v, u in rows]
    return {**results.header(), "models": [model], "limits": limit_rows}


def test_tables_show_ratio_share_and_settings() -> None:
    text = tables.render(sample_report())
    row = next(line for line in text.splitlines() if line.startswith("| decode-128"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == [
        "decode-128",
        "2",
        "400",
        "60 %",
        "llama.cpp",
        "200",
        "30 %",
        "repack",
        "2.00",
        "2.00–2.00",
    ]
    assert "5.00 M" in text and "0.200 s" in text and "500 MB" in text
    assert "our logits from llama.cpp repack: 0.001, the same" in text


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_pictures_are_drawn(suffix: str, tmp_path: Path) -> None:
    report = json.loads(json.dumps(sample_report()))
    plot.draw(report, tmp_path, suffix)
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert set(sizes) == {f"ratios.{suffix}", f"roofline.{suffix}", f"depth.{suffix}"}
    assert min(sizes.values()) > 3000
