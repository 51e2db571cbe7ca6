"""`python -m onnx_converter STEP`: flags in, one line of progress at a time, a summary out.

Only wiring: each step is a function in a module of its own, imported when it is asked for, since `assemble` must run
where neither pydantic nor torch is installed. Refuses to end without a summary, whatever happens short of SIGKILL.
"""

from __future__ import annotations

import argparse
import errno
import gc
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, TextIO

from onnx_converter import reasons, summary
from onnx_converter.limits import limit_libraries
from onnx_converter.overriding import override
from onnx_converter.progress import Progress, ProgressHandler
from onnx_converter.reasons import Reason, StepFailedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType

TERMINATION_LOG: Final = Path("/dev/termination-log")
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


Run = Callable[[argparse.Namespace, Progress], tuple[Reason, str, dict[str, Any]]]


class _Parser(argparse.ArgumentParser):
    """argparse that ends like every other failure: with a reason and a summary."""

    @override
    def error(self, message: str) -> NoReturn:
        raise StepFailedError(reasons.USAGE, message)


def parser() -> argparse.ArgumentParser:
    root = _Parser(prog="onnx_converter", description="Turns a checkpoint into a validated, served ONNX model.")
    steps = root.add_subparsers(dest="step", required=True, metavar="STEP")
    fetch = _step(steps, "fetch", "bring a checkpoint into the work volume", _fetch)
    fetch.add_argument("--source", required=True, metavar="JSON", help="spec.source of the OnnxModel")
    fetch.add_argument("--source-root", type=Path, default=Path("/source"), help="where the claim is mounted")
    fetch.add_argument("--output", type=Path, default=Path("/checkpoints"), help="folder that gets a folder per digest")
    fetch.add_argument("--expect-digest", metavar="DIGEST", help="refuse a checkpoint with another digest")
    fetch.add_argument("--keep", type=int, default=3, help="newest checkpoints to keep")
    fetch.add_argument("--calibration", metavar="JSON", help="spec.quantization.calibration, if it is on a hub")
    fetch.add_argument(
        "--evaluations", default="[]", metavar="JSON", help="of spec.validation.evaluations those on a hub"
    )
    fetch.add_argument("--datasets", type=Path, default=Path("/datasets"), help="folder that gets their files")
    convert = _step(steps, "convert", "make a graph for each execution provider", _convert)
    convert.add_argument("--checkpoint", type=Path, default=Path("/checkpoint"))
    convert.add_argument("--source-digest", required=True, metavar="DIGEST", help="digest the fetch step printed")
    convert.add_argument("--spec", required=True, metavar="JSON")
    convert.add_argument("--output", type=Path, default=Path("/graph"))
    convert.add_argument(
        "--calibration-root", type=Path, default=Path("/calibration"), help="where calibration texts are mounted"
    )
    validate = _step(steps, "validate", "prove that a graph behaves like the original", _validate)
    validate.add_argument("--checkpoint", type=Path, default=Path("/checkpoint"))
    validate.add_argument("--graph", type=Path, default=Path("/graph"))
    validate.add_argument("--provider", required=True)
    validate.add_argument("--spec", required=True, metavar="JSON")
    validate.add_argument("--parity", default="{}", metavar="JSON", help="spec.validation.parity of the OnnxModel")
    validate.add_argument("--evaluations", default="[]", metavar="JSON", help="spec.validation.evaluations")
    validate.add_argument("--datasets", type=Path, default=Path("/datasets"), help="holds a folder for each evaluation")
    validate.add_argument(
        "--run-generated-code", action="store_true", help="allow evaluations that run what the model writes"
    )
    validate.add_argument("--serving", default="{}", metavar="JSON", help="threads and batch size of the benchmark")
    validate.add_argument("--benchmark", type=float, default=0.0, metavar="SECONDS", help="how long to measure speed")
    validate.add_argument("--output", type=Path, default=Path("/validation"))
    publish = _step(steps, "publish", "pack an immutable artifact", _publish)
    publish.add_argument("--work", type=Path, default=Path("/conversion"))
    publish.add_argument("--store", type=Path, default=Path("/artifacts"))
    publish.add_argument("--spec", required=True, metavar="JSON")
    publish.add_argument("--serving", default="{}", metavar="JSON")
    publish.add_argument("--lineage", default="{}", metavar="JSON")
    publish.add_argument(
        "--unvalidated", action="append", default=[], metavar="PROVIDER", help="publish its graph without a report"
    )
    publish.add_argument(
        "--left-out", action="append", default=[], metavar="PROVIDER", help="publish neither its graph nor a report"
    )
    assemble = _step(steps, "assemble", "check an artifact and lay out Triton's model repository", _assemble)
    assemble.add_argument("--artifact", type=Path, default=Path("/artifact"))
    assemble.add_argument("--digest", required=True, metavar="DIGEST")
    assemble.add_argument("--provider", required=True)
    assemble.add_argument("--model-name", required=True)
    assemble.add_argument("--version", type=int, required=True)
    assemble.add_argument("--repository", type=Path, default=Path("/models"))
    return root


