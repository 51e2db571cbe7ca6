"""Models that see: which there are, what they take of an image, and generated images to ask them about.

Of the checkpoint's own image processor what is numbers: of which size its images are, and what becomes of a byte.
Refuses one that makes images of another size than the model takes, and numbers that no pixel was meant to become. An
architecture that is not in the table is tried, as a classifier alone: where another one's vector stands nobody tells.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
import transformers
from transformers.models.auto import modeling_auto
from typing_extensions import override

from onnx_converter import policy
from onnx_converter.encoders import built_in
from onnx_converter.reasons import (
    ARCHITECTURE_UNSUPPORTED,
    CONFIG_INVALID,
    PREPROCESSOR_MISMATCH,
    SPEC_IMPOSSIBLE,
    StepFailedError,
)
from onnx_converter.spec import Task
from onnx_converter.tables import Table

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from transformers import PreTrainedConfig, PreTrainedModel

    Image = NDArray[np.uint8]

#: What a model answers, as a tuple, to the part of it that is served.
Read = Callable[[Any], torch.Tensor]

PIXELS: Final = "pixel_values"
TASKS: Final = (Task.IMAGE_FEATURE_EXTRACTION, Task.IMAGE_CLASSIFICATION)
#: What a tower for images is called in the config.json of two.
TOWER: Final = "vision_config"
CLASSIFIER: Final = "ForImageClassification"
_WHITE: Final = 255
#: Of either side: what generated images would have no room beyond, and no checkpoint has.
_MOST_PIXELS: Final = 2048
_SEED: Final = 20260726


def _first(answers: Any) -> torch.Tensor:
    found: torch.Tensor = answers[0]
    return found


def _pooled(answers: Any) -> torch.Tensor:
    found: torch.Tensor = answers[1]
    return found


def _class_token(answers: Any) -> torch.Tensor:
    found: torch.Tensor = answers[0][:, 0]
    return found


@dataclass(frozen=True, slots=True)
class Family:
    """What this converter must know of a model type that sees."""

    config: type[PreTrainedConfig]
    #: What makes one vector of an image, and where in its answer that stands.
    encoder: type[PreTrainedModel] | None
    read: Read
    classifier: type[PreTrainedModel] | None = None
    is_known: bool = True


def _clip() -> Family:
    return Family(transformers.CLIPVisionConfig, transformers.CLIPVisionModelWithProjection, _first)


def _siglip() -> Family:
    # It pools by attention, with weights of its own.
    return Family(transformers.SiglipVisionConfig, transformers.SiglipVisionModel, _pooled)


FAMILIES: Final = Table[Family](
    {
        # Of both towers the one for images.
        "clip": _clip,
        "clip_vision_model": _clip,
        "siglip": _siglip,
        "siglip_vision_model": _siglip,
        # What its own pooler makes is trained in few checkpoints.
        "vit": lambda: Family(
            transformers.ViTConfig,
            transformers.ViTModel,
            _class_token,
            classifier=transformers.ViTForImageClassification,
        ),
    }
)


@dataclass(frozen=True, slots=True)
class Sight:
    """How a model sees: what it takes of an image, and where its answer stands."""

    #: Channels, height, width.
    shape: tuple[int, int, int]
    #: What a byte is multiplied by, and for each channel what is taken off then, and what it is divided by.
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    read: Read

    def pixels(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(batch, channels, height, width) of bytes, as the processor hands them on."""
        mean, std = (np.array(each, np.float32).reshape(-1, 1, 1) for each in (self.mean, self.std))
        return np.asarray((images.astype(np.float32) * np.float32(self.scale) - mean) / std, dtype=np.float32)


class Seeing(torch.nn.Module):
    """The model with pixels in and one vector for each image out."""

    model: PreTrainedModel

    def __init__(self, model: PreTrainedModel, read: Read) -> None:
        super().__init__()
        self.model = model
        self.read = read

    @override
    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        (pixels,) = tensors
        return self.read(self.model(pixel_values=pixels.to(self.model.dtype), return_dict=False)).float()


