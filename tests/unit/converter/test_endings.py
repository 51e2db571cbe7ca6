"""How steps end: reasons, exit codes, the termination message, and what a container does when it is hurt."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import onnx_converter
from checkpoints import tiny
from onnx_converter import fetch, reasons, summary
from onnx_converter.limits import quota_of
from unit.converter.steps import Line, run

if TYPE_CHECKING:
    from collections.abc import Callable

CODE = Path(onnx_converter.__file__).parent.parent


def test_every_reason_that_is_no_success_has_an_exit_code_of_its_own() -> None:
    codes = [reason.exit_code for reason in reasons.ALL if reason.exit_code]
    assert len(set(codes)) == len(codes)
    assert len(reasons.BY_NAME) == len(reasons.ALL)


def test_a_reason_says_when_it_surfaces_and_its_code_whether_to_try_again() -> None:
    for reason in reasons.ALL:
        assert reason.surfaces.startswith("surfaces when ")
        assert reason.exit_code in {0, 1, 2} or reason.exit_code in reasons.PERMANENT_CODES or reason.is_transient


@given(
    message=st.text(max_size=6000),
    details=st.dictionaries(st.text(max_size=8), st.text(max_size=40), max_size=5),
)
def test_a_summary_survives_its_own_writing_and_never_exceeds_the_kubelets_limit(
    message: str, details: dict[str, str]
) -> None:
    text = summary.dump(summary.Summary("fetch", "Failed", "SourceNotFound", message, 10, details))
    assert len(text.encode()) <= 4096
    read = summary.parse(text)
    assert dict(read.details) == details
    assert read.message == message or (read.message.endswith("…") and message.startswith(read.message[:-1]))


def test_details_that_do_not_fit_are_a_bug_and_not_cut() -> None:
    with pytest.raises(summary.SummaryError, match="details of step fetch"):
        summary.dump(summary.Summary("fetch", "Succeeded", "Fetched", "fine", 0, {"long": "x" * 5000}))


GARBLED = {
    "nothing": "",
    "no JSON": "Killed",
    "cut off": '{"step":"fetch","outcome":"Succ',
    "a list": "[]",
    "nested without end": "[" * 100_000,
    "a word as exit code": '{"step":"a","outcome":"Failed","reason":"b","message":"c","exitCode":"1","details":{}}',
    "true as exit code": '{"step":"a","outcome":"Failed","reason":"b","message":"c","exitCode":true,"details":{}}',
    "an unknown outcome": '{"step":"a","outcome":"Maybe","reason":"b","message":"c","exitCode":1,"details":{}}',
    "success with a code": '{"step":"","outcome":"Succeeded","reason":"","message":"","exitCode":9,"details":{}}',
    "failure with a good code": '{"step":"a","outcome":"Failed","reason":"b","message":"c","exitCode":0,"details":{}}',
    "no details": '{"step":"a","outcome":"Failed","reason":"b","message":"c","exitCode":1}',
}


@pytest.mark.parametrize("text", GARBLED.values(), ids=GARBLED)
def test_a_garbled_termination_message_is_never_taken_for_an_answer(text: str) -> None:
    with pytest.raises(summary.SummaryError):
        summary.parse(text)


USAGE: dict[str, tuple[list[str], str]] = {
    "no step": ([], "STEP"),
    "an unknown step": (["bake"], "bake"),
    "a missing flag": (["convert", "--spec", "{}"], "--source-digest"),
    "no JSON": (["fetch", "--source", "{"], "--source"),
    "no source": (["fetch", "--source", "{}"], "exactly one"),
    "two sources": (
        [
            "fetch",
            "--source",
            '{"persistentVolumeClaim":{"claimName":"a"},"huggingFace":{"repository":"a/b","revision":"c"}}',
        ],
        "exactly one",
    ),
    "an unknown field": (["convert", "--source-digest", "x", "--spec", '{"opsett":18}'], "opsett"),
    "an opset out of bounds": (["convert", "--source-digest", "x", "--spec", '{"opset":99}'], "opset"),
    "blocks of a scheme without any": (
        ["convert", "--source-digest", "x", "--spec", '{"scheme":"int8-dynamic","blockSize":32}'],
        "blockSize has no meaning",
    ),
    "layers excluded from a scheme that takes all": (
        ["convert", "--source-digest", "x", "--spec", '{"scheme":"int8-weight-only","exclude":["pooler"]}'],
        "exclude has no meaning",
    ),
    "a bound on what is measured on texts with a scheme that reads none": (
        ["convert", "--source-digest", "x", "--spec", '{"scheme":"int8-dynamic","maxLayerError":"0.04"}'],
        "maxLayerError has no meaning",
    ),
    "blocks of a size that no kernel has": (
        ["convert", "--source-digest", "x", "--spec", '{"scheme":"int4-weight-only","blockSize":48}'],
        "blockSize",
    ),
    "an unknown scheme": (["convert", "--source-digest", "x", "--spec", '{"scheme":"int3"}'], "scheme"),
    "a provider twice": (
        ["convert", "--source-digest", "x", "--spec", '{"providers":["CPUExecutionProvider","CPUExecutionProvider"]}'],
        "providers",
    ),
    "an unknown provider": (["validate", "--provider", "TPU", "--spec", "{}"], "--provider 'TPU'"),
    "a tolerance that is no number": (
        ["validate", "--provider", "CPUExecutionProvider", "--spec", "{}", "--parity", '{"minCosine":"much"}'],
        "--parity: minCosine",
    ),
    "a tolerance that is NaN": (
        ["validate", "--provider", "CPUExecutionProvider", "--spec", "{}", "--parity", '{"maxAbsolute":"nan"}'],
        "--parity: maxAbsolute",
    ),
    "a model name that is a path": (
        ["assemble", "--digest", "x", "--provider", "x", "--model-name", "../m", "--version", "1"],
        "--model-name",
    ),
}


@pytest.mark.parametrize("case", USAGE, ids=lambda case: case.replace(" ", "-"))
def test_a_flag_that_does_not_fit_ends_with_code_2_and_names_the_field(case: str) -> None:
    flags, names = USAGE[case]
    ended = run(flags[0] if flags else "--", tuple(flags[1:]))
    assert (ended.summary.reason, ended.code) == ("UsageError", 2)
    assert names in ended.summary.message


def test_the_last_line_and_the_termination_log_are_the_same_summary(tmp_path: Path, line: Line) -> None:
    log = tmp_path / "termination-log"
    ended = line.fetch(tiny(tmp_path / "model"), "--termination-log", str(log))
    assert summary.parse(log.read_text()) == ended.summary


def test_progress_lines_carry_time_level_step_event_and_rising_percent(tmp_path: Path, line: Line) -> None:
    ended = line.fetch(tiny(tmp_path / "model"))
    assert all({"time", "level", "step", "event"} <= set(found) for found in ended.lines)
    percents = [found["percent"] for found in ended.lines if "percent" in found]
    assert percents == sorted(percents)
    assert percents[-1] == 100


HURTS: dict[str, tuple[Exception, str]] = {
    "a full disk": (OSError(errno.ENOSPC, "No space left on device", "/checkpoints/x"), "DiskFull"),
    "a used-up quota": (OSError(errno.EDQUOT, "Quota exceeded", "/checkpoints/x"), "DiskFull"),
    "a failing disk": (OSError(errno.EIO, "Input/output error", "/checkpoints/x"), "StorageFailed"),
    "a lost mount": (OSError(errno.ESTALE, "Stale file handle", "/checkpoints/x"), "StorageFailed"),
    "too little memory": (MemoryError(), "OutOfMemory"),
    "a bug": (KeyError("surprise"), "Crashed"),
}


@pytest.mark.parametrize("case", HURTS, ids=lambda case: case.replace(" ", "-"))
def test_what_the_world_does_to_a_step_has_a_reason_of_its_own(
    case: str, tmp_path: Path, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    error, reason = HURTS[case]

    def hurt(*_arguments: Any) -> None:
        raise error

    monkeypatch.setattr(fetch, "_settle", hurt)
    ended = line.fetch(tiny(tmp_path / "model"))
    assert ended.summary.reason == reason
    assert ended.code == reasons.BY_NAME[reason].exit_code
    assert list((line.root / "checkpoints").iterdir()) == []


def program(*flags: str, check: Callable[[subprocess.Popen[str]], None] | None = None) -> tuple[int, str, str]:
    """The converter as the container starts it."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(CODE)}
    with subprocess.Popen(
        [sys.executable, "-m", "onnx_converter", *flags],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        if check is not None:
            check(process)
        out, errors = process.communicate(timeout=120)
        return process.returncode, out, errors


def test_a_step_that_is_told_to_stop_leaves_nothing_half_made_and_says_so(tmp_path: Path) -> None:
    tiny(tmp_path / "claim")
    # The last file by name is large enough that the copy is under way when the signal comes.
    with (tmp_path / "claim" / "zzz.txt").open("wb") as stream:
        stream.truncate(1 << 30)

    def stop(process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for said in process.stdout:
            if json.loads(said)["event"] == "FileFetched":
                process.send_signal(signal.SIGTERM)
                return

    source = json.dumps({"persistentVolumeClaim": {"claimName": "c", "path": "claim"}})
    code, out, _ = program(
        "fetch", "--source", source, "--source-root", str(tmp_path), "--output", str(tmp_path / "out"), check=stop
    )
    ended = summary.parse(out.splitlines()[-1])
    assert (ended.reason, code) == ("Interrupted", 34)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_stop_in_the_middle_of_a_library_is_never_taken_for_its_failure(
    tmp_path: Path, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch  # noqa: PLC0415

    def stopped_while_exporting(*_arguments: Any, **_options: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    digest = line.fetch(tiny(tmp_path / "model")).details["digest"]
    monkeypatch.setattr(torch.onnx, "export", stopped_while_exporting)
    ended = line.convert(digest)
    assert (ended.summary.reason, ended.code) == ("Interrupted", 34)
    assert list((line.work / "graph").iterdir()) == []


def test_standard_output_holds_nothing_but_the_lines_of_the_step(tmp_path: Path) -> None:
    code, out, _ = program("fetch", "--source", "{}", "--output", str(tmp_path))
    assert code == 2
    assert [json.loads(found)["step"] for found in out.splitlines()] == ["fetch", "fetch"]


QUOTAS: dict[str, tuple[dict[str, str], float | None]] = {
    "v2 without a limit": ({"cpu.max": "max 100000"}, None),
    "v2 with one and a half cores": ({"cpu.max": "150000 100000"}, 1.5),
    "v1 without a limit": ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
    "v1 with half a core": ({"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 0.5),
    "no cgroup": ({}, None),
}


@pytest.mark.parametrize("case", QUOTAS, ids=lambda case: case.replace(" ", "-"))
def test_the_cpu_limit_is_read_from_either_version_of_cgroups(case: str, tmp_path: Path) -> None:
    files, quota = QUOTAS[case]
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text + "\n")
    assert quota_of(tmp_path / "cpu.max", tmp_path / "cpu") == quota
