"""The step that makes a graph for each execution provider.

No network, no credentials; the checkpoint is taken for hostile. Refuses a checkpoint that is not the one that was
fetched, and leaves nothing under a final name until all graphs are there.
"""

from __future__ import annotations

import gc
import itertools
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from onnx_converter import (
    calibration,
    decoders,
    footprint,
    graph,
    ladder,
    limits,
    load,
    precision,
    quantize,
    route,
    routes,
    share,
    stages,
    targets,
    wire,
)
from onnx_converter.conversion import FILE, Conversion, Graph, RefusedRoute, Signature, tools
from onnx_converter.digest import sha256_of, tree_digest
from onnx_converter.fetch import admit, check_folder, hash_files, sync_tree
from onnx_converter.heads import parts_of
from onnx_converter.reasons import DIGEST_MISMATCH, SPEC_IMPOSSIBLE, StepFailedError
from onnx_converter.spec import (
    AS_EXPORTED,
    COMPONENTS,
    DECODER,
    Activations,
    ConversionSpec,
    Provider,
    Scheme,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from onnx_converter.load import Checkpoint
    from onnx_converter.progress import Progress

_TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tokenizer.model",
    "generation_config.json",
    "source.spm",
    "target.spm",
    "sentence_bert_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "normalizer.json",
    "config.json",
)
_PARTIAL: Final = ".partial-"


@dataclass(frozen=True, slots=True)
class Convert:
    """What to convert and where to."""

    checkpoint: Path
    source_digest: str
    spec: ConversionSpec
    output: Path
    #: Where the volume with the texts is mounted, if any are declared.
    calibration_root: Path
    #: What schemes that begin with the same graphs leave for each other.
    shared: Shared | None = None


@dataclass(frozen=True, slots=True)
class Shared:
    """A checkpoint that was verified, and by type what was loaded of it and exported: tried and done once."""

    folder: Path
    #: Without their weights, for which nothing that follows an export asks.
    checkpoints: dict[torch.dtype, Checkpoint] = field(default_factory=dict)
    made: dict[tuple[torch.dtype, Provider], routes.Made] = field(default_factory=dict)


def run(convert: Convert, progress: Progress) -> dict[str, Any]:
    return (_run_each if convert.spec.scheme is Scheme.AUTO else _run)(convert, progress)


def _run_each(convert: Convert, progress: Progress) -> dict[str, Any]:
    """Every scheme of the ladder in a folder of its own."""
    told: dict[str, Any] = {}
    refused: list[ladder.Row] = []
    convert.output.mkdir(parents=True, exist_ok=True)
    verify_checkpoint(convert.checkpoint, convert.source_digest)
    progress.tell("CheckpointVerified", percent=10)
    with tempfile.TemporaryDirectory(prefix=_PARTIAL, dir=convert.output) as folder:
        shared = Shared(Path(folder))
        for spec in ladder.rungs(convert.spec):
            progress.tell("SchemeBegun", percent=0, scheme=str(spec.scheme))
            rung = replace(convert, spec=spec, output=convert.output / spec.scheme, shared=shared)
            try:
                found = _run(rung, progress)
            except StepFailedError as error:
                if spec.scheme is Scheme.NONE or error.reason.is_transient:
                    raise
                refused.append(ladder.Row(spec.scheme, error.reason.name, error.message))
            else:
                told = told or found
    ladder.write(convert.output, refused)
    return told


