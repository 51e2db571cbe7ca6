"""Layers and archives say the same as the files that they are made of."""

from __future__ import annotations

import io
import json
import os
import stat
import tarfile
from typing import TYPE_CHECKING

from onebox.archive import BlobStore, Image, add_files, add_overlay_folder

if TYPE_CHECKING:
    from pathlib import Path


def entries(store: BlobStore, layer: str) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(store.path(layer)) as tar:
        return {entry.name: entry for entry in tar}


def streamed(store: BlobStore, images: list[Image], held: frozenset[str]) -> dict[str, bytes]:
    sink = io.BytesIO()
    store.stream(images, held, sink)
    sink.seek(0)
    with tarfile.open(fileobj=sink) as tar:
        return {entry.name: content.read() for entry in tar if (content := tar.extractfile(entry))}


def test_an_overlay_folder_becomes_a_layer_with_its_deletions_spelt_out(tmp_path: Path) -> None:
    folder = tmp_path / "diff"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub/file").write_text("content")
    (folder / "sub/file").chmod(0o4755)
    os.link(folder / "sub/file", folder / "twin")
    (folder / "link").symlink_to("sub")
    os.mknod(folder / "sub/deleted", stat.S_IFCHR, os.makedev(0, 0))
    store = BlobStore(tmp_path / "blobs")
    found = entries(store, store.put_layer(lambda tar: add_overlay_folder(tar, folder)))
    assert set(found) == {"sub", "sub/file", "twin", "link", "sub/.wh.deleted"}
    assert found["link"].issym()
    assert {found["sub/file"].islnk(), found["twin"].islnk()} == {True, False}
    assert found["sub/file"].mode == 0o4755
    assert found["sub/.wh.deleted"].isreg()
    assert found["sub/.wh.deleted"].size == 0


def test_what_a_build_mounted_leaves_no_empty_file_behind(tmp_path: Path) -> None:
    folder = tmp_path / "diff"
    folder.mkdir()
    for name, content in (("settings", ""), ("hosts", "127.0.0.1"), ("empty", "")):
        (folder / name).write_text(content)
    store = BlobStore(tmp_path / "blobs")
    layer = store.put_layer(lambda tar: add_overlay_folder(tar, folder, mount_points={"settings", "hosts"}))
    assert set(entries(store, layer)) == {"hosts", "empty"}


def test_a_layer_of_files_has_its_folders_and_is_the_same_each_time(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"\x7fELF")
    store = BlobStore(tmp_path / "blobs")

    def layer() -> str:
        return store.put_layer(lambda tar: add_files(tar, {"usr/bin/program": program}, folders=("tmp",)))

    found = entries(store, layer())
    assert list(found) == ["tmp", "usr", "usr/bin", "usr/bin/program"]
    assert found["tmp"].mode == 0o1777
    assert found["usr/bin/program"].mode == 0o755
    assert layer() == layer()


def test_an_archive_names_its_image_and_carries_every_blob(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "blobs")
    layer = store.put_bytes(b"layer")
    image = store.put_image("localhost/app:1", {"os": "linux"}, (layer,))
    archive = streamed(store, [image], frozenset())
    (listed,) = json.loads(archive["index.json"])["manifests"]
    assert listed["digest"] == image.manifest
    assert listed["annotations"] == {"io.containerd.image.name": "localhost/app:1"}
    manifest = json.loads(archive[f"blobs/sha256/{image.manifest.removeprefix('sha256:')}"])
    config = json.loads(archive[f"blobs/sha256/{manifest['config']['digest'].removeprefix('sha256:')}"])
    assert config["rootfs"]["diff_ids"] == [layer]
    assert archive[f"blobs/sha256/{layer.removeprefix('sha256:')}"] == b"layer"


def test_an_archive_leaves_out_what_the_receiver_holds_but_never_a_manifest(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "blobs")
    layers = (store.put_bytes(b"thick"), store.put_bytes(b"thin"))
    image = store.put_image("localhost/app:2", {}, layers)
    archive = streamed(store, [image], frozenset({layers[0], image.manifest}))
    names = {name.rpartition("/")[2] for name in archive}
    assert layers[0].removeprefix("sha256:") not in names
    assert layers[1].removeprefix("sha256:") in names
    assert image.manifest.removeprefix("sha256:") in names


def test_a_layer_that_two_images_share_is_sent_once(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "blobs")
    layer = store.put_bytes(b"shared")
    pair = [store.put_image(f"localhost/app:{number}", {"n": number}, (layer,)) for number in (1, 2)]
    sink = io.BytesIO()
    store.stream(pair, frozenset(), sink)
    sink.seek(0)
    with tarfile.open(fileobj=sink) as tar:
        names = tar.getnames()
    assert names.count(f"blobs/sha256/{layer.removeprefix('sha256:')}") == 1
