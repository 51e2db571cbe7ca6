"""From sound to what a model that reads speech takes, and generated sounds to ask it about.

The checkpoint's own extractor, built of numbers alone. Refuses one of another kind, and one whose features are not
those that the model takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from transformers import WhisperFeatureExtractor

from onnx_converter import policy
from onnx_converter.reasons import ARCHITECTURE_UNSUPPORTED, PREPROCESSOR_MISMATCH, StepFailedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from transformers import PreTrainedConfig

    Sound = NDArray[np.float32]

FEATURES: Final = "input_features"
#: Samples a second; every checkpoint of this kind is of this rate.
RATE: Final = 16_000
#: Generated sounds are no longer: what is read is filled up with silence.
_SECONDS: Final = 3
#: What else the extractor is built of, and between which numbers each must lie: a table is made of them.
_BOUNDS: Final = {"hop_length": (1, RATE), "chunk_length": (1, 600), "n_fft": (16, RATE)}
_SEED: Final = 20260726


@dataclass(frozen=True, slots=True)
class Speech:
    """How a model hears: what its encoder takes and what it makes of it."""

    extractor: WhisperFeatureExtractor
    #: Mel bins and frames of one sound.
    shape: tuple[int, int]
    #: Positions that the encoder answers with.
    positions: int
    #: What is said of the language before the first word, for each that the model knows; none where it knows one only.
    languages: Mapping[str, int]

    @property
    def most_samples(self) -> int:
        """Of the longest sound."""
        return int(self.extractor.n_samples)

    def features(self, sounds: Sequence[Sound]) -> NDArray[np.float32]:
        """(batch, mel bins, frames), each sound filled up with silence."""
        extracted: Any = self.extractor(list(sounds), sampling_rate=RATE, return_tensors="np")
        return np.asarray(extracted[FEATURES], dtype=np.float32)


def speech_of(folder: Path, config: PreTrainedConfig, languages: Mapping[str, int]) -> Speech:
    file, value = policy.read_preprocessor(folder, "feature_extractor", "feature extractor")
    if (kind := value.get("feature_extractor_type")) not in (None, WhisperFeatureExtractor.__name__):
        raise StepFailedError(
            ARCHITECTURE_UNSUPPORTED,
            f"{file}: feature_extractor_type {kind!r} is not supported, {WhisperFeatureExtractor.__name__} is",
        )
    said = {"feature_size": value.get("feature_size", 80), "sampling_rate": value.get("sampling_rate", RATE)}
    wanted = {"feature_size": config.num_mel_bins, "sampling_rate": RATE, "padding_value": 0.0, "dither": 0.0}
    for name, number in wanted.items():
        if (found := value.get(name, said.get(name, number))) != number:
            raise StepFailedError(PREPROCESSOR_MISMATCH, f"{file}: {name} is {found!r}, the model needs {number}")
    lengths = {name: value[name] for name in _BOUNDS if name in value}
    for name, number in lengths.items():
        low, high = _BOUNDS[name]
        if not isinstance(number, int) or not low <= number <= high:
            raise StepFailedError(PREPROCESSOR_MISMATCH, f"{file}: {name} {number!r} is none of {low} to {high}")
    extractor = WhisperFeatureExtractor(**said, **lengths)
    # The second of its convolutions halves them.
    if extractor.nb_max_frames != 2 * config.max_source_positions:
        raise StepFailedError(
            PREPROCESSOR_MISMATCH,
            f"{file} makes {extractor.nb_max_frames} frames of a sound, the model of {policy.CONFIG} takes "
            f"{2 * config.max_source_positions}: they are of two models",
        )
    return Speech(extractor, (config.num_mel_bins, extractor.nb_max_frames), config.max_source_positions, languages)


def generated(longest: int) -> dict[str, Sound]:
    """Sounds of at most so many samples, the same each time."""
    samples = min(longest, _SECONDS * RATE)
    seconds = np.arange(samples) / RATE
    rising = 2 * np.pi * (100 * seconds + 3900 / (2 * _SECONDS) * seconds**2)
    # A voice of 120 Hz, louder and softer four times a second.
    voice = sum(np.sin(2 * np.pi * 120 * overtone * seconds) / overtone for overtone in range(1, 20))
    made = {
        "a tone": 0.5 * np.sin(2 * np.pi * 440 * seconds),
        "a chirp": 0.5 * np.sin(rising),
        "noise": 0.1 * np.random.default_rng(_SEED).standard_normal(samples),
        "silence": np.zeros(samples),
        "a hum": 0.2 * voice * (1 - np.cos(2 * np.pi * 4 * seconds)),
        "a short tone": 0.5 * np.sin(2 * np.pi * 1000 * seconds[: samples // 4]),
    }
    return {name: sound.astype(np.float32) for name, sound in made.items()}
