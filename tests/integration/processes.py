"""Starts operator processes for tests, as a pod would, and reads what they say."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from integration.apiserver import ROOT, ControlPlane, free_port, start_dying_with_us, wait_until

if TYPE_CHECKING:
    import signal
    import subprocess


@dataclass
class OperatorProcess:
    """One operator; `supervise` restarts it when it ends, as a kubelet does."""

    control_plane: ControlPlane
    name: str
    folder: Path
    program: list[str]
    settings: dict[str, str]
    user: str = "admin"
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    _supervised: bool = False

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    def start(self) -> OperatorProcess:
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{ROOT / 'operator'}:{ROOT / 'converter_image'}",
            "PYTHONWARNINGS": "default",
            "KUBECONFIG": str(self.control_plane.kubeconfig(self.user)),
            "POD_NAME": self.name,
            "HTTP_HOST": "127.0.0.1",
            "HTTP_PORT": str(self.port),
            "OPERATOR_IMAGE": "operator",
            "CONVERTER_IMAGE": "converter",
            "TRITON_IMAGE": "triton",
            **self.settings,
        }
        self.process = start_dying_with_us([sys.executable, *self.program], self.log, environment)
        self.starts += 1
        return self

    def supervise(self) -> OperatorProcess:
        """Start it again whenever it ends, until `end`."""
        self._supervised = True
        self.start()

        def watch() -> None:
            while self._supervised:
                assert self.process is not None
                self.process.wait()
                time.sleep(0.5)
                if self._supervised:
                    self.start()

        threading.Thread(target=watch, daemon=True).start()
        return self

    def end(self) -> None:
        self._supervised = False
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self, within: float) -> int:
        assert self.process is not None
        return self.process.wait(within)

    def lines(self, **fields: Any) -> list[dict[str, Any]]:
        """What it said, as far as the given fields match."""
        if not self.log.exists():
            return []
        found = []
        for line in self.log.read_text(errors="replace").splitlines():
            try:
                said = json.loads(line)
            except ValueError:
                continue
            if isinstance(said, dict) and all(said.get(name) == value for name, value in fields.items()):
                found.append(said)
        return found

    def reconciled(self, *, since: float = 0.0) -> list[str]:
        return [line["key"] for line in self.lines(event="reconciled") if line["at"] >= since]

    def page(self, path: str) -> tuple[int, str]:
        """Status and text; status 0 while nobody listens."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def looks(self) -> float:
        """How often it has looked at a model."""
        lines = self.page("/metrics")[1].splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("onnx_operator_reconciles_total"))

    def peak_mib(self) -> int:
        """The most memory it ever had."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) // 1024

    def cpu_seconds(self) -> float:
        """The CPU time that it took since its start."""
        assert self.process is not None
        ticks = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(ticks[11]) + int(ticks[12])) / os.sysconf("SC_CLK_TCK")

    def wait_leading(self, within: float = 60, *, times: int = 1) -> None:
        wait_until(
            lambda: len(self.lines(message="leading")) >= times,
            within=within,
            what=f"{self.name} leads; it said:\n{self.tail()}",
        )

    def tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:]) if self.log.exists() else ""