def is_meant(kind: object, name: str, task: Task) -> bool:
    """Whether the model that sees is what the checkpoint is to be converted for: of CLIP only if it is said."""
    if task in TASKS or name.endswith(CLASSIFIER):
        return True
    return isinstance(kind, str) and kind in FAMILIES and kind != "clip"


def family_of(kind: object) -> Family:
    """From the table, or as transformers has it built in."""
    if isinstance(kind, str) and (known := FAMILIES.get(kind)) is not None:
        return known
    config, classifier = built_in(kind, modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, PIXELS)
    return Family(config, None, _first, classifier=classifier, is_known=False)


def class_of(family: Family, kind: object, name: str, task: Task) -> tuple[Task, type[PreTrainedModel], Read]:
    """What `task` means for a checkpoint of that class, and the class that does it."""
    classifies = name.endswith(CLASSIFIER)
    wanted = task if task is not Task.AUTO else TASKS[classifies]
    if wanted not in TASKS or (wanted is Task.IMAGE_CLASSIFICATION and not classifies):
        fitting = " or ".join(TASKS[: 1 + classifies])
        raise StepFailedError(
            SPEC_IMPOSSIBLE, f"task {task} does not fit architectures {name!r}, which sees images: use {fitting}"
        )
    found = _class_for(family, wanted)
    if found is None:
        raise StepFailedError(
            ARCHITECTURE_UNSUPPORTED,
            f"{policy.CONFIG}: model_type {kind!r} is not supported for {wanted}: take "
            f"{', '.join(name for name, one in FAMILIES.items() if _class_for(one, wanted))}",
        )
    return wanted, found, family.read if found is family.encoder else _first


def _class_for(family: Family, task: Task) -> type[PreTrainedModel] | None:
    return family.classifier if task is Task.IMAGE_CLASSIFICATION else family.encoder


def sight_of(folder: Path, config: PreTrainedConfig, read: Read) -> Sight:
    if read is _pooled and not getattr(config, "vision_use_head", True):
        raise StepFailedError(
            ARCHITECTURE_UNSUPPORTED,
            f"{policy.CONFIG}: vision_use_head is false, so nothing makes one vector of an image",
        )
    file, value = policy.read_preprocessor(folder, "image_processor", "image processor")
    size = _pair(getattr(config, "image_size", None))
    channels = getattr(config, "num_channels", None)
    if size is None or not isinstance(channels, int) or min(size) < 1 or max(*size, channels) > _MOST_PIXELS:
        raise StepFailedError(
            CONFIG_INVALID,
            f"{policy.CONFIG}: image_size {getattr(config, 'image_size', None)!r} or num_channels {channels!r} is none "
            f"of 1 to {_MOST_PIXELS}",
        )
    _refuse_other_size(file, value, size)
    return Sight((channels, *size), *_numbers_of(file, value, channels), read)


def _refuse_other_size(file: str, value: dict[str, Any], size: tuple[int, int]) -> None:
    """A processor scales an image and may cut out its middle; what comes out must be of one size, the model's."""
    # Some classes cut unless told otherwise, and have then said to which size.
    cuts = _flag(file, value, "do_center_crop", default="crop_size" in value)
    scales = _flag(file, value, "do_resize", default=True)
    name = "crop_size" if cuts else "size"
    if not (cuts or scales):
        raise StepFailedError(
            PREPROCESSOR_MISMATCH,
            f"{file}: do_resize and do_center_crop are false, so images keep their sizes, and the model of "
            f"{policy.CONFIG} takes {size[0]} x {size[1]}: set one of them",
        )
    if (made := _pair(value.get(name))) != size:
        raise StepFailedError(
            PREPROCESSOR_MISMATCH,
            f"{file}: {name} is {value.get(name)!r}, the model of {policy.CONFIG} takes {size[0]} x {size[1]} "
            "(image_size): take the processor of this model",
        )
    shortest = value["size"].get("shortest_edge") if isinstance(value.get("size"), dict) else value.get("size")
    if cuts and scales and isinstance(shortest, int) and shortest < max(made):
        raise StepFailedError(
            PREPROCESSOR_MISMATCH,
            f"{file}: size {shortest} is below crop_size, so that images would have black borders",
        )


