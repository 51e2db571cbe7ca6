"""What the demo makes of what it sees: endings, counters, and the table."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from demo.load import Answers, Counters
from demo.model import Model
from demo.scenario import ACTS, Act, Ending, Played, row
from demo.screen import PlainScreen, Row
from demo.site import EXAMPLES

SLOW = next(act for act in ACTS if act.key == "v3a")
INVALID = next(act for act in ACTS if act.key == "v4")
TOLD = {
    "sent": 120,
    "failed": 1,
    "upstreams": {
        "minilm-1-cpu": {
            "ok": 100,
            "errors": 0,
            "slow": 2,
            "wrong": 0,
            "timeouts": 0,
            "first_bad": 900.0,
            "last": 990.0,
        },
        "minilm-3-cpu": {
            "ok": 15,
            "errors": 4,
            "slow": 9,
            "wrong": 1,
            "timeouts": 2,
            "first_bad": 930.0,
            "last": 942.5,
        },
    },
    "failures": ["12:00:00 http 503 by nobody (no details) after 0.01 s"],
    "kinds": {"http 503": 1, "http 500 via_upstream": 4},
    "longest_gap": 0.4,
}


def model(generation: int, observed: int, *conditions: tuple[str, str, str], **status: Any) -> Model:
    time = "2026-11-23T12:00:00Z"
    written = [
        {"type": kind, "status": value, "reason": reason, "observedGeneration": observed, "lastTransitionTime": time}
        for kind, value, reason in conditions
    ]
    metadata = {"name": "minilm", "uid": "u", "generation": generation}
    return Model.of({"metadata": metadata, "status": {"observedGeneration": observed, "conditions": written, **status}})


def test_a_model_without_a_status_is_neither_promoted_nor_given_up() -> None:
    unseen = Model.of({"metadata": {"name": "minilm", "uid": "u", "generation": 1}})

    assert not unseen.is_promoted
    assert not unseen.is_given_up


def test_readiness_for_an_older_spec_is_no_promotion() -> None:
    assert model(1, 1, ("Ready", "True", "Serving")).is_promoted
    assert not model(2, 1, ("Ready", "True", "Serving")).is_promoted


def test_a_model_that_still_drains_has_not_ended() -> None:
    draining = [{"revision": "minilm-3", "number": 3}]

    assert not model(2, 2, ("Stalled", "True", "RolledBack"), retiring=draining).is_given_up
    assert model(2, 2, ("Stalled", "True", "RolledBack")).is_given_up


def ended(act: Act, **changes: Any) -> Played:
    played = Played(act, act.ending, "RolledBack", " ".join(act.names), "minilm-3", 60.0, 10, Counters(sent=100))
    return replace(played, **changes)


def test_a_bad_candidate_that_was_taken_back_for_its_reason_is_as_expected() -> None:
    assert ended(SLOW).is_as_expected


@pytest.mark.parametrize(
    "changes",
    [
        {"ending": Ending.PROMOTED},
        {"message": "errorRatio is 30%"},
        {"traffic": Counters(sent=100, failed=1)},
    ],
    ids=["it was promoted", "for another reason", "a request was lost"],
)
def test_a_bad_candidate_is_not_as_expected_when(changes: dict[str, Any]) -> None:
    assert not ended(SLOW, **changes).is_as_expected


def test_a_refused_version_must_not_have_seen_traffic() -> None:
    assert ended(INVALID, highest_weight=0).is_as_expected
    assert not ended(INVALID, highest_weight=10).is_as_expected


def test_the_difference_of_two_looks_is_what_happened_between_them() -> None:
    before = Counters.of(TOLD)
    failures = [*TOLD["failures"], "lost"]  # type: ignore[misc]
    after = Counters.of({**TOLD, "sent": 200, "failed": 2, "failures": failures, "kinds": {"http 503": 2}})

    between = after - before

    assert (between.sent, between.failed, between.failures) == (80, 1, ("lost",))
    assert between.kinds == {"http 503": 1}
    assert between.of_revision("minilm-3") == Answers()


def test_errors_of_a_model_server_are_counted_apart_from_lost_requests() -> None:
    counted = Counters.of(TOLD)

    assert (counted.failed, counted.errors) == (1, 4)
    assert counted.of_revision("minilm-3") == Answers(good=15, errors=4, slow=9, wrong=1, timeouts=2, harm_seconds=12.5)


def test_the_row_shows_both_sides_and_what_the_traffic_suffered() -> None:
    candidate = {"revision": "minilm-3", "number": 3, "weight": 10, "verdict": "Fail", "startedTime": "t"}
    stable = {"revision": "minilm-1", "number": 1, "weight": 90}
    seen = model(3, 3, ("Reconciling", "True", "StepRunning"), candidate=candidate, stable=stable)

    shown = row(seen, Counters.of(TOLD))

    assert shown.cells()[:5] == ("minilm", "v1 (90 %)", "v3", "10 %", "Fail")
    assert shown.requests == "120"
    assert shown.failures == "1 lost, 4 answered with an error"


def test_a_log_has_a_line_when_something_happens_and_none_when_only_numbers_grow() -> None:
    written = io.StringIO()
    with PlainScreen(Console(file=written, width=200)) as screen:
        screen.show(Row("minilm", requests="10"))
        screen.show(Row("minilm", requests="20"))
        screen.show(Row("minilm", candidate="v2", weight="10 %", requests="30"))

    lines = written.getvalue().splitlines()
    assert len(lines) == 2
    assert "v2" in lines[1]


@pytest.mark.parametrize("act", ACTS, ids=[act.key for act in ACTS])
def test_every_act_has_its_example(act: Act) -> None:
    assert (EXAMPLES / act.file).is_file()
