"""Checkpoints that are broken or hostile: each is refused once, for its own reason, beside a model that serves."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Final

import pytest

from checkpoints import BAD, Bad, bad, tiny
from demo import checkpoints as claims
from demo import installation
from demo.model import Model
from demo.waiting import until
from e2e.rollouts import (
    OURS,
    assert_nothing_lost,
    declare,
    finish,
    own_class,
    settle,
    small_jobs_of,
    stable_version,
    traffic,
)
from e2e.rollouts import declared as example

if TYPE_CHECKING:
    from collections.abc import Iterator

    from demo.kubectl import Kubectl, Manifest
    from demo.scenario import Stage
    from demo.site import Site

#: Each ends in its own time; together they take as long as two cores need for all of their Jobs.
SECONDS: Final = 600
#: One of every reason: the unit tests have all of them, here it is the operator that is tested.
CHOSEN: Final = tuple({case.reason: case for case in reversed(BAD)}.values())
WRONG_DIGEST: Final = "wrong-digest"
CLASS: Final = "small-jobs"


def slug(case: Bad) -> str:
    return "bad-" + re.sub(r"[^a-z0-9]+", "-", case.name.lower()).strip("-")


def declared(name: str, path: str, **source: str) -> Manifest:
    claim = {"claimName": installation.CHECKPOINTS, "path": path}
    return {
        "apiVersion": "onnx-operator.io/v1alpha1",
        "kind": "OnnxModel",
        "metadata": {"name": name},
        "spec": {"className": CLASS, "source": {"persistentVolumeClaim": claim, **source}},
    }


@pytest.fixture(scope="module")
def small_jobs(cluster: Site) -> Iterator[None]:
    """A class whose Jobs ask for as little of a processor as the refused ones take, so that none waits for a place."""
    with own_class(cluster, CLASS, jobs=small_jobs_of(cluster)):
        yield


@pytest.fixture(scope="module")
def refused(
    cluster: Site, models: Kubectl, served: Stage, small_jobs: None, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Model]:
    """All bad checkpoints declared at once, and what became of them."""
    settle(served)
    traffic(served).count_anew()
    folder = tmp_path_factory.mktemp("bad")
    for case in CHOSEN:
        bad(folder / slug(case), case)
    tiny(folder / "sound")
    archives = {"bad": claims.packed_folder(folder)}
    claims.put(models, archives, claim=installation.CHECKPOINTS, image=cluster.images["operator"])
    declarations = [declared(slug(case), f"bad/{slug(case)}") for case in CHOSEN]
    declarations.append(declared(WRONG_DIGEST, "bad/sound", digest=f"sha256:{'0' * 64}"))
    models.run("delete", "onnxmodel", "--ignore-not-found", *(each["metadata"]["name"] for each in declarations))
    models.apply(declarations)

    def all_given_up() -> dict[str, Model] | None:
        found = {each["metadata"]["name"]: Model.of(each) for each in models.list("onnxmodels")}
        ours = {each["metadata"]["name"]: found[each["metadata"]["name"]] for each in declarations}
        return ours if all(model.is_given_up for model in ours.values()) else None

    return until("every bad checkpoint to be refused", all_given_up, seconds=SECONDS, every=3)


@pytest.mark.parametrize("case", CHOSEN, ids=[slug(case) for case in CHOSEN])
def test_a_bad_checkpoint_is_refused_for_its_own_reason(refused: dict[str, Model], case: Bad) -> None:
    model = refused[slug(case)]

    assert model.reason("Stalled") == case.reason, model.message("Stalled")
    assert case.names in model.message("Stalled")


def test_a_checkpoint_with_another_digest_than_declared_is_refused(refused: dict[str, Model]) -> None:
    assert refused[WRONG_DIGEST].reason("Stalled") == "DigestMismatch"


def test_at_least_25_kinds_with_distinct_reasons_were_tried(refused: dict[str, Model]) -> None:
    assert len({model.reason("Stalled") for model in refused.values()}) >= 25


def test_nothing_bad_is_tried_twice(refused: dict[str, Model], models: Kubectl) -> None:
    pods: Counter[tuple[str, str]] = Counter()
    for pod in models.list("pods", selector=OURS):
        labels = pod["metadata"]["labels"]
        pods[labels["onnx-operator.io/model"], labels["onnx-operator.io/component"]] += 1

    tried = {key: count for key, count in pods.items() if key[0] in refused}
    assert tried
    assert set(tried.values()) == {1}, tried


def test_what_serves_goes_on_serving_beside_them(refused: dict[str, Model], served: Stage) -> None:
    del refused
    assert served.model().holds("Ready")
    assert_nothing_lost(served)


def test_a_bad_checkpoint_as_the_next_version_leaves_the_present_one_in_place_until_it_is_mended(
    refused: dict[str, Model], serving: Stage
) -> None:
    del refused
    before = serving.model().status.stable
    assert before is not None
    manifest = example(stable_version(serving))
    manifest["spec"]["source"] = declared("", f"bad/{slug(CHOSEN[0])}")["spec"]["source"]
    declare(serving, manifest)
    broken = finish(serving)

    assert broken.is_given_up
    assert broken.reason("Stalled") == CHOSEN[0].reason
    assert broken.status.stable is not None
    assert (broken.status.stable.revision, broken.status.stable.weight) == (before.revision, 100)

    settle(serving)

    assert serving.model().holds("Ready")
    assert_nothing_lost(serving)