def _pair(said: object) -> tuple[int, int] | None:
    """Height and width, as one number, a list or an object says them; None where it says no size."""
    if isinstance(said, dict):
        said = [said.get("height"), said.get("width")]
    pair = [said, said] if isinstance(said, int) else said
    if not isinstance(pair, list | tuple) or len(pair) != 2:  # noqa: PLR2004
        return None
    height, width = pair
    are_whole = all(isinstance(one, int) and not isinstance(one, bool) for one in pair)
    return (height, width) if are_whole else None


def _numbers_of(file: str, value: dict[str, Any], channels: int) -> tuple[float, tuple[float, ...], tuple[float, ...]]:
    scale = 1.0
    if _flag(file, value, "do_rescale", default=True):
        scale = _within(file, "rescale_factor", value.get("rescale_factor", 1 / _WHITE), 1e-6, 1.0)
    if not _flag(file, value, "do_normalize", default=True):
        return scale, (0.0,) * channels, (1.0,) * channels
    # Within what bytes can be, and by no less than from one to the next.
    white = scale * _WHITE
    mean, std = (
        tuple(_within(file, name, each, low, white) for each in _of_channels(file, name, value.get(name), channels))
        for name, low in (("image_mean", 0.0), ("image_std", 0.999 * scale))
    )
    return scale, mean, std


def _of_channels(file: str, name: str, said: object, channels: int) -> list[object]:
    if not isinstance(said, list) or len(said) != channels:
        raise StepFailedError(
            PREPROCESSOR_MISMATCH, f"{file}: {name} {said!r} is no list of {channels} numbers, one for each channel"
        )
    return said


def _within(file: str, name: str, said: object, low: float, high: float) -> float:
    is_number = isinstance(said, int | float) and not isinstance(said, bool) and math.isfinite(said)
    if not is_number or not low <= float(said) <= high:  # type: ignore[arg-type]
        raise StepFailedError(
            PREPROCESSOR_MISMATCH, f"{file}: {name} {said!r} is no number from {low:.3g} to {high:.3g}"
        )
    return float(said)  # type: ignore[arg-type]


def _flag(file: str, value: dict[str, Any], name: str, *, default: bool) -> bool:
    said = value.get(name, default)
    if not isinstance(said, bool):
        raise StepFailedError(PREPROCESSOR_MISMATCH, f"{file}: {name} {said!r} is neither true nor false")
    return said


def pictures(shape: tuple[int, int, int]) -> dict[str, Image]:
    """Images of few forms and soft colours, as files have room for; the same each time."""
    channels, height, width = shape
    down, right = np.mgrid[0:height, 0:width] / np.array([height, width]).reshape(2, 1, 1)
    tint = np.linspace(0.2, 1.0, channels).reshape(-1, 1, 1)
    disc = np.hypot(down - 0.4, right - 0.6) < 0.3  # noqa: PLR2004
    made = {
        "a gradient to the right": tint * right,
        "a gradient downwards": 1 - tint * down,
        "a disc": np.where(disc, tint, 1 - tint),
        "stripes": np.where((right * 8).astype(int) % 2 == 0, tint, 0.9 - 0.5 * tint),
        "rings": tint * (0.5 + 0.5 * np.sin(20 * np.hypot(down - 0.5, right - 0.5))),
        "grey": np.full(shape, 0.5),
    }
    return {name: _bytes(np.broadcast_to(image, shape)) for name, image in made.items()}


def extremes(shape: tuple[int, int, int]) -> dict[str, Image]:
    """Images that nobody takes: nothing, everything, all contrast there is, one point."""
    channels, height, width = shape
    point, down, right = np.zeros(shape), *np.mgrid[0:height, 0:width]
    point[:, height // 3, width // 3] = 1
    made = {
        "black": np.zeros(shape),
        "white": np.ones(shape),
        "one channel": np.eye(channels)[0].reshape(-1, 1, 1) * np.ones(shape),
        "a chequered board": np.broadcast_to((down + right) % 2, shape),
        "one point": point,
        "noise": np.random.default_rng(_SEED).random(shape),
    }
    return {name: _bytes(image) for name, image in made.items()}


def _bytes(image: NDArray[np.floating[Any]]) -> Image:
    return np.asarray((image * _WHITE).round(), dtype=np.uint8)
