"""What a platform team does once: the chart, and a namespace that is ready to hold models."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any, Final

from demo import objects
from demo.site import CHART, EXAMPLES, IMAGES, SiteError, gateway_of_class

if TYPE_CHECKING:
    from demo.site import Site

RELEASE: Final = "onnx-operator"
OPERATOR_NAMESPACE: Final = "onnx-operator-system"
MADE_BY_DEMO: Final = "app.kubernetes.io/part-of=onnx-operator-demo"
CHECKPOINTS: Final = "checkpoints"
"""The claim that holds the checkpoints, as examples/claims.yaml names it."""


def helm(site: Site, *arguments: str, stdin: str | None = None) -> str:
    """Run helm against the site's cluster."""
    command = [str(site.helm), f"--kubeconfig={site.kubectl.kubeconfig}", f"--namespace={OPERATOR_NAMESPACE}"]
    done = subprocess.run([*command, *arguments], input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SiteError(f"helm {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def install(site: Site) -> None:
    """Install or upgrade the chart, and wait until the operator is ready."""
    site.kubectl.apply(objects.namespace(OPERATOR_NAMESPACE))
    given = () if site.values is None else ("--values", str(site.values))
    helm(
        site,
        *("upgrade", RELEASE, str(CHART), "--install", "--wait", "--timeout=3m", "--values=-"),
        *given,
        stdin=json.dumps(values(site)),
    )


def uninstall(site: Site) -> None:
    """Remove the chart and what `prepare` made outside of its namespace; what is not there is fine.

    The CRDs stay, as with any uninstallation by helm: with them all models of the cluster would go.
    """
    helm(site, "uninstall", RELEASE, "--ignore-not-found", "--wait")
    site.kubectl.run("delete", "--ignore-not-found", "--filename", str(EXAMPLES / "class.yaml"))
    gateway = site.kubectl.within(gateway_of_class()["namespace"])
    gateway.delete("clienttrafficpolicy", objects.UPSTREAM_POLICY)
    site.kubectl.delete("namespace", OPERATOR_NAMESPACE)


def values(site: Site) -> dict[str, Any]:
    """The chart's values for this site."""
    return {
        "images": {name: _reference(image) for name, image in site.images.items() if name in IMAGES},
        "prometheus": {"url": site.prometheus_url},
    }


def _reference(image: str) -> dict[str, str]:
    repository, _, tag = image.rpartition(":")
    registry, _, name = repository.partition("/")
    return {"registry": registry, "repository": name, "tag": tag}


def prepare(site: Site, namespace: str) -> None:
    """The class, a namespace with its claims, and a gateway that says who answered."""
    site.kubectl.apply(objects.namespace(namespace))
    site.kubectl.apply_file(EXAMPLES / "class.yaml")
    site.kubectl.within(namespace).apply_file(EXAMPLES / "claims.yaml")
    gateway = gateway_of_class()
    policy = objects.upstream_in_answers(gateway["name"], gateway["namespace"])
    site.kubectl.within(gateway["namespace"]).apply(policy)


def remove(site: Site, namespace: str) -> None:
    """Remove the models first, while an operator is there to let them go, then everything else."""
    inside = site.kubectl.within(namespace)
    if site.kubectl.get("namespace", namespace) is None:
        return
    inside.run("delete", "onnxmodels", "--all", "--timeout=120s", timeout=130)
    site.kubectl.delete("namespace", namespace)
