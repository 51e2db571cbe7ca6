"""What makes two revisions the same: names must survive upgrades, so they stand here as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from onnx_operator.api.model import OnnxModelStatus
from onnx_operator.core.acceptance import Offer, accept
from onnx_operator.core.observation import DefaultImages, ModelSeen
from onnx_operator.core.revisions import conversion_key, name_of, resolve, source_key
from unit.core.worlds import a_class, a_digest, a_spec, evaluated

if TYPE_CHECKING:
    from onnx_operator.api.revision import OnnxModelRevisionSpec


DIGEST = a_digest("other data")
NOT_SERVED = {"serving": "none"}


def resolved(
    spec: dict[str, Any] | None = None,
    class_spec: dict[str, Any] | None = None,
    *,
    name: str = "minilm",
    operator: str = "operator:1",
    number: int = 1,
) -> OnnxModelRevisionSpec:
    offer = offered(spec or {}, class_spec or {})
    images = DefaultImages(operator, "converter:1", "triton:1")
    return resolve(name, offer, images, source_digest=a_digest("one"), number=number)


def offered(spec: dict[str, Any], class_spec: dict[str, Any]) -> Offer:
    model = ModelSeen("shop", "minilm", "uid", 1, "1", a_spec(**spec), OnnxModelStatus())
    offer = accept(model, (a_class(**class_spec),))
    assert isinstance(offer, Offer)
    return offer


def calibrated(texts: str) -> dict[str, Any]:
    return {"scheme": "int8-static", "calibration": {"configMap": {"name": "texts"}, "digest": a_digest(texts)}}


def test_other_texts_under_the_same_name_are_another_revision_with_graphs_of_its_own() -> None:
    one, other = (resolved({"quantization": calibrated(texts)}) for texts in ("one", "other"))
    assert name_of(one) != name_of(other)
    assert conversion_key(one) != conversion_key(other)
    assert one.artifact_key != other.artifact_key


def test_the_name_of_the_smallest_spec_never_changes() -> None:
    """If this fails, every model of every user would be converted and canaried anew by an upgrade."""
    assert name_of(resolved()) == "minilm-2ec0440bf6"


SAME = [
    pytest.param({"operator": "operator:2"}, id="an upgrade of the operator"),
    pytest.param({"number": 7}, id="the number"),
    pytest.param({"spec": {"serving": {"replicas": 5}}}, id="replicas"),
    pytest.param({"spec": {"rollout": {"paused": True}}}, id="the rollout"),
    pytest.param({"spec": {"revisionHistoryLimit": 9}}, id="the history limit"),
    pytest.param(
        {"spec": {"source": {"persistentVolumeClaim": {"claimName": "other"}}}}, id="where the bytes came from"
    ),
    pytest.param({"class_spec": {"limits": {"maxReplicas": 50}}}, id="what the class allows"),
]
PODS_ONLY = [
    pytest.param({"spec": {"serving": {"resources": {"limits": {"memory": "9Gi"}}}}}, id="the servers' resources"),
    pytest.param({"class_spec": {"images": {"server": "triton:2"}}}, id="the servers' image"),
]
SAME_GRAPHS = [
    pytest.param({"spec": {"validation": {"parity": {"minCosine": "0.9"}}}}, id="bounds of the validation"),
    pytest.param({"spec": {"validation": {"evaluations": [evaluated("sts")]}}}, id="evaluations"),
    pytest.param({"spec": {"serving": {"batching": {"maxBatchSize": 4}}}}, id="batching"),
    pytest.param({"spec": {"serving": {"threads": 4}}}, id="threads"),
]
OTHER_GRAPHS = [
    pytest.param({"spec": {"opset": 19}}, id="opset"),
    pytest.param({"spec": {"task": "feature-extraction"}}, id="task"),
    pytest.param({"spec": {"quantization": {"scheme": "int8-dynamic"}}}, id="quantization"),
    pytest.param({"spec": {"quantization": {"scheme": "none", "keepOutputHead": False}}}, id="a part of it"),
    pytest.param({"spec": {"quantization": calibrated("one")}}, id="texts to calibrate on"),
    pytest.param({"spec": {"maxSequenceLength": 128}}, id="length"),
    pytest.param({"class_spec": {"images": {"converter": "converter:2"}}}, id="the converter"),
]


@pytest.mark.parametrize("change", SAME)
def test_this_leaves_the_revision_the_same(change: dict[str, Any]) -> None:
    assert name_of(resolved(**change)) == name_of(resolved())


@pytest.mark.parametrize("change", [*PODS_ONLY, *SAME_GRAPHS, *OTHER_GRAPHS])
def test_this_makes_another_revision(change: dict[str, Any]) -> None:
    assert name_of(resolved(**change)) != name_of(resolved())


@pytest.mark.parametrize("change", PODS_ONLY)
def test_this_shares_the_artifact(change: dict[str, Any]) -> None:
    assert resolved(**change).artifact_key == resolved().artifact_key


@pytest.mark.parametrize("change", [*SAME_GRAPHS, *OTHER_GRAPHS])
def test_this_needs_an_artifact_of_its_own(change: dict[str, Any]) -> None:
    assert resolved(**change).artifact_key != resolved().artifact_key


@pytest.mark.parametrize("change", [*PODS_ONLY, *SAME_GRAPHS])
def test_this_shares_the_graphs(change: dict[str, Any]) -> None:
    assert conversion_key(resolved(**change)) == conversion_key(resolved())


@pytest.mark.parametrize("change", OTHER_GRAPHS)
def test_this_needs_graphs_of_its_own(change: dict[str, Any]) -> None:
    assert conversion_key(resolved(**change)) != conversion_key(resolved())


def test_the_order_of_execution_providers_means_nothing() -> None:
    both = {"executionProviders": [{"name": "CPUExecutionProvider"}, {"name": "CUDAExecutionProvider"}]}
    one = {"executionProviders": [{"name": "CPUExecutionProvider"}, {"name": "CUDAExecutionProvider"}]}
    other = {"executionProviders": [{"name": "CUDAExecutionProvider"}, {"name": "CPUExecutionProvider"}]}
    assert name_of(resolved(one, both)) == name_of(resolved(other, both))


def test_what_is_packed_instead_of_served_is_another_revision_with_the_same_artifact() -> None:
    served, packed = ({"executionProviders": [{"name": "CPUExecutionProvider", **more}]} for more in ({}, NOT_SERVED))
    assert name_of(resolved(served)) == name_of(resolved())
    assert name_of(resolved(packed)) != name_of(resolved())
    assert resolved(packed).artifact_key == resolved().artifact_key


def test_devices_outside_of_the_cluster_need_no_word_of_the_class() -> None:
    edge = [{"name": name, **NOT_SERVED} for name in ("WebGpuExecutionProvider", "DmlExecutionProvider")]
    found = resolved({"executionProviders": edge}).execution_providers
    assert [(one.name.short, one.serving, one.resources.limits) for one in found] == [
        ("dml", "none", {}),
        ("wgpu", "none", {}),
    ]


def test_the_order_of_evaluations_means_nothing_and_their_data_does() -> None:
    sts, search = evaluated("sts"), evaluated("search", "retrievalNdcg10")
    one, other, third = (
        resolved({"validation": {"evaluations": listed}})
        for listed in ([sts, search], [search, sts], [search, {**sts, "dataset": {**sts["dataset"], "digest": DIGEST}}])
    )
    assert (name_of(one), one.artifact_key) == (name_of(other), other.artifact_key)
    assert name_of(one) != name_of(third)
    assert one.artifact_key != third.artifact_key


def test_data_of_a_hub_is_fetched_anew_when_it_is_another_and_its_token_is_no_part_of_the_revision() -> None:
    file = {"repository": "someone/pairs", "revision": "a" * 40, "path": "test.jsonl"}

    def of(digest: str = DIGEST, **more: Any) -> dict[str, Any]:
        return {
            "validation": {
                "evaluations": [evaluated("sts") | {"dataset": {"huggingFace": file | more, "digest": digest}}]
            }
        }

    plain, token, other = of(), of(tokenSecretRef={"name": "hub"}), of(a_digest("one"))
    assert name_of(resolved(plain)) == name_of(resolved(token)) != name_of(resolved(other))
    assert resolved(plain).artifact_key == resolved(token).artifact_key != resolved(other).artifact_key
    keys = [source_key(offered(spec, {}), "") for spec in ({}, plain, token, other)]
    assert len({*keys}) == 4
    mirror = {"sources": {"huggingFace": {"endpoint": "https://mirror.example"}}}
    assert source_key(offered(plain, mirror), "") not in keys
    assert source_key(offered({}, mirror), "") == keys[0], "nothing of it is on a hub"


def test_an_artifact_without_evaluations_is_the_one_that_it_was_before_there_could_be_any() -> None:
    assert resolved().artifact_key == "1ac1e46d9b2350c0"


def test_models_whose_names_are_cut_alike_do_not_meet() -> None:
    long = "m" * 50
    assert name_of(resolved(name=f"{long}-a")) != name_of(resolved(name=f"{long}-b"))


def test_a_models_resources_leave_the_classs_devices_in_place() -> None:
    cuda = {
        "executionProviders": [
            {"name": "CUDAExecutionProvider", "resources": {"limits": {"nvidia.com/gpu": "1", "memory": "8Gi"}}}
        ]
    }
    spec = {
        "executionProviders": [{"name": "CUDAExecutionProvider"}],
        "serving": {"resources": {"limits": {"memory": "3Gi"}}},
    }
    (provider,) = resolved(spec, cuda).execution_providers
    assert provider.resources.limits == {"nvidia.com/gpu": "1", "memory": "3Gi"}


@pytest.mark.parametrize(
    ("spec", "class_spec", "token"),
    [
        pytest.param({"source": {"persistentVolumeClaim": {"claimName": "c", "path": "v2"}}}, {}, "", id="a path"),
        pytest.param({}, {}, "again", id="a retry"),
    ],
)
def test_this_is_fetched_anew(spec: dict[str, Any], class_spec: dict[str, Any], token: str) -> None:
    assert source_key(offered(spec, class_spec), token) != source_key(offered({}, {}), "")


def test_another_converter_fetches_nothing_anew() -> None:
    assert source_key(offered({}, {"images": {"converter": "c:2"}}), "") == source_key(offered({}, {}), "")