def _run(convert: Convert, progress: Progress) -> dict[str, Any]:
    graph.refuse_opset(convert.spec.opset)
    if Provider.TENSORRT in convert.spec.providers and convert.spec.activations is Activations.UINT16:
        raise StepFailedError(
            SPEC_IMPOSSIBLE,
            f"quantization.activations {convert.spec.activations} is not known to {Provider.TENSORRT}: use uint8 there",
        )
    for provider, component in itertools.product(convert.spec.providers, COMPONENTS):
        scheme, place = convert.spec.of(component).scheme, convert.spec.place_of(component, provider)
        field = convert.spec.field_of(component)
        targets.refuse_opset(convert.spec.opset, provider)
        quantize.refuse_without_kernels(scheme, place, field)
        precision.refuse_without_kernels(scheme, place, field)
    texts = calibration.read(convert.spec.calibration, convert.calibration_root)
    with _verifying(convert, progress) if convert.shared is None else nullcontext(lambda: None) as verify:
        done = _earlier(convert)
        if done is None:
            spec = convert.spec
            footprint.refuse_too_little(
                convert.checkpoint,
                spec.schemes,
                spec.max_sequence_length,
                limits.memory_of(),
                algorithm=spec.algorithm,
            )
            done = _convert(convert, texts, progress, verify)
        else:
            verify()
            progress.tell("EarlierResultReused", percent=100)
    return {
        "architecture": done.architecture,
        "knownArchitecture": done.known_architecture,
        "task": str(done.task),
        "maxSequenceLength": done.max_sequence_length,
        "graphs": {
            str(name): made.model_dump(mode="json", by_alias=True, exclude={"stages"})
            for name, made in done.graphs.items()
        },
        "inputs": _brief(done.inputs),
        "outputs": _brief(done.outputs),
    }


def _brief(signatures: Iterable[Signature]) -> list[dict[str, Any]]:
    """Without the cache, two tensors for each layer, for which a termination message has no room."""
    cache = (f"{decoders.PAST}.", f"{decoders.PRESENT}.")
    return [item.model_dump(mode="json", by_alias=True) for item in signatures if not item.name.startswith(cache)]


@contextmanager
def _verifying(convert: Convert, progress: Progress) -> Iterator[Callable[[], None]]:
    """Hashes a checkpoint that may be read while a graph is made of it; what is given waits, and has to be asked before
    anything is kept. That the checkpoint was changed explains whatever else goes wrong.
    """
    pool = ThreadPoolExecutor(1)
    hashed = pool.submit(hash_files, convert.checkpoint, admit(convert.checkpoint))

    def verify() -> None:
        _refuse_changed(hashed.result(), convert.source_digest)
        progress.tell("CheckpointVerified", percent=95)

    try:
        yield verify
    except Exception:
        _refuse_changed(hashed.result(), convert.source_digest)
        raise
    finally:
        pool.shutdown(wait=False)


def verify_checkpoint(folder: Path, digest: str) -> None:
    _refuse_changed(check_folder(folder), digest)


def _refuse_changed(files: Mapping[str, str], digest: str) -> None:
    if (found := tree_digest(files)) != digest:
        raise StepFailedError(
            DIGEST_MISMATCH,
            f"the checkpoint has digest {found}, not {digest}: the work volume was changed; fetch again",
        )


def _earlier(convert: Convert) -> Conversion | None:
    """A complete result of the same inputs by the same tools."""
    if not (convert.output / FILE).is_file():
        return None
    try:
        found = Conversion.read(convert.output)
    except StepFailedError:
        return None
    same = (found.source_digest, found.spec, found.tools) == (convert.source_digest, convert.spec, tools())
    return found if same else None


