"""The page for a person, of reports and benchmarks written down here: what is on it, and what never is."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from onnx_converter.report_html import page
from pages import Strict

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "</title></style><script>alert(1)</script>\"'&<img src=x>$body"


def a_row(number: int) -> dict[str, Any]:
    return {
        "sample": f"random ids, batch {number % 4 + 1}, length {2 * number + 1}, left padding",
        "vectors": 4,
        "ignored": number % 3,
        "minCosine": f"{1 - 1e-6 * (number % 7):.7f}",
        "maxAbsolute": f"{1e-6 * (number % 11 + 1):.5g}",
        "maxRelative": f"{1e-5 * (number % 5 + 1):.5g}",
        "labelAgreement": None,
    }


def a_stage(stage: str, **changes: Any) -> dict[str, Any]:
    measured = {"minCosine": "0.9999998", "maxAbsolute": "3e-06", "maxRelative": "4e-06", "labelAgreement": None}
    return {"stage": stage, "samples": 8, "error": None, "notMeasured": None} | measured | changes


def a_conversion() -> dict[str, Any]:
    return {
        "architecture": "bert",
        "task": "sentence-embedding",
        "sourceDigest": "sha256:" + "cd" * 32,
        "spec": {"scheme": "int8-dynamic", "opset": 18},
        "graphs": {
            provider: {
                "opset": 21,
                "route": "trace",
                "routesRefused": [{"route": "fused-attention", "reason": "its own code <attends>"}],
                "stages": [a_stage("exported"), a_stage("optimised", error="no such operator", minCosine=None)],
            }
            for provider in (CPU, CUDA)
        },
    }


def a_report(provider: str = CPU) -> dict[str, Any]:
    rows = [a_row(number) for number in range(60)]
    return {
        "verdict": "Passed",
        "reason": "Validated",
        "message": f"240 vectors of 60 samples agree with the original on {provider}",
        "provider": provider,
        "graphDigest": "sha256:" + "ab" * 32,
        "parity": {
            "minCosine": "0.9999940",
            "maxAbsolute": "1.1e-05",
            "maxRelative": "5e-05",
            "minLabelAgreement": None,
        },
        "tolerance": {"minCosine": "0.9999", "maxAbsolute": "0.001", "maxRelative": None, "minLabelAgreement": None},
        "samples": len(rows),
        "vectors": 240,
        "ignored": 60,
        "placement": {provider: 91, **({CPU: 12} if provider == CUDA else {})},
        "coverage": {
            "MatMul": {provider: 38},
            "Gather": {provider: 41},
            "Shape": {CPU: 12},
            "LayerNormalization": {provider: 12},
        },
        "conversion": a_conversion(),
        "rows": rows,
    }


def an_evaluation(name: str, *, is_shown: bool = True, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "metric": "bytePerplexity",
        "dataset": "sha256:" + "aa" * 32,
        "samples": 300,
        "original": {"value": "7", "low": "6.5", "high": "7.5"},
        "graph": {"value": "7.07", "low": "6.56", "high": "7.58"},
        "loss": {"value": "0.01", "low": "0.005", "high": "0.015"},
        "maxLoss": "0.02",
        "isRelative": True,
        "isShown": is_shown,
    } | changes


def a_cell(batch: int, length: int, original: float, graph: float, past: int = 0) -> dict[str, Any]:
    return {
        "batch": batch,
        "sequenceLength": length,
        **({"pastLength": past} if past else {}),
        "runs": 40,
        "speedup": f"{original / graph:.3g}",
        **{
            side: {
                "p50Milliseconds": f"{p50:.3g}",
                "p90Milliseconds": f"{1.2 * p50:.3g}",
                "p99Milliseconds": f"{1.9 * p50:.3g}",
                "tokensPerSecond": f"{1000 * batch * length / p50:.0f}",
            }
            for side, p50 in (("original", original), ("graph", graph))
        },
    }


def a_benchmark(*cells: dict[str, Any]) -> dict[str, Any]:
    return {
        "provider": CPU,
        "threads": 2,
        "cells": [*cells] or [a_cell(1, 16, 12.5, 3.1), a_cell(1, 128, 48, 21), a_cell(8, 128, 390, 170)],
        "original": {"sizeBytes": 90_868_376, "loadMilliseconds": "420", "peakMemoryBytes": 131_000_000},
        "graph": {"sizeBytes": 22_900_000, "loadMilliseconds": "95.1", "peakMemoryBytes": 70_100_000},
    }


def a_lineage() -> dict[str, Any]:
    return {"artifact": {"digest": "sha256:" + "ef" * 32}, "conversion": a_conversion()}


def a_page(**changes: Any) -> str:
    return page({CPU: a_report() | changes}, a_lineage(), {CPU: a_benchmark()})


def plots(text: str) -> list[ET.Element]:
    found = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    named = [one.replace("<svg", f'<svg xmlns="{SVG[1:-1]}"', 1) for one in found]
    return [ET.fromstring(one) for one in named]  # noqa: S314  ours


def test_the_verdict_is_first_and_every_section_is_there_in_its_order() -> None:
    text = a_page()
    sections = re.findall(r"<h2>(.*?)</h2>", text)
    assert sections == [
        "What was compared",
        f"Parity on {CPU}",
        f"Speed on {CPU}",
        f"Operators on {CPU}",
        f"The way to the graph for {CPU}",
        "Lineage",
        "Reviewed",
    ]
    assert text.index('class="verdict Passed"') < text.index("<h2>")
    assert "opset 21, weights int8-dynamic" in text
    way = text[text.index("The way to the graph") : text.index("<h2>Lineage</h2>")]
    rows = ("fused-attention</td><td>refused</td><td>its own code &lt;attends&gt;", "trace</td><td>taken</td>")
    assert all(row in way for row in rows), way
    assert all(cell in way for cell in ("exported", "0.9999998", "optimised", "no such operator")), way


def test_each_stage_was_measured_or_says_why_not() -> None:
    report = a_report()
    report["conversion"]["graphs"][CPU]["stages"] = [
        a_stage("exported"),
        a_stage("optimised", samples=0, minCosine=None, notMeasured="no kernel for <Add>"),
    ]
    text = page({CPU: report}, {"conversion": report["conversion"]}, {})
    assert "<td>measured</td>" in text
    assert "<td>not measured: no kernel for &lt;Add&gt;</td>" in text


def test_with_two_providers_both_verdicts_come_before_anything_else_and_one_failure_fails_the_page() -> None:
    text = page({CPU: a_report(), CUDA: a_report(CUDA) | {"verdict": "Failed"}}, a_lineage(), {CPU: a_benchmark()})
    assert re.findall(r'class="verdict (\w+)"', text[: text.index("<h2>")]) == ["Passed", "Failed"]
    assert text.split("</title>")[0].endswith("Failed: bert, sentence-embedding, int8-dynamic")
    assert len(re.findall(r'id="(.*?)"', text)) == len(set(re.findall(r'id="(.*?)"', text)))
    assert f"Speed on {CUDA}" not in text


def test_nothing_is_loaded_and_nothing_runs() -> None:
    text = a_page()
    shown = Strict(text)
    assert not {"script", "img", "link", "iframe"} & {*shown.tags}
    assert not {"src", "href", "action"} & shown.attributes
    assert "url(" not in text
    assert "default-src 'none'" in text


def test_each_sample_is_a_dot_with_its_name_below_the_bound() -> None:
    cosine, absolute, _ = plots(a_page())
    for plot in (cosine, absolute):
        dots = plot.findall(f"{SVG}circle")
        (bound,) = (line for line in plot.iter(f"{SVG}line") if line.get("class") == "bound")
        assert len(dots) == 60
        assert all(float(dot.get("cy", 0)) > float(bound.get("y1", 0)) for dot in dots)
    named = absolute.findall(f"{SVG}circle/{SVG}title")[10].text
    assert named == "11. random ids, batch 3, length 21, left padding: 1.1e-05"


def test_a_sample_beyond_the_bound_is_drawn_as_such_and_above_it() -> None:
    rows = [*a_report()["rows"][:5], a_row(5) | {"minCosine": "-0.2500000", "maxAbsolute": "nan"}]
    cosine, absolute, _ = plots(a_page(rows=rows))
    (beyond,) = (dot for dot in cosine.iter(f"{SVG}circle") if dot.get("class") == "dot beyond")
    (bound,) = (line for line in cosine.iter(f"{SVG}line") if line.get("class") == "bound")
    assert float(beyond.get("cy", 0)) < float(bound.get("y1", 0))
    assert [dot.get("class") for dot in absolute.iter(f"{SVG}circle")][-1] == "dot beyond"


def test_a_relative_difference_is_drawn_only_where_it_is_judged() -> None:
    assert "Largest relative difference by sample" not in a_page()
    bounds = a_report()["tolerance"] | {"maxRelative": "0.01"}
    assert "Largest relative difference by sample" in a_page(tolerance=bounds)


def test_samples_that_are_all_equal_and_a_single_one_can_be_drawn() -> None:
    rows = [a_row(0) | {"minCosine": "1.0000000", "maxAbsolute": "0"}]
    for plot in plots(a_page(rows=rows)):
        assert "nan" not in ET.tostring(plot, encoding="unicode")


def test_a_difference_of_nothing_stands_at_the_foot_and_nothing_else_does() -> None:
    rows = [a_row(0) | {"maxAbsolute": value} for value in ("0", "1e-07", "1e-06")]
    absolute = plots(a_page(rows=rows))[1]
    heights = [float(dot.get("cy", 0)) for dot in absolute.iter(f"{SVG}circle")]
    (foot,) = (float(text.get("y", 0)) - 4 for text in absolute.iter(f"{SVG}text") if text.text == "0")
    assert heights[0] == foot > heights[1] > heights[2]


def test_latency_is_drawn_and_told_for_both_sides_of_each_cell() -> None:
    text = page({CPU: a_report()}, a_lineage(), {CPU: a_benchmark(a_cell(1, 16, 12.5, 3.1), a_cell(8, 1, 40, 20, 128))})
    latency = plots(text)[-1]
    told = [str(title.text) for title in latency.iter(f"{SVG}title")][1:]
    assert told == [
        "original, 1 x 16: p50 12.5 ms, p90 15 ms, p99 23.8 ms",
        "graph, 1 x 16: p50 3.1 ms, p90 3.72 ms, p99 5.89 ms",
        "original, 8 x 1 after 128: p50 40 ms, p90 48 ms, p99 76 ms",
        "graph, 8 x 1 after 128: p50 20 ms, p90 24 ms, p99 38 ms",
    ]
    dots = [float(dot.get("cx", 0)) for dot in latency.iter(f"{SVG}circle")]
    assert dots[1] < dots[0]
    words = Strict(text).text
    assert "12.5 / 15 / 23.8" in words
    assert "4.03 times" in words
    assert "Original 90.9 420 131.0 Graph 22.9 95.1 70.1" in words


@pytest.mark.parametrize("found", [{}, {"provider": CPU, "threads": 1, "message": "the benchmark broke: <no memory>"}])
def test_without_a_benchmark_the_page_is_whole(found: dict[str, Any]) -> None:
    text = page({CPU: a_report()}, a_lineage(), {CPU: found} if found else {})
    assert len(plots(text)) == 2
    assert ("Nothing was measured. the benchmark broke: <no memory>" in Strict(text).text) is bool(found)


def test_each_evaluation_is_drawn_on_a_scale_of_its_own_with_both_sides_and_the_bound() -> None:
    share = {"value": "0.8", "low": "0.7", "high": "0.9"}
    other = {"metric": "accuracy", "isRelative": False, "original": share, "graph": share | {"value": "0.79"}}
    text = a_page(evaluations=[an_evaluation("prose"), an_evaluation("spam", is_shown=False, **other)])
    assert f"<h2>Quality on {CPU}</h2>" in text
    plot = next(one for one in plots(text) if "Quality" in str(one[0].text))
    assert [str(one.text) for one in plot.iter(f"{SVG}text") if "bound" in str(one.text)] == [
        "bound 7.14",
        "bound 0.78",
    ]
    assert [str(one.text) for one in plot.iter(f"{SVG}title")][1:] == [
        "original, prose, bytePerplexity: 7, 95 % interval 6.5 to 7.5",
        "graph, prose, bytePerplexity: 7.07, 95 % interval 6.56 to 7.58",
        "original, spam, accuracy: 0.8, 95 % interval 0.7 to 0.9",
        "graph, spam, accuracy: 0.79, 95 % interval 0.7 to 0.9",
    ]
    places = [float(one.get("cx", 0)) for one in plot.iter(f"{SVG}circle")]
    bounds = [float(one.get("x1", 0)) for one in plot.iter(f"{SVG}line") if one.get("class") == "bound"]
    assert places[0] < places[1] < bounds[0]
    assert bounds[1] < places[3] < places[2]
    words = Strict(text).text
    assert "prose bytePerplexity 300 7 7.07 0.01 (0.005 to 0.015) 0.02 yes" in words
    assert "no, too little data" in words


def test_an_evaluation_without_end_is_told_and_not_drawn() -> None:
    endless = dict.fromkeys(("value", "low", "high"), "inf")
    text = a_page(evaluations=[an_evaluation("prose", graph=endless, loss=endless)])
    assert "inf (inf to inf)" in Strict(text).text
    assert not [one for one in plots(text) if "Quality" in str(one[0].text)]


def a_ladder() -> dict[str, Any]:
    tried = [
        ("none", "1e-12", "1.5", 90e6),
        ("int8-dynamic", "0.0129", "3.9", 23e6),
        ("int4-weight-only", "0.035", "2", 55e6),
    ]
    rows = [
        {"scheme": scheme, "reason": "Validated", "message": "", "loss": loss, "speedup": speedup, "sizeBytes": size}
        for scheme, loss, speedup, size in tried
    ]
    refused = {"scheme": "int8-static", "reason": "SpecImpossible", "message": "int8-static is for <encoders>"}
    return {"chosen": "int8-dynamic", "maxQualityLoss": "0.02", "prefer": "speed", "rows": [*rows, refused]}


def test_what_auto_tried_is_drawn_by_size_and_by_speed_and_the_table_has_what_was_refused() -> None:
    text = a_page(ladder=a_ladder())
    words = Strict(text).text
    assert "auto takes int8-dynamic : the fastest of those that lose at most 0.02" in words
    assert "int8-dynamic 0.0129 3.9 23.0 taken" in words
    assert "int8-static SpecImpossible int8-static is for <encoders>" in words
    size, speed = (one for one in plots(text) if "Loss by" in str(one[0].text))
    for plot in (size, speed):
        assert sorted(str(dot.get("class")) for dot in plot.iter(f"{SVG}circle")) == ["dot", "dot", "dot beyond"]
        (strong,) = (
            one.text for one in plot.iter(f"{SVG}text") if one.get("class") == "strong" and one.text != "bound 0.02"
        )
        assert strong == "int8-dynamic"
    slow, _, fast = ([float(dot.get(side, 0)) for side in ("cx", "cy")] for dot in speed.iter(f"{SVG}circle"))
    assert slow[0] < fast[0]
    assert slow[1] > fast[1], "none, which loses nothing, stands at the foot"


def test_operators_are_counted_by_where_they_ran_the_most_frequent_first() -> None:
    text = page({CUDA: a_report(CUDA)}, a_lineage(), {})
    words = Strict(text).text
    assert "91 nodes on CUDAExecutionProvider, 12 nodes on CPUExecutionProvider" in words
    assert f"Operator {CUDA} {CPU} Gather 41 MatMul 38 LayerNormalization 12 Shape 12" in words


def hostile(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: hostile(inner) for key, inner in value.items()} | {HOSTILE: HOSTILE}
    if isinstance(value, list):
        return [hostile(inner) for inner in value]
    return HOSTILE if isinstance(value, str) and not re.fullmatch(r"-?[0-9.e-]+", value) else value


def test_words_of_a_checkpoint_or_of_a_library_stay_words() -> None:
    report, lineage = a_report(), hostile(a_lineage())
    lineage["conversion"]["graphs"] = {HOSTILE: lineage["conversion"]["graphs"][CPU]}
    coverage = {HOSTILE: {HOSTILE: 3}}
    rows = hostile(report["rows"])
    bad = hostile({**report, "verdict": "Passed"}) | {"coverage": coverage, "placement": {HOSTILE: 3}, "rows": rows}
    bad |= {"parity": report["parity"], "tolerance": report["tolerance"], "conversion": lineage["conversion"]}
    told = a_benchmark() | {"message": HOSTILE, "threads": HOSTILE}
    for cell in told["cells"]:
        cell["batch"] = cell["runs"] = cell["speedup"] = HOSTILE
    text = page({HOSTILE: bad}, lineage, {HOSTILE: told})
    shown = Strict(text)
    assert not {"script", "img"} & {*shown.tags}
    assert shown.tags.count("title") == a_page().count("<title")
    assert "<script" not in text
