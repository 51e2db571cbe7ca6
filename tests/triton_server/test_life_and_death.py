"""Ending in good order, and the probe that sees what Triton's own health endpoints do not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import module_from_spec
from typing import TYPE_CHECKING

import pytest

from triton_server import graphs
from triton_server.serverprocess import IMAGE, Answer, Server, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import ModuleType

ROUNDS = 2000


@pytest.fixture
def own(server_root: Path, folder: Path) -> Iterator[Server]:
    """A server to be tormented."""
    models = (
        graphs.Model("worker", graphs.worker(), graphs.WORKER_CONFIG),
        graphs.Model("other", graphs.embedder(), graphs.embedder_config()),
    )
    with Server(server_root, folder, models) as server:
        yield server.wait_ready()


def live(server: Server, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            str(server.root / "bin" / "live"),
            f"--http={server.http_port}",
            f"--metrics={server.metrics_port}",
            f"--pid={server.process.pid}",
            f"--state={server.log_file.parent / 'live'}",
            *options,
        ],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"]},
    )


@pytest.fixture(scope="module")
def program() -> ModuleType:
    """The probe as a module: what only time would show is shown by numbers."""
    path = str(IMAGE / "bin" / "live")
    loader = SourceFileLoader("live", path)
    module = module_from_spec(ModuleSpec("live", loader, origin=path))
    loader.exec_module(module)
    return module


def work(server: Server, rounds: int) -> Answer:
    body = {"inputs": [{"name": "rounds", "datatype": "INT64", "shape": [1, 1], "data": [rounds]}]}
    return server.ask("/v2/models/worker/infer", body)


def cpu_seconds(program: ModuleType, server: Server) -> float:
    """Processor time that the backend processes have used."""
    used: float = sum(backend.cpu_seconds for backend in program.backend_processes(server.process.pid))
    return used


def is_working(program: ModuleType, server: Server, idle: float) -> bool:
    """A request is being computed, as more than the idle seconds of CPU tell, and another one waits.

    That one waits is not enough: the first may, before it is taken from the queue, while the second is still on its
    way, and a server that is told to end takes no more connections.
    """
    if cpu_seconds(program, server) < idle + 0.1:
        return False
    waiting: float = server.metric("nv_inference_pending_request_count", "worker")
    return waiting > 0


def test_a_server_that_does_nothing_is_alive(own: Server) -> None:
    for _ in range(3):
        look = live(own, "--stalled-after=0")
        assert (look.returncode, look.stderr) == (0, "")


def test_a_server_that_is_slow_is_alive(program: ModuleType, own: Server) -> None:
    idle = cpu_seconds(program, own)
    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(work, own, ROUNDS) for _ in range(3)]
        wait_until(lambda: is_working(program, own, idle), within=30, what="requests wait")
        looks = 0
        while is_working(program, own, idle):
            look = live(own, "--stalled-after=0.3")
            assert (look.returncode, look.stderr) == (0, "")
            looks += 1
        assert looks > 0
        assert [answer.result().status for answer in answers] == [200] * 3


def test_a_killed_backend_process_is_dead_though_triton_says_ready(own: Server) -> None:
    (backend,) = own.backends("worker")
    os.kill(backend, signal.SIGKILL)
    words = f"backend process {backend} is a zombie"
    wait_until(lambda: words in live(own).stderr, within=10, what="the probe fails")
    assert own.ask("/v2/health/ready").status == 200, "Triton sees it by itself now: is the probe still needed?"
    own.process.kill()  # it would wait in vain for the process to unload its model


def test_a_stopped_backend_process_is_dead_until_it_goes_on(own: Server) -> None:
    (backend,) = own.backends("worker")
    os.kill(backend, signal.SIGSTOP)
    words = f"backend process {backend} is stopped"
    wait_until(lambda: words in live(own).stderr, within=10, what="the probe fails")
    os.kill(backend, signal.SIGCONT)
    wait_until(lambda: live(own).returncode == 0, within=10, what="the probe succeeds")


def test_a_missing_backend_process_is_dead(own: Server) -> None:
    look = live(own, f"--pid={os.getpid()}")  # a process that has no backends
    assert (look.returncode, look.stderr) == (1, "live: 0 of 2 backend processes are there\n")


def test_a_server_that_has_ended_is_dead(own: Server) -> None:
    own.stop()
    look = live(own)
    assert look.returncode == 1
    assert "does not answer /v2/health/live" in look.stderr


STUCK = (100.0, 7.0, 3.0)  # at 100 s, 7 requests were finished and 3 s of CPU used


@pytest.mark.parametrize(
    ("waiting", "finished", "cpu_seconds", "verdict"),
    [
        pytest.param(2, 7, 3.01, "2 requests wait and no backend has done anything for 61 seconds", id="stuck"),
        pytest.param(0, 7, 3.01, "", id="nothing to do"),
        pytest.param(2, 8, 3.01, "", id="a request was finished"),
        pytest.param(2, 7, 4.0, "", id="it computes"),
        pytest.param(2, 7, 0.5, "", id="it was restarted"),
    ],
)
def test_a_backend_that_hangs_is_dead_and_one_that_works_is_not(  # noqa: PLR0917 - one row of the table each
    program: ModuleType, tmp_path: Path, waiting: int, finished: int, cpu_seconds: float, verdict: str
) -> None:
    state = tmp_path / "live"
    program.write_progress(str(state), program.Progress(*STUCK))
    metrics = "\n".join(
        (
            "# TYPE nv_inference_pending_request_count gauge",
            f'nv_inference_pending_request_count{{model="m",version="1"}} {waiting}',
            f'nv_inference_request_success{{model="m",version="1"}} {finished - 1}',
            'nv_inference_request_failure{model="m",reason="BACKEND",version="1"} 1',
        )
    )
    backend = program.Process(2, 1, "triton_python_b", "S", cpu_seconds)
    caught = pytest.raises(program.Dead, match=verdict) if verdict else nullcontext()
    with caught:
        program.check_progress(str(state), [backend], metrics, 161.0, 60.0)
    with caught:  # and says so again until it moves
        program.check_progress(str(state), [backend], metrics, 161.0, 60.0)


def test_requests_under_way_are_answered_before_the_server_ends(program: ModuleType, own: Server) -> None:
    idle = cpu_seconds(program, own)
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(work, own, ROUNDS) for _ in range(2)]
        wait_until(lambda: is_working(program, own, idle), within=30, what="one is computed and one waits")
        own.process.send_signal(signal.SIGTERM)
        results = [answer.result() for answer in answers]
    assert [result.status for result in results] == [200, 200]
    assert [json.loads(result.body)["outputs"][0]["data"] for result in results] == [[ROUNDS]] * 2
    assert own.wait_ended() == 0


def test_shared_memory_left_by_a_killed_server_is_freed_when_its_container_starts_again(server_root: Path) -> None:
    region = "/dev/shm/triton_onnxruntime_backend_shm_region_of-the-dead"
    script = f"""
        mount -t tmpfs tmpfs /dev/shm
        touch {region} /dev/shm/other
        {server_root}/bin/tritonserver --help >/dev/null 2>&1 || true
        test -e {region} || echo "removed though others may use it"
        unshare --pid --fork {server_root}/bin/tritonserver --help >/dev/null 2>&1 || true
        ls /dev/shm
    """
    as_root = [] if os.geteuid() == 0 else ["--map-root-user"]
    command = ["unshare", *as_root, "--mount", "sh", "-euc", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout.split(), done.stderr) == (["other"], "")