def _convert(convert: Convert, texts: Sequence[str], progress: Progress, verify: Callable[[], None]) -> Conversion:
    convert.output.mkdir(parents=True, exist_ok=True)
    for path in convert.output.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=convert.output))
    try:
        done = _fill(convert, texts, partial, progress)
        verify()
        done.write(partial)
        sync_tree(partial)
        # conversion.json last: without it the folder is no result.
        for path in sorted(partial.iterdir(), key=lambda path: path.name == FILE):
            path.rename(convert.output / path.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return done


@dataclass(frozen=True, slots=True)
class _Exported:
    """What comes of a checkpoint in one type, for each provider."""

    checkpoint: Checkpoint
    folder: Path
    made: Mapping[Provider, routes.Made]


def _export(
    convert: Convert, dtype: torch.dtype, shared: Shared, progress: Progress, percents: range, *, is_main: bool
) -> _Exported:
    """All graphs in one type, whichever of them are wanted in it; `percents` is where in the step's progress it is.
    Stages are told of the model, so they are measured of what comes in the main type alone.
    """
    spec = convert.spec
    # A route that was refused once is refused for every scheme that begins with the same graphs.
    is_exported = dtype in shared.checkpoints and all((dtype, one) in shared.made for one in spec.providers)
    loaded = (
        shared.checkpoints[dtype]
        if is_exported
        else load.load(convert.checkpoint, spec.task, spec.max_sequence_length, dtype)
    )
    checkpoint = replace(loaded, kept=precision.border_of(spec.of(DECODER).scheme))
    _refuse_misfit(spec, checkpoint)
    progress.tell(
        "CheckpointLoaded",
        percent=(percents.start + percents.stop) // 2,
        architecture=checkpoint.architecture,
        task=str(checkpoint.task),
    )
    exported = shared.folder / f"exported-{dtype}"
    made: dict[Provider, routes.Made] = {}
    said = (spec.scheme, *(spec.of(component).scheme for component in COMPONENTS))
    scheme = next(one for one in said if precision.dtype_of(one) is dtype)
    for provider in spec.providers:
        goal = route.Goal(provider, scheme, quantize.opset_of(spec))
        if not is_exported:
            shared.made[dtype, provider] = routes.make(checkpoint, convert.checkpoint, exported, goal)
        made[provider] = shared.made[dtype, provider]
        progress.tell(
            "GraphExported",
            percent=percents.stop,
            provider=str(provider),
            route=made[provider].route,
            trialSeconds=round(goal.trials.seconds, 1),
        )
    began = time.perf_counter()
    asked = stages.ask(checkpoint, convert.checkpoint) if is_main and not is_exported else ()
    # What follows asks for names and sizes alone, and rules of the exporter's optimizer keep the graphs that they saw.
    for weight in (*checkpoint.model.parameters(), *checkpoint.model.buffers()):
        weight.data = weight.data.new_empty(0)
    shared.checkpoints[dtype] = loaded
    gc.collect()
    if asked:
        folders = dict.fromkeys(one.folder for one in made.values())
        measured = {folder: stages.measure(checkpoint, asked, folder) for folder in folders}
        made = {provider: replace(one, stages=measured[one.folder]) for provider, one in made.items()}
        shared.made.update({(dtype, provider): one for provider, one in made.items()})
        progress.tell(
            "StagesMeasured",
            percent=percents.stop + 2,
            samples=max(stage.samples for stages_of_it in measured.values() for stage in stages_of_it),
            seconds=round(time.perf_counter() - began, 1),
        )
    return _Exported(checkpoint, exported, made)


def _fill(convert: Convert, texts: Sequence[str], folder: Path, progress: Progress) -> Conversion:
    spec, shared = convert.spec, convert.shared or Shared(folder)
    begins = {component: precision.dtype_of(spec.of(component).scheme) for component in COMPONENTS}
    # The main type, float32 where there is any, comes last.
    dtypes = sorted(set(begins.values()), key=lambda dtype: dtype is torch.float32)
    shares = [range(60 * number // len(dtypes), 60 * (number + 1) // len(dtypes)) for number in range(len(dtypes))]
    exports = {
        dtype: _export(convert, dtype, shared, progress, percents, is_main=dtype is dtypes[-1])
        for dtype, percents in zip(dtypes, shares, strict=True)
    }
    main = exports[dtypes[-1]]
    checkpoint, made, parts = main.checkpoint, main.made, parts_of(main.checkpoint)
    sources = {
        provider: [
            exports[begins.get(Path(part.file).stem, dtypes[-1])].made[provider].folder / part.file for part in parts
        ]
        for provider in spec.providers
    }
    facts: dict[Provider, graph.GraphFacts] = {}
    sensitive: dict[str, float] = {}
    for number, provider in enumerate(spec.providers):
        target = folder / provider
        is_last = convert.shared is None and all(
            set(sources[later]).isdisjoint(sources[provider]) for later in spec.providers[number + 1 :]
        )
        sensitive |= write_graphs(
            checkpoint, spec, texts, sources[provider], target, provider=provider, is_last=is_last
        )
        facts[provider] = graph.inspect_parts(target, parts)
        progress.tell(
            "GraphWritten",
            percent=60 + 35 * (number + 1) // len(spec.providers),
            provider=str(provider),
            bytes=facts[provider].bytes,
        )
    if convert.shared is None:
        for one in exports.values():
            shutil.rmtree(one.folder, ignore_errors=True)
    _pack_tokenizer(checkpoint, convert.checkpoint, folder / "tokenizer")
    # That of a model's only graph is read once.
    known = {folder / name / graph.MODEL: found.digest.removeprefix("sha256:") for name, found in facts.items()}
    first = facts[spec.providers[0]]
    return Conversion(
        source_digest=convert.source_digest,
        spec=spec,
        tools=tools(),
        architecture=checkpoint.architecture,
        known_architecture=checkpoint.is_known,
        task=checkpoint.task,
        max_sequence_length=checkpoint.max_sequence_length,
        inputs=tuple(Signature(**item.value()) for item in first.inputs),
        outputs=tuple(Signature(**item.value()) for item in first.outputs),
        graphs={
            name: Graph(
                **found.brief(),
                route=made[name].route,
                routes_refused=tuple(RefusedRoute(route=route, reason=reason) for route, reason in made[name].refused),
                stages=made[name].stages,
            )
            for name, found in facts.items()
        },
        sensitive={layer: f"{error:.3g}" for layer, error in sensitive.items()},
        files={
            path.relative_to(folder).as_posix(): known.get(path) or sha256_of(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        },
    )


def _refuse_misfit(spec: ConversionSpec, checkpoint: Checkpoint) -> None:
    """What is asked for and this kind of model cannot have."""
    if Provider.TENSORRT in spec.providers and checkpoint.cache:
        raise StepFailedError(
            SPEC_IMPOSSIBLE,
            f"{Provider.TENSORRT} is for encoders: {checkpoint.architecture} begins with keys and values of no token, "
            f"a shape that no engine is built for; use {Provider.CUDA}",
        )
    if spec.components is not None and not checkpoint.cross:
        raise StepFailedError(
            SPEC_IMPOSSIBLE,
            f"quantization.components is for models of two graphs, and {checkpoint.architecture} is one: say its "
            "scheme in quantization.scheme",
        )
    if spec.calibration is not None and checkpoint.sight:
        raise StepFailedError(
            SPEC_IMPOSSIBLE,
            f"quantization.calibration holds texts, and {checkpoint.architecture} takes images for task "
            f"{checkpoint.task}: leave it out, and use the images that are generated",
        )


def write_graphs(
    checkpoint: Checkpoint,
    spec: ConversionSpec,
    texts: Sequence[str],
    exported: Sequence[Path],
    target: Path,
    *,
    provider: Provider = Provider.CPU,
    is_last: bool = False,
) -> dict[str, float]:
    """As they are to be served, in a new folder; the last time what was exported may be used up.

    What was exported are the graphs in the order in which they are run, each in the type that its scheme begins with.
    Tells the layers that were left in float32 since they moved too far, and how far.
    """
    sensitive: dict[str, float] = {}
    if spec.schemes <= AS_EXPORTED and len({source.parent for source in exported}) == 1:
        if is_last:
            exported[0].parent.rename(target)
        else:
            shutil.copytree(exported[0].parent, target)
        return sensitive
    target.mkdir()
    shared = share.Weights(target) if len(exported) > 1 else None
    for number, source in enumerate(exported, 1):
        part = spec.of(source.stem)
        if shared is not None and part.scheme in AS_EXPORTED:
            shared.write(wire.outline(source), target / source.name, partial(wire.mapped, folder=source.parent))
            continue
        later = exported[number:]
        sensitive |= quantize.quantise(
            part,
            source,
            target / source.name,
            calibration.requests(checkpoint, texts, exported[:number]),
            provider=provider,
            # What is measured later is told what this graph answers.
            is_last=is_last and not any(spec.of(one.stem).is_measured for one in later),
            later=[one for one in later if one.parent == source.parent],
            alike=[one for one in exported if one != source and spec.of(one.stem).scheme is part.scheme],
            shared=shared,
        )
    return sensitive


def _pack_tokenizer(checkpoint: Checkpoint, source: Path, target: Path) -> None:
    """The checkpoint's own files as they are, and tokenizer.json where it has none."""
    target.mkdir()
    for name in _TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    backend = getattr(checkpoint.words, "backend_tokenizer", None)
    if not (target / "tokenizer.json").is_file() and backend is not None:
        backend.save(str(target / "tokenizer.json"))
