"""Fetching from a claim: what arrives, what stays behind, and what a second run does."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import pytest

from checkpoints import change_json, tiny

if TYPE_CHECKING:
    from pathlib import Path

    from unit.converter.steps import Line


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny(tmp_path / "claim" / "model")


def test_the_digest_is_that_of_the_sorted_lines_of_all_files(model: Path, line: Line) -> None:
    details = line.fetch(model).details
    folder = line.checkpoint(details["digest"])
    found = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}
    lines = sorted(f"{sha256}  {path.relative_to(folder).as_posix()}\n" for path, sha256 in found.items())
    assert details["digest"] == "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()
    assert details["files"] == len(found)
    assert details["bytes"] == sum(path.stat().st_size for path in found)


def test_what_is_never_read_stays_behind_and_is_named(model: Path, line: Line) -> None:
    plain = line.fetch(model).details["digest"]
    (model / "README.md").write_text("words")
    (model / "pytorch_model.bin").write_bytes(b"\x80\x02never read")
    (model / "onnx").mkdir()
    (model / "onnx" / "model.onnx").write_bytes(b"never read")
    (model / ".git").mkdir()
    (model / ".git" / "config.json").write_text("never read")
    ended = line.fetch(model)
    assert ended.details["digest"] == plain
    left = {found["file"] for found in ended.lines if found["event"] == "FileLeftBehind"}
    assert left == {"README.md", "pytorch_model.bin", "onnx/model.onnx"}


def test_the_same_bytes_in_another_folder_with_other_times_are_the_same_checkpoint(
    model: Path, tmp_path: Path, line: Line
) -> None:
    other = tiny(tmp_path / "elsewhere" / "copy")
    os.utime(other / "config.json", (0, 0))
    assert line.fetch(model).details == line.fetch(other).details


def test_a_checkpoint_that_is_there_already_is_kept_as_it_is(model: Path, line: Line) -> None:
    folder = line.checkpoint(line.fetch(model).details["digest"])
    before = {path: path.stat().st_ino for path in folder.rglob("*")}
    line.fetch(model)
    assert {path: path.stat().st_ino for path in folder.rglob("*")} == before


@pytest.mark.parametrize("damage", ["changed", "missing", "added"])
def test_a_checkpoint_that_was_damaged_on_the_volume_is_brought_anew(model: Path, line: Line, damage: str) -> None:
    digest = line.fetch(model).details["digest"]
    folder = line.checkpoint(digest)
    match damage:
        case "changed":
            (folder / "config.json").write_text("{}")
        case "missing":
            (folder / "config.json").unlink()
        case _:
            (folder / "extra.json").write_text("{}")
    assert line.fetch(model).details["digest"] == digest
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in model.iterdir())
    assert (folder / "config.json").read_bytes() == (model / "config.json").read_bytes()


def test_only_the_newest_checkpoints_are_kept(model: Path, line: Line) -> None:
    digests = []
    for number in range(4):
        change_json(model / "config.json", initializer_range=0.01 + number)
        digests.append(line.fetch(model, "--keep", "2").details["digest"])
        os.utime(line.checkpoint(digests[-1]), (number, number))
    kept = {path.name for path in (line.root / "checkpoints").iterdir()}
    assert kept == {digest.removeprefix("sha256:") for digest in digests[2:]}


def test_what_a_killed_run_left_is_cleaned_away(model: Path, line: Line) -> None:
    left = line.root / "checkpoints" / ".incoming-killed"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    line.fetch(model)
    assert not left.exists()


def test_bytes_that_changed_at_the_source_are_refused_when_a_digest_is_expected(model: Path, line: Line) -> None:
    digest = line.fetch(model).details["digest"]
    assert line.fetch(model, "--expect-digest", digest).summary.reason == "Fetched"
    change_json(model / "config.json", initializer_range=0.5)
    ended = line.fetch(model, "--expect-digest", digest)
    assert (ended.summary.reason, ended.code) == ("DigestMismatch", 16)


def test_a_path_that_does_not_exist_is_named(model: Path, line: Line) -> None:
    ended = line.fetch(model.parent / "absent")
    assert ended.summary.reason == "SourceNotFound"
    assert "absent" in ended.summary.message


def test_a_folder_without_a_checkpoint_is_not_found(tmp_path: Path, line: Line) -> None:
    (tmp_path / "claim" / "empty").mkdir(parents=True)
    assert line.fetch(tmp_path / "claim" / "empty").summary.reason == "SourceNotFound"


def test_a_path_may_not_lead_through_a_link(model: Path, line: Line) -> None:
    (model.parent / "latest").symlink_to(model)
    ended = line.fetch(model.parent / "latest")
    assert (ended.summary.reason, ended.code) == ("LinkRefused", 12)


@pytest.mark.parametrize("name", ["..", "/etc"])
def test_a_path_may_not_lead_out_of_the_claim(model: Path, line: Line, name: str) -> None:
    from unit.converter.steps import run  # noqa: PLC0415

    source = f'{{"persistentVolumeClaim":{{"claimName":"c","path":"{name}"}}}}'
    ended = run("fetch", ("--source", source, "--source-root", model, "--output", line.root / "checkpoints"))
    assert (ended.summary.reason, ended.code) == ("SourceEscapes", 13)


def test_a_name_that_is_swapped_for_a_link_after_it_was_listed_is_still_refused(
    model: Path, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnx_converter import policy  # noqa: PLC0415

    select = policy.select

    def swap(paths: object) -> policy.Selection:
        selected = select(paths)  # type: ignore[arg-type]
        (model / "config.json").unlink(missing_ok=True)
        if not (model / "config.json").is_symlink():
            (model / "config.json").symlink_to("/etc/hostname")
        return selected

    monkeypatch.setattr(policy, "select", swap)
    assert line.fetch(model).summary.reason == "LinkRefused"
