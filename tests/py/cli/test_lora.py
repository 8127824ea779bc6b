"""Adapters on the command line: run, chat, convert, and the verb lora."""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import lora_writer as lw
import pyinfer
from lora_golden import FOLDER, base_folder
from pyinfer import convert
from pyinfer.checking import Looked
from pyinfer.cli.chat import Chat
from pyinfer.cli.main import main
from pyinfer.cli.options import lora

STORIES = Path(__file__).parents[2] / "data" / "stories260K.bin"
RAW = ("--raw", "--greedy", "-t", "1", "-n", "12")


@pytest.fixture
def sql(tmp_path: Path) -> Path:
    return lw.plain(tmp_path / "sql", 1)


@pytest.fixture
def tone(tmp_path: Path) -> Path:
    return lw.plain(tmp_path / "tone", 2)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The model of the kept adapters, in four bits."""
    convert.convert(base_folder(tmp_path / "base", False), tmp_path / "base.bin", weights="q4")
    return tmp_path / "base.bin"


def test_a_weight_follows_the_last_colon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a:2").mkdir()
    assert lora("a") == (Path("a"), 1.0)
    assert lora("a:-0.3") == (Path("a"), -0.3)
    assert lora("a:2") == (Path("a:2"), 1.0)
    assert lora("a:2:0.5") == (Path("a:2"), 0.5)
    assert lora("c:/x") == (Path("c:/x"), 1.0)
    assert lora("~nobody here/x") == (Path("~nobody here/x"), 1.0)
    for weight in ("nan", "-inf", "", "half"):
        with pytest.raises(
            argparse.ArgumentTypeError, match=f"^expected a weight that is a number, found '{weight}'$"
        ):
            lora(f"a:2:{weight}")


def test_a_folder_is_a_folder_whatever_else_has_its_name(
    run, stories_model_bin: Path, sql: Path, tone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alike = tmp_path / "other" / sql.name
    shutil.copytree(tone, alike)
    expected = run("run", stories_model_bin, "Once upon", *RAW, "--lora", sql, "--lora", tone).stdout
    monkeypatch.chdir(alike.parent)
    assert (
        run("run", stories_model_bin, "Once upon", *RAW, "--lora", sql, "--lora", sql.name).stdout == expected
    )


def test_run_answers_with_a_stack(
    run, stories_model_bin: Path, stories: pyinfer.Model, sql: Path, tone: Path
) -> None:
    done = run("run", stories_model_bin, "Once upon", *RAW, "--lora", sql, "--lora", f"{tone}:-0.3")
    stack = [str(sql), (str(tone), -0.3)]
    expected = stories.generate("Once upon", max_tokens=12, temperature=0, adapters=stack).text
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{expected}\n", "")
    assert expected != stories.generate("Once upon", max_tokens=12, temperature=0).text


def test_run_merged_keeps_the_model(run, stories_model_bin: Path, sql: Path, own_cache: Path) -> None:
    attached = run("run", stories_model_bin, "Once upon", *RAW, "--lora", sql)
    merged = run("run", stories_model_bin, "Once upon", *RAW, "--lora", sql, "--merge")
    assert merged.returncode == 0, merged.stderr
    assert merged.stdout == attached.stdout
    assert "tensors changed, the weights are " in merged.stderr
    from_cache = run("run", stories_model_bin, "Once upon", *RAW, "--lora", sql, "--merge")
    assert (from_cache.stdout, from_cache.stderr) == (attached.stdout, "")
    assert len(list((own_cache / "models").glob("*.bin"))) == 1
    [kept] = (own_cache / "models").glob("*.bin")
    os.truncate(kept, 4096)
    again = run("run", stories_model_bin, "Once upon", *RAW, "--lora", sql, "--merge")
    assert (again.returncode, again.stdout) == (0, attached.stdout), again.stderr
    for options in (("--merge",), ("--merge", "--lora", sql, "--no-cache")):
        refused = run("run", stories_model_bin, "x", *RAW, *options)
        assert (refused.returncode, "--merge needs" in refused.stderr) == (1, True)


@pytest.mark.parametrize("weight", ["nan", "inf", "1e999"])
def test_odd_weights_are_wrong_usage(run, stories_model_bin: Path, sql: Path, weight: str) -> None:
    done = run("run", stories_model_bin, "x", *RAW, "--lora", f"{sql}:{weight}")
    assert done.returncode == 2
    assert "weight" in done.stderr


def test_an_adapter_that_cannot_be_honoured_is_one_line(run, stories_model_bin: Path, tmp_path: Path) -> None:
    for path, words in (
        (FOLDER / "olora", "init_lora_weights"),
        (FOLDER / "pissa", "init_lora_weights"),
        (FOLDER / "plain", "expected"),
        (tmp_path / "nowhere", "found no such file or folder"),
    ):
        done = run("run", stories_model_bin, "x", *RAW, "--lora", path)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        assert words in done.stderr


# The chat


@pytest.fixture
def talk(stories: pyinfer.Model) -> Iterator[Chat]:
    with stories.session() as session:
        yield Chat(session, {"params": pyinfer.SamplingParams(temperature=0), "max_tokens": 4}, raw=True)


def test_the_chat_lists_adds_weighs_and_removes(
    talk: Chat, sql: Path, tone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    talk.hear("/lora")
    assert "no adapter in use" in capsys.readouterr().err
    talk.hear(f"/lora add {sql}:0.5")
    talk.hear(f"/lora add {tone}")
    assert [(adapter.name, weight) for adapter, weight in talk.session.adapters] == [
        ("sql", 0.5),
        ("tone", 1),
    ]
    talk.hear("/lora weight sql -2")
    capsys.readouterr()
    talk.hear("/lora")
    said = capsys.readouterr().err
    assert "sql   -2" in said and "tone  1" in said
    talk.hear("/lora remove sql")
    assert [adapter.name for adapter, _ in talk.session.adapters] == ["tone"]
    talk.hear("Once")
    assert capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/lora drop x", "expected /lora"),
        ("/lora add", "expected /lora"),
        ("/lora add /nowhere", "found no such file or folder"),
        ("/lora remove x", "no adapter 'x'"),
        ("/lora weight x 1", "no adapter 'x'"),
        ("/lora weight x", "expected /lora weight NAME WEIGHT"),
        (f"/lora add {FOLDER / 'plain'}:nan", "expected a weight that is a number, found 'nan'"),
    ],
)
def test_the_chat_says_what_it_cannot_do(
    talk: Chat, line: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    talk.hear(line)
    assert words in capsys.readouterr().err
    assert talk.session.adapters == ()


def test_adapters_that_are_called_alike_are_told_apart(
    talk: Chat, sql: Path, tone: Path, tmp_path: Path
) -> None:
    alike = tmp_path / "other" / "sql"
    shutil.copytree(tone, alike)
    further = tmp_path / "further" / "other" / "sql"
    shutil.copytree(tone, further)
    for path in (sql, alike, further):
        talk.hear(f"/lora add {path}")
    talk.hear("/lora weight  other/sql   2")
    assert [(one.name, weight) for one, weight in talk.session.adapters] == [
        ("sql", 1.0),
        ("other/sql", 2.0),
        ("further/other/sql", 1.0),
    ]


def test_adapters_that_were_given_twice_are_numbered(stories: pyinfer.Model, sql: Path, capsys) -> None:
    with stories.session() as session:
        session.adapters = [sql, (sql, -0.5)]
        talk = Chat(session, {})
        talk.hear("/lora weight sql#2 2")
        assert [weight for _, weight in session.adapters] == [1.0, 2.0]
        assert "sql#2" in capsys.readouterr().err
        talk.hear("/lora remove sql")
        assert [weight for _, weight in session.adapters] == [2.0]


def test_a_loop_of_links_is_no_adapter(talk: Chat, tmp_path: Path, capsys) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    talk.hear(f"/lora add {tmp_path / 'loop'}")
    assert capsys.readouterr().err.startswith("pyinfer: ")


def test_an_adapter_in_use_is_not_added_twice(talk: Chat, sql: Path, capsys) -> None:
    talk.hear(f"/lora add {sql}")
    talk.hear(f"/lora add {sql}:0.5")
    assert "in use already" in capsys.readouterr().err
    assert [weight for _, weight in talk.session.adapters] == [1.0]


# convert


def test_convert_merges_and_tells_the_cost(run, base: Path, tmp_path: Path) -> None:
    done = run("convert", base, tmp_path / "out.bin", "--lora", FOLDER / "plain")
    assert done.returncode == 0, done.stderr
    assert "14 tensors changed" in done.stderr and "KiB larger" in done.stderr
    forced = run("convert", base, tmp_path / "out.bin", "--lora", FOLDER / "plain", "--merge-into", "int4")
    assert "0 bytes larger" in forced.stderr and "% is left" in forced.stderr
    alone = run("convert", tmp_path / "base", tmp_path / "out.bin", "--merge-into", "int4")
    assert (alone.returncode, "--merge-into needs --lora" in alone.stderr) == (1, True)


def test_convert_does_not_write_over_an_adapter(run, sql: Path) -> None:
    output = sql / "adapter_model.safetensors"
    before = output.read_bytes()
    done = run("convert", STORIES, output, "--lora", sql)
    assert (done.returncode, "expected another file than the source" in done.stderr) == (1, True)
    assert output.read_bytes() == before


# lora


def test_inspect_tells_ranks_and_sizes(run, base: Path) -> None:
    done = run("lora", "inspect", FOLDER / "rslora", "--base", base)
    assert done.returncode == 0, done.stderr
    assert "3 over the root of r" in done.stdout and "scalings  1.5" in done.stdout
    assert "kept in int4" in done.stdout and "█" in done.stdout
    without = run("lora", "inspect", FOLDER / "rslora")
    assert without.returncode == 0 and "kept in int4" not in without.stdout


def test_inspect_as_json(run, base: Path) -> None:
    done = run("lora", "inspect", f"{FOLDER / 'plain'}:0.5", "--base", base, "--json")
    report = json.loads(done.stdout)
    assert report["adapters"][0]["weight"] == 0.5
    assert len(report["changes"]) == 14
    assert all(0 < one["relative"] < 1 and 0.8 < one["int8"] < 1.2 for one in report["changes"])


def test_inspect_draws_a_picture(run, base: Path, tmp_path: Path) -> None:
    inspect = ("lora", "inspect", FOLDER / "plain")
    done = run(*inspect, "--base", base, "--plot", tmp_path / "changes.svg")
    assert (done.returncode, f"wrote {tmp_path / 'changes.svg'}" in done.stderr) == (0, True)
    assert "‖Δ‖ / ‖W‖ in %" in (tmp_path / "changes.svg").read_text(encoding="utf-8")
    for words, options in (
        (".png or .svg", ("--base", base, "--plot", tmp_path / "changes.gif")),
        ("--plot needs --base", ("--plot", tmp_path / "changes.png")),
    ):
        refused = run(*inspect, *options)
        assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (1, "", 1)
        assert words in refused.stderr


def test_check_compares_the_ways(run, base: Path) -> None:
    done = run("lora", "check", FOLDER / "plain", f"{FOLDER / 'rslora'}:-0.3", "--base", base, "-t", 1)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "they agree")
    dora = run("lora", "check", FOLDER / "dora", "--base", base, "--json")
    ways = {one["way"]: one for one in json.loads(dora.stdout)["ways"]}
    assert ways["merged"]["kl"] < 1e-5 and "DoRA" in ways["exported"]["refused"]


def test_check_says_when_there_is_nothing_to_compare(run, base: Path) -> None:
    done = run("lora", "check", FOLDER / "alora", "--base", base, "-t", 1)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (1, "nothing could be compared")
    told = run("lora", "check", FOLDER / "alora", "--base", base, "--json")
    assert (told.returncode, json.loads(told.stdout)["agree"]) == (1, None)


def test_export_writes_one_adapter(run, base: Path, tmp_path: Path) -> None:
    stack = (FOLDER / "plain", f"{FOLDER / 'rslora'}:-0.3")
    done = run("lora", "export", *stack, "--base", base, "-o", tmp_path / "one")
    assert done.returncode == 0 and "nothing was cut off" in done.stderr
    assert sorted(os.listdir(tmp_path / "one")) == ["adapter_config.json", "adapter_model.safetensors"]
    cut = run("lora", "export", *stack, "--base", base, "-o", tmp_path / "cut", "--rank", 2)
    assert "of the change was cut off" in cut.stderr
    told = run("lora", "export", *stack, "--base", base, "-o", tmp_path / "told", "--rank", 2, "--json")
    assert (told.returncode, told.stderr) == (0, "")
    report = json.loads(told.stdout)
    assert (report["path"], report["modules"], report["rank"]) == (str(tmp_path / "told"), 14, 2)
    assert 0 < report["error"] < 1
    assert report["bytes"] == sum(path.stat().st_size for path in (tmp_path / "told").iterdir())
    again = run("lora", "export", *stack, "--base", base, "-o", tmp_path / "one")
    assert (again.returncode, "empty folder" in again.stderr) == (1, True)


@pytest.mark.parametrize(("action", "words"), [("check", "needs --base"), ("export", "needs --base")])
def test_what_an_action_needs(run, action: str, words: str) -> None:
    done = run("lora", action, FOLDER / "plain")
    assert (done.returncode, words in done.stderr) == (1, True)


@pytest.mark.parametrize(
    ("action", "option", "value", "belongs"),
    [
        ("check", "--plot", "x.png", "inspect"),
        ("export", "--plot", "x.png", "inspect"),
        ("inspect", "--output", "X", "export"),
        ("check", "--rank", 7, "export"),
        ("inspect", "--threads", 3, "check"),
    ],
)
def test_options_of_another_action_are_refused(
    run, action: str, option: str, value: object, belongs: str
) -> None:
    done = run("lora", action, FOLDER / "plain", option, value)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"pyinfer: {option} belongs to {belongs}, found {action}\n"


def test_a_change_of_nothing_is_null_in_json(
    base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A matrix of zeros has no length that a change could be compared with."""
    endless = [Looked("q", 0, 4, math.inf, 1.0, 0.5)]
    monkeypatch.setattr("pyinfer.checking.look", lambda weighted, model: endless)
    assert main(["lora", "inspect", str(FOLDER / "plain"), "--base", str(base), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["changes"][0]["relative"] is None
