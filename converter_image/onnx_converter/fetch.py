"""The step that brings a checkpoint into the work volume, under the digest of its bytes, and files of data beside it.

The only step that may reach out. Refuses whatever policy.py and weights.py refuse, before anything else can read it;
a folder under its final name is complete, or it is not there.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from onnx_converter import footprint, held, hub, policy, weights
from onnx_converter.digest import chunks_of, hex_of, is_digest, open_regular, sha256_of, tree_digest
from onnx_converter.held import CALIBRATION
from onnx_converter.reasons import DIGEST_MISMATCH, LINK_REFUSED, SOURCE_NOT_FOUND, StepFailedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from onnx_converter.progress import Progress
    from onnx_converter.spec import ClaimSource, Dataset, Evaluation, Source

_INCOMING: Final = ".incoming-"
#: Of a model, one for each evaluation and one to calibrate on.
_FILES: Final = 7


@dataclass(frozen=True, slots=True)
class Fetch:
    """What to fetch and where to."""

    source: Source
    source_root: Path
    output: Path
    expect_digest: str | None
    keep: int
    calibration: Dataset | None = None
    evaluations: tuple[Evaluation, ...] = ()
    #: Folder that gets the files of a hub among them, by their digests.
    datasets: Path = Path("/datasets")


@dataclass(frozen=True, slots=True)
class _File:
    """A file of a hub that a later step reads, and how."""

    field: str
    dataset: Dataset
    most_bytes: int
    #: Where its token stands in the environment.
    variable: str
    read: Callable[[Dataset, Path, str, int], object]


def run(fetch: Fetch, progress: Progress) -> dict[str, Any]:
    # First, as they are small: what is wrong with them is told before gigabytes are on their way.
    _bring_datasets(fetch, progress)
    _remove_leftovers(fetch.output)
    incoming = Path(tempfile.mkdtemp(prefix=_INCOMING, dir=fetch.output))
    try:
        resolved = _bring(fetch, incoming, progress)
        files = check_folder(incoming)
        progress.tell("CheckpointChecked", files=len(files))
        digest = tree_digest(files)
        if fetch.expect_digest not in (None, digest):
            raise StepFailedError(
                DIGEST_MISMATCH,
                f"the source now has digest {digest}, not {fetch.expect_digest}: its files were changed",
            )
        sizes = footprint.sizes_of(incoming)
        size = sum((incoming / path).stat().st_size for path in files)
        _settle(incoming, fetch.output / hex_of(digest), digest)
    finally:
        shutil.rmtree(incoming, ignore_errors=True)
    _prune(fetch.output, fetch.keep, hex_of(digest))
    return {
        "digest": digest,
        "files": len(files),
        "bytes": size,
        "parameters": sizes.parameters,
        "vocabulary": sizes.vocabulary,
        **({"attention": sizes.attention} if sizes.attention else {}),
        **({"cache": sizes.cache, "positions": sizes.positions} if sizes.cache else {}),
        **resolved,
    }


def admit(folder: Path) -> tuple[str, ...]:
    """The paths of a checkpoint's files that may be read; refuses the checkpoint where it holds anything else.

    Every later step does this again before it opens anything: the volume may have changed hands in between.
    """
    paths = policy.select(policy.list_folder(folder)).read
    policy.inspect(folder, paths)
    for path in paths:
        if path.endswith(".safetensors"):
            weights.check(folder, path)
    return paths


def check_folder(folder: Path) -> dict[str, str]:
    """Path to sha256 of every file of a checkpoint that may be read; refuses the checkpoint otherwise."""
    return hash_files(folder, admit(folder))


def hash_files(folder: Path, paths: Iterable[str]) -> dict[str, str]:
    """Path to sha256."""
    return {path: sha256_of(folder / path) for path in paths}


def _bring_datasets(fetch: Fetch, progress: Progress) -> None:
    files = list(_files_of(fetch))
    if not files:
        return
    _remove_leftovers(fetch.datasets)
    for file in files:
        dataset, final = file.dataset, fetch.datasets / file.dataset.place
        if final.is_file() and sha256_of(final) == dataset.place:
            os.utime(final)
            continue
        incoming = Path(tempfile.mkdtemp(prefix=_INCOMING, dir=fetch.datasets))
        try:
            access = hub.Hub.from_environment(file.variable)
            brought = hub.download_file(dataset, access, incoming, file.field, file.most_bytes)
            brought.rename(incoming / dataset.place)
            file.read(dataset, incoming, file.field, file.most_bytes)
            sync(incoming / dataset.place)
            (incoming / dataset.place).rename(final)
        finally:
            shutil.rmtree(incoming, ignore_errors=True)
        progress.tell("DatasetFetched", field=file.field)
    sync(fetch.datasets)
    _prune(fetch.datasets, max(fetch.keep * _FILES, len(files)), files[-1].dataset.place)


def _files_of(fetch: Fetch) -> Iterator[_File]:
    texts = fetch.calibration
    if texts is not None and texts.hugging_face is not None:
        yield _File(CALIBRATION, texts, held.MOST_BYTES_OF_TEXTS, "HF_TOKEN_CALIBRATION", held.texts)
    for one in fetch.evaluations:
        if one.dataset.hugging_face is not None:
            variable = f"HF_TOKEN_EVALUATION_{one.name.upper().replace('-', '_')}"
            most = held.most_bytes_of(one.metric)
            yield _File(f"{one.field}.dataset", one.dataset, most, variable, held.examples)


def _bring(fetch: Fetch, incoming: Path, progress: Progress) -> dict[str, str]:
    if fetch.source.hugging_face is not None:
        return {"commit": hub.download(fetch.source.hugging_face, hub.Hub.from_environment(), incoming, progress)}
    assert fetch.source.persistent_volume_claim is not None  # noqa: S101  the model holds exactly one
    _copy_claim(fetch.source.persistent_volume_claim, fetch.source_root, incoming, progress)
    return {}


def _copy_claim(source: ClaimSource, root: Path, incoming: Path, progress: Progress) -> None:
    folder = root
    for part in PurePosixPath(source.path).parts:
        folder /= part
        if folder.is_symlink():
            raise StepFailedError(
                LINK_REFUSED,
                f"source.persistentVolumeClaim.path leads through the symbolic link {part}: name the folder itself",
            )
    if not folder.is_dir():
        raise StepFailedError(
            SOURCE_NOT_FOUND,
            f"source.persistentVolumeClaim.path {source.path!r} is no folder on claim {source.claim_name}",
        )
    selection = policy.select(policy.list_folder(folder))
    for path in selection.left:
        progress.tell("FileLeftBehind", file=path)
    for number, path in enumerate(selection.read):
        target = incoming / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with open_regular(folder / path) as stream, target.open("xb") as copy:
            for chunk in chunks_of(stream):
                copy.write(chunk)
        progress.tell("FileFetched", percent=100 * (number + 1) // len(selection.read), file=path)


def _settle(incoming: Path, final: Path, digest: str) -> None:
    """Gives the folder its name, last of all."""
    if final.is_dir():
        if _is_intact(final, digest):
            os.utime(final)
            return
        shutil.rmtree(final)
    sync_tree(incoming)
    incoming.chmod(0o755)
    incoming.rename(final)
    sync(final.parent)


def _is_intact(folder: Path, digest: str) -> bool:
    try:
        return tree_digest({path: sha256_of(folder / path) for path in policy.list_folder(folder)}) == digest
    except (StepFailedError, OSError):
        return False


def sync_tree(folder: Path) -> None:
    """Nothing gets its final name before its bytes are on the disk."""
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_leftovers(output: Path) -> None:
    """What a killed run left; the Job of a model runs alone, so nobody else is at work here."""
    output.mkdir(parents=True, exist_ok=True)
    for path in output.glob(f"{_INCOMING}*"):
        shutil.rmtree(path, ignore_errors=True)


def _prune(output: Path, keep: int, current: str) -> None:
    others = [path for path in output.iterdir() if is_digest(f"sha256:{path.name}") and path.name != current]
    for path in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)[max(keep - 1, 0) :]:
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
