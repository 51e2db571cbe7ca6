"""The step that proves with numbers that a graph still behaves like the original.

The truth is the torch module in fp32 with eager attention, loaded anew from the checkpoint; the graph runs in
onnxruntime on the execution provider it is meant for. Fails closed, and leaves a report either way.
"""

from __future__ import annotations

import base64
import json
import shutil
import tempfile
import time
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from onnx_converter import (
    benchmark,
    diagnosis,
    engines,
    evaluate,
    footprint,
    generation,
    graph,
    kernels,
    ladder,
    limits,
    parity,
    placement,
    precision,
    quality,
    report,
    samples,
    stages,
    targets,
)
from onnx_converter.benchmark import Benchmark
from onnx_converter.contest import Answers, Candidate, Original
from onnx_converter.conversion import Conversion
from onnx_converter.convert import verify_checkpoint
from onnx_converter.digest import canonical_json, sha256_of
from onnx_converter.evaluate import Evaluated, Examples
from onnx_converter.experts import has_experts
from onnx_converter.heads import parts_of
from onnx_converter.precision import DATATYPES
from onnx_converter.reasons import (
    ARTIFACT_CORRUPT,
    INPUT_IGNORED,
    NOT_FINITE,
    PARITY_FAILED,
    SPEC_IMPOSSIBLE,
    VALIDATED,
    Reason,
    StepFailedError,
)
from onnx_converter.report import BENCHMARK, GOLDEN, PAGE, REPORT
from onnx_converter.report_html import page
from onnx_converter.spec import DECODER, Activations, JudgedBy, Metric, Provider, Scheme

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from onnx_converter.load import Checkpoint
    from onnx_converter.progress import Progress
    from onnx_converter.quality import Estimate, Rows
    from onnx_converter.spec import ConversionSpec, Evaluation, Parity, Serving


#: Numbers that a golden request writes out; the features of a sound are hundreds of thousands, most of them equal.
_MOST_WRITTEN: Final = 16_384
#: Texts that are asked at once, by any question of a validation.
_MOST_TOGETHER: Final = 32


@dataclass(frozen=True, slots=True)
class Validate:
    """What to judge, against what, and how strictly."""

    checkpoint: Path
    graph: Path
    provider: Provider
    spec: ConversionSpec
    parity: Parity
    serving: Serving
    #: Seconds; none is measured in none.
    benchmark: float
    output: Path
    evaluations: tuple[Evaluation, ...] = ()
    #: Holds a folder for each evaluation.
    datasets: Path = Path("/datasets")
    #: Whether programs that the model writes may be run.
    runs_programs: bool = False
    #: What schemes that are judged one after the other have in common.
    shared: Shared | None = None


@dataclass(slots=True)
class Shared:
    """The checkpoint of this digest, loaded and asked once for every scheme that is judged beside it."""

    digest: str = ""
    truth: Truth | None = None


@dataclass(frozen=True, slots=True)
class Truth:
    """What graphs are judged by."""

    original: Original
    load_seconds: float
    asked: tuple[Examples, ...]
    #: What the original comes to in each evaluation.
    rows: dict[str, Rows]


@dataclass(frozen=True, slots=True)
class Judgement:
    """Everything measured, and how it ends."""

    measurements: tuple[parity.Measurement, ...]
    total: parity.Total | None
    coverage: dict[str, dict[str, int]]
    reason: Reason
    message: str
    evaluated: tuple[Evaluated, ...] = ()


def run(validate: Validate, progress: Progress) -> dict[str, Any]:
    validate.output.mkdir(parents=True, exist_ok=True)
    for name in (REPORT, PAGE, GOLDEN, BENCHMARK):
        (validate.output / name).unlink(missing_ok=True)
    return (_run_each if validate.spec.scheme is Scheme.AUTO else _run)(validate, progress)


