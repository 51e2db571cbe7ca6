"""Alerts and dashboard: they parse, fire and stay quiet, name only series that exist, and lead to the runbook."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

import series
from helm import CHART, ROOT, Helm
from onnx_operator.api.common import ExecutionProvider
from onnx_operator.core import queries, reasons
from onnx_operator.core.autoscaling import IN_FLIGHT_METRIC, QUEUE_METRIC
from onnx_operator.core.conditions import ConditionType
from onnx_operator.core.names import revision_name, server_name

if TYPE_CHECKING:
    from collections.abc import Iterator

RULES = CHART / "files" / "rules.yaml"
AUTOSCALING = CHART / "files" / "autoscaling"
DASHBOARD = CHART / "files" / "dashboard.json"
STORIES = Path(__file__).parent / "rules_test.yaml"
RUNBOOK = ROOT / "docs" / "runbook.md"
#: What the operator makes of a model.
MANIFESTS = ROOT / "tests" / "golden" / "manifests" / "two-providers.out.yaml"
ALERTS = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
#: What Grafana puts in for its variables.
VARIABLES = {"$__rate_interval": "1m", "$namespace": "[^/]+", "$model": "[^/]+"}


@cache
def find_promtool() -> Path:
    """$PROMTOOL where it is set, else the pinned one from onebox's cache, built when missing."""
    if given := os.environ.get("PROMTOOL"):
        return Path(given)
    command = [sys.executable, "hack/onebox", "tools", "--only", "promtool"]
    output = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    return Path(output.strip().splitlines()[-1]) / "promtool"


def promtool(*arguments: str) -> None:
    done = subprocess.run([find_promtool(), *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return [panel for panel in found if panel["type"] != "row"]


def dashboard_queries() -> Iterator[tuple[str, str]]:
    for panel in panels():
        for target in panel["targets"]:
            text = target["expr"]
            for variable, value in VARIABLES.items():
                text = text.replace(variable, value)
            yield panel["title"], text


EXPRESSIONS = [*((rule["alert"], rule["expr"]) for rule in ALERTS), *dashboard_queries()]
each_expression = pytest.mark.parametrize(
    "text", [text for _, text in EXPRESSIONS], ids=[name for name, _ in EXPRESSIONS]
)
each_alert = pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])


# ---- promtool's word


def test_promtool_has_nothing_against_the_rules() -> None:
    promtool("check", "rules", "--lint=all", "--lint-fatal", str(RULES))


