"""The story of the demo, asserted: under steady traffic, good versions are promoted and bad ones are taken back."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from rich.console import Console

from demo import summary, texts
from demo.load import Load
from demo.scenario import ACTS, MODEL, Ending, Played, Stage
from demo.site import gateway_of
from demo.waiting import until
from e2e.rollouts import ENOUGH, answered_badly, tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from demo.kubectl import Kubectl
    from demo.site import Site

SENTENCES = 200
CLOSE = 1e-4


class Theatre:
    """Plays the acts in their order, each once, and no further than is asked for."""

    def __init__(self, site: Site, stage: Stage) -> None:
        self._site = site
        self.stage = stage
        self.played: dict[str, Played] = {}

    def until(self, key: str) -> Played:
        """What came of an act; plays it, and all before it, if that has not been done."""
        for act in ACTS:
            if key in self.played:
                break
            if act.key not in self.played:
                self._send_requests()
                self.played[act.key] = self.stage.play(act)
        return self.played[key]

    def _send_requests(self) -> None:
        """From the moment that there is something to ask."""
        if self.played and self.stage.load is None:
            self.stage.load = Load.start(self._site, self.stage.kubectl, self.stage.model())


@pytest.fixture(scope="module")
def theatre(cluster: Site, stage: Stage, pytestconfig: pytest.Config) -> Iterator[Theatre]:
    stage.kubectl.delete("onnxmodel", MODEL)
    theatre = Theatre(cluster, stage)
    yield theatre
    # What bad candidates answered is no failure of a test, and still nobody's secret.
    reporter = pytestconfig.pluginmanager.get_plugin("terminalreporter")
    if reporter and theatre.played:
        told = io.StringIO()
        Console(file=told, width=120).print(summary.traffic_table(theatre.played.values()))
        reporter.write("\n" + told.getvalue())
    Load.stop(stage.kubectl)
    stage.load = None
    stage.kubectl.delete("onnxmodel", MODEL)


def test_the_first_version_is_validated_and_then_takes_all_traffic(theatre: Theatre) -> None:
    first = theatre.until("v1")

    assert first.is_as_expected, first
    stable = theatre.stage.model().status.stable
    assert stable is not None
    assert (stable.number, stable.weight) == (1, 100)


@pytest.fixture(scope="module")
def originals() -> list[NDArray[np.float32]]:
    return texts.embeddings(texts.tokenised(texts.texts(SENTENCES)))


def test_over_http_the_gateway_answers_what_torch_answers(
    theatre: Theatre, cluster: Site, originals: list[NDArray[np.float32]]
) -> None:
    theatre.until("v1")
    gateway = gateway_of(cluster)
    with tritonclient.http.InferenceServerClient(f"{gateway.address}:{gateway.http_port}") as client:
        # Envoy routes by the Host header, so the name need not be known to any DNS.
        headers = {"Host": host_of(theatre)}
        answers = ask(tritonclient.http, lambda inputs: client.infer(MODEL, inputs, headers=headers))

    assert furthest(answers, originals) <= CLOSE


def test_over_grpc_the_gateway_answers_what_torch_answers(
    theatre: Theatre, cluster: Site, originals: list[NDArray[np.float32]]
) -> None:
    theatre.until("v1")
    gateway = gateway_of(cluster)
    address = f"{gateway.address}:{gateway.grpc_port}"
    authority = [("grpc.default_authority", host_of(theatre))]
    with tritonclient.grpc.InferenceServerClient(address, channel_args=authority) as client:
        answers = ask(tritonclient.grpc, lambda inputs: client.infer(MODEL, inputs))

    assert furthest(answers, originals) <= CLOSE


def host_of(theatre: Theatre) -> str:
    endpoint = theatre.stage.model().status.endpoint
    assert endpoint is not None
    return endpoint.host


def ask(protocol: Any, infer: Callable[[list[Any]], Any]) -> list[NDArray[np.float32]]:
    """The embedding of every sentence, by one of Triton's two clients."""
    asked = texts.tokenised(texts.texts(SENTENCES))
    return [infer(tensors(protocol, inputs)).as_numpy(texts.OUTPUT)[0] for inputs in asked]


def furthest(answers: list[NDArray[np.float32]], originals: list[NDArray[np.float32]]) -> float:
    assert len(answers) == len(originals) == SENTENCES
    return max(float(np.abs(ours - theirs).max()) for ours, theirs in zip(answers, originals, strict=True))


@pytest.mark.parametrize("key", [act.key for act in ACTS if act.key != "v1"])
def test_each_later_version_ends_as_it_deserves_and_for_its_own_reason(theatre: Theatre, key: str) -> None:
    played = theatre.until(key)

    assert played.is_as_expected, played


def test_a_rollback_names_the_metric_its_value_and_the_bound(theatre: Theatre) -> None:
    theatre.until("v4")

    for played in theatre.played.values():
        if played.ending is Ending.ROLLED_BACK:
            (metric,) = played.act.names
            assert metric in played.message
            assert "%" in played.message, "the value and the bound are shares"
            assert played.message in events_about(theatre.stage.kubectl, played.reason)


def events_about(kubectl: Kubectl, reason: str) -> str:
    events = kubectl.list("events")
    return " ".join(event["message"] for event in events if event["reason"] == reason)


def test_a_version_that_failed_its_validation_never_had_a_server(theatre: Theatre) -> None:
    refused = theatre.until("v4")

    assert refused.highest_weight == 0
    labelled = f"onnx-operator.io/revision={refused.revision},onnx-operator.io/component=server"
    assert not theatre.stage.kubectl.list("deployments,pods", selector=labelled)


def test_what_was_good_before_serves_all_the_traffic_after_everything(theatre: Theatre) -> None:
    theatre.until("v4")

    model = theatre.stage.model()
    assert model.status.stable is not None
    assert model.status.stable.revision == theatre.played["v2"].revision
    assert model.status.stable.weight == 100
    assert model.reason("Stalled") == theatre.played["v4"].reason


def test_of_ten_thousand_requests_none_is_lost(theatre: Theatre) -> None:
    theatre.until("v4")

    # The story may be over before so many were sent; what it left behind must serve the rest as well.
    until("enough requests", lambda: theatre.stage.counters().sent >= ENOUGH, seconds=600, every=5)

    traffic = theatre.stage.counters()
    assert traffic.failed == 0, traffic.failures


def test_only_bad_candidates_answered_with_errors_and_these_are_counted(theatre: Theatre) -> None:
    theatre.until("v4")

    rolled_back = {played.revision for played in theatre.played.values() if played.ending is Ending.ROLLED_BACK}
    badly = answered_badly(theatre.stage.counters())
    assert set(badly) <= rolled_back
    assert badly.get(theatre.played["v3b"].revision, 0) > 0, "the version that cannot take long texts got none"


def test_the_moved_version_answered_wrongly_only_until_it_was_taken_back(theatre: Theatre) -> None:
    theatre.until("v4")

    moved = theatre.played["v3c"].revision
    wrong = {
        name.rpartition("-")[0]: each.wrong for name, each in theatre.stage.counters().by_upstream.items() if each.wrong
    }
    assert set(wrong) == {moved}
