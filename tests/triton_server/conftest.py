"""One installed server for the whole run, and one running server for the tests that do no harm to it."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from triton_server import graphs
from triton_server.serverprocess import IMAGE, Server, install_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from triton_server.writers import Published

# The modules of the backend are found by file name there, and here.
sys.path.append(str(IMAGE / "backends" / "onnxruntime"))

#: Long enough that requests sent together are in one batch.
PATIENT = "dynamic_batching { max_queue_delay_microseconds: 300000 }"


@pytest.fixture(scope="session")
def server_root() -> Iterator[Path]:
    # Not a folder of pytest: user 1000 could not enter it.
    folder = Path(tempfile.mkdtemp(prefix="onnx-operator-triton-"))
    folder.chmod(0o755)
    try:
        install_server(folder / "tritonserver")
        yield folder / "tritonserver"
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def folder(server_root: Path) -> Iterator[Path]:
    """A scratch folder that user 1000 may read."""
    with tempfile.TemporaryDirectory(dir=server_root.parent) as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="session")
def server(server_root: Path) -> Iterator[Server]:
    embedder = graphs.embedder()
    models = (
        graphs.Model("plain", embedder, graphs.embedder_config("dynamic_batching { }"), version=3),
        graphs.Model("lonely", embedder, graphs.embedder_config()),
        graphs.Model("patient", embedder, graphs.embedder_config(PATIENT)),
        graphs.Model("warm", embedder, graphs.embedder_config(graphs.warm_up(8))),
        graphs.Model("turns", embedder, graphs.embedder_config(graphs.parameter("max_positions_per_run", "10"))),
        graphs.Model("twins", embedder, graphs.embedder_config().replace("count: 1", "count: 2")),
        graphs.Model(
            "threads",
            embedder,
            graphs.embedder_config().replace('string_value: "1"', 'string_value: "4"', 1),
        ),
        graphs.Model("summer", graphs.summer(), graphs.SUMMER_CONFIG),
    )
    with (
        tempfile.TemporaryDirectory(dir=server_root.parent) as name,
        Server(server_root, Path(name), models) as running,
    ):
        yield running.wait_ready()
        # Whatever was asked of it, good or bad, no request is left behind: it would keep the server from ending.
        running.stop()
        assert running.process.returncode == 0, running.log[-2000:]


@pytest.fixture(scope="module")
def writer(server_root: Path, published: Published) -> Iterator[Server]:
    """A server of the model that the module publishes."""
    with Server(server_root, published.line.root, [published]) as running:
        yield running.wait_ready()
