"""What any cluster has beside Kubernetes itself: DNS settings, storage, a gateway, Prometheus.

Knows nothing of the project's chart. Applying is idempotent; what has not changed is not applied again.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from onebox import tools
from onebox.console import OneboxError, run, stage
from onebox.machine import Machine, wait_for

if TYPE_CHECKING:
    from onebox.plan import Plan

NAMESPACES = ("kube-system", "local-path-storage", "monitoring", "envoy-gateway-system")
_GATEWAY_CRDS = ("gateways.gateway.networking.k8s.io", "envoyproxies.gateway.envoyproxy.io")


def are_available(machine: Machine, seconds: int) -> None:
    """Wait until the node and every addon's Deployment are ready; raise when they are not in time."""
    timeout = f"--timeout={seconds}s"
    machine.kubectl("wait", "--for=condition=Ready", "node/onebox", timeout)
    for namespace in NAMESPACES:
        machine.kubectl("wait", "--for=condition=Available", "deployment", "--all", "-n", namespace, timeout)


def apply(machine: Machine, plan: Plan) -> None:
    """Bring the addons to what the plan says and wait until they work; their images are already there."""
    recorded = machine.cluster.state / "addons-hash"
    if recorded.exists() and recorded.read_text() == plan.addons_hash:
        return
    folder = machine.cluster.addons
    folder.mkdir(exist_ok=True)
    for name, content in plan.addons.items():
        (folder / name).write_text(content)
    machine.kubectl("apply", "-f", folder / "namespaces.yaml")
    with ThreadPoolExecutor() as pool:
        chart = pool.submit(_install_gateway_chart, machine)
        machine.kubectl("apply", "-f", folder / "coredns.yaml")
        machine.kubectl("scale", "deployment/coredns", "-n", "kube-system", "--replicas=1")
        machine.kubectl("apply", "-f", folder / "storage.yaml", "-f", folder / "monitoring.yaml")
        wait_for("the gateway's definitions", lambda: chart.done() or _has_gateway_crds(machine))
        if not chart.done():
            machine.kubectl("apply", "-f", folder / "gateway.yaml")
        chart.result()
    machine.kubectl("apply", "-f", folder / "gateway.yaml")
    with stage("waiting for the addons"):
        are_available(machine, 180)
        machine.kubectl("wait", "--for=condition=Programmed", "gateway/edge", "-n", "gateway-system", "--timeout=120s")
        are_available(machine, 180)  # once more: the proxy's Deployment did not exist the first time
    recorded.write_text(plan.addons_hash)


def _has_gateway_crds(machine: Machine) -> bool:
    names = [f"crd/{name}" for name in _GATEWAY_CRDS]
    try:
        machine.kubectl("wait", "--for=condition=Established", *names, "--timeout=5s")
    except OneboxError:
        return False
    return True


def _install_gateway_chart(machine: Machine) -> None:
    with stage("Envoy Gateway's chart"):
        run(
            [
                *(machine.binaries / "helm", "--kubeconfig", machine.cluster.kubeconfig),
                *("upgrade", "--install", "eg", tools.gateway_chart()),
                *("--namespace", "envoy-gateway-system"),
                *("--values", machine.cluster.addons / "gateway-values.yaml", "--timeout=180s"),
            ]
        )
