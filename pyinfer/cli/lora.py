"""Look at adapters, check them, write a stack of them as one.

inspect: rank, scaling, size of each change, and what merging it into 8 or 4 bits would leave of it;
--plot draws the sizes.
check: whether attached, merged and exported give the same logits on this machine; exit code 1 if not.
export: write a stack as one PEFT adapter, exactly by concatenation, or cut to a rank with --rank.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyinfer.cli import opened, terminal
from pyinfer.cli import options as common

if TYPE_CHECKING:
    from pyinfer.adapters import Weighted
    from pyinfer.checking import Agreement, Looked
    from pyinfer.export import Exported

SHADES = " ░▒▓█"
BELONGS = {"plot": "inspect", "output": "export", "rank": "export", "threads": "check"}
"""Options of one action alone."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what the verb takes."""
    parser.add_argument("action", choices=("inspect", "check", "export"), help="what to do")
    parser.add_argument(
        "adapters",
        nargs="+",
        type=common.lora,
        metavar="DIR[:WEIGHT]",
        help="a PEFT folder or a GGUF adapter, with its weight if that is not 1",
    )
    parser.add_argument(
        "--base", dest="model", metavar="MODEL", help=f"the model it is for: {common.MODEL_HELP}"
    )
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="inspect: draw the sizes of the changes too, .png or .svg"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="export: the folder to write")
    parser.add_argument("--rank", type=common.count(), metavar="N", help="export: cut all ranks to N")
    parser.add_argument("-t", "--threads", type=common.count(), metavar="N", help="check: threads")
    parser.add_argument("--json", action="store_true", help="print JSON")
    common.add_cache(parser)


def execute(options: argparse.Namespace) -> int:
    """Does what was asked for."""
    from pyinfer import merging
    from pyinfer.errors import RequestError

    for option, action in BELONGS.items():
        if getattr(options, option) is not None and options.action != action:
            raise RequestError(f"--{option} belongs to {action}, found {options.action}")
    if options.model is None and options.action != "inspect":
        raise RequestError(f"{options.action} needs --base MODEL")
    if options.output is None and options.action == "export":
        raise RequestError("export needs --output DIR")
    if options.plot is not None:
        _plottable(options)
    weighted = merging.loaded(options.adapters)
    actions = {"inspect": _inspect, "check": _check, "export": _export}
    return actions[options.action](weighted, options)


def _fields(one: Looked | Agreement | Exported) -> dict[str, Any]:
    """Fields for JSON, which has no number that is not finite."""
    from dataclasses import asdict

    fields = asdict(one).items()
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in fields}


def _model(options: argparse.Namespace) -> Path:
    from pyinfer import hub

    with terminal.progress() as progress:
        return hub.resolve(options.model, cache=options.cache, progress=progress)


# inspect


def _plottable(options: argparse.Namespace) -> None:
    """Refuses a picture that cannot be drawn before anything is read."""
    from pyinfer import picture
    from pyinfer.errors import RequestError

    if options.model is None:
        raise RequestError("--plot needs --base MODEL")
    picture.checked(options.plot)


def _inspect(weighted: Weighted, options: argparse.Namespace) -> int:
    from pyinfer import checking, picture

    looked = [] if options.model is None else list(checking.look(weighted, _model(options)))
    if options.plot is not None:
        stack = " + ".join(f"{weight:g} · {adapter.name}" for adapter, weight in weighted)
        picture.draw(looked, f"size of the change: {stack} on {Path(options.model).name}", options.plot)
        terminal.note(f"wrote {options.plot}")
    report = [_adapter(adapter, weight) for adapter, weight in weighted]
    if options.json:
        adapters = [{name.replace(" ", "_"): value for name, value in one.items()} for one in report]
        terminal.print_json({"adapters": adapters, "changes": [_fields(one) for one in looked]})
        return 0
    for one in report:
        print(terminal.table([(name, str(value)) for name, value in one.items()]), end="\n\n")
    if looked:
        print(terminal.table(list(_rows(looked))), end="\n\n")
        print("\n".join(_picture(looked)))
    return 0


