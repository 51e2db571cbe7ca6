"""The step that packs one immutable artifact, named by the digest of its manifest.

Refuses to publish what no report of this very graph says has passed, and never writes into an artifact that is there.
Whatever was measured lies beside it: it differs from processor to processor, and the artifact's bytes may not.
"""

from __future__ import annotations

import errno
import json
import shutil
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from onnx_converter import artifact, graph, ladder, package
from onnx_converter.conversion import Conversion
from onnx_converter.digest import canonical_json, digest_of_bytes, hex_of, sha256_of
from onnx_converter.fetch import sync, sync_tree
from onnx_converter.reasons import ARTIFACT_CORRUPT, PARITY_FAILED, StepFailedError
from onnx_converter.report import BENCHMARK, GOLDEN, PAGE, REPORT, VALIDATION_PREFIX
from onnx_converter.report_html import page
from onnx_converter.spec import Scheme

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnx_converter.progress import Progress
    from onnx_converter.spec import ConversionSpec, Lineage, Provider, Serving

_INCOMING: Final = ".incoming-"
_DEAD_AFTER_SECONDS: Final = 24 * 3600
#: Of a conversion what tells numbers that were measured on the way.
_MEASURED: Final = {"sensitive": True, "graphs": {"__all__": {"stages", "routes_refused"}}}
SCHEMA: Final = "onnx-operator.io/reports/v1alpha1"


@dataclass(frozen=True, slots=True)
class Publish:
    """What to publish and where to."""

    work: Path
    store: Path
    spec: ConversionSpec
    serving: Serving
    lineage: Lineage
    #: What no node could judge, and is published all the same.
    unvalidated: frozenset[Provider] = frozenset()
    #: What no node could judge, and is not published.
    left_out: frozenset[Provider] = frozenset()

    @property
    def providers(self) -> tuple[Provider, ...]:
        return tuple(one for one in self.spec.providers if one not in self.left_out)

    @property
    def validated(self) -> tuple[Provider, ...]:
        return tuple(one for one in self.providers if one not in self.unvalidated)


def run(publish: Publish, progress: Progress) -> dict[str, Any]:
    _refuse_unproved(publish)
    reports = {str(provider): _report_of(publish.work, provider) for provider in publish.validated}
    made = {provider: _made(publish, provider, reports.get(str(provider))) for provider in publish.providers}
    # What a server must answer, where there is one.
    first = min(publish.validated, key=lambda provider: provider.is_edge)
    golden = (publish.work / f"{VALIDATION_PREFIX}{first}" / GOLDEN).read_bytes()
    publish.store.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(publish.store)
    incoming = Path(tempfile.mkdtemp(prefix=_INCOMING, dir=publish.store))
    try:
        conversion, folder = _conversion_of(made, publish), incoming / "artifact"
        lineage = _lineage_of(conversion, made, publish)
        folder.mkdir()
        _fill(folder, publish, made)
        manifest = artifact.describe(folder, lineage)
        data = artifact.dump(manifest)
        (folder / artifact.MANIFEST).write_bytes(data)
        (folder / artifact.MANIFEST).chmod(0o444)
        digest = digest_of_bytes(data)
        _settle(folder, publish.store / hex_of(digest), digest)
        benchmarks = {str(provider): _benchmark_of(publish.work, provider) for provider in made}
        told = {**lineage, "artifact": {"digest": digest}, "conversion": _plain(conversion)}
        evidence = {
            REPORT: canonical_json({"schema": SCHEMA, "verdict": "Passed", "reports": reports}),
            PAGE: page(reports, told, benchmarks).encode(),
            BENCHMARK: canonical_json(benchmarks),
        }
        for name, content in evidence.items():
            _put_beside(publish.store / hex_of(digest), name, content, incoming)
        golden_digest = _keep_golden(publish.store / hex_of(digest), golden, incoming)
    finally:
        shutil.rmtree(incoming, ignore_errors=True)
    progress.tell("ArtifactPublished", percent=100, digest=digest, bytes=manifest.size)
    return {
        "digest": digest,
        "bytes": manifest.size,
        "files": len(manifest.files),
        "reportDigest": digest_of_bytes(evidence[REPORT]),
        "pageDigest": digest_of_bytes(evidence[PAGE]),
        "goldenDigest": golden_digest,
    }


def _refuse_unproved(publish: Publish) -> None:
    if not publish.validated:
        raise StepFailedError(
            PARITY_FAILED, "--unvalidated and --left-out name every provider: validate on one of them first"
        )
    if publish.unvalidated and publish.spec.scheme is Scheme.AUTO:
        raise StepFailedError(
            PARITY_FAILED, f"scheme auto is chosen by a validation: validate on {min(publish.unvalidated)} first"
        )


@dataclass(frozen=True, slots=True)
class _Made:
    """Where one provider's graph lies, and the conversion that it is of."""

    conversion: Conversion
    folder: Path


