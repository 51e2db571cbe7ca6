"""Argo CD's scripts for OnnxModels, in Argo CD's own convention of tests, run by the Lua that it has.

The models they are tried on are written by the operator's core, never by hand: `UPDATE_GOLDEN=1` writes them anew.
"""

from __future__ import annotations

import os
import runpy
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from lupa.lua51 import LuaRuntime, lua_type

from onnx_operator.api.common import API_VERSION
from onnx_operator.core.analysis import Outcome
from unit.core.worlds import World

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[3]
SCRIPTS = ROOT / "docs" / "gitops" / "argocd" / "onnx-operator.io" / "OnnxModel"
ACTIONS = SCRIPTS / "actions"
HEALTH_TESTS = yaml.safe_load((SCRIPTS / "health_test.yaml").read_text())["tests"]
ACTION_TESTS = yaml.safe_load((ACTIONS / "action_test.yaml").read_text())
EPOCH = "1970-01-01T00:00:00Z"

Manifest = dict[str, Any]


# ---- the models


def serving() -> World:
    world = World()
    world.serve_first()
    return world


def canary() -> World:
    world = serving()
    world.change(quantization={"scheme": "int8-dynamic"})
    world.up_to_step(0)
    return world


def converting() -> World:
    world = World()
    world.settle()
    world.end_jobs()
    world.settle()
    return world


def outdated() -> World:
    world = serving()
    world.change(quantization={"scheme": "int8-dynamic"})
    return world


def paused() -> World:
    world = canary()
    world.change(rollout={"paused": True})
    world.settle()
    world.wait(60)
    world.settle()
    return world


def held() -> World:
    world = canary()
    world.measure_nothing(Outcome.NO_DATA)
    world.wait(90)
    world.settle()
    return world


def rolled_back() -> World:
    world = canary()
    world.measure(500, 1000)
    for _ in range(3):
        world.wait(10)
        world.settle()
        world.accept()
    world.settle()
    return world


def not_valid() -> World:
    world = converting()
    world.end_jobs()
    world.settle()
    world.fail_job("-validate-", "ParityFailed")
    world.settle()
    return world


def without_a_class() -> World:
    world = World(classes=())
    world.settle()
    return world


WORLDS: dict[str, Callable[[], World]] = {
    "unseen": World,
    "converting": converting,
    "serving": serving,
    "outdated": outdated,
    "canary": canary,
    "paused": paused,
    "held": held,
    "rolled-back": rolled_back,
    "not-valid": not_valid,
    "without-a-class": without_a_class,
}


#: What a model looks like after an action: which one it was before, and what is new in spec.rollout.
AFTERWARDS: dict[str, tuple[str, Manifest]] = {
    "canary-paused": ("canary", {"paused": True}),
    "canary-promoted": ("canary", {"promoteToken": EPOCH}),
    "canary-aborted": ("canary", {"abortToken": EPOCH}),
    "paused-resumed": ("paused", {"paused": False}),
    "rolled-back-retried": ("rolled-back", {"retryToken": EPOCH}),
}


def manifest(world: World) -> Manifest:
    """The model as the API server would show it."""
    return {
        "apiVersion": API_VERSION,
        "kind": "OnnxModel",
        "metadata": {"name": "minilm", "namespace": "shop", "generation": world.generation},
        "spec": world.spec.model_dump(mode="json", by_alias=True, exclude_none=True),
        "status": world.status.model_dump(mode="json", by_alias=True, exclude_none=True),
    }


def is_as_kept(path: Path, wanted: Manifest) -> bool:
    text = yaml.safe_dump(wanted, sort_keys=False, width=110)
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return path.read_text() == text


@pytest.mark.parametrize("name", WORLDS)
def test_a_model_that_scripts_are_tried_on_is_what_the_operator_writes(name: str) -> None:
    model = manifest(WORLDS[name]())
    assert is_as_kept(SCRIPTS / "testdata" / f"{name}.yaml", model), "UPDATE_GOLDEN=1 writes it anew"


@pytest.mark.parametrize("name", AFTERWARDS)
def test_a_model_after_an_action_is_the_one_before_with_another_rollout(name: str) -> None:
    before, change = AFTERWARDS[name]
    model = manifest(WORLDS[before]())
    model["spec"]["rollout"] |= change
    assert is_as_kept(ACTIONS / "testdata" / f"{name}.yaml", model), "UPDATE_GOLDEN=1 writes it anew"


def test_no_model_is_kept_that_nobody_makes() -> None:
    def kept(folder: Path) -> set[str]:
        return {path.stem for path in (folder / "testdata").iterdir()}

    assert kept(SCRIPTS) == WORLDS.keys()
    assert kept(ACTIONS) == AFTERWARDS.keys()


# ---- Lua as Argo CD runs it

_SANDBOX = """
local date = os.date
debug.getmetatable("").__index = nil
local open = {}
for _, name in ipairs({
  "assert", "error", "getmetatable", "ipairs", "next", "pairs", "pcall", "print", "rawequal", "rawget", "rawset",
  "select", "setmetatable", "tonumber", "tostring", "type", "unpack", "xpcall", "_VERSION", "table", "require",
}) do open[name] = _G[name] end
package.loaded.os = nil
return function(script, obj, moment)
  package.preload.os = function() return { date = function(format) return date(format, moment) end } end
  open.obj = obj
  return setfenv(assert(loadstring(script)), open)()
end
"""
"""Without string, math and io, and with `os` only when it is required: what Argo CD's own runtime leaves of Lua."""


def run(script: Path, model: Manifest, moment: int = 0) -> Any:
    lua = LuaRuntime(register_eval=False, register_builtins=False)
    execute = lua.execute(_SANDBOX)
    return from_lua(execute(script.read_text(), to_lua(lua, model), moment))


