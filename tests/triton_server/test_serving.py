"""What a client gets: the right numbers by both protocols, in batches, from as many instances as config.pbtxt says."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http

from triton_server import graphs
from triton_server.serverprocess import wait_until

if TYPE_CHECKING:
    from types import ModuleType

    from triton_server.graphs import Ids, Vectors
    from triton_server.serverprocess import Server

RANDOM = np.random.default_rng(7)
PROTOCOLS = pytest.mark.parametrize("protocol", ["http", "grpc"])


def some_ids(rows: int, length: int) -> tuple[Ids, Ids]:
    ids = RANDOM.integers(0, graphs.VOCABULARY, (rows, length))
    mask = np.arange(length) < RANDOM.integers(1, length + 1, (rows, 1))
    return ids, mask.astype(np.int64)


def ask(server: Server, protocol: str, model: str, **arrays: Ids) -> Vectors:
    client = getattr(server, protocol)()
    library: ModuleType = {"http": tritonclient.http, "grpc": tritonclient.grpc}[protocol]
    inputs = []
    for name, array in arrays.items():
        tensor = library.InferInput(name, list(array.shape), "INT64")
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    try:
        vectors: Vectors = client.infer(model, inputs).as_numpy("sentence_embedding")
        return vectors
    finally:
        client.close()


@PROTOCOLS
@pytest.mark.parametrize(("rows", "length"), [(1, 1), (1, graphs.POSITIONS), (3, 5), (8, 9)])
def test_answers_are_what_the_graph_computes(server: Server, protocol: str, rows: int, length: int) -> None:
    ids, mask = some_ids(rows, length)
    answer = ask(server, protocol, "plain", input_ids=ids, attention_mask=mask)
    np.testing.assert_allclose(answer, graphs.embed(ids, mask), atol=1e-5)


def test_json_in_and_out_works_as_well_as_binary(server: Server) -> None:
    ids, mask = some_ids(2, 4)
    answer = server.ask(
        "/v2/models/plain/infer",
        {
            "inputs": [
                {"name": name, "datatype": "INT64", "shape": [2, 4], "data": array.tolist()}
                for name, array in (("input_ids", ids), ("attention_mask", mask))
            ]
        },
    )
    assert answer.status == 200, answer.body
    (output,) = json.loads(answer.body)["outputs"]
    assert output["shape"] == [2, graphs.WIDTH]
    np.testing.assert_allclose(np.reshape(output["data"], (2, -1)), graphs.embed(ids, mask), atol=1e-5)


def test_a_model_without_batch_dimension_is_served_and_sends_only_the_outputs_asked_for(server: Server) -> None:
    client = server.http()
    inputs = []
    for name, values in (("left", [3, 2, 1]), ("right", [1, 1, 1])):
        tensor = tritonclient.http.InferInput(name, [3], "FP32")
        tensor.set_data_from_numpy(np.array(values, dtype=np.float32))
        inputs.append(tensor)
    answer = client.infer("summer", inputs, outputs=[tritonclient.http.InferRequestedOutput("less")])
    client.close()
    assert [output["name"] for output in answer.get_response()["outputs"]] == ["less"]
    assert answer.as_numpy("less").tolist() == [2, 1, 0]


def test_the_version_is_the_name_of_the_folder_and_links_are_followed(server: Server) -> None:
    assert (server.repository / "plain" / "3").is_symlink()
    client = server.http()
    assert client.get_model_metadata("plain")["versions"] == ["3"]
    assert client.is_model_ready("plain", "3")
    assert not client.is_model_ready("plain", "1")
    client.close()


def test_requests_that_arrive_together_are_computed_together(server: Server) -> None:
    def counted(what: str) -> float:
        return server.metric(f"nv_inference_{what}", "patient")

    before, answered = counted("exec_count"), counted("request_success")
    questions = [some_ids(1, 6) for _ in range(16)]
    with ThreadPoolExecutor(16) as pool:
        answers = pool.map(lambda q: ask(server, "grpc", "patient", input_ids=q[0], attention_mask=q[1]), questions)
    for (ids, mask), answer in zip(questions, answers, strict=True):
        np.testing.assert_allclose(answer, graphs.embed(ids, mask), atol=1e-5)
    wait_until(lambda: counted("request_success") >= answered + 16, within=10, what="16 requests are counted")
    executions = counted("exec_count") - before
    assert executions <= 8, f"16 requests in {executions:.0f} executions"


def test_requests_of_different_lengths_and_sizes_each_get_their_own_rows(server: Server) -> None:
    questions = [some_ids(rows, length) for rows in (1, 2, 3) for length in (2, 5, 11)] * 3
    with ThreadPoolExecutor(len(questions)) as pool:
        answers = pool.map(lambda q: ask(server, "http", "patient", input_ids=q[0], attention_mask=q[1]), questions)
    for (ids, mask), answer in zip(questions, answers, strict=True):
        np.testing.assert_allclose(answer, graphs.embed(ids, mask), atol=1e-5)


def test_a_batch_that_is_run_in_turns_is_answered_as_a_whole(server: Server) -> None:
    ids, mask = some_ids(7, 4)  # at most 10 positions at once: two rows, four times
    answer = ask(server, "grpc", "turns", input_ids=ids, attention_mask=mask)
    np.testing.assert_allclose(answer, graphs.embed(ids, mask), atol=1e-5)
    # It answers first and counts then.
    wait_until(
        lambda: server.metric("nv_inference_exec_count", "turns") == 1, within=10, what="one execution is counted"
    )


def test_warm_up_has_run_before_the_server_is_ready(server: Server) -> None:
    # Three times two rows, each a request; they count as if a client had sent them.
    assert server.metric("nv_inference_request_success", "warm") == 6
    assert server.metric("nv_inference_count", "warm") == 6
    assert server.metric("nv_inference_request_failure", "warm", reason="BACKEND") == 0


def test_there_is_one_process_for_each_instance(server: Server) -> None:
    assert len(server.backends("plain")) == 1
    assert len(server.backends("twins")) == 2


def test_the_threads_are_those_that_were_asked_for(server: Server) -> None:
    (one,), (four,) = server.backends("plain"), server.backends("threads")
    assert threads(four) == threads(one) + 3


def threads(process: int) -> int:
    return sum(1 for _ in Path(f"/proc/{process}/task").iterdir())


def test_onnxruntime_sends_no_telemetry(server: Server) -> None:
    (backend,) = server.backends("plain")
    assert b"ORT_DISABLE_TELEMETRY=1" in Path(f"/proc/{backend}/environ").read_bytes().split(b"\0")
    assert "telemetry" not in server.log.lower()


def test_latency_is_summarised_by_quantiles_for_each_model_and_version(server: Server) -> None:
    ids, mask = some_ids(1, 3)
    ask(server, "http", "plain", input_ids=ids, attention_mask=mask)
    wait_until(
        lambda: server.metric("nv_inference_request_summary_us", "plain", version="3", quantile="0.99") > 0,
        within=10,
        what="its latency is counted",
    )