def _report_of(work: Path, provider: Provider) -> dict[str, Any]:
    path = work / f"{VALIDATION_PREFIX}{provider}" / REPORT
    try:
        report: dict[str, Any] = json.loads(path.read_bytes())
        return {name: report[name] for name in ("verdict", "graphDigest", "conversion")} | report
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StepFailedError(
            PARITY_FAILED, f"{path.parent.name}/{REPORT} is missing or cannot be read: validate on {provider} first"
        ) from error


def _made(publish: Publish, provider: Provider, report: Mapping[str, Any] | None) -> _Made:
    """The graph that the report says passed, of the conversion that was asked for; without one as it was made."""
    spec, folder = publish.spec, publish.work / "graph"
    if spec.scheme is Scheme.AUTO and report is not None:
        spec = ladder.rung(spec, report["conversion"]["spec"]["scheme"])
        folder /= spec.scheme
    conversion = Conversion.read(folder)
    if conversion.spec != spec:
        raise StepFailedError(ARTIFACT_CORRUPT, "--spec is not the one the graph was converted with: convert again")
    if report is None:
        return _Made(conversion, folder)
    verdict, judged = report["verdict"], report["graphDigest"]
    if verdict != "Passed" or judged != conversion.graphs[provider].digest:
        raise StepFailedError(
            PARITY_FAILED,
            f"{VALIDATION_PREFIX}{provider}/{REPORT} says {verdict} of graph {judged}: validate this graph on "
            f"{provider} first",
        )
    return _Made(conversion, folder)


def _benchmark_of(work: Path, provider: Provider) -> dict[str, Any]:
    """Nothing depends on it, so where it is missing there is none."""
    try:
        found: dict[str, Any] = json.loads((work / f"{VALIDATION_PREFIX}{provider}" / BENCHMARK).read_bytes())
    except (OSError, ValueError):
        return {}
    return found


def _conversion_of(made: Mapping[Provider, _Made], publish: Publish) -> Conversion:
    first = next(iter(made.values())).conversion
    return first.model_copy(
        update={
            "spec": publish.spec,
            "graphs": {provider: one.conversion.graphs[provider] for provider, one in made.items()},
        }
    )


def _plain(conversion: Conversion, **besides: Any) -> dict[str, Any]:
    return conversion.model_dump(mode="json", by_alias=True, exclude={"files": True, **besides})


def _lineage_of(conversion: Conversion, made: Mapping[Provider, _Made], publish: Publish) -> dict[str, Any]:
    schemes = {str(provider): str(one.conversion.spec.scheme) for provider, one in made.items()}
    return {
        "source": {"digest": conversion.source_digest},
        "conversion": _plain(conversion, **_MEASURED),
        "serving": publish.serving.model_dump(mode="json", by_alias=True),
        "operator": publish.lineage.value(),
        # What auto took, so that the artifact can be made again without it.
        **({"schemes": schemes} if publish.spec.scheme is Scheme.AUTO else {}),
        **({"notValidated": sorted(publish.unvalidated)} if publish.unvalidated else {}),
        **({"leftOut": sorted(publish.left_out)} if publish.left_out else {}),
    }


def _fill(folder: Path, publish: Publish, made: Mapping[Provider, _Made]) -> None:
    for provider, one in made.items():
        models = folder / "triton" / provider
        # What no server runs is laid out for no server.
        target = folder / "edge" / provider if provider.is_edge else models / package.MODEL / "1"
        graphs = shutil.copytree(one.folder / provider, target)
        configs = {} if provider.is_edge else package.configs_of(one.conversion, publish.serving, provider)
        for name, config in configs.items():
            (models / name).mkdir(exist_ok=True)
            (models / name / "config.pbtxt").write_text(config)
        if graph.digest_of(graphs) != one.conversion.graphs[provider].digest:
            raise StepFailedError(ARTIFACT_CORRUPT, f"graph/{provider} changed while it was copied: convert again")
    shutil.copytree(next(iter(made.values())).folder / "tokenizer", folder / "tokenizer")
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o444)
    folder.chmod(0o755)


def _settle(incoming: Path, final: Path, digest: str) -> None:
    sync_tree(incoming)
    try:
        incoming.rename(final)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        # The same input gave the same artifact before, perhaps a moment ago; it must still be that one.
        artifact.verify(final, digest)
        return
    sync(final.parent)


def _put_beside(final: Path, name: str, data: bytes, incoming: Path) -> None:
    """The last measurement of an artifact that was made several times stands."""
    path = incoming / name
    path.write_bytes(data)
    path.chmod(0o444)
    sync(path)
    path.replace(final.with_name(f"{final.name}.{name}"))
    sync(final.parent)


def _keep_golden(final: Path, golden: bytes, incoming: Path) -> str:
    """The digest of the artifact's golden requests. The first stand: the same is asked in all, and a prober that goes
    by the digest of an earlier revision may be reading them.
    """
    path = final.with_name(f"{final.name}.{GOLDEN}")
    if not path.exists():
        _put_beside(final, GOLDEN, golden, incoming)
    return "sha256:" + sha256_of(path)


def _remove_leftovers(store: Path) -> None:
    """What killed runs left. Other models publish into the same store now, so only what is long dead goes."""
    for path in store.glob(f"{_INCOMING}*"):
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _DEAD_AFTER_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
