"""Say what a model is and what it needs, without converting or loading it.

Everything that loading would check is checked, except the weights' checksums: --verify reads all of them, of a
model.bin. A name is fetched and converted if it was not yet.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyinfer.cli import options as common
from pyinfer.cli import terminal
from pyinfer.errors import ModelFileError, RequestError

if TYPE_CHECKING:
    from pyinfer import _core


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what the verb takes."""
    common.add_model(parser)
    parser.add_argument("--ctx", type=common.count(), metavar="N", help="context to tell the memory for")
    parser.add_argument("--verify", action="store_true", help="check the checksums of all weights")
    parser.add_argument("--json", action="store_true", help="print JSON")


def execute(options: argparse.Namespace) -> int:
    """Opens the model and prints what it is."""
    from pyinfer import hub

    if hub.is_name(options.model) or hub.is_model_file(Path(options.model)):
        with terminal.progress() as progress:
            path = hub.resolve(options.model, progress=progress)
        report = _of_model_file(path, options.ctx, options.verify)
    else:
        report = _of_source(Path(options.model), options.ctx, options.verify)
    report = {"model": options.model, **report}
    if options.json:
        terminal.print_json(report)
    else:
        print(terminal.table(list(_rows(report))))
    return 0


def _of_model_file(path: Path, ctx: int | None, verify: bool) -> dict[str, Any]:
    from pyinfer import _core
    from pyinfer.convert.metadata import Metadata
    from pyinfer.fitting import chosen_activations
    from pyinfer.tokenizer import Tokenizer

    file = _core.ModelFile(str(path))
    metadata = Metadata.from_json(file.metadata())
    Tokenizer.open(file)
    context = _context(ctx, file.spec["context"])
    engine = _core.Engine(file, activations=chosen_activations(None), prefetch=False)
    return {
        "path": str(path),
        "kind": "model.bin",
        "bytes": file.file_bytes,
        **_head(metadata, dict(file.spec)),
        "landed": [asdict(landing) for landing in metadata.landed],
        "source": asdict(metadata.source),
        "memory": {"context": context, **engine.memory(context)},
        "verified": _verified(file, path) if verify else None,
    }


def _of_source(path: Path, ctx: int | None, verify: bool) -> dict[str, Any]:
    from pyinfer import _core, convert, hub
    from pyinfer.fitting import chosen_activations

    if verify:
        raise RequestError(f"--verify: only a model.bin has checksums, and {path} is not one")
    with hub.published(path) as found:
        info = convert.inspect(found)
    spec = asdict(info.spec)
    context = _context(ctx, info.spec.context)
    landed = [{**asdict(group), "rms_error": 0.0 if group.exact else None} for group in info.groups]
    for group in landed:
        del group["exact"]
    kv = _core.usual_kv(chosen_activations(None), info.spec.qkv_bias)
    heads = (info.spec.n_layers, info.spec.n_kv_heads, info.spec.head_dim)
    kept = _core.kv_cache_bytes(*heads, context, kv)
    memory = {"weights": info.output_bytes, "kv_cache": kept, "workspace": None}
    return {
        "path": str(path),
        "kind": info.kind,
        "bytes": info.source_bytes,
        **_head(info, spec),
        "landed": landed,
        "source": None,
        "memory": {"context": context, **memory},
        "verified": None,
    }


def _head(found: Any, spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": found.name,
        "architecture": found.architecture,
        "licence": found.licence,
        "parameters": parameters(spec),
        "tokenizer": found.tokenizer,
        "chat_template": found.chat_template is not None,
        "spec": spec,
    }


def _context(ctx: int | None, trained: int) -> int:
    from pyinfer.fitting import DEFAULT_CONTEXT

    if ctx is not None and ctx > trained:
        raise RequestError(f"ctx: expected at most {trained}, for which the model was trained, found {ctx}")
    return ctx or min(trained, DEFAULT_CONTEXT)


def _verified(file: _core.ModelFile, path: Path) -> bool:
    bad = [tensor for i, tensor in enumerate(file.tensors) if not file.verify(i)]
    if bad:
        names = [t["role"] if t["layer"] < 0 else f"{t['role']} of layer {t['layer']}" for t in bad[:5]]
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise ModelFileError(
            f"{path}: expected weights as their checksums say, found others in {', '.join(names)}{more}"
        )
    return True


def parameters(spec: dict[str, Any]) -> int:
    """How many numbers were learnt."""
    dim, q, kv = spec["dim"], spec["n_heads"] * spec["head_dim"], spec["n_kv_heads"] * spec["head_dim"]
    layer = 2 * dim + dim * (2 * q + 2 * kv + 3 * spec["n_ff"])
    layer += spec["qkv_bias"] * (q + 2 * kv) + spec["o_bias"] * dim
    layer += spec["qk_norm"] * 2 * spec["head_dim"] + spec["post_norms"] * 2 * dim
    tables = 1 if spec["tied_head"] else 2
    return int(spec["n_layers"] * layer + tables * spec["n_vocab"] * dim + dim)


def _rows(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    spec, memory = report["spec"], report["memory"]
    yield "name", report["name"]
    yield "file", f"{report['path']}, {report['kind']}, {terminal.size(report['bytes'])}"
    yield "architecture", f"{report['architecture']}, {report['parameters'] / 1e6:,.1f} million parameters"
    heads = f"{spec['n_heads']} heads, {spec['n_kv_heads']} KV heads of {spec['head_dim']}"
    yield "shape", f"{spec['n_layers']} layers of {spec['dim']}, {heads}, hidden {spec['n_ff']}"
    tied = ", embedding and head are one" if spec["tied_head"] else ""
    yield "vocabulary", f"{spec['n_vocab']} tokens, tokenizer {report['tokenizer']}{tied}"
    yield "context", f"{spec['context']} tokens"
    if spec["window"]:
        yield "window", f"{spec['window']} tokens in {len(spec['windowed'])} of {spec['n_layers']} layers"
    if spec["long_context"]:
        yield "long context", f"above {spec['long_context']} tokens, with rotary frequencies of its own"
    yield "chat template", "yes" if report["chat_template"] else "none"
    yield "licence", report["licence"] or "not said"
    for landed in report["landed"]:
        yield "weights", _landed(landed)
    workspace = "" if memory["workspace"] is None else f", workspace {terminal.size(memory['workspace'])}"
    kv_cache = f"KV cache {terminal.size(memory['kv_cache'])} for {memory['context']} tokens"
    yield "memory", f"weights {terminal.size(memory['weights'])}, {kv_cache}{workspace}"
    if report["verified"]:
        yield "checksums", "all weights match"


def _landed(landed: dict[str, Any]) -> str:
    sizes = f"{terminal.size(landed['bytes_in'])} -> {terminal.size(landed['bytes_out'])}"
    error = landed["rms_error"]
    cost = "not exact" if error is None else f"relative error {error:.2g}" if error else "every value kept"
    return f"{landed['source']} -> {landed['format']}, {landed['tensors']} tensors, {sizes}, {cost}"
