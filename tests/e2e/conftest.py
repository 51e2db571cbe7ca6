"""One cluster, one installation and one story for the whole tier, and everything a reader needs when a test fails.

The tests of a file run in their order: each finds the cluster as the one before left it, which is how an operator
lives. Set ONNX_OPERATOR_KEEP=1 to look around in the cluster afterwards.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from demo import checkpoints, diagnosis, installation, site
from demo.load import Load
from demo.model import Model
from demo.scenario import Ending, Stage
from demo.screen import PlainScreen
from e2e.rollouts import ACT, settle

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

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
def models(cluster: Site) -> Kubectl:
    """A namespace with claims, and the checkpoints of the demo in one of them."""
    installation.prepare(cluster, NAMESPACE)
    inside = cluster.kubectl.within(NAMESPACE)
    checkpoints.put(inside, checkpoints.of_demo(), claim=installation.CHECKPOINTS, image=cluster.images["operator"])
    return inside


@pytest.fixture(scope="session")
def stage(models: Kubectl) -> Stage:
    """Where the acts of the demo are played; what it tells stands in the output of a test that fails."""
    return Stage(models, PlainScreen(Console(width=200)))


@pytest.fixture(scope="session")
def served(cluster: Site, stage: Stage) -> Iterator[Stage]:
    """The model of the demo with its two good versions made, one of them stable, and traffic on it."""
    found = stage.kubectl.get("onnxmodel", stage.name)
    if found is None or Model.of(found).status.stable is None:
        for key in ("v1", "v2"):
            assert stage.play(ACT[key]).ending is Ending.PROMOTED
    stage.load = Load.start(cluster, stage.kubectl, stage.model())
    yield stage
    Load.stop(stage.kubectl)
    stage.load = None


@pytest.fixture
def serving(served: Stage) -> Stage:
    """The same, at rest: what is declared is what serves."""
    settle(served)
    return served


#: The story comes first: what follows finds its model and need not convert it again.
_ORDER = (
    "test_story",
    "test_rights",
    "test_truth",
    "test_strategies",
    "test_disturbances",
    "test_bad_checkpoints",
    "test_providers",
    "test_language_model",
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
