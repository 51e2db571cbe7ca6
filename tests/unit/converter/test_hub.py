"""Fetching from a hub, over HTTP, against a server with the hub's own protocol."""

from __future__ import annotations

import ipaddress
import json
import socket
from typing import TYPE_CHECKING, Any

import pytest

from checkpoints import change_json, tiny_sentence
from onnx_converter import held
from onnx_converter.digest import digest_of_bytes
from onnx_converter.hub import Guard
from onnx_converter.reasons import StepFailedError
from onnx_converter.spec import Dataset
from unit.converter.hubserver import COMMIT, HubServer, files_of, serving
from unit.converter.steps import Ended, Line, run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REPOSITORY = "someone/small-model"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_sentence(tmp_path / "model")


@pytest.fixture
def hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    extra = {"README.md": b"# words", "pytorch_model.bin": b"\x80\x02never fetched", "train_script.py": b"import os"}
    with serving(HubServer(REPOSITORY, files_of(folder) | extra)) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        # The library waits a second before each new attempt; the attempts are what matters here.
        monkeypatch.setattr("time.sleep", lambda _seconds: None)
        yield server


def fetch(line: Line, revision: str = COMMIT, repository: str = REPOSITORY, **more: Any) -> Ended:
    source = {"huggingFace": {"repository": repository, "revision": revision, **more}}
    return run("fetch", ("--source", json.dumps(source), "--output", line.root / "checkpoints"))


def test_a_repository_is_the_same_checkpoint_as_its_files_on_a_claim(hub: HubServer, folder: Path, line: Line) -> None:
    fetched, copied = fetch(line), line.fetch(folder)
    assert fetched.details["digest"] == copied.details["digest"]
    assert fetched.details["commit"] == COMMIT
    assert not any(entry.is_dir() for entry in line.checkpoint(fetched.details["digest"]).glob(".*"))


def test_only_files_that_may_be_read_are_asked_for(hub: HubServer, line: Line) -> None:
    fetch(line)
    for name in ("README.md", "pytorch_model.bin", "train_script.py"):
        assert not [asked for asked in hub.asked if asked.endswith(name)]


def test_a_branch_is_resolved_once_and_its_commit_is_told(hub: HubServer, line: Line) -> None:
    assert fetch(line, revision="main").details["commit"] == COMMIT
    assert not [asked for asked in hub.asked if "/resolve/main/" in asked]