def _run_each(validate: Validate, progress: Progress) -> dict[str, Any]:
    """Every scheme of the ladder as if it had been asked for; what was found of the best one stands."""
    assert validate.spec.auto is not None  # noqa: S101  the scheme's default
    told: dict[Scheme, dict[str, Any]] = {}
    refused = {row.scheme: row for row in ladder.read(validate.graph)}
    rows: list[ladder.Row] = []
    shared = Shared()
    for spec in ladder.rungs(validate.spec):
        scheme = spec.scheme
        if validate.provider not in spec.providers:
            continue
        if scheme in refused:
            rows.append(refused[scheme])
            continue
        graphs, output = validate.graph / scheme, validate.output / scheme
        rung = replace(validate, spec=spec, graph=graphs, output=output, shared=shared)
        progress.tell("SchemeBegun", percent=0, scheme=str(scheme))
        try:
            told[scheme] = run(rung, progress)
        except StepFailedError as error:
            if scheme is Scheme.NONE or error.reason.is_transient:
                raise
            rows.append(ladder.Row(scheme, error.reason.name, error.message))
        else:
            size = Conversion.read(rung.graph).graphs[validate.provider].bytes
            rows.append(ladder.row_of(scheme, size, told[scheme]))
    chosen = ladder.choose(rows, validate.spec.auto)
    found = validate.output / chosen.scheme
    judged = json.loads((found / REPORT).read_bytes())
    judged["ladder"] = {
        "chosen": str(chosen.scheme),
        "maxQualityLoss": f"{validate.spec.auto.max_quality_loss:g}",
        "prefer": str(validate.spec.auto.prefer),
        "rows": [row.value() for row in rows],
    }
    shutil.copyfile(found / GOLDEN, validate.output / GOLDEN)
    if (found / BENCHMARK).is_file():
        shutil.copyfile(found / BENCHMARK, validate.output / BENCHMARK)
    (validate.output / REPORT).write_bytes(canonical_json(judged))
    _write_page(validate, judged, told[chosen.scheme].get("benchmark", {}))
    return told[chosen.scheme] | {
        "scheme": str(chosen.scheme),
        "schemes": [row.brief() for row in rows],
        "reportDigest": "sha256:" + sha256_of(validate.output / REPORT),
    }


def _run(validate: Validate, progress: Progress) -> dict[str, Any]:
    conversion = Conversion.read(validate.graph)
    _refuse_other_spec(conversion, validate)
    truth = _truth(validate, conversion)
    original = truth.original
    folder, parts = validate.graph / validate.provider, parts_of(original.checkpoint)
    graph.inspect_parts(folder, parts)
    paths = tuple(folder / part.file for part in parts)
    checked = targets.check(paths, validate.provider) if validate.provider.is_edge else None
    told = _told_before(conversion, validate)
    places = tuple(validate.spec.place_of(path.stem, validate.provider.judged_on) for path in paths)
    candidate = Candidate.load(paths, validate.provider.judged_on, told=told, places=places, is_proved=True)
    progress.tell("CheckpointLoaded", percent=10, architecture=conversion.architecture, task=str(conversion.task))
    asked, task, scheme = validate.parity, conversion.task, validate.spec.scheme
    mixes = has_experts(original.checkpoint.model)
    loosest = parity.loosest(validate.spec.schemes, task)
    tolerance = parity.tolerance_of(asked, loosest, task, has_experts=mixes)
    judgement = judge(original, candidate, tolerance, progress)
    before = conversion.graphs[validate.provider].stages
    if (fault := stages.fault(before, asked, task, scheme, has_experts=mixes)) is not None:
        reason = PARITY_FAILED if judgement.reason is VALIDATED else judgement.reason
        judgement = replace(judgement, reason=reason, message=f"{fault}; what is served of it: {judgement.message}")
    if judgement.reason is NOT_FINITE:
        judgement = replace(judgement, message=judgement.message + precision.way_out_of(validate.spec))
    if judgement.reason is VALIDATED:
        verdict = evaluate.judge(truth.asked, evaluate.asks(original, candidate, truth.asked), progress, truth.rows)
        judgement = replace(judgement, evaluated=verdict.evaluated)
        if verdict.reason is not None:
            judgement = replace(judgement, reason=verdict.reason, message=verdict.message)
    if judgement.reason is VALIDATED and checked is None:
        judgement = _timed(judgement, validate.spec, tuple(zip(paths, places, strict=True)), progress)
    if checked is not None:
        packed = f"packed for {validate.provider} and not run there: {checked.words}"
        judgement = replace(judgement, coverage=checked.coverage, message=f"{judgement.message}; {packed}")
    found = _report_of(judgement, tolerance, conversion, validate.provider, checked)
    (validate.output / REPORT).write_bytes(canonical_json(found.value()))
    _write_page(validate, found.value(), {})
    if judgement.reason is not VALIDATED:
        raise StepFailedError(judgement.reason, judgement.message)
    (validate.output / GOLDEN).write_bytes(canonical_json(_golden(original, candidate)))
    benchmarked = {}
    # How fast the graph is on the CPU says nothing of the device that it is for.
    if validate.benchmark and checked is None:
        # Its own session begins where no other holds memory.
        del candidate
        wanted = Benchmark(
            validate.checkpoint,
            paths,
            validate.provider,
            validate.serving,
            truth.load_seconds,
            validate.benchmark,
            told,
            places,
        )
        # Timed is what it takes to answer, not to remember.
        benchmarked = benchmark.measure(replace(original, answered=None), wanted)
        progress.tell("Benchmarked", percent=99, cells=len(benchmarked.get("cells", ())))
        (validate.output / BENCHMARK).write_bytes(canonical_json({"schema": benchmark.SCHEMA} | benchmarked))
        _write_page(validate, found.value(), benchmarked)
    return {
        "provider": str(validate.provider),
        "parity": dict(found.parity),
        "tolerance": dict(found.tolerance),
        "samples": found.samples,
        **({"evaluations": [_told(one) for one in judgement.evaluated]} if judgement.evaluated else {}),
        "placement": dict(found.placement),
        **({"checked": checked.words} if checked is not None else {}),
        "reportDigest": "sha256:" + sha256_of(validate.output / REPORT),
        **({"benchmark": benchmarked} if benchmarked else {}),
    }


