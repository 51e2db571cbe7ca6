"""The Go binaries that make up the cluster: found in the cache, or built from ../go.mod.

A binary appears under its final name only when it is whole (built beside it, then renamed), so a killed build
goes on where it was; the folder's name is the hash of all that shapes the result. Never downloads a binary.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from onebox.console import OneboxError, heartbeat, one_at_a_time, run, say
from onebox.places import HACK, onebox_cache

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

_KUBERNETES = "k8s.io/kubernetes"
_GATEWAY = "github.com/envoyproxy/gateway"
_BUILD_FLAGS = ("-mod=readonly", "-trimpath", "-buildvcs=false")


@dataclass(frozen=True, slots=True)
class Tool:
    """One binary and how it is built."""

    name: str
    package: str
    tags: str = ""
    cgo: bool = False


# In the order in which they are needed: the integration tests start with the first four.
INTEGRATION = (
    Tool("etcd", "go.etcd.io/etcd/server/v3"),
    Tool("kube-apiserver", f"{_KUBERNETES}/cmd/kube-apiserver"),
    Tool("kube-controller-manager", f"{_KUBERNETES}/cmd/kube-controller-manager"),
    Tool("kubectl", f"{_KUBERNETES}/cmd/kubectl"),
)
ALL = (
    *INTEGRATION,
    Tool("kube-scheduler", f"{_KUBERNETES}/cmd/kube-scheduler"),
    Tool("kubelet", f"{_KUBERNETES}/cmd/kubelet"),
    Tool("kubeadm", f"{_KUBERNETES}/cmd/kubeadm"),
    Tool("kube-proxy", f"{_KUBERNETES}/cmd/kube-proxy"),
    Tool("containerd", "github.com/containerd/containerd/v2/cmd/containerd", tags="no_btrfs"),
    Tool("containerd-shim-runc-v2", "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2"),
    Tool("ctr", "github.com/containerd/containerd/v2/cmd/ctr", tags="no_btrfs"),
    Tool("runc", "github.com/opencontainers/runc", tags="seccomp", cgo=True),
    Tool("local-path-provisioner", "github.com/rancher/local-path-provisioner"),
    Tool("coredns", "github.com/coredns/coredns"),
    Tool("helm", "helm.sh/helm/v4/cmd/helm"),
    Tool(
        "prometheus",
        "github.com/prometheus/prometheus/cmd/prometheus",
        tags="remove_all_sd,enable_dns_sd,enable_kubernetes_sd",  # without the clouds' SDKs, ten minutes less
    ),
    Tool("envoy-gateway", f"{_GATEWAY}/cmd/envoy-gateway"),
)
GATEWAY_CHART = "gateway-helm"
# Runs in no cluster; from a go.mod of its own, so that moving it does not build the cluster's tools anew.
PROMTOOL = Tool("promtool", "github.com/prometheus/prometheus/cmd/promtool", tags="remove_all_sd")
_PROMTOOL_HACK = HACK / "promtool"


def pinned_version(module: str) -> str:
    """The version that go.mod pins, such as v1.37.2."""
    found = re.search(rf"^\s*{re.escape(module)} (v\S+)", (HACK / "go.mod").read_text(), re.MULTILINE)
    if not found:
        message = f"{HACK / 'go.mod'} pins no {module}"
        raise OneboxError(message)
    return found[1]


def gateway_version() -> str:
    """The version of Envoy Gateway."""
    return pinned_version(_GATEWAY)


def kubernetes_version() -> str:
    """The version of Kubernetes."""
    return pinned_version(_KUBERNETES)


def _linker_flags() -> str:
    version = kubernetes_version()
    major, minor = version.removeprefix("v").split(".")[:2]
    stamp = "k8s.io/component-base/version"
    return (
        f"-s -w -X {stamp}.gitVersion={version} -X {stamp}.gitMajor={major} -X {stamp}.gitMinor={minor}"
        f" -X {stamp}.gitTreeState=clean"
    )


@functools.cache
def binaries_folder() -> Path:
    """The cache folder for exactly this go.mod, go.sum, set of flags and Go version."""
    _need_go()
    return onebox_cache() / "tools" / _shape(HACK, (ALL, _BUILD_FLAGS, _linker_flags()))


def _need_go() -> None:
    if not shutil.which("go"):
        message = "go is not installed: get Go 1.26 or later from https://go.dev/dl and put it into PATH"
        raise OneboxError(message)


def _shape(module: Path, built: object) -> str:
    shape = hashlib.sha256()
    for name in ("go.mod", "go.sum"):
        shape.update((module / name).read_bytes())
    shape.update(repr(built).encode())
    shape.update(run(["go", "env", "GOVERSION", "GOOS", "GOARCH"], cwd=module).encode())
    return shape.hexdigest()[:16]


def _one_build_at_a_time() -> AbstractContextManager[None]:
    return one_at_a_time(onebox_cache() / "tools.lock", "another build of the tools is under way")


def ensure(tools: tuple[Tool, ...]) -> Path:
    """Make sure that these binaries lie in the cache, and return their folder."""
    folder = binaries_folder()
    if all((folder / tool.name).exists() for tool in tools):
        return folder
    with _one_build_at_a_time():
        folder.mkdir(parents=True, exist_ok=True)
        missing = [tool for tool in tools if not (folder / tool.name).exists()]
        if missing:
            say(f"{len(missing)} of {len(tools)} tools to build, about 35 CPU minutes for all from nothing")
        for number, tool in enumerate(missing, start=1):
            began = time.monotonic()
            with heartbeat(f"building {tool.name}"):
                _build(tool, folder)
            say(f"{tool.name} built ({number}/{len(missing)}, {time.monotonic() - began:.0f} s)")
        if all((folder / tool.name).exists() for tool in ALL):
            _forget_others(folder)
    return folder


def _forget_others(folder: Path) -> None:
    """Delete the binaries of other versions, a gigabyte each, unless a cluster still runs on them."""
    in_use: set[Path] = set()
    for process in Path("/proc").glob("[0-9]*/exe"):
        with suppress(OSError):  # ended meanwhile, or a thread of the kernel
            in_use.add(process.readlink().parent)
    for other in folder.parent.iterdir():
        if other != folder and other not in in_use:
            shutil.rmtree(other)


def promtool_folder() -> Path:
    """Make sure that promtool lies in the cache, and return its folder."""
    _need_go()
    folder = onebox_cache() / "promtool" / _shape(_PROMTOOL_HACK, (PROMTOOL, _BUILD_FLAGS, _linker_flags()))
    if not (folder / PROMTOOL.name).exists():
        with _one_build_at_a_time(), heartbeat(f"building {PROMTOOL.name}"):
            folder.mkdir(parents=True, exist_ok=True)
            _build(PROMTOOL, folder, _PROMTOOL_HACK)
    return folder


def _build(tool: Tool, folder: Path, module: Path = HACK) -> None:
    unfinished = folder / f".{tool.name}.unfinished"
    run(
        ["go", "build", "-tags", tool.tags, "-ldflags", _linker_flags(), "-o", unfinished, tool.package],
        cwd=module,
        env={"CGO_ENABLED": "1" if tool.cgo else "0", "GOFLAGS": " ".join(_BUILD_FLAGS)},
    )
    unfinished.rename(folder / tool.name)


def gateway_chart() -> Path:
    """Envoy Gateway's Helm chart out of its Go module, rendered as its release build would."""
    chart = binaries_folder() / GATEWAY_CHART
    if chart.exists():
        return chart
    version = gateway_version()
    run(["go", "mod", "download", _GATEWAY], cwd=HACK)
    module = Path(run(["go", "list", "-m", "-f", "{{.Dir}}", _GATEWAY], cwd=HACK).strip())
    unfinished = chart.with_name(f".{GATEWAY_CHART}.{os.getpid()}")
    shutil.copytree(module / "charts" / GATEWAY_CHART, unfinished, copy_function=shutil.copyfile)
    for path in (unfinished, *unfinished.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)  # Go's module cache is read-only, a copy must not be
    described = (unfinished / "Chart.yaml").read_text()
    (unfinished / "Chart.yaml").write_text(
        described.replace("v0.0.0-latest", version).replace('appVersion: "latest"', f'appVersion: "{version}"')
    )
    values = (unfinished / "values.tmpl.yaml").read_text()
    (unfinished / "values.yaml").write_text(
        # Both are set again by our own values; the template's place holders only must not reach Helm.
        values.replace("${GatewayImage}", "").replace("${GatewayImagePullPolicy}", "IfNotPresent")
    )
    try:
        unfinished.rename(chart)
    except OSError:  # somebody else was faster; theirs is the same
        shutil.rmtree(unfinished)
    return chart


def integration_folder() -> Path:
    """A folder with etcd, kube-apiserver, kube-controller-manager and kubectl.

    KUBEBUILDER_ASSETS (envtest's convention) wins for what it holds; what it lacks comes from the cache.
    """
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if not assets:
        return ensure(INTEGRATION)
    given = Path(assets).absolute()
    absent = tuple(tool for tool in INTEGRATION if not (given / tool.name).exists())
    if not absent:
        return given
    built = ensure(absent)
    joined = onebox_cache() / "assets" / hashlib.sha256(f"{given}\n{built}".encode()).hexdigest()[:16]
    joined.mkdir(parents=True, exist_ok=True)
    for tool in INTEGRATION:
        target = (built if tool in absent else given) / tool.name
        link = joined / tool.name
        if not link.is_symlink() or link.readlink() != target:
            link.unlink(missing_ok=True)
            link.symlink_to(target)
    return joined
