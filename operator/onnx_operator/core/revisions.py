"""What makes two revisions the same, and what makes them share an artifact.

A revision is named by a hash over everything that shapes its artifact and its pods, so that a spec that comes back
finds what was made for it before. Not part of it: the number, where the bytes came from, and the operator's image,
which changes with every upgrade.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx_operator.api.common import Resources
from onnx_operator.api.revision import OnnxModelRevisionSpec, RevisionProvider
from onnx_operator.core.names import digest_of, revision_name

if TYPE_CHECKING:
    from onnx_operator.api.model import Evaluation, ExecutionProviderRequest, OnnxModelSpec, Quantization, Source
    from onnx_operator.api.model_class import ProviderPlacement
    from onnx_operator.core.acceptance import Offer
    from onnx_operator.core.observation import DefaultImages

_NO_IDENTITY = {"number", "source", "operatorImage", "artifactKey"}


def source_key(offer: Offer, retry_token: str) -> str:
    """Identifies what is fetched: another source, file of a hub, hub or retry is another fetch."""
    source = offer.spec.source.model_dump(exclude_none=True)
    files = [one.model_dump(exclude_none=True) for one in offer.spec.datasets.values() if one.hugging_face]
    endpoint = offer.class_spec.sources.hugging_face.endpoint if offer.spec.source.hugging_face or files else None
    # Where there are none the key is what it was before there could be any.
    return digest_of([source, endpoint, retry_token, *([files] if files else [])], 16)


def resolve(
    model: str, offer: Offer, images: DefaultImages, *, source_digest: str, number: int
) -> OnnxModelRevisionSpec:
    """The revision that the spec stands for once its source is resolved to a digest."""
    spec, class_spec = offer.spec, offer.class_spec
    placements = {one.name: one for one in class_spec.execution_providers}
    requests = sorted(spec.execution_providers, key=lambda one: one.name)
    return OnnxModelRevisionSpec(
        model_name=model,
        number=number,
        source=spec.source,
        source_digest=source_digest,
        task=spec.task,
        opset=spec.opset,
        quantization=_quantization(spec),
        max_sequence_length=spec.max_sequence_length,
        parity=spec.validation.parity,
        evaluations=_evaluations(spec),
        execution_providers=[_placed(one, placements.get(one.name), spec.serving.resources) for one in requests],
        batching=spec.serving.batching,
        instances=spec.serving.instances,
        threads=spec.serving.threads,
        converter_image=class_spec.images.converter or images.converter,
        server_image=class_spec.images.server or images.server,
        operator_image=images.operator,
        artifact_claim_name=class_spec.artifact_store.claim_name,
        artifact_key=artifact_key(model, offer, images, source_digest),
    )


def artifact_key(model: str, offer: Offer, images: DefaultImages, source_digest: str) -> str:
    """Identifies the artifact: revisions that differ only in their pods have the same."""
    spec, class_spec = offer.spec, offer.class_spec
    evaluations = [one.model_dump(exclude_none=True) for one in _evaluations(spec)]
    return digest_of(
        {
            "model": model,
            "source": source_digest,
            "task": spec.task,
            "opset": spec.opset,
            "quantization": _quantization(spec).model_dump(exclude_defaults=True),
            "maxSequenceLength": spec.max_sequence_length,
            "providers": sorted(one.name for one in spec.execution_providers),
            "parity": spec.validation.parity.model_dump(exclude_none=True),
            "batching": spec.serving.batching.model_dump(),
            "instances": spec.serving.instances,
            "threads": spec.serving.threads,
            "converter": class_spec.images.converter or images.converter,
            "claim": class_spec.artifact_store.claim_name,
            # Where there are none the key is what it was before there could be any.
            **({"evaluations": evaluations} if evaluations else {}),
        },
        16,
    )


def _evaluations(spec: OnnxModelSpec) -> list[Evaluation]:
    """In one order, as they are a map: to write them in another changes nothing, nor does another token."""
    told = [one.model_copy(update={"dataset": one.dataset.without_token()}) for one in spec.validation.evaluations]
    return sorted(told, key=lambda one: one.name)


def _quantization(spec: OnnxModelSpec) -> Quantization:
    if (texts := spec.quantization.calibration) is None:
        return spec.quantization
    return spec.quantization.model_copy(update={"calibration": texts.without_token()})


def conversion_key(revision: OnnxModelRevisionSpec) -> str:
    """Identifies the graphs alone: other bounds for the validation or another batch size convert nothing anew."""
    return digest_of(
        {
            "source": revision.source_digest,
            "task": revision.task,
            "opset": revision.opset,
            "quantization": revision.quantization.model_dump(exclude_defaults=True),
            "maxSequenceLength": revision.max_sequence_length,
            "providers": [one.name for one in revision.execution_providers],
            "converter": revision.converter_image,
        },
        16,
    )


def name_of(revision: OnnxModelRevisionSpec) -> str:
    """The revision's name. Fields at their defaults are left out, so that a new field renames nothing."""
    identity = revision.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    return revision_name(
        revision.model_name, digest_of({key: identity[key] for key in identity.keys() - _NO_IDENTITY}, 10)
    )


def _placed(
    request: ExecutionProviderRequest, placement: ProviderPlacement | None, wanted: Resources
) -> RevisionProvider:
    """None is the placement of what runs outside of the cluster."""
    if placement is None:
        return RevisionProvider(name=request.name, serving=request.serving)
    return RevisionProvider(
        name=request.name,
        serving=request.serving,
        node_selector=placement.node_selector,
        tolerations=placement.tolerations,
        runtime_class_name=placement.runtime_class_name,
        resources=_resources(placement.resources, wanted),
    )


def _resources(offered: Resources, wanted: Resources) -> Resources:
    """The model's resources where it names any; devices such as nvidia.com/gpu stay the class's."""
    if not wanted.requests and not wanted.limits:
        return offered
    return Resources(
        requests=devices(offered.requests) | wanted.requests, limits=devices(offered.limits) | wanted.limits
    )


def devices(amounts: dict[str, str]) -> dict[str, str]:
    """The extended resources among the amounts."""
    return {name: amount for name, amount in amounts.items() if "/" in name}


def declared(source: Source) -> dict[str, object]:
    """The source as the converter takes it: what to fetch, and nothing about how to get in."""
    if (claim := source.persistent_volume_claim) is not None:
        return {"persistentVolumeClaim": {"claimName": claim.claim_name, "path": claim.path}}
    if (hub := source.hugging_face) is not None:
        return {"huggingFace": {"repository": hub.repository, "revision": hub.revision}}
    raise ValueError("the source names neither a claim nor a repository; the schema should have refused it")