def _timed(
    judgement: Judgement, spec: ConversionSpec, placed: Iterable[tuple[Path, Provider]], progress: Progress
) -> Judgement:
    """What is as good as the original must not be slow without a word; who asks for 16 bits is told what they cost."""
    if spec.activations is Activations.UINT16:
        return judgement
    try:
        ratios = kernels.refuse_slow(placed)
    except StepFailedError as error:
        return replace(judgement, reason=error.reason, message=error.message)
    progress.tell("KernelsTimed", percent=97, layers=len(ratios), slowest=round(max(ratios.values(), default=0.0), 2))
    return judgement


def _told_before(conversion: Conversion, validate: Validate) -> dict[str, str] | None:
    """What a server's provider is told as well, but for more texts together than it may get, as here they are asked."""
    if validate.provider is not Provider.TENSORRT:
        return None
    names = [item.name for item in conversion.inputs]
    batch = max(_MOST_TOGETHER, validate.serving.max_batch_size)
    folder = Path(tempfile.gettempdir(), "engines")
    folder.mkdir(exist_ok=True)
    length, scheme = conversion.max_sequence_length, str(conversion.spec.scheme)
    return engines.options(engines.parameters(names, scheme, batch=batch, length=length, folder=str(folder)))


def _truth(validate: Validate, conversion: Conversion) -> Truth:
    """The original, as the graphs of a scheme are asked; loaded and read anew only where nobody did before."""
    shared = validate.shared or Shared()
    if shared.digest != conversion.source_digest:
        verify_checkpoint(validate.checkpoint, conversion.source_digest)
    programs = [one for one in validate.evaluations if one.metric is Metric.PASS_AT_K]
    if programs and not validate.runs_programs:
        raise StepFailedError(
            SPEC_IMPOSSIBLE,
            f"{programs[0].field}: {Metric.PASS_AT_K} runs programs that the model writes, which --run-generated-code "
            "allows: leave the evaluation out, or let the class have validation.runGeneratedCode",
        )
    besides = (footprint.PROGRAM if programs else 0) + (footprint.REMEMBERED if validate.shared else 0)
    spec = validate.spec
    footprint.refuse_too_little(
        validate.checkpoint, spec.schemes, spec.max_sequence_length, limits.memory_of(), besides=besides
    )
    truth = shared.truth
    if truth is None or shared.digest != conversion.source_digest:
        began = time.perf_counter()
        original = Original.load(validate.checkpoint, conversion.task, validate.spec.max_sequence_length)
        load_seconds = time.perf_counter() - began
        asked = tuple(
            Examples.read(one, validate.datasets / one.name, original.checkpoint) for one in validate.evaluations
        )
        if validate.shared is not None:
            original = replace(original, answered=Answers(footprint.REMEMBERED))
        truth = Truth(original, load_seconds, asked, {})
        shared.digest, shared.truth = conversion.source_digest, truth
    # The benchmark may have taken it to another device.
    truth.original.wrapper.to("cpu")
    checkpoint = replace(truth.original.checkpoint, kept=precision.border_of(validate.spec.of(DECODER).scheme))
    return replace(
        truth,
        original=replace(truth.original, checkpoint=checkpoint),
        asked=tuple(replace(one, checkpoint=checkpoint) for one in truth.asked),
    )


