"""The page of a revision: made from rollouts of the pure core, and from what nobody should have written."""

from __future__ import annotations

import copy
import io
import json
import re
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest

from onnx_operator.__main__ import main
from onnx_operator.api.rollout import MetricName
from onnx_operator.core.analysis import Measurement, Outcome
from onnx_operator.core.counts import Counts
from onnx_operator.render.charts import wilson
from onnx_operator.render.report import page
from pages import Strict
from unit.core.worlds import World, a_class, an_evaluation

if TYPE_CHECKING:
    from collections.abc import Iterator

Manifest = dict[str, Any]
METRICS: list[Manifest] = [
    {"name": "errorRatio", "maximum": "0.05", "tolerance": "0.01"},
    {"name": "slowRatio", "maximum": "0.2", "slowerThan": "250ms", "dryRun": True},
    {"name": "disagreement", "maximum": "0.02"},
]
HOSTILE = "</title></style><script>alert(1)</script>\"'&<img src=x>$body"


def rolling_out(*, bad_from_step: int = 9, turns: int = 40) -> World:
    """Revision 2 on its way; from that step on half of its answers are bad."""
    steps = [{"weight": 10, "duration": "1m"}, {"weight": 50, "duration": "1m"}]
    analysis = {"interval": "10s", "metrics": METRICS}
    world = World(classes=(a_class(rollout={"steps": steps, "analysis": analysis, "progressDeadline": "10m"}),))
    world.serve_first()
    world.change(quantization={"scheme": "int8-dynamic"})
    for turn in range(turns):
        total = 500 + 100 * turn
        step = world.status.candidate.step if world.status.candidate is not None else None
        bad = total // 2 if step is not None and step >= bad_from_step else total // 200
        good, stable = Counts(0, total), Counts(total // 250, total)
        world.measured = (
            Measurement(MetricName.ERROR_RATIO, Outcome.MEASURED, Counts(bad, total), stable),
            Measurement(MetricName.SLOW_RATIO, Outcome.MEASURED, good, good),
            Measurement(MetricName.DISAGREEMENT, Outcome.MEASURED, good),
        )
        world.settle()
        world.end_jobs()
        world.make_ready()
        world.accept()
        world.wait(10)
    return world


def written(world: World, number: int) -> Manifest:
    """The revision as the API server gives it."""
    seen = world.numbered(number)
    return {
        "apiVersion": "onnx-operator.io/v1alpha1",
        "kind": "OnnxModelRevision",
        "metadata": {"name": seen.name, "namespace": "shop"},
        "spec": seen.spec.model_dump(mode="json", exclude_none=True),
        "status": seen.status.model_dump(mode="json", exclude_none=True),
    }


@pytest.fixture(scope="module")
def promoted() -> Manifest:
    return written(rolling_out(), 2)


@pytest.fixture(scope="module")
def rolled_back() -> Manifest:
    return written(rolling_out(bad_from_step=1), 2)


@pytest.fixture(scope="module")
def running() -> Manifest:
    return written(rolling_out(turns=16), 2)


def plots(text: str) -> list[ET.Element]:
    return [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]  # noqa: S314  (our own page)


def strings(value: Any) -> Iterator[tuple[Any, Any]]:
    """Where in a manifest a text stands, as the container and the key."""
    for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
        if isinstance(inner, str):
            yield value, key
        elif isinstance(inner, dict | list):
            yield from strings(inner)


# ---- what it says


def test_a_promoted_revision_says_so_first_with_when_and_why(promoted: Manifest) -> None:
    end = promoted["status"]["rollout"]["end"]
    text = Strict(page(promoted)).text
    assert f"Promoted at {end['time']}" in text
    assert "Promoted: step 2 of 2 at 50 % has passed" in text
    assert text.index("step 2 of 2 at 50 % has passed") < text.index("Traffic")


def test_a_rolled_back_revision_names_the_metric_the_value_and_the_bound(rolled_back: Manifest) -> None:
    text = Strict(page(rolled_back)).text
    assert "Rolled back at" in text
    assert re.search(r"AnalysisFailed: at 50 % of the traffic, errorRatio is .* above the maximum of 5%", text)


def test_a_rollout_under_way_says_what_it_is_at(running: Manifest) -> None:
    text = Strict(page(running)).text
    assert "Under way since 2026-01-01T00:00:00Z" in text
    assert "StepRunning: step 2 of 2 at 50 % lasts until" in text
    assert " end " not in text


def test_there_is_a_plot_of_the_weight_and_one_of_each_metric_with_words_for_those_who_cannot_see_it(
    promoted: Manifest,
) -> None:
    found = plots(page(promoted))
    assert [plot[0].text for plot in found] == [
        "Weight of the candidate over time",
        *(f"{metric['name']} of candidate and stable over time" for metric in METRICS),
    ]
    said = [str(plot[1].text) for plot in found]
    assert said[0] == "0 % from 0:50, 10 % from 1:00, 50 % from 2:10, 100 % from 3:10."
    assert said[1].startswith("Held to: at most 5%, at most 1% above stable. Last: candidate 0.")
    for plot in found:
        assert plot.get("role") == "img"
        assert plot.get("aria-labelledby") == f"{plot[0].get('id')} {plot[1].get('id')}"


def test_a_metric_shows_both_sides_their_bands_both_bounds_and_the_verdicts(rolled_back: Manifest) -> None:
    plot = plots(page(rolled_back))[1]
    kinds = [one.get("class") for one in plot.iter()]
    for side in ("candidate", "stable"):
        assert f"band {side}" in kinds
        assert f"line {side}" in kinds
    words = [str(one.text) for one in plot.iter() if one.get("class") == "name limit"]
    assert words == ["maximum 5%", "stable + 1%"]
    assert kinds.count("verdict-Fail") == 1


def test_a_metric_that_is_no_number_is_told_by_its_verdicts(promoted: Manifest) -> None:
    checked = copy.deepcopy(promoted)
    record = checked["status"]["rollout"]
    record["metrics"] = [{"name": "accuracy", "bound": "exit code 0", "dryRun": False}]
    record["points"] = ["10 10 | N - -", "20 10 | F - -"]
    text = page(checked)
    plot = plots(text)[1]
    assert [one.get("class") for one in plot.iter()].count("verdict-Fail") == 1
    assert "Held to: exit code 0." in str(plot[1].text)
    assert "The 2 judgements behind it" in text


def test_every_judgement_stands_in_a_table_behind_its_plot(promoted: Manifest) -> None:
    text = page(promoted)
    points = promoted["status"]["rollout"]["points"]
    assert text.count(f"The {len(points)} judgements behind it") == len(METRICS)
    assert "(told only)" in text
    assert text.count("<details>") == text.count("</details>") == len(METRICS)


def test_speed_beside_the_original_is_told_and_what_was_left_out(promoted: Manifest) -> None:
    text = Strict(page(promoted)).text
    assert "1 x 16 after 0 40 12.5 21 6.25 21 2.00 1280" in text
    assert "CPUExecutionProvider: 5 s are too short for 8 x 128." in text
    assert "Speed beside" not in page({**promoted, "status": {**promoted["status"], "benchmark": []}})


def test_quality_beside_the_original_is_told(promoted: Manifest) -> None:
    said = {"provider": "CPUExecutionProvider", "metric": "stsSpearman", "maxLoss": "0.01"}
    told = [said | an_evaluation("sts")]
    status = {**promoted["status"], "evaluations": told}
    text = Strict(page({**promoted, "status": status})).text
    assert "CPUExecutionProvider sts stsSpearman 0.8671 0.8642 0.00289 -0.0328 0.0413 0.01 30" in text
    assert "Quality beside" not in page(promoted)


def test_stages_parity_and_lineage_are_told(promoted: Manifest) -> None:
    text = Strict(page(promoted)).text
    for word in ("validate-cpu", "0:00:07", "0.99999", promoted["spec"]["sourceDigest"], "triton:1", "int8-dynamic"):
        assert word in text
    assert promoted["status"]["artifact"]["digest"] in text


def test_what_was_not_compared_has_no_line_to_compare_with(promoted: Manifest) -> None:
    promoted = copy.deepcopy(promoted)
    record = promoted["status"]["rollout"]
    record["points"] = [line.replace(" 10 ", " 0 ", 1).replace(" 50 ", " 100 ", 1) for line in record["points"]]
    assert "stable + 1%" not in page(promoted)


def test_a_metric_that_is_a_plain_value_is_drawn_without_a_band(promoted: Manifest) -> None:
    promoted = copy.deepcopy(promoted)
    record = promoted["status"]["rollout"]
    record["metrics"] = [{"name": "p99", "bound": "at most 250", "maximum": "250"}]
    record["points"] = ["60 10 | P 180.5 175", "70 10 | P 190 nan", "80 10 | F 1e3 170"]
    plot = plots(page(promoted))[1]
    assert "candidate 1000" in [str(one.text) for one in plot.iter("text")]
    assert "maximum 250" in [str(one.text) for one in plot.iter("text")]


def test_disputed_answers_are_explained_where_they_count(promoted: Manifest) -> None:
    assert "disputed" not in page(promoted)
    promoted = copy.deepcopy(promoted)
    promoted["status"]["rollout"]["points"].append("99999 50 | I 3+40/1000 3/1000")
    text = Strict(page(promoted)).text
    assert "candidate 4.3%" in text
    assert "3 of 1000, 40 disputed" in text
    assert "Some answers are disputed" in text


@pytest.mark.parametrize("status", [None, {}, {"outcome": "Pending", "stages": [], "rollout": None}])
def test_a_revision_of_which_nothing_is_known_yet_has_a_page(promoted: Manifest, status: Manifest | None) -> None:
    text = page(
        {"kind": "OnnxModelRevision", "metadata": {"name": "minilm-1"}, "spec": promoted["spec"], "status": status}
    )
    assert "Not rolled out yet" in Strict(text).text
    assert plots(text) == []


def test_a_rollout_of_one_look_has_a_page(promoted: Manifest) -> None:
    promoted = copy.deepcopy(promoted)
    record = promoted["status"]["rollout"]
    promoted["status"]["rollout"] = {
        "startedTime": record["startedTime"],
        "metrics": record["metrics"],
        "points": record["points"][:1],
    }
    assert len(plots(page(promoted))) == 1 + len(METRICS)


# ---- what it refuses


def test_nothing_that_stands_in_a_revision_becomes_a_part_of_the_page(rolled_back: Manifest) -> None:
    harmless = Strict(page(rolled_back))
    hostile = copy.deepcopy(rolled_back)
    kept = {"kind", "time", "startedTime", "finishedTime", "maximum", "tolerance", "outcome"}
    for container, key in strings(hostile):
        if key not in kept and container is not hostile["status"]["rollout"]["points"]:
            container[key] = HOSTILE
    found = Strict(page(hostile))
    assert set(found.tags) <= set(harmless.tags)
    assert "script" not in found.tags
    assert "img" not in found.tags
    assert found.attributes == harmless.attributes
    assert "alert(1)" in found.text
    assert len(plots(page(hostile))) == len(plots(page(rolled_back)))


def test_names_of_fields_are_somebody_elses_text_too(promoted: Manifest) -> None:
    promoted = copy.deepcopy(promoted)
    promoted["spec"]["executionProviders"][0]["nodeSelector"] = {HOSTILE: HOSTILE}
    promoted["status"]["outcome"] = HOSTILE
    assert "script" not in Strict(page(promoted)).tags


def test_the_page_needs_nothing_and_lets_nothing_in(promoted: Manifest) -> None:
    text = page(promoted)
    assert "default-src 'none'" in text
    assert not {"script", "link", "img", "iframe", "object"} & set(Strict(text).tags)
    assert not {"href", "src", "onload", "style"} & Strict(text).attributes
    assert "url(http" not in text


# ---- the command


def run(monkeypatch: pytest.MonkeyPatch, given: str) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO(given))
    return main(["report"])


def test_the_command_makes_a_page_of_what_kubectl_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], promoted: Manifest
) -> None:
    assert run(monkeypatch, json.dumps(promoted)) == 0
    assert capsys.readouterr().out == page(promoted) + "\n"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("", "Expecting value"),
        ("[]", "but something else"),
        ('{"kind": "List", "items": []}', "but List"),
        ('{"kind": "OnnxModel"}', "but OnnxModel"),
        ('{"kind": "OnnxModelRevision", "status": {"rollout": {}}}', "startedTime"),
    ],
)
def test_the_command_says_what_it_wants_when_it_gets_something_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], given: str, said: str
) -> None:
    assert run(monkeypatch, given) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert said in told.err
    assert "kubectl get omr NAME -o json | python -m onnx_operator report" in told.err


# ---- the band


@pytest.mark.parametrize(
    ("bad", "total", "low", "high"),
    [
        (0, 0, 0.0, 1.0),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (1, 10, 0.0179, 0.4042),
        (96, 3300, 0.0239, 0.0354),
    ],
)
def test_the_band_is_the_wilson_interval(bad: int, total: int, low: float, high: float) -> None:
    assert wilson(Counts(bad, total)) == pytest.approx((low, high), abs=1e-4)