def test_the_token_goes_to_the_hub_and_never_to_its_content_network(
    hub: HubServer, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.faults.token = "hf_secret"  # noqa: S105  a made-up one
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    ended = fetch(line, tokenSecretRef={"name": "hub", "key": "token"})
    assert ended.details["commit"] == COMMIT
    assert "hub" in hub.authorized
    assert "content" not in hub.authorized
    assert "hf_secret" not in json.dumps(ended.lines)


def test_a_body_that_breaks_off_is_asked_for_again(hub: HubServer, line: Line) -> None:
    hub.faults.broken["model.safetensors"] = (2, 5000)
    assert fetch(line).summary.reason == "Fetched"


REFUSALS: dict[str, tuple[dict[str, Any], dict[str, str], str, str]] = {
    "the repository does not exist": ({}, {"repository": "someone/else"}, "SourceNotFound", "someone/else"),
    "the revision does not exist": ({}, {"revision": "nope"}, "SourceNotFound", "nope"),
    "the repository is private": ({"token": "hf_other"}, {}, "SourceUnauthorized", "without a token"),
    "the repository is gated": ({"gated": True}, {}, "SourceUnauthorized", "gated"),
    "the hub serves another commit": ({"commit": "f" * 40}, {}, "DigestMismatch", "f" * 40),
    "the hub answers 404 without its headers": ({"api_status": 404}, {}, "SourceNotFound", REPOSITORY),
    "the hub is out of order": ({"api_status": 503}, {}, "SourceUnreachable", "could not be read"),
    "the hub has had enough": ({"api_status": 429}, {}, "SourceUnreachable", "could not be read"),
    "the weights are not those announced": (
        {"announced": {"model.safetensors": "0" * 64}},
        {},
        "DigestMismatch",
        "model.safetensors",
    ),
    "a small file is not the one announced": (
        {"swapped": {"modules.json": b"[]" + b" " * 500}},
        {},
        "DigestMismatch",
        "modules.json",
    ),
    "the weights break off at once, always": (
        {"broken": {"model.safetensors": (1000, 0)}},
        {},
        "SourceUnreachable",
        "could not be read",
    ),
    "a file's name leads out": ({"listed": ("../../etc/passwd.json",)}, {}, "SourceEscapes", "passwd"),
    "code lies beside the weights": ({"listed": ("modeling_mine.py",)}, {}, "CodeBesideWeights", "modeling_mine.py"),
    "the weights are redirected to a machine's metadata": (
        {"redirect": "http://169.254.169.254/latest/meta-data/"},
        {},
        "SourceEscapes",
        "169.254.169.254",
    ),
    "the weights are redirected to an IPv6 link": (
        {"redirect": "http://[fe80::1]/x"},
        {},
        "SourceEscapes",
        "fe80::1",
    ),
}


@pytest.mark.parametrize("case", REFUSALS, ids=lambda case: case.replace(" ", "-"))
def test_a_hub_that_is_wrong_is_told_apart(case: str, hub: HubServer, line: Line) -> None:
    faults, asked, reason, names = REFUSALS[case]
    for name, value in faults.items():
        setattr(hub.faults, name, value)
    ended = fetch(line, **asked)
    assert ended.summary.reason == reason, ended.summary.message
    assert names in ended.summary.message
    assert list((line.root / "checkpoints").iterdir()) == []


def test_a_hub_that_is_not_there_is_worth_another_try(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
        ended = fetch(line)
    assert (ended.summary.reason, ended.code) == ("SourceUnreachable", 30)


def test_a_checkpoint_with_only_pickled_weights_is_refused_before_a_byte_is_fetched(hub: HubServer, line: Line) -> None:
    hub.files = {name: data for name, data in hub.files.items() if not name.endswith(".safetensors")}
    ended = fetch(line)
    assert ended.summary.reason == "PickleRefused"
    assert not [asked for asked in hub.asked if "/resolve/" in asked]


def test_what_a_repository_says_is_judged_like_a_claim(hub: HubServer, folder: Path, line: Line) -> None:
    change_json(folder / "config.json", auto_map={"AutoModel": "mine.Mine"})
    hub.files = files_of(folder)
    assert fetch(line).summary.reason == "RemoteCodeRefused"


PAIRS = b'{"sentence1": "a", "sentence2": "b", "score": 1}\n'
DATA = {
    "test.jsonl": PAIRS,
    "large/test.jsonl": PAIRS * 2,
    "test.csv": b"sentence1,sentence2,score\r\na,b,1\r\n",
    "torn.csv": b'sentence1,sentence2,score\r\n"a,b,1\r\n',
    "test.json": b"[" + PAIRS.strip() + b"]",
    "list.json": b"[",
    "huge.jsonl": b"x" * ((8 << 20) + 1),
    "texts.txt": b"a text\n",
    "test.parquet": b"PAR1\0\xff",
}


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with serving(HubServer("someone/pairs", DATA, kind="datasets")) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        monkeypatch.setattr("time.sleep", lambda _seconds: None)
        yield server


def on_hub(path: str, revision: str = COMMIT, digest: str | None = None, **more: Any) -> dict[str, Any]:
    file = {"repository": "someone/pairs", "revision": revision, "path": path, **more}
    return {"huggingFace": file, "digest": digest or digest_of_bytes(DATA.get(path, b""))}


def fetch_data(line: Line, folder: Path, dataset: dict[str, Any], *more: object) -> Ended:
    evaluation = {"name": "sts-own", "metric": "stsSpearman", "dataset": dataset, "maxLoss": "0.1"}
    flags = ("--evaluations", json.dumps([evaluation]), "--datasets", line.root / "datasets")
    return line.fetch(folder, *map(str, (*flags, *more)))


@pytest.mark.parametrize("path", ["test.jsonl", "large/test.jsonl", "test.csv", "test.json"])
def test_a_file_of_a_dataset_lies_under_its_digest_where_the_other_steps_read_it(
    path: str, data: HubServer, folder: Path, line: Line
) -> None:
    dataset = on_hub(path)
    fetch_data(line, folder, dataset, "--calibration", json.dumps(on_hub("texts.txt"))).details["digest"]
    digests = {digest_of_bytes(DATA[name]).removeprefix("sha256:") for name in (path, "texts.txt")}
    assert {one.name for one in (line.root / "datasets").iterdir()} == digests
    found = held.examples(Dataset.model_validate(dataset), line.root / "datasets", "own", 1 << 20)
    assert {text["score"] for _, one in found if (text := json.loads(one))} <= {1, "1"}
    assert [number for number, _ in found] == ([2] if path == "test.csv" else [1, 2][: len(found)])
    asked = len(data.asked)
    assert fetch_data(line, folder, dataset).summary.reason == "Fetched"
    assert len(data.asked) == asked, "it is there"


def test_the_token_of_a_dataset_is_its_own(
    data: HubServer, folder: Path, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    data.faults.token = "hf_secret"  # noqa: S105  a made-up one
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert fetch_data(line, folder, on_hub("test.jsonl")).summary.reason == "SourceUnauthorized", "that of the model"
    monkeypatch.setenv("HF_TOKEN_EVALUATION_STS_OWN", "hf_secret")
    assert fetch_data(line, folder, on_hub("large/test.jsonl", tokenSecretRef={"name": "hub"})).details["digest"]
    assert set(data.authorized) == {"hub"}


REFUSED_DATA: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    "no such file": ({}, on_hub("dev.jsonl"), "SourceNotFound", "has no 'dev.jsonl'; of what can be read it has huge"),
    "no such revision": ({}, on_hub("test.jsonl", "nope"), "SourceNotFound", "dataset.huggingFace.repository and"),
    "gated": ({"gated": True}, on_hub("test.jsonl"), "SourceUnauthorized", "is gated or disabled without a token"),
    "private": ({"token": "hf"}, on_hub("test.jsonl"), "SourceUnauthorized", "check repository and tokenSecretRef"),
    "a hub out of order": ({"api_status": 503}, on_hub("test.jsonl"), "SourceUnreachable", "could not be read"),
    "another file": ({}, on_hub("test.jsonl", digest=f"sha256:{'0' * 64}"), "DigestMismatch", "set digest to its"),
    "another commit": ({"commit": "f" * 40}, on_hub("test.jsonl"), "DigestMismatch", "f" * 40),
    "too large": ({}, on_hub("huge.jsonl"), "DatasetInvalid", "is larger than 8388608 bytes: take fewer lines"),
    "binary": ({}, on_hub("test.parquet"), "DatasetInvalid", "is not UTF-8"),
    "a torn list": ({}, on_hub("list.json"), "DatasetInvalid", "is not what its name says"),
    "a torn table": ({}, on_hub("torn.csv"), "DatasetInvalid", "is not what its name says"),
    "a path that leads out": ({}, on_hub("../test.jsonl"), "SourceEscapes", "'../test.jsonl' leads out"),
}


@pytest.mark.parametrize("case", REFUSED_DATA, ids=lambda case: case.replace(" ", "-"))
def test_data_that_cannot_be_had_is_refused_by_its_field_before_the_checkpoint_is_fetched(
    case: str, data: HubServer, folder: Path, line: Line
) -> None:
    faults, dataset, reason, words = REFUSED_DATA[case]
    for name, value in faults.items():
        setattr(data.faults, name, value)
    ended = fetch_data(line, folder, dataset)
    assert ended.summary.reason == reason, ended.summary.message
    assert words in ended.summary.message
    if reason not in ("SourceEscapes", "DigestMismatch"):
        assert "validation.evaluations[sts-own].dataset" in ended.summary.message
    assert not (line.root / "checkpoints").exists()
    assert not list((line.root / "datasets").glob("*"))


def guard(*, host: str = "hub.example", private: bool = False, loopback: bool = False) -> Guard:
    return Guard(host, is_encrypted=False, allows_private=private, allows_loopback=loopback, has_proxy=False)


ADDRESSES = {
    "93.184.216.34": (True, True),
    "10.0.0.1": (False, True),
    "192.168.1.1": (False, True),
    "fd00::1": (False, True),
    "127.0.0.1": (False, False),
    "::ffff:127.0.0.1": (False, False),
    "169.254.169.254": (False, False),
    "::ffff:169.254.169.254": (False, False),
    "fd00:ec2::254": (False, False),
    "0.0.0.0": (False, False),
    "224.0.0.1": (False, False),
}


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_redirect_leads_to_public_addresses_and_to_private_ones_only_from_a_private_hub(address: str) -> None:
    from_public, from_private = ADDRESSES[address]
    assert is_allowed(guard(), address) is from_public
    assert is_allowed(guard(private=True), address) is from_private


def is_allowed(judge: Guard, address: str) -> bool:
    try:
        judge._refuse(ipaddress.ip_address(address), "elsewhere.example")
    except StepFailedError:
        return False
    return True


def test_a_name_that_resolves_inwards_only_when_it_is_used_is_refused_by_its_peer(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = int(hub.content.rpartition(":")[2])
    resolve, asked = socket.getaddrinfo, []

    def rebinding(host: Any, *arguments: Any, **options: Any) -> Any:
        if host != "rebind.example":
            return resolve(host, *arguments, **options)
        asked.append(host)
        address = "93.184.216.34" if len(asked) == 1 else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    with guard().client() as client, pytest.raises(StepFailedError, match=r"rebind\.example \(127\.0\.0\.1\)"):
        client.get(f"http://rebind.example:{port}/modules.json")
    assert len(asked) == 2


def test_a_redirect_from_an_encrypted_hub_stays_encrypted() -> None:
    judge = Guard("hub.example", is_encrypted=True, allows_private=False, allows_loopback=False, has_proxy=False)
    with judge.client() as client, pytest.raises(StepFailedError, match="without encryption"):
        client.get("http://93.184.216.34/x")