def _adapter(adapter: Any, weight: float) -> dict[str, Any]:
    source = adapter.source
    roles = {change.role: 0 for change in source.changes}
    for change in source.changes:
        roles[change.role] += 1
    replaced = ", ".join(item.name for item in source.replaced)
    return {
        "name": adapter.name,
        "path": str(adapter.path),
        "weight": weight,
        **source.facts,
        "ranks": ", ".join(map(str, sorted({change.rank for change in source.changes}))),
        "scalings": ", ".join(sorted({f"{change.scaling:.4g}" for change in source.changes})),
        "modules": ", ".join(f"{role} in {count}" for role, count in roles.items()),
        "replaced": replaced or "nothing",
        "base": source.base or "not said",
        "bytes": source.bytes,
    }


def _rows(looked: Sequence[Looked]) -> Iterator[tuple[str, ...]]:
    yield "module", "layer", "rank", "change", "kept in int8", "kept in int4"
    for one in looked:
        layer = "" if one.layer < 0 else str(one.layer)
        shares = (f"{one.relative:.3%}", f"{one.int8:.1%}", f"{one.int4:.1%}")
        yield (one.role, layer, str(one.rank), *shares)


def _picture(looked: Sequence[Looked]) -> Iterator[str]:
    """A line a role, a cell a layer: the darker, the larger the change relative to the largest."""
    top = max((one.relative for one in looked if math.isfinite(one.relative)), default=0.0) or 1.0
    cells = {(one.role, one.layer): min(one.relative / top, 1.0) for one in looked}
    n_layers = 1 + max(one.layer for one in looked)
    yield f"size of the change by layer, {SHADES[-1]} = {top:.3%} of the matrix"
    for role in dict.fromkeys(one.role for one in looked):
        layers = range(n_layers) if (role, -1) not in cells else (-1,)
        yield f"{role:10}" + "".join(_shade(cells.get((role, layer), 0.0)) for layer in layers)


def _shade(share: float) -> str:
    return SHADES[math.ceil(share * (len(SHADES) - 1))]


# check and export


def _check(weighted: Weighted, options: argparse.Namespace) -> int:
    from pyinfer import checking

    found = checking.agreement(weighted, _model(options), options.threads)
    compared = [one for one in found if not one.refused]
    good = all(one.good for one in compared) if compared else None
    if options.json:
        terminal.print_json({"agree": good, "ways": [_fields(one) for one in found]})
        return 0 if good else 1
    rows = [("attached and", "KL divergence", "logits differ by")]
    for one in found:
        numbers = ("not possible", one.refused) if one.refused else (f"{one.kl:.1e}", f"{one.logits:.1e}")
        rows.append((one.way, *numbers))
    print(terminal.table(rows))
    verdicts = {
        True: "they agree",
        False: f"they differ: expected a divergence of at most {checking.MOST_KL:g}",
        None: "nothing could be compared",
    }
    print(verdicts[good])
    return 0 if good else 1


def _export(weighted: Weighted, options: argparse.Namespace) -> int:
    from pyinfer.convert.checkpoint import Spec
    from pyinfer.convert.metadata import Metadata
    from pyinfer.export import export
    from pyinfer.stack import base_reader, stacked

    options.model = _model(options)
    file = opened.model_file(options)
    architecture = Metadata.from_json(file.metadata()).architecture
    stack = stacked(weighted, Spec(**file.spec), base_reader(file), architecture)
    named = {adapter.source.base for adapter, _ in weighted}
    base = named.pop() if len(named) == 1 else None
    made = export(stack, options.output, rank=options.rank, base=base)
    if options.json:
        terminal.print_json({**_fields(made), "path": str(made.path)})
        return 0
    lost = f"{made.error:.2%} of the change was cut off" if made.error else "nothing was cut off"
    size = terminal.size(made.bytes)
    terminal.note(f"wrote {made.path}, {made.modules} modules of rank up to {made.rank}, {size}; {lost}")
    return 0
