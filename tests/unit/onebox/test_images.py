"""An image is built again when, and only when, something that goes into it has changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from onebox.console import OneboxError

from onebox import imagebuild, images

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from onebox.archive import Image

DOCKERFILE = "FROM base\nCOPY app /app\n"


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(images, "REPOSITORY", tmp_path)
    (tmp_path / "app").mkdir()
    (tmp_path / "app/main.py").write_text("print(1)\n")
    (tmp_path / "other.py").write_text("print(2)\n")
    (tmp_path / "Dockerfile").write_text(DOCKERFILE)
    return tmp_path


def hash_of(repository: Path, base: str = "base:1", key: str = "") -> str:
    return images.content_hash((repository / "Dockerfile").read_text(), {"BASE_IMAGE": base}, key)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda root: (root / "app/main.py").write_text("print(3)\n"), id="a copied file's bytes"),
        pytest.param(lambda root: (root / "app/main.py").chmod(0o755), id="a copied file becomes executable"),
        pytest.param(lambda root: (root / "app/new.py").write_text(""), id="a new file in a copied folder"),
        pytest.param(lambda root: (root / "app/main.py").rename(root / "app/renamed.py"), id="a file's name"),
        pytest.param(lambda root: (root / "app/link").symlink_to("main.py"), id="a link"),
        pytest.param(lambda root: (root / "Dockerfile").write_text(DOCKERFILE + "USER 1\n"), id="the Dockerfile"),
    ],
)
def test_the_tag_changes_with(repository: Path, change: Callable[[Path], object]) -> None:
    before = hash_of(repository)
    change(repository)
    assert hash_of(repository) != before


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda root: (root / "other.py").write_text("print(4)\n"), id="a file that is not copied"),
        pytest.param(lambda root: (root / "app/__pycache__").mkdir(), id="Python's cache"),
        pytest.param(lambda root: (root / "app/main.pyc").write_text("x"), id="a compiled module"),
    ],
)
def test_the_tag_does_not_change_with(repository: Path, change: Callable[[Path], object]) -> None:
    before = hash_of(repository)
    change(repository)
    assert hash_of(repository) == before


def test_the_tag_changes_with_the_base_and_with_the_tools_that_are_copied(repository: Path) -> None:
    assert hash_of(repository, base="base:1") != hash_of(repository, base="base:2")
    assert hash_of(repository, key="k") != hash_of(repository, key="l")


def test_a_copied_path_that_does_not_exist_is_named(repository: Path) -> None:
    (repository / "Dockerfile").write_text("FROM base\nCOPY lost /lost\n")
    with pytest.raises(OneboxError, match="copies lost"):
        hash_of(repository)


@pytest.mark.parametrize(
    ("line", "paths"),
    [
        pytest.param("COPY a b /to/", ("a", "b"), id="several"),
        pytest.param("COPY --chown=1:1 a /to", ("a",), id="flags are no paths"),
        pytest.param("copy a \\\n  b /to/", ("a", "b"), id="continued on the next line, in small letters"),
        pytest.param("COPY --from=build /a /b", (), id="from another stage"),
        pytest.param("ADD a.tar /", ("a.tar",), id="ADD"),
        pytest.param("RUN --mount=type=bind,source=locks,target=/l pip", ("locks",), id="a mount of the context"),
        pytest.param("RUN --mount=type=bind,from=build,source=/l,target=/l true", (), id="a mount of a stage"),
        pytest.param("RUN --mount=type=cache,target=/c true", (), id="a cache"),
        pytest.param("# COPY a /b", (), id="a comment"),
    ],
)
def test_the_inputs_are_read_from_the_dockerfile(line: str, paths: tuple[str, ...]) -> None:
    assert images.copied_paths(f"FROM base\n{line}\n") == paths


@pytest.mark.parametrize("recipe", [*images.PROJECT, *images.SYSTEM], ids=lambda recipe: recipe.name)
def test_every_dockerfile_copies_only_what_exists_and_takes_its_base_as_argument(recipe: images.Recipe) -> None:
    assert "ARG BASE_IMAGE=" in recipe.dockerfile.read_text()
    assert len(images.content_hash(recipe.dockerfile.read_text(), {})) == 12


@pytest.mark.parametrize("recipe", images.PROJECT, ids=lambda recipe: recipe.name)
def test_a_change_of_our_code_leaves_the_dependencies_of_every_image_alone(recipe: images.Recipe) -> None:
    dependencies, own = images.split_at_own_code(recipe.dockerfile.read_text())
    assert "requirements" in dependencies
    assert "requirements" not in own


@pytest.fixture
def catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> images.Catalogue:
    monkeypatch.setenv("ONNX_OPERATOR_CACHE", str(tmp_path))
    monkeypatch.setattr(imagebuild, "prune", lambda _prefix, _keep: None)
    return images.Catalogue()


def binary_image(catalogue: images.Catalogue, folder: Path, state: int) -> Image:
    binary = folder / "tool"
    binary.write_text(f"state {state}")
    return catalogue.from_binary(f"localhost/tool:{state}", binary, f"key{state}", ("tool",))


def test_the_last_states_of_an_image_are_kept_and_older_ones_leave_nothing(
    catalogue: images.Catalogue, tmp_path: Path
) -> None:
    built = [binary_image(catalogue, tmp_path, state) for state in range(5)]
    found = [catalogue.find(image.ref, f"key{state}") for state, image in enumerate(built)]
    assert found == [None, None, *built[2:]]
    assert not catalogue.blobs.has_all(built[0].blobs[:1])


def test_an_image_that_was_asked_for_again_counts_as_new(catalogue: images.Catalogue, tmp_path: Path) -> None:
    first = binary_image(catalogue, tmp_path, 0)
    for state in range(1, 5):
        assert catalogue.find(first.ref, "key0") == first
        binary_image(catalogue, tmp_path, state)
    assert catalogue.find(first.ref, "key0") == first


def test_an_image_with_a_lost_blob_is_no_image(catalogue: images.Catalogue, tmp_path: Path) -> None:
    image = binary_image(catalogue, tmp_path, 0)
    catalogue.blobs.path(image.blobs[-1]).unlink()
    assert catalogue.find(image.ref, "key0") is None


def test_the_blobs_that_a_cluster_holds_are_those_of_its_images_in_the_same_bytes(
    catalogue: images.Catalogue, tmp_path: Path
) -> None:
    image = binary_image(catalogue, tmp_path, 0)
    assert catalogue.blobs_of({image.ref: image.manifest}) == frozenset(image.blobs)
    assert catalogue.blobs_of({image.ref: "sha256:other"}) == frozenset()


ARGUMENT = "ARG BASE_IMAGE=public\n"
STAGE = "FROM ${BASE_IMAGE} AS built\nCOPY locks /l\nRUN install\n"


@pytest.mark.parametrize(
    ("last_stage", "parts"),
    [
        pytest.param(
            "FROM ${BASE_IMAGE}\nCOPY --from=built /x /x\nENV A=1\nCOPY app /app\nUSER 1\n",
            (
                ARGUMENT + STAGE + "FROM ${BASE_IMAGE}\nCOPY --from=built /x /x\nENV A=1\n",
                "ARG BASE_IMAGE=\nFROM ${BASE_IMAGE}\nCOPY app /app\nUSER 1\n",
            ),
            id="dependencies, then our code",
        ),
        pytest.param("FROM ${BASE_IMAGE}\nCOPY --from=built /x /x\n", None, id="none of our code"),
        pytest.param(
            "FROM ${BASE_IMAGE}\nCOPY app /app\nCOPY --from=built /x /x\n", None, id="a stage is needed after our code"
        ),
        pytest.param(
            "FROM ${BASE_IMAGE}\nARG VERSION\nCOPY app /app\nRUN echo $VERSION\n", None, id="an argument of the stage"
        ),
    ],
)
def test_a_dockerfile_is_cut_before_our_code_where_that_is_safe(last_stage: str, parts: tuple[str, ...] | None) -> None:
    whole = ARGUMENT + STAGE + last_stage
    assert images.split_at_own_code(whole) == (parts or (whole,))