def _write_page(validate: Validate, found: Mapping[str, Any], benchmarked: Mapping[str, Any]) -> None:
    name = str(validate.provider)
    html = page({name: found}, {"conversion": found["conversion"]}, {name: benchmarked})
    (validate.output / PAGE).write_text(html, encoding="utf-8")


def _refuse_other_spec(conversion: Conversion, validate: Validate) -> None:
    if validate.provider not in conversion.graphs:
        made = ", ".join(conversion.graphs)
        raise StepFailedError(SPEC_IMPOSSIBLE, f"--provider {validate.provider}: the conversion made graphs for {made}")
    if conversion.spec != validate.spec:
        raise StepFailedError(ARTIFACT_CORRUPT, "--spec is not the one the graph was converted with: convert again")


def judge(original: Original, candidate: Candidate, tolerance: parity.Tolerance, progress: Progress) -> Judgement:
    """Measures sample by sample until one shows that the graph is broken."""
    measurements: list[parity.Measurement] = []
    outlines: list[samples.Sample] = []
    placed: dict[str, dict[str, int]] = {}
    try:
        generation.refuse_deaf(original, candidate)
        # Counted first, and made anew to be asked: all of them together take gigabytes where texts are long.
        asked = sum(1 for _ in samples.all_samples(original.checkpoint))
        for sample in samples.all_samples(original.checkpoint):
            measurements.append(_measured(original, candidate, sample))
            outlines.append(sample.outline())
            progress.tell("SampleCompared", percent=10 + 85 * len(outlines) // asked, sample=sample.name)
        for piece, found in generation.measure_longest(original, candidate):
            outlines.append(piece.outline())
            measurements.append(found)
            progress.tell("SampleCompared", percent=95, sample=piece.name)
        if original.checkpoint.cross:
            measurements.append(generation.measure_whole(original, candidate))
        if original.checkpoint.cache:
            measurements.append(generation.measure_greedy(original, candidate))
        measured = parity.total(measurements)
        placed = candidate.coverage()
    except StepFailedError as error:
        reason, message = error.reason, error.message
        if reason is INPUT_IGNORED:
            reason, message = diagnosis.better_named(original, candidate, reason, message)
        return Judgement(tuple(measurements), None, placed, reason, message)
    if violated := parity.violations(measured, tolerance):
        reason, words = diagnosis.reason_of(list(zip(outlines, measurements, strict=False)), tolerance)
        reason, words = diagnosis.better_named(original, candidate, reason, words)
        message = (
            f"the graph on {candidate.provider} is not like the original: {words and f'{words}: '}"
            f"{'; '.join(violated)}; choose another scheme or tolerance"
        )
        return Judgement(tuple(measurements), measured, placed, reason, message)
    message = (
        f"{measured.vectors} vectors of {measured.samples} samples agree with the original on {candidate.provider}"
    )
    return Judgement(tuple(measurements), measured, placed, VALIDATED, message)


def _measured(original: Original, candidate: Candidate, sample: samples.Sample) -> parity.Measurement:
    """Of its own, so that what both sides answer is gone before they are asked again."""
    truth, answer = original.answer(sample), candidate.answer(original.outputs, sample)
    return parity.compare(original.checkpoint.task, sample, truth, answer)


def _report_of(
    judgement: Judgement,
    tolerance: parity.Tolerance,
    conversion: Conversion,
    provider: Provider,
    checked: targets.Checked | None,
) -> report.Report:
    measured = judgement.total
    return report.Report(
        verdict="Passed" if judgement.reason is VALIDATED else "Failed",
        reason=judgement.reason.name,
        message=judgement.message,
        provider=str(provider),
        graph_digest=conversion.graphs[provider].digest,
        parity={
            "minCosine": report.cosine(measured.min_cosine) if measured else None,
            "maxAbsolute": report.number(measured.max_absolute) if measured else None,
            "maxRelative": report.number(measured.max_relative) if measured else None,
            "minLabelAgreement": report.number(measured.label_agreement) if measured else None,
            "qualityLoss": report.number(measured.quality_loss) if measured else None,
        },
        tolerance={
            "minCosine": report.number(tolerance.min_cosine),
            "maxAbsolute": report.number(tolerance.max_absolute),
            "maxRelative": report.number(tolerance.max_relative),
            "minLabelAgreement": report.number(tolerance.min_label_agreement),
        },
        samples=len(judgement.measurements),
        vectors=sum(item.vectors for item in judgement.measurements),
        ignored=sum(item.ignored for item in judgement.measurements),
        placement=placement.by_provider(judgement.coverage),
        coverage=judgement.coverage,
        conversion=conversion.model_dump(mode="json", by_alias=True, exclude={"files"}),
        rows=tuple(map(_row_of, judgement.measurements)),
        evaluations=tuple(map(_evaluation_of, judgement.evaluated)),
        checked=checked.value() if checked is not None else None,
    )


def _evaluation_of(one: Evaluated) -> report.Evaluation:
    compared, said = one.compared, one.evaluation
    return report.Evaluation(
        name=said.name,
        metric=str(said.metric),
        dataset=said.dataset.digest,
        samples=one.samples,
        original=_estimate(compared.original),
        graph=_estimate(compared.graph),
        loss=_estimate(compared.loss),
        max_loss=f"{said.max_loss:g}",
        is_relative=said.metric in quality.RELATIVE,
        is_shown=one.is_shown,
        pooling=one.pooling,
        judged_by="" if said.judged_by is JudgedBy.VALUE else said.judged_by,
    )


def _estimate(found: Estimate) -> report.Estimate:
    return report.Estimate(*(report.number(value) or "" for value in (found.value, found.low, found.high)))


def _told(one: Evaluated) -> dict[str, Any]:
    """In brief, as a termination message has little room; the rest was declared."""
    found = _evaluation_of(one)
    return {
        "name": found.name,
        "original": found.original.value,
        "graph": found.graph.value,
        "loss": found.loss.value,
        "lossLow": found.loss.low,
        "lossHigh": found.loss.high,
        "samples": found.samples,
    }


def _row_of(measured: parity.Measurement) -> report.Row:
    return report.Row(
        sample=measured.sample,
        vectors=measured.vectors,
        ignored=measured.ignored,
        min_cosine=report.cosine(measured.min_cosine),
        max_absolute=report.number(measured.max_absolute) or "",
        max_relative=report.number(measured.max_relative) or "",
        label_agreement=report.number(measured.labels_agreeing / measured.labels) if measured.labels else None,
    )


def _golden(original: Original, candidate: Candidate) -> list[dict[str, Any]]:
    """Requests with the answers of this very graph: what a server of the artifact must answer too."""
    output = original.outputs[0]
    entries = []
    asked = samples.golden_requests(original.checkpoint)
    if original.checkpoint.cross:
        # The answer's beginning goes with the text, so that every token of it is compared.
        asked = [generation.begun(original, candidate, sample, samples.GOLDEN_TOKENS) for sample in asked]
    for sample in asked:
        answer = candidate.answer([output], sample)[output]
        entry = {
            "name": sample.name,
            "inputs": {name: _tensor(tensor) for name, tensor in sample.tensors.items()},
            "outputs": {output: _tensor(answer)},
        }
        if original.checkpoint.cache:
            # A number for each word of the vocabulary at each position: too many for a file, so it names the largest.
            largest = answer.argmax(axis=-1)
            entry["outputs"] = {output: _described(answer) | {"largest": largest.ravel().tolist()}}
            entry["compared"] = _tensor(_compared(original.checkpoint, largest))
        entries.append(entry)
    return entries


def _compared(checkpoint: Checkpoint, largest: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which tokens count: the next one, as those after the first words are all but guesses; of an answer all of it."""
    counts = np.zeros_like(largest)
    if checkpoint.cross:
        ends = largest == checkpoint.tokenizer.eos_token_id
        counts[ends.cumsum(axis=1) - ends == 0] = 1
    else:
        counts[:, -1] = 1
    return counts


def _tensor(values: NDArray[Any]) -> dict[str, Any]:
    if values.size > _MOST_WRITTEN:
        packed = zlib.compress(values.astype(values.dtype.newbyteorder("<")).tobytes(), level=9)
        return _described(values) | {"deflated": base64.b64encode(packed).decode()}
    # A float is written in the few digits that bring it back, not in those of the float64 it would become.
    is_float = values.dtype.kind == "f"
    data = [float(str(value)) for value in values.ravel()] if is_float else values.ravel().tolist()
    return _described(values) | {"data": data}


def _described(values: NDArray[Any]) -> dict[str, Any]:
    return {"datatype": DATATYPES[values.dtype.name], "shape": list(values.shape)}
