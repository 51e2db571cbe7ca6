"""One cluster, one installation and one story for the whole tier, and everything a reader needs when a test fails.

The tests of a file run in their order: each finds the cluster as the one before left it, which is how an operator
lives. Set ONNX_OPERATOR_KEEP=1 to look around in the cluster afterwards.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from checkpoints import minilm_cut
from demo import checkpoints, diagnosis, installation, site
from demo.load import Load
from demo.scenario import Stage
from demo.screen import PlainScreen
from e2e.rollouts import (
    QUICK_MODEL,
    QUICK_MODEL_MOVED,
    RATE,
    RATE_BESIDE,
    declare,
    declare_new,
    declared,
    finish,
    settle,
    traffic,
)

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from demo.kubectl import Kubectl
    from demo.site import Site

CLUSTER = "e2e"
INDEX = 1
NAMESPACE = "models"


@pytest.fixture(scope="session")
def cluster() -> Iterator[Site]:
    """The one-machine cluster with the chart installed; leftovers of a killed run are found and removed by `up`."""
    chosen = site.onebox(CLUSTER, INDEX)
    # What a killed run left in a cluster that is well: no test may see it.
    for namespace in chosen.kubectl.list("namespaces", selector=installation.MADE_BY_DEMO):
        installation.remove(chosen, namespace["metadata"]["name"])
    installation.install(chosen)
    yield chosen
    if os.environ.get("ONNX_OPERATOR_KEEP") != "1":
        site.onebox_down(CLUSTER)


@pytest.fixture(scope="session")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint so small that its model answers ten thousand requests in a minute."""
    return minilm_cut(tmp_path_factory.mktemp("checkpoints") / QUICK_MODEL)


@pytest.fixture(scope="session")
def models(cluster: Site, quick: Path) -> Kubectl:
    """A namespace with claims, and the checkpoints of the demo and the small one in one of them."""
    installation.prepare(cluster, NAMESPACE)
    inside = cluster.kubectl.within(NAMESPACE)
    files = checkpoints.of(quick)
    archives = {QUICK_MODEL: files, QUICK_MODEL_MOVED: checkpoints.moved(files)}
    packed = {name: checkpoints.packed(each) for name, each in archives.items()} | checkpoints.of_demo()
    checkpoints.put(inside, packed, claim=installation.CHECKPOINTS, image=cluster.images["operator"])
    return inside


@pytest.fixture(scope="session")
def stage(models: Kubectl) -> Stage:
    """Where the acts of the demo are played; what it tells stands in the output of a test that fails."""
    return Stage(models, PlainScreen(Console(width=200)))


@pytest.fixture(scope="session")
def served(cluster: Site, models: Kubectl, quick: Path) -> Iterator[Stage]:
    """The small model with its two good versions made, one of them stable, and traffic on it."""
    stage = Stage(models, PlainScreen(Console(width=200)), name=QUICK_MODEL)
    declare(stage, declared("v1"))
    assert finish(stage).is_promoted
    # Without requests nothing is judged, so no second version is promoted either.
    stage.load = Load.start(cluster, models, stage.model(), checkpoint=quick, rate=RATE_BESIDE)
    declare_new(stage, declared("v2"))
    assert finish(stage).is_promoted
    traffic(stage).at(RATE_BESIDE)
    yield stage
    Load.stop(models)


@pytest.fixture
def serving(served: Stage) -> Iterator[Stage]:
    """The same, at rest: what is declared is what serves, and requests are counted from now on."""
    settle(served)
    traffic(served).at(RATE)
    traffic(served).count_anew()
    yield served
    traffic(served).at(RATE_BESIDE)


#: What takes the API server away comes late, what deletes the model last.
_ORDER = (
    "test_story",
    "test_rights",
    "test_truth",
    "test_strategies",
    "test_pools",
    "test_disturbances",
    "test_bad_checkpoints",
    "test_providers",
    "test_other_kinds",
    "test_without_gateway",
    "test_deletion",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the files of this tier; tests within a file keep their order."""
    items.sort(key=lambda item: _ORDER.index(item.path.stem) if item.path.stem in _ORDER else len(_ORDER))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put the state of the cluster into the report of a test that failed."""
    report = yield
    chosen: Site | None = getattr(item, "funcargs", {}).get("cluster")
    if report.failed and chosen is not None:
        for title, text in diagnosis.of(chosen.kubectl, operator_namespace=installation.OPERATOR_NAMESPACE):
            report.sections.append((title, text))
    return report
