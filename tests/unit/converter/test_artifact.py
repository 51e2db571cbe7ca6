"""An artifact is served only while every byte is what it was when it was published."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import onnx_converter
from onnx_converter import artifact
from onnx_converter.digest import digest_of_bytes
from onnx_converter.reasons import StepFailedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from unit.converter.steps import Line

PROVIDER = "CPUExecutionProvider"
CODE = Path(onnx_converter.__file__).parent.parent
FILES = {
    f"triton/{PROVIDER}/model/config.pbtxt": b'backend: "onnxruntime"\n',
    f"triton/{PROVIDER}/model/1/model.onnx": b"graph",
    "tokenizer/tokenizer.json": b"{}",
    # As older versions published it.
    "golden.json": b"[]",
}


def publish(line: Line) -> str:
    """An artifact as the publish step leaves one."""
    folder = line.root / "made"
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    data = artifact.dump(artifact.describe(folder, {"source": {"digest": "sha256:…"}}))
    (folder / artifact.MANIFEST).write_bytes(data)
    digest = digest_of_bytes(data)
    (line.root / "artifacts").mkdir()
    folder.rename(line.artifact(digest))
    return digest


def test_an_unchanged_artifact_is_laid_out_as_links_under_the_revisions_number(line: Line) -> None:
    digest = publish(line)
    assert line.assemble(digest).summary.reason == "Assembled"
    model = line.root / "models" / "minilm"
    assert sorted(path.relative_to(model).as_posix() for path in model.rglob("*")) == [
        "7",
        "7/model.onnx",
        "config.pbtxt",
    ]
    assert (model / "7" / "model.onnx").is_symlink()
    assert (model / "7" / "model.onnx").read_bytes() == b"graph"
    assert (model / "config.pbtxt").resolve().is_relative_to(line.artifact(digest).resolve())


def test_a_restarted_init_container_lays_the_same_out_again(line: Line) -> None:
    digest = publish(line)
    line.assemble(digest)
    (line.root / "models" / "minilm" / "3").mkdir()
    assert line.assemble(digest).summary.reason == "Assembled"
    assert sorted(path.name for path in (line.root / "models" / "minilm").iterdir()) == ["7", "config.pbtxt"]


def _change_graph(folder: Path) -> None:
    (folder / f"triton/{PROVIDER}/model/1/model.onnx").write_bytes(b"grapf")


def _grow_graph(folder: Path) -> None:
    (folder / f"triton/{PROVIDER}/model/1/model.onnx").write_bytes(b"graph and more")


def _replace_by_link(folder: Path) -> None:
    graph = folder / f"triton/{PROVIDER}/model/1/model.onnx"
    graph.rename(folder.parent / "same bytes")
    graph.symlink_to(folder.parent / "same bytes")


def _replace_folder_by_link(folder: Path) -> None:
    (folder / "tokenizer").rename(folder.parent / "same folder")
    (folder / "tokenizer").symlink_to(folder.parent / "same folder")


def _rewrite_manifest(folder: Path) -> None:
    """An attacker who can write keeps the manifest in step with the files, but cannot keep its digest."""
    _change_graph(folder)
    (folder / artifact.MANIFEST).write_bytes(artifact.dump(artifact.describe(folder, {})))


TAMPERINGS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a byte of the graph changed": (_change_graph, "model.onnx"),
    "the graph grew": (_grow_graph, "model.onnx"),
    "a file is missing": (lambda folder: (folder / "golden.json").unlink(), "golden.json"),
    "a file was added": (lambda folder: (folder / "triton" / "extra.py").write_text("import os"), "triton/extra.py"),
    "a file became a link to the same bytes": (_replace_by_link, "model.onnx"),
    "a folder became a link to the same files": (_replace_folder_by_link, "tokenizer"),
    "the manifest is missing": (lambda folder: (folder / artifact.MANIFEST).unlink(), artifact.MANIFEST),
    "the manifest fits the changed files": (_rewrite_manifest, artifact.MANIFEST),
    "the manifest is no JSON": (lambda folder: (folder / artifact.MANIFEST).write_text("{"), artifact.MANIFEST),
}


@pytest.mark.parametrize("case", TAMPERINGS, ids=lambda case: case.replace(" ", "-"))
def test_an_artifact_that_was_touched_is_never_laid_out(case: str, line: Line) -> None:
    digest = publish(line)
    tamper, names = TAMPERINGS[case]
    tamper(line.artifact(digest))
    ended = line.assemble(digest)
    assert (ended.summary.reason, ended.code) == ("ArtifactCorrupt", 29)
    assert names in ended.summary.message
    assert not (line.root / "models").exists()


def test_an_artifact_without_a_graph_for_the_provider_says_which_it_has(line: Line) -> None:
    ended = line.assemble(publish(line), "CUDAExecutionProvider")
    assert ended.summary.reason == "SpecImpossible"
    assert "only for CPUExecutionProvider" in ended.summary.message


def test_a_folder_that_is_no_artifact_is_refused(line: Line) -> None:
    assert line.assemble("sha256:" + "0" * 64).summary.reason == "ArtifactCorrupt"
    assert line.assemble("latest").summary.reason == "ArtifactCorrupt"


ESCAPES = ["../outside", "/etc/passwd", "a/../../b", "", ".", "a//b"]


@pytest.mark.parametrize("path", ESCAPES)
def test_a_manifest_cannot_name_a_file_outside(path: str) -> None:
    manifest = artifact.Manifest({}, (artifact.Entry(path, "0" * 64, 1),))
    with pytest.raises(StepFailedError, match="leads out"):
        artifact.parse(artifact.dump(manifest))


ALONE = """
import sys
import onnx_converter.assemble, onnx_converter.artifact, onnx_converter.cli
import onnx_converter.reasons, onnx_converter.report, onnx_converter.report_html, onnx_converter.summary
foreign = {name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names) - {"onnx_converter"}
print(sorted(name for name in foreign if not name.startswith("_")))
code = onnx_converter.cli.main(sys.argv[1:])
sys.exit(code)
"""


def test_assembling_needs_nothing_but_the_standard_library(line: Line) -> None:
    digest = publish(line)
    flags = ["assemble", "--artifact", str(line.artifact(digest)), "--digest", digest, "--provider", PROVIDER]
    flags += ["--model-name", "m", "--version", "1", "--repository", str(line.root / "models")]
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(CODE)!r})\n{ALONE}", *flags],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "[]"