def _step(steps: Any, name: str, text: str, run: Run) -> argparse.ArgumentParser:
    added: argparse.ArgumentParser = steps.add_parser(name, help=text, description=text)
    added.set_defaults(run=run)
    added.add_argument(
        "--termination-log", type=Path, help=f"file for the summary, {TERMINATION_LOG} if it can be opened"
    )
    return added


def _fetch(arguments: argparse.Namespace, progress: Progress) -> tuple[Reason, str, dict[str, Any]]:
    from onnx_converter import fetch, spec  # noqa: PLC0415

    source = spec.parse(spec.Source, "--source", arguments.source)
    texts = arguments.calibration
    details = fetch.run(
        fetch.Fetch(
            source,
            arguments.source_root,
            arguments.output,
            arguments.expect_digest,
            arguments.keep,
            spec.parse(spec.Dataset, "--calibration", texts) if texts is not None else None,
            spec.parse(spec.Evaluations, "--evaluations", arguments.evaluations).root,
            arguments.datasets,
        ),
        progress,
    )
    return reasons.FETCHED, f"{details['files']} files, {details['bytes']} bytes", details


@contextmanager
def _importing() -> Iterator[None]:
    """Modules stay: to look through them for waste again and again takes a fifth of their import, and later as much of
    a trace.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        # Once: where a process runs several steps, what the last one left is waste.
        if not gc.get_freeze_count():
            gc.freeze()


def _convert(arguments: argparse.Namespace, progress: Progress) -> tuple[Reason, str, dict[str, Any]]:
    with _importing():
        from onnx_converter import convert, precision, spec  # noqa: PLC0415

    wanted = spec.parse(spec.ConversionSpec, "--spec", arguments.spec)
    details = convert.run(
        convert.Convert(
            arguments.checkpoint, arguments.source_digest, wanted, arguments.output, arguments.calibration_root
        ),
        progress,
    )
    untested = "" if details["knownArchitecture"] else "; there is no tested route for it, so the gate alone decides"
    ways = ", ".join(dict.fromkeys(made["route"] for made in details["graphs"].values()))
    told = f"{details['architecture']} for {details['task']} by {ways}{untested}{precision.remark_of(wanted)}"
    return reasons.CONVERTED, told, details


def _validate(arguments: argparse.Namespace, progress: Progress) -> tuple[Reason, str, dict[str, Any]]:
    with _importing():
        from onnx_converter import spec, validate  # noqa: PLC0415

    wanted = spec.parse(spec.ConversionSpec, "--spec", arguments.spec)
    provider = spec.provider_of(arguments.provider)
    parity = spec.parse(spec.Parity, "--parity", arguments.parity)
    details = validate.run(
        validate.Validate(
            arguments.checkpoint,
            arguments.graph,
            provider,
            wanted,
            parity,
            spec.parse(spec.Serving, "--serving", arguments.serving),
            arguments.benchmark,
            arguments.output,
            spec.parse(spec.Evaluations, "--evaluations", arguments.evaluations).root,
            arguments.datasets,
            arguments.run_generated_code,
        ),
        progress,
    )
    chosen = f"auto takes {details['scheme']}: " if "scheme" in details else ""
    packed = f"; packed for {provider}, not run there: {details['checked']}" if "checked" in details else ""
    told = f"{chosen}{details['samples']} samples agree with the original on {provider.judged_on}{packed}"
    if provider is spec.Provider.TENSORRT:
        told += "".join(f", {count} nodes on {place}" for place, count in details["placement"].items())
    return reasons.VALIDATED, told, details


def _publish(arguments: argparse.Namespace, progress: Progress) -> tuple[Reason, str, dict[str, Any]]:
    from onnx_converter import publish, spec  # noqa: PLC0415

    details = publish.run(
        publish.Publish(
            arguments.work,
            arguments.store,
            spec.parse(spec.ConversionSpec, "--spec", arguments.spec),
            spec.parse(spec.Serving, "--serving", arguments.serving),
            spec.parse(spec.Lineage, "--lineage", arguments.lineage),
            frozenset(map(spec.provider_of, arguments.unvalidated)),
            frozenset(map(spec.provider_of, arguments.left_out)),
        ),
        progress,
    )
    return reasons.PUBLISHED, f"{details['digest']} with {details['bytes']} bytes", details


def _assemble(arguments: argparse.Namespace, progress: Progress) -> tuple[Reason, str, dict[str, Any]]:
    from onnx_converter import assemble  # noqa: PLC0415

    details = assemble.run(
        assemble.Assembly(
            arguments.artifact,
            arguments.digest,
            arguments.provider,
            arguments.model_name,
            arguments.version,
            arguments.repository,
        )
    )
    progress.tell("RepositoryLaidOut", percent=100, files=details["files"])
    return reasons.ASSEMBLED, f"{arguments.model_name} version {arguments.version} on {arguments.provider}", details


def main(argv: Sequence[str] | None = None, stream: TextIO | None = None) -> int:
    """Runs one step; whatever it ends with becomes a summary and an exit code."""
    progress = Progress("none", stream or sys.stdout)
    log: Path | None = None
    try:
        arguments = parser().parse_args(argv)
        progress = Progress(arguments.step, progress.stream)
        log = arguments.termination_log
        with _watched(progress):
            progress.tell("StepStarted", percent=0, threads=limit_libraries())
            run: Run = arguments.run
            reason, message, details = run(arguments, progress)
    except (Exception, _StoppedError) as error:  # noqa: BLE001  the last line of defence: everything becomes a summary
        reason, message = _sort(error)
        details = {}
    outcome: summary.Outcome = "Failed" if reason.exit_code else "Succeeded"
    found = summary.Summary(progress.step, outcome, reason.name, message, reason.exit_code, details)
    _say_last(summary.dump(found), log, progress.stream)
    return reason.exit_code


@contextmanager
def _watched(progress: Progress) -> Iterator[None]:
    """SIGTERM ends the step like any failure, and warnings of libraries become its lines."""
    handler = ProgressHandler(progress)
    logging.getLogger().addHandler(handler)
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        logging.getLogger().removeHandler(handler)


class _StoppedError(BaseException):
    """SIGTERM. No Exception, so that nothing that catches those can take a stop for a fault of the checkpoint."""


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise _StoppedError


def _sort(error: BaseException) -> tuple[Reason, str]:
    """The reason of an exception; only what nobody foresaw is a crash."""
    match error:
        case StepFailedError():
            return error.reason, error.message
        case _StoppedError():
            return reasons.INTERRUPTED, "the container was told to stop before it was done: the Job may start it again"
        case OSError() if error.errno in _FULL:
            return (
                reasons.DISK_FULL,
                f"no space left for {error.filename or 'a temporary file'}: enlarge or empty the volume",
            )
        case OSError() if error.errno in (errno.EIO, errno.ESTALE, errno.EROFS):
            return reasons.STORAGE_FAILED, f"{error.filename or 'a volume'}: {error.strerror}; check the volume"
        case MemoryError():
            return reasons.OUT_OF_MEMORY, "an allocation failed: raise the class's memory limit for this step"
        case _:
            traceback.print_exc()
            return reasons.CRASHED, f"{type(error).__name__}: {error}; see the container's log"


def _say_last(text: str, log: Path | None, stream: TextIO) -> None:
    stream.write(text + "\n")
    stream.flush()
    try:
        (log or TERMINATION_LOG).write_text(text, encoding="utf-8")
    except OSError:
        # Outside a container there is no such file; one that was asked for by name must be written.
        if log is not None:
            raise


def run_as_program() -> NoReturn:
    """Keeps standard output for our own lines: what libraries print goes to standard error."""
    own = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    code = main(stream=own)
    for stream in (own, sys.stdout, sys.stderr):
        stream.flush()
    # To take all modules apart takes as long as many a step, and there is nothing left to be done in any.
    os._exit(code)
