"""Everything about this process that is not the same in every installation.

Each setting is an environment variable and a flag of the same name (`--http-port` is HTTP_PORT); the flag wins.
Read once at the start; a value that cannot be right stops the process with the variable's name and what to write
instead. What concerns models, not the process, belongs in an OnnxModelClass and is refused here.
"""

from __future__ import annotations

import argparse
import re
import socket
from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


class SettingsError(Exception):
    """A setting is missing or cannot be right."""

    def __init__(self, variable: str, problem: str) -> None:
        super().__init__(f"{variable}: {problem}")
        self.variable = variable


def _text(value: str) -> str:
    if not value.strip():
        raise ValueError("is empty")
    return value.strip()


def _optional_text(value: str) -> str | None:
    return value.strip() or None


def _url(value: str) -> str | None:
    value = value.strip().rstrip("/")
    if value and not re.match(r"https?://[^/\s]+", value):
        raise ValueError(f"{value!r} is no URL; write it like http://prometheus.monitoring.svc:9090")
    return value or None


def _namespaces(value: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in value.split(",") if name.strip())
    for name in names:
        if not _NAMESPACE.fullmatch(name):
            raise ValueError(f"{name!r} is no namespace; write names separated by commas, or nothing for all")
    return tuple(dict.fromkeys(names))


def _port(value: str) -> int:
    return _whole(value, 1, 65535)


def _count(value: str) -> int:
    return _whole(value, 1, 256)


def _whole(value: str, low: int, high: int) -> int:
    if not re.fullmatch(r"\d{1,6}", value.strip()) or not low <= int(value) <= high:
        raise ValueError(f"{value!r} is no whole number from {low} to {high}")
    return int(value)


def _seconds(value: str) -> float:
    if not re.fullmatch(r"\d{1,5}(\.\d+)?", value.strip()) or float(value) <= 0:
        raise ValueError(f"{value!r} is no number of seconds above 0")
    return float(value)


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value not in choices:
            raise ValueError(f"{value!r} is none of {', '.join(choices)}")
        return value

    return parse


def _setting(parse: Callable[[str], Any], help: str, **default: Any) -> Any:  # noqa: A002
    return field(metadata={"parse": parse, "help": help}, **default)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How this process runs."""

    operator_image: str = _setting(_text, "image of this operator, for init containers and probers")
    converter_image: str = _setting(_text, "default image of the conversion Jobs")
    triton_image: str = _setting(_text, "default image of the model servers")
    watch_namespaces: tuple[str, ...] = _setting(
        _namespaces, "namespaces to serve, separated by commas; empty means the whole cluster", default=()
    )
    kubeconfig: str | None = _setting(_optional_text, "kubeconfig file to use; empty inside a cluster", default=None)
    pod_namespace: str = _setting(_text, "namespace of this pod; the lease lives there", default="onnx-operator")
    pod_name: str = _setting(_text, "name of this pod", default_factory=socket.gethostname)
    lease_name: str = _setting(_text, "name of the leader election's Lease", default="onnx-operator")
    prometheus_url: str | None = _setting(_url, "Prometheus to judge rollouts by; empty for none", default=None)
    http_host: str = _setting(_text, "address that health and metrics listen on", default="0.0.0.0")  # noqa: S104 - probes come from outside
    http_port: int = _setting(_port, "port of /healthz, /readyz and /metrics", default=8080)
    workers: int = _setting(_count, "models reconciled at the same time", default=8)
    relist_seconds: float = _setting(_seconds, "seconds between full reads of the cluster", default=60.0)
    request_seconds: float = _setting(_seconds, "longest request to the API server", default=30.0)
    reconcile_seconds: float = _setting(_seconds, "longest single reconcile", default=120.0)
    log_level: str = _setting(
        _one_of("DEBUG", "INFO", "WARNING", "ERROR"), "DEBUG, INFO, WARNING or ERROR", default="INFO"
    )
    log_format: str = _setting(_one_of("json", "text"), "json or text", default="json")

    @property
    def is_cluster_wide(self) -> bool:
        return not self.watch_namespaces


def read_settings(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Settings from flags, else environment, else defaults."""
    flags = vars(_parser().parse_args(arguments))
    given = {
        setting.name: value
        for setting in fields(Settings)
        if (value := flags[setting.name]) is not None or (value := environment.get(setting.name.upper())) is not None
    }
    values: dict[str, Any] = {}
    for setting in fields(Settings):
        variable = setting.name.upper()
        if setting.name in given:
            try:
                values[setting.name] = setting.metadata["parse"](given[setting.name])
            except ValueError as error:
                raise SettingsError(variable, str(error)) from error
        elif setting.default is MISSING and setting.default_factory is MISSING:
            raise SettingsError(variable, f"is not set; give the {setting.metadata['help']}")
    return Settings(**values)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="onnx_operator run", description="Run the operator.", allow_abbrev=False)
    for setting in fields(Settings):
        flag = f"--{setting.name.replace('_', '-')}"
        text = setting.metadata["help"].replace("%", "%%")
        parser.add_argument(flag, dest=setting.name, metavar=setting.name.upper(), help=text)
    return parser
