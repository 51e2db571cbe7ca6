"""What a client is told when its request cannot be answered, and that nobody else notices."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from triton_server import graphs
from triton_server.serverprocess import wait_until

if TYPE_CHECKING:
    from triton_server.serverprocess import Answer, Server

TOO_LONG = graphs.POSITIONS + 1


def tensor(name: str, *shape: int, datatype: str = "INT64", value: int = 1) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": [value] * int(np.prod(shape))}


def text(length: int, *, value: int = 1) -> list[dict[str, Any]]:
    return [tensor("input_ids", 1, length, value=value), tensor("attention_mask", 1, length)]


def ask(server: Server, inputs: list[dict[str, Any]], model: str = "plain") -> Answer:
    return server.ask(f"/v2/models/{model}/infer", {"inputs": inputs})


def is_right(answer: Answer, length: int) -> bool:
    (output,) = json.loads(answer.body)["outputs"]
    expected = graphs.embed(np.ones((1, length), np.int64), np.ones((1, length), np.int64))
    return bool(np.allclose(output["data"], expected[0], atol=1e-5))


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        pytest.param([tensor("input_ids", 1, 4)], "attention_mask", id="an input is missing"),
        pytest.param([*text(4), tensor("more", 1, 4)], "more", id="an input is unknown"),
        pytest.param(
            [tensor("input_ids", 1, 4, datatype="INT32"), tensor("attention_mask", 1, 4)],
            "data-type is 'INT32', but model 'plain' expects 'INT64'",
            id="a datatype is wrong",
        ),
        pytest.param([tensor("input_ids", 4), tensor("attention_mask", 4)], "shape", id="a rank is wrong"),
        pytest.param([tensor("input_ids", 9, 2), tensor("attention_mask", 9, 2)], "<= 8", id="a batch is too large"),
        pytest.param(
            [tensor("input_ids", 0, 2), tensor("attention_mask", 0, 2)], "Expected 16, got 0", id="a batch is empty"
        ),
        pytest.param(
            [tensor("input_ids", 1, 4), tensor("attention_mask", 1, 3)],
            "input 'attention_mask' has 3 in dimension 1, but input 'input_ids' has 4 in dimension 1",
            id="lengths differ",
        ),
    ],
)
def test_what_the_client_can_mend_is_its_error(server: Server, inputs: list[dict[str, Any]], words: str) -> None:
    answer = ask(server, inputs)
    assert (answer.status, words in answer.error) == (400, True), answer.error


def test_an_unknown_model_is_not_found(server: Server) -> None:
    assert ask(server, text(4), "nobody").status == 404


@pytest.mark.parametrize(
    "inputs", [pytest.param(text(TOO_LONG), id="too long"), pytest.param(text(4, value=999), id="outside vocabulary")]
)
def test_what_the_graph_cannot_compute_is_an_error_of_the_server(server: Server, inputs: list[dict[str, Any]]) -> None:
    answer = ask(server, inputs)
    assert (answer.status, answer.error.startswith("the graph failed on input_ids [1, ")) == (500, True), answer.error


def test_errors_that_triton_counts_as_successes_have_a_counter_of_their_own(server: Server) -> None:
    def counted(outcome: str, **labels: str) -> float:
        return server.metric(f"nv_inference_request_{outcome}", "lonely", **labels)

    def erred(reason: str) -> float:
        return server.metric("onnxruntime_request_failure", "lonely", reason=reason)

    assert ask(server, text(TOO_LONG), "lonely").status == 500
    assert ask(server, [tensor("input_ids", 1, 4), tensor("attention_mask", 1, 3)], "lonely").status == 400
    # It answers first and counts then.
    wait_until(lambda: counted("success") == 2, within=10, what="the errors are counted as successes")
    assert counted("failure", reason="BACKEND") == 0
    assert (erred("GRAPH"), erred("REQUEST")) == (1, 1)


def test_the_instances_of_a_model_count_in_one_series(server: Server) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: ask(server, text(TOO_LONG), "twins"), range(24)))
    assert {answer.status for answer in answers} == {500}
    assert server.metric("onnxruntime_request_failure", "twins", reason="GRAPH") == len(answers)


def test_by_grpc_the_errors_have_the_codes_that_the_readme_says(server: Server) -> None:
    client = server.grpc()

    def code(ids: int, mask: int, model: str = "plain") -> str:
        inputs = []
        for name, length in (("input_ids", ids), ("attention_mask", mask)):
            inputs.append(tritonclient.grpc.InferInput(name, [1, length], "INT64"))
            inputs[-1].set_data_from_numpy(np.ones((1, length), np.int64))
        with pytest.raises(InferenceServerException) as caught:
            client.infer(model, inputs)
        return str(caught.value.status())

    assert code(TOO_LONG, TOO_LONG) == "StatusCode.INTERNAL"
    assert code(4, 3) == "StatusCode.INVALID_ARGUMENT"
    assert code(4, 4, "nobody") == "StatusCode.NOT_FOUND"
    client.close()


def test_a_bad_request_does_not_fail_those_it_was_batched_with(server: Server) -> None:
    def counted(what: str) -> float:
        return server.metric(f"nv_inference_{what}", "patient")

    before, answered = counted("exec_count"), counted("request_success")
    values = [1, 1, 999, 1, 1]
    with ThreadPoolExecutor(len(values)) as pool:
        answers = list(pool.map(lambda value: ask(server, text(6, value=value), "patient"), values))
    assert [answer.status for answer in answers] == [200, 200, 500, 200, 200]
    assert all(is_right(answer, 6) for answer in answers if answer.status == 200)
    wait_until(lambda: counted("request_success") >= answered + len(values), within=10, what="they are counted")
    assert counted("exec_count") - before < len(values), "they were not batched"


def test_texts_too_long_do_not_disturb_the_others(server: Server) -> None:
    lengths = [4, TOO_LONG, 7, TOO_LONG + 3] * 8
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda length: ask(server, text(length), "plain"), lengths))
    assert [answer.status for answer in answers] == [200, 500, 200, 500] * 8
    assert all(is_right(answer, length) for answer, length in zip(answers, lengths, strict=True) if length < TOO_LONG)