def to_lua(lua: LuaRuntime, value: Any) -> Any:
    if isinstance(value, dict):
        return lua.table_from({name: to_lua(lua, one) for name, one in value.items()})
    if isinstance(value, list):
        return lua.table_from([to_lua(lua, one) for one in value])
    return value


def from_lua(value: Any) -> Any:
    if lua_type(value) != "table":
        return value
    found = {name: from_lua(one) for name, one in value.items()}
    # Lua does not tell an empty map from an empty list; neither does Argo CD.
    return [*found.values()] if list(found) == list(range(1, len(found) + 1)) else found


def with_maps_again(value: Any, before: Any) -> Any:
    """What Argo CD does about it: what was an empty map is one again."""
    if value == [] and isinstance(before, dict):
        return before
    if isinstance(value, dict) and isinstance(before, dict):
        return {name: with_maps_again(one, before.get(name)) for name, one in value.items()}
    if isinstance(value, list) and isinstance(before, list):
        return [with_maps_again(one, old) for one, old in zip(value, before, strict=True)]
    return value


def load(path: Path) -> Manifest:
    model: Manifest = yaml.safe_load(path.read_text())
    return model


def act(action: str, model: Manifest, moment: int = 0) -> Manifest:
    acted: Manifest = with_maps_again(run(ACTIONS / action / "action.lua", deepcopy(model), moment), model)
    return acted


def discover(model: Manifest) -> list[Manifest]:
    found = run(ACTIONS / "discovery.lua", model)
    return [{"name": name, **options} for name, options in found.items()]


# ---- health


@pytest.mark.parametrize("test", HEALTH_TESTS, ids=lambda test: test["inputPath"])
def test_health_is_as_health_test_yaml_says(test: Manifest) -> None:
    assert run(SCRIPTS / "health.lua", load(SCRIPTS / test["inputPath"])) == test["healthStatus"]


def test_the_health_of_every_model_is_tested() -> None:
    assert sorted(test["inputPath"] for test in HEALTH_TESTS) == sorted(f"testdata/{name}.yaml" for name in WORLDS)


def test_a_model_without_any_status_is_in_progress() -> None:
    model = manifest(World())
    del model["status"]
    assert run(SCRIPTS / "health.lua", model)["status"] == "Progressing"


# ---- actions


@pytest.mark.parametrize("test", ACTION_TESTS["discoveryTests"], ids=lambda test: test["inputPath"])
def test_actions_are_offered_as_action_test_yaml_says(test: Manifest) -> None:
    def by_name(action: Manifest) -> str:
        return str(action["name"])

    found = discover(load(ACTIONS / test["inputPath"]))
    assert sorted(found, key=by_name) == sorted(test["result"], key=by_name)


@pytest.mark.parametrize(
    "test", ACTION_TESTS["actionTests"], ids=lambda test: f"{test['action']} {Path(test['inputPath']).stem}"
)
def test_an_action_does_what_action_test_yaml_says(test: Manifest) -> None:
    acted = act(test["action"], load(ACTIONS / test["inputPath"]))
    assert acted == load(ACTIONS / test["expectedOutputPath"])


def test_every_action_that_is_offered_can_be_done_and_is_tested() -> None:
    offered = {action["name"] for action in discover(manifest(World()))}
    assert {path.parent.name for path in ACTIONS.glob("*/action.lua")} == offered
    assert {test["action"] for test in ACTION_TESTS["actionTests"]} == offered


@pytest.mark.parametrize("action", ["promote", "abort", "retry"])
def test_pressed_again_a_second_later_it_is_another_request_and_nothing_else_changes(action: str) -> None:
    model = manifest(canary())
    first, second = act(action, model), act(action, model, moment=1)
    token = f"{action}Token"
    assert first["spec"]["rollout"].pop(token) == EPOCH
    assert second["spec"]["rollout"].pop(token) == "1970-01-01T00:00:01Z"
    del model["spec"]["rollout"][token]
    assert first == second == model


@pytest.mark.parametrize(
    ("action", "before", "ready"),
    [
        ("promote", canary, ("True", "Serving")),
        ("abort", canary, ("False", "RolledBack")),
        ("pause", canary, ("False", "Paused")),
        ("resume", paused, ("True", "Serving")),
        ("retry", rolled_back, ("False", "Fetching")),
    ],
)
def test_the_operator_takes_an_action_for_what_it_says(
    action: str, before: Callable[[], World], ready: tuple[str, str]
) -> None:
    world = before()
    world.measure(0, 1000)
    world.change(rollout=act(action, manifest(world))["spec"]["rollout"])
    seen = set()
    for _ in range(30):
        world.settle()
        seen.add(world.condition("Ready"))
        world.accept()
        world.wait(10)
    assert ready in seen


# ---- what users get


def test_the_config_map_holds_the_scripts() -> None:
    render = runpy.run_path(str(ROOT / "hack" / "gitops.py"))["patch"]
    text = (ROOT / "docs" / "gitops" / "argocd-cm.yaml").read_text()
    assert text == render(), "run `make crds`"
    data = yaml.safe_load(text)["data"]
    actions = yaml.safe_load(data.pop("resource.customizations.actions.onnx-operator.io_OnnxModel"))
    assert list(data.values()) == [(SCRIPTS / "health.lua").read_text()]
    assert actions["discovery.lua"] == (ACTIONS / "discovery.lua").read_text()
    assert {each["name"]: each["action.lua"] for each in actions["definitions"]} == {
        path.parent.name: path.read_text() for path in ACTIONS.glob("*/action.lua")
    }
