"""`python -m demo`: bring everything up, run the main job before your eyes, and say what came of it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from demo import checkpoints, installation, site, summary
from demo.kubectl import KubectlError
from demo.load import RATE, Load
from demo.scenario import ACTS, MODEL, Stage
from demo.screen import screen
from demo.waiting import DeadlineError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from demo.scenario import Played
    from demo.screen import Screen
    from demo.site import Site

NAMESPACE = "models"


def main(arguments: Sequence[str]) -> int:
    """Run the demo, or remove it; 0 when all of it came out as told."""
    asked = _parser().parse_args(arguments)
    try:
        if asked.down:
            return _down(asked)
        chosen = _site(asked)
        with screen() as shown:
            return _demo(chosen, shown)
    except (site.SiteError, KubectlError, DeadlineError) as trouble:
        print(f"error: {trouble}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; run it again to begin anew, or `make demo-down` to remove it", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("--cluster", default="demo", help="name of the one-machine cluster (default: demo)")
    parser.add_argument("--kubeconfig", type=Path, help="a cluster of your own instead")
    parser.add_argument("--registry", help="with --kubeconfig: where the images were pushed to, as HOST/PATH")
    tag = site.release()
    parser.add_argument("--tag", default=tag, help=f"with --kubeconfig: tag of the images (default: {tag})")
    parser.add_argument("--values", type=Path, help="with --kubeconfig: more values for the chart, as prometheus.url")
    parser.add_argument("--down", action="store_true", help="remove what the demo made")
    return parser


def _site(asked: argparse.Namespace) -> Site:
    if asked.kubeconfig is None:
        return site.onebox(asked.cluster)
    if not asked.registry:
        raise site.SiteError("--kubeconfig needs --registry: where your cluster can pull the images from")
    return site.own_cluster(asked.kubeconfig, registry=asked.registry, tag=asked.tag, values=asked.values)


def _down(asked: argparse.Namespace) -> int:
    if asked.kubeconfig is None:
        site.onebox_down(asked.cluster)
        return 0
    own = site.own_cluster(asked.kubeconfig, registry=asked.registry or "", tag=asked.tag, values=None)
    installation.remove(own, NAMESPACE)
    installation.uninstall(own)
    return 0


def _demo(chosen: Site, shown: Screen) -> int:
    stage = _set_up(chosen, shown)
    acts: list[Played] = []
    for act in ACTS:
        acts.append(stage.play(act))
        if not acts[-1].is_as_expected:
            break
        if stage.load is None:
            shown.tell(f"from now on {RATE} requests a second, through everything that follows")
            stage.load = Load.start(chosen, stage.kubectl, stage.model())
    return _conclude(chosen, shown, stage, acts)


def _set_up(chosen: Site, shown: Screen) -> Stage:
    inside = chosen.kubectl.within(NAMESPACE)
    shown.heading("The cluster, the chart and the checkpoints")
    shown.tell("installing the chart with helm")
    installation.install(chosen)
    shown.tell(f"namespace {NAMESPACE} with its claims; it admits restricted pods only")
    installation.prepare(chosen, NAMESPACE)
    Load.stop(inside)
    inside.delete("onnxmodel", MODEL)
    shown.tell("the checkpoints: MiniLM as its package ships it, and the same after an unlucky training run")
    checkpoints.put(inside, checkpoints.of_demo(), claim=installation.CHECKPOINTS, image=chosen.images["operator"])
    return Stage(inside, shown)


def _conclude(chosen: Site, shown: Screen, stage: Stage, acts: list[Played]) -> int:
    inside = chosen.kubectl.within(NAMESPACE)
    traffic = stage.counters()
    Load.stop(inside)
    shown.heading("Summary")
    shown.table(summary.acts_table(acts, inside.list("onnxmodelrevisions")))
    for line in summary.reasons(acts):
        shown.say(line)
    shown.table(summary.traffic_table(acts))
    for line in summary.traffic_lines(traffic):
        shown.say(line)
    shown.heading("Try next")
    for command in summary.next_commands(chosen, inside, stage.model()):
        shown.say(command)
    if len(acts) == len(ACTS) and all(played.is_as_expected for played in acts):
        return 0
    shown.heading(f"Not as expected: {acts[-1].act.title}: {'; '.join(acts[-1].surprises)}")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