def test_every_alert_fires_and_stays_quiet_when_it_should(tmp_path: Path) -> None:
    # promtool compares all annotations; the summary is enough to see that templates find their labels.
    rules = yaml.safe_load(RULES.read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            rule["annotations"] = {"summary": rule["annotations"]["summary"]}
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
    shutil.copy(STORIES, tmp_path)
    promtool("test", "rules", str(tmp_path / STORIES.name))


def test_there_is_a_story_in_which_each_alert_fires_and_one_in_which_it_does_not() -> None:
    told: dict[str, set[bool]] = {alert["alert"]: set() for alert in ALERTS}
    for story in yaml.safe_load(STORIES.read_text())["tests"]:
        for moment in story["alert_rule_test"]:
            told[moment["alertname"]].add(bool(moment.get("exp_alerts")))
    assert {name for name, outcomes in told.items() if outcomes != {True, False}} == set()


def test_every_query_of_the_dashboard_parses(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{number}", "expr": text} for number, (_, text) in enumerate(dashboard_queries())]
    assert "$" not in re.sub(r'"\$1"', "", "".join(rule["expr"] for rule in rules))
    path = tmp_path / "dashboard.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", "--lint=none", str(path))


def test_what_autoscalers_go_by_is_what_triton_means(tmp_path: Path) -> None:
    promtool("check", "rules", "--lint=all", "--lint-fatal", str(AUTOSCALING / "rules.yaml"))
    shutil.copy(AUTOSCALING / "rules.yaml", tmp_path / "autoscaling.yaml")
    shutil.copy(STORIES.with_name("autoscaling_test.yaml"), tmp_path)
    promtool("test", "rules", str(tmp_path / "autoscaling_test.yaml"))


def test_the_metrics_that_an_autoscaler_asks_for_are_recorded_and_offered() -> None:
    asked = {QUEUE_METRIC, IN_FLIGHT_METRIC}
    (group,) = yaml.safe_load((AUTOSCALING / "rules.yaml").read_text())["groups"]
    assert {rule["record"] for rule in group["rules"]} == asked
    assert {metric for rule in group["rules"] for metric in metrics_in(rule["expr"])} <= series.TRITON.keys()
    (offered,) = yaml.safe_load((AUTOSCALING / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    (pattern,) = _NAMED_BY_PATTERN.findall(offered["seriesQuery"])
    assert {name for name in asked if re.fullmatch(pattern, name)} == asked
    assert set(offered["resources"]["overrides"]) == {"namespace", "pod"}


# ---- only series that exist

_STRING = re.compile(r'"(?:\\.|[^"\\])*"')
_SELECTOR = re.compile(r"([a-zA-Z_:][\w:]*)?\{([^}]*)\}")
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_WORDS = frozenset({"and", "or", "unless", "offset", "bool"})
_NAMED_BY_PATTERN = re.compile(r'__name__=~"([^"]+)"')
_MADE = re.compile(r'label_replace\(|"(\w+)", "\$1"')


def metrics_in(text: str) -> set[str]:
    """Every metric that the PromQL names."""
    bare = _STRING.sub('""', text)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", bare)
    bare = _GROUPING.sub(" ", bare)
    return set(re.findall(r"\b[a-zA-Z_:][\w:]*\b(?!\s*\()", bare)) - _WORDS


def matchers_in(text: str) -> Iterator[tuple[str, str, str]]:
    """Metric, label and text of every matcher; a metric named by a pattern is that pattern."""
    held: list[str] = []

    def hold(string: re.Match[str]) -> str:
        held.append(string[0][1:-1])
        return f'"{len(held) - 1}"'

    for name, inside in _SELECTOR.findall(_STRING.sub(hold, text)):
        found = [(label, held[int(number)]) for label, number in re.findall(r'(\w+)\s*[=!]~?\s*"(\d+)"', inside)]
        pattern = dict(found).get("__name__", "")
        yield from ((name or pattern, label, value) for label, value in found if label != "__name__")


def labels_of(name: str) -> series.Labels:
    known = series.known()
    return known.get(name) or next(labels for other, labels in known.items() if re.fullmatch(name, other))


@each_expression
def test_every_metric_is_exported(text: str) -> None:
    known = series.known()
    assert metrics_in(text) - known.keys() == set()
    for pattern in _NAMED_BY_PATTERN.findall(text):
        assert [name for name in known if re.fullmatch(pattern, name)], pattern


@each_expression
def test_every_label_is_one_that_its_metric_has(text: str) -> None:
    for metric, label, _ in matchers_in(text):
        assert label in labels_of(metric) | series.TARGET, f"{metric} has no {label}"
    of_all = {label for metric in metrics_in(text) for label in labels_of(metric)}
    made = {label for label in _MADE.findall(text) if label}
    for grouping in _GROUPING.findall(text):
        wanted = {label.strip() for label in grouping.split(",") if label.strip()}
        assert wanted - of_all - made - series.TARGET == set()


@each_expression
def test_every_word_that_is_looked_for_is_one_that_is_said(text: str) -> None:
    said = {
        "condition": {str(kind) for kind in ConditionType},
        "reason": {str(reason) for reason in reasons.ALL},
        "side": {"stable", "candidate"},
    }
    for metric, label, value in matchers_in(text):
        if metric.startswith("onnx_operator_model_") and label in said:
            assert set(value.split("|")) <= said[label]


@each_expression
def test_the_gateways_names_for_our_servers_are_the_ones_that_are_looked_for(text: str) -> None:
    services = [
        server_name(revision_name("minilm", "0a1b2c3d4e"), provider)
        for provider in ExecutionProvider
        if not provider.is_edge
    ]
    ours = [f"service/shop/{service}/{port}" for service in services for port in (queries._HTTP, queries._GRPC)]
    for pattern in [value for _, label, value in matchers_in(text) if label == "envoy_cluster_name"]:
        assert {name.split("/")[2] for name in ours if re.fullmatch(pattern, name)} == set(services)
        assert not re.fullmatch(pattern, "service/shop/checkout/8000/http")


# ---- what a person gets


@each_alert
def test_an_alert_says_what_it_is_how_bad_and_what_to_do(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in {"critical", "warning", "info"}
    assert alert["annotations"].keys() == {"summary", "description", "runbook_url"}
    _, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    assert anchor == alert["alert"].lower()


@each_alert
def test_an_alert_speaks_only_of_labels_that_it_has(alert: dict[str, Any]) -> None:
    expression = alert["expr"]
    kept = {label.strip() for grouping in _GROUPING.findall(expression) for label in grouping.split(",")}
    kept |= {label for label in _MADE.findall(expression) if label}
    if not _GROUPING.search(expression):
        kept |= {label for metric in metrics_in(expression) for label in labels_of(metric)}
    spoken = set(re.findall(r"\$labels\.(\w+)", str(alert["annotations"])))
    assert spoken <= kept


def test_the_runbook_explains_every_alert_and_no_other() -> None:
    headings = re.findall(r"^### (\w+)$", RUNBOOK.read_text(), re.MULTILINE)
    assert headings == [alert["alert"] for alert in ALERTS]


def test_each_alert_of_the_runbook_says_meaning_look_and_deed() -> None:
    for section in re.split(r"^### ", RUNBOOK.read_text(), flags=re.MULTILINE)[1:]:
        assert [*re.findall(r"^- \*\*(.+?)\.\*\*", section, re.MULTILINE)] == ["Means", "Look at", "Do"], section


# ---- what the chart makes of them


def rendered(helm: Helm, kind: str, *flags: str) -> list[dict[str, Any]]:
    manifests = helm.template("--set=images.registry=registry.example.com", *flags)
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def test_neither_is_there_unless_asked_for(helm: Helm) -> None:
    assert rendered(helm, "PrometheusRule") == rendered(helm, "ConfigMap") == []


def test_the_rules_are_those_of_the_file_with_the_users_runbook(helm: Helm) -> None:
    base = "https://docs.example.com/runbook"
    switch = "--set=metrics.prometheusRule.enabled=true"
    (rule,) = rendered(helm, "PrometheusRule", switch, f"--set=metrics.prometheusRule.runbook={base}")
    assert rule["spec"] == yaml.safe_load(RULES.read_text().replace("docs/runbook.md", base))


def test_what_autoscalers_go_by_is_recorded_where_asked_for(helm: Helm) -> None:
    (rule,) = rendered(helm, "PrometheusRule", "--set=metrics.autoscaling.enabled=true")
    assert rule["spec"] == yaml.safe_load((AUTOSCALING / "rules.yaml").read_text())


def test_the_dashboard_is_the_file_under_the_label_that_the_sidecar_looks_for(helm: Helm) -> None:
    (dashboard,) = rendered(helm, "ConfigMap", "--set=metrics.dashboard.enabled=true")
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert {name: json.loads(text) for name, text in dashboard["data"].items()} == {
        "onnx-operator.json": json.loads(DASHBOARD.read_text())
    }


def test_no_two_panels_are_one_or_lie_on_each_other() -> None:
    everything = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    cells = [
        (x, y)
        for panel in everything
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


@pytest.mark.parametrize("namespaces", [[], ["team-a", "team-b"]], ids=["the whole cluster", "two namespaces"])
def test_servers_and_probers_are_scraped_where_models_are(helm: Helm, namespaces: list[str]) -> None:
    watched = [f"--set=watchNamespaces={{{','.join(namespaces)}}}"] if namespaces else []
    monitors = rendered(helm, "PodMonitor", "--set=metrics.podMonitor.enabled=true", *watched)
    where = {"matchNames": namespaces} if namespaces else {"any": True}
    assert [monitor["spec"]["namespaceSelector"] for monitor in monitors] == [where, where]
    pods = [
        (manifest["spec"]["template"]["metadata"]["labels"], container["ports"])
        for manifest in yaml.safe_load_all(MANIFESTS.read_text())
        if manifest and manifest["kind"] == "Deployment"
        for container in manifest["spec"]["template"]["spec"]["containers"]
    ]
    scraped = [
        (labels["onnx-operator.io/component"], endpoint["port"])
        for labels, ports in pods
        for monitor in monitors
        if monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
        for endpoint in monitor["spec"]["podMetricsEndpoints"]
        if endpoint["port"] in {port["name"] for port in ports}
    ]
    assert set(scraped) == {("server", "metrics"), ("prober", "http")}
    assert len(scraped) == len(pods)


def test_a_models_own_namespace_survives_the_scrape(helm: Helm) -> None:
    (monitor,) = rendered(helm, "ServiceMonitor", "--set=metrics.serviceMonitor.enabled=true")
    assert [endpoint["honorLabels"] for endpoint in monitor["spec"]["endpoints"]] == [True]
