"""The command line: one line of help and one call each."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from onebox import cluster as life
from onebox import images, packages, tools
from onebox.console import OneboxError, say

if TYPE_CHECKING:
    from onebox.places import Cluster

_Handler = Callable[[argparse.Namespace], None]


def main(arguments: Sequence[str]) -> int:
    """Run one command; an error that a person can act on is one message and exit code 1."""
    asked = _parser().parse_args(arguments)
    handler: _Handler = asked.handler
    try:
        handler(asked)
    except (OneboxError, ValueError) as trouble:
        say(f"error: {trouble}")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="onebox", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, handler: _Handler, explained: str, *, cluster: bool = True) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=explained, description=explained)
        added.set_defaults(handler=handler)
        if cluster:
            added.add_argument("--name", default="demo", help="the cluster's name (default: demo)")
            added.add_argument("--index", type=int, help="0 to 7, its own for each cluster (demo: 0, e2e: 1)")
        return added

    command("up", _up, "bring a cluster up and print its kubeconfig's path; nothing to do when it is up and well")
    down = command("down", _down, "remove a cluster and everything of it")
    down.add_argument("--purge", action="store_true", help="also its imported images (they are in the cache, too)")
    command("status", _status, "print absent, starting, unreachable or running")
    command("env", _env, "print `export KUBECONFIG=… PATH=…` for a shell")
    command("load-images", _load_images, "build and import the project's images that changed; print their refs")
    command("stop-apiserver", _stop_apiserver, "stop the API server until start-apiserver")
    command("start-apiserver", _start_apiserver, "start it again and wait until it is ready")
    hit = command("signal", _signal, "send a signal to processes of the cluster, found by the program's name")
    hit.add_argument("--process", required=True, help="kubelet or containerd")
    hit.add_argument("--signal", required=True, choices=["TERM", "KILL", "STOP", "CONT"])
    only = command("tools", _tools, "build the binaries if needed and print their folder", cluster=False)
    only.add_argument(
        "--only",
        choices=["integration", "helm", "promtool"],
        help="integration: etcd, kube-apiserver, kube-controller-manager, kubectl; helm: helm; promtool: promtool",
    )
    command("packages", _packages, "install the Debian packages that are missing", cluster=False)
    command("images", _images, "build the project's images that changed and print their refs", cluster=False)
    return parser


def _chosen(asked: argparse.Namespace) -> Cluster:
    return life.cluster_named(asked.name, asked.index)


def _up(asked: argparse.Namespace) -> None:
    packages.ensure()
    cluster = _chosen(asked)
    life.up(cluster)
    print(cluster.kubeconfig)


def _down(asked: argparse.Namespace) -> None:
    life.down(_chosen(asked), purge=asked.purge)


def _status(asked: argparse.Namespace) -> None:
    print(life.status(_chosen(asked)))


def _env(asked: argparse.Namespace) -> None:
    print(f"export KUBECONFIG={_chosen(asked).kubeconfig} PATH={tools.ensure(tools.ALL)}:$PATH")


def _load_images(asked: argparse.Namespace) -> None:
    print(life.load_images(_chosen(asked)).read_text(), end="")


def _stop_apiserver(asked: argparse.Namespace) -> None:
    life.stop_apiserver(_chosen(asked))


def _start_apiserver(asked: argparse.Namespace) -> None:
    life.start_apiserver(_chosen(asked))


def _signal(asked: argparse.Namespace) -> None:
    print(*life.send_signal(_chosen(asked), asked.process, asked.signal))


def _tools(asked: argparse.Namespace) -> None:
    match asked.only:
        case "integration":
            folder = tools.integration_folder()
        case "helm":
            folder = tools.ensure(tuple(tool for tool in tools.ALL if tool.name == "helm"))
        case "promtool":
            folder = tools.promtool_folder()
        case _:
            folder = tools.ensure(tools.ALL)
    print(folder)


def _packages(asked: argparse.Namespace) -> None:
    del asked
    packages.ensure()


def _images(asked: argparse.Namespace) -> None:
    del asked
    packages.ensure()
    built = images.project_images(images.Catalogue())
    print(json.dumps({name: image.ref for name, image in built.items()}, indent=2, sort_keys=True))
