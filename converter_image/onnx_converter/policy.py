"""Which files of a checkpoint may be read, and which words in them are refused.

A checkpoint is assumed to be written by an attacker. Only safetensors, JSON and vocabulary files are ever opened.
Refused by name are links, special files, weights that come only as pickle (or another format that runs code when it
is read), and every key by which a checkpoint asks for code of its own. Files that are never read (a README, pickled
weights beside safetensors, a training script) are left behind, and said to be.
"""

from __future__ import annotations

import json
import re
import stat
from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from onnx_converter.digest import open_regular
from onnx_converter.reasons import (
    ADAPTER_NOT_MERGED,
    CHECKPOINT_INCOMPLETE,
    CODE_BESIDE_WEIGHTS,
    CONFIG_INVALID,
    CONFIG_MISSING,
    FILE_DISGUISED,
    JSON_CORRUPT,
    LINK_REFUSED,
    PICKLE_REFUSED,
    REMOTE_CODE_REFUSED,
    SHARD_MISSING,
    SOURCE_ESCAPES,
    SOURCE_NOT_FOUND,
    TOKENIZER_MISSING,
    StepFailedError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

FILES_LIMIT: Final = 1000
#: tokenizer.json of large vocabularies reaches 30 MB; nothing that is not weights is larger.
TEXT_LIMIT: Final = 128 << 20
CONFIG: Final = "config.json"
MODULES: Final = "modules.json"
PREPROCESSOR: Final = "preprocessor_config.json"
PROCESSOR: Final = "processor_config.json"
WEIGHTS: Final = "model.safetensors"
WEIGHTS_INDEX: Final = "model.safetensors.index.json"

#: How the names of classes end that only write.
GENERATORS: Final = ("ForCausalLM", "LMHeadModel")
#: What an adapter is saved with, and without a config.json.
_ADAPTER: Final = "adapter_config.json"
_READ: Final = frozenset({".safetensors", ".json", ".txt", ".model", ".vocab", ".bpe"})
#: Formats of weights that run code when loaded, or that this converter has no reader for.
_OTHER_WEIGHTS: Final = frozenset(
    {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill", ".npy", ".npz", ".h5", ".keras", ".pb"}
    | {".msgpack", ".ot", ".onnx", ".tflite", ".gguf", ".mar", ".torchscript", ".ptl", ".pte"}
)
#: How transformers names the files of remote code; one of these means that the checkpoint expects to run it.
_CODE_FILE: Final = re.compile(
    r"(modeling|configuration|tokenization|processing|image_processing|pipeline|custom)(_.*)?\.py"
)
#: Keys by which a JSON file asks for code of its own, for a kernel from a hub, or for another checkpoint.
_CODE_KEYS: Final = frozenset(
    {
        "auto_map",
        "custom_pipelines",
        "trust_remote_code",
        "_attn_implementation_internal",
        "_experts_implementation_internal",
        "kernel_config",
        "transformers_weights",
        "custom_generate",
    }
)
_ATTENTION_KEYS: Final = frozenset({"_attn_implementation", "attn_implementation"})
_ATTENTION: Final = frozenset({"eager", "sdpa", "flash_attention_2", "flex_attention"})
#: First bytes of what must not hide behind a harmless suffix: pickle of protocol 2 to 5, ZIP (torch.save), ELF, gzip.
_MAGIC: Final = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04", b"\x7fELF", b"\x1f\x8b")
#: These hold vocabularies as keys: any word may stand there.
_VOCABULARIES: Final = frozenset({"tokenizer.json", "vocab.json", "added_tokens.json", WEIGHTS_INDEX})
_DEPTH_LIMIT: Final = 64


class Use(Enum):
    """What is done with a file."""

    READ = "read"
    LEAVE = "leave"
    WEIGHTS_OF_ANOTHER_KIND = "weights of another kind"
    CODE = "code"


@dataclass(frozen=True, slots=True)
class Selection:
    """The files of a checkpoint, by what is done with them."""

    read: tuple[str, ...]
    left: tuple[str, ...]


def use_of(path: str) -> Use:
    """By name alone, so that a hub's list can be judged before a byte is fetched."""
    pure = PurePosixPath(path)
    if any(part.startswith(".") for part in pure.parts):
        return Use.LEAVE
    if _CODE_FILE.fullmatch(pure.name) and len(pure.parts) == 1:
        return Use.CODE
    if pure.suffix.lower() in _OTHER_WEIGHTS:
        return Use.WEIGHTS_OF_ANOTHER_KIND
    return Use.READ if pure.suffix.lower() in _READ else Use.LEAVE


def select(paths: Iterable[str]) -> Selection:
    """Which of these files to read; refuses what can only be meant to run code or to get out."""
    listed = sorted(paths)
    if len(listed) > FILES_LIMIT:
        raise StepFailedError(
            SOURCE_NOT_FOUND,
            f"the source holds {len(listed)} files, more than {FILES_LIMIT}: point path at the checkpoint's own folder",
        )
    for path in listed:
        refuse_escape(path)
    uses = {path: use_of(path) for path in listed}
    if code := [path for path, use in uses.items() if use is Use.CODE]:
        raise StepFailedError(
            CODE_BESIDE_WEIGHTS,
            f"{code[0]} is code of the checkpoint's own, which is never run: use a supported architecture, and remove "
            "the file from the source",
        )
    if _ADAPTER in uses:
        raise StepFailedError(
            ADAPTER_NOT_MERGED,
            f"{_ADAPTER} makes this an adapter to another checkpoint: merge it into its base model first",
        )
    read = tuple(path for path, use in uses.items() if use is Use.READ)
    others = [path for path, use in uses.items() if use is Use.WEIGHTS_OF_ANOTHER_KIND]
    if others and not {WEIGHTS, WEIGHTS_INDEX} & set(read):
        raise StepFailedError(
            PICKLE_REFUSED,
            f"the weights come only as {others[0]}, which may run code when read: convert them to {WEIGHTS}",
        )
    if not read:
        raise StepFailedError(
            SOURCE_NOT_FOUND, "the source holds no checkpoint: point it at the folder with config.json"
        )
    if CONFIG not in read:
        raise StepFailedError(CONFIG_MISSING, f"{CONFIG} is missing: point the source at the folder that holds it")
    return Selection(read, tuple(path for path in listed if path not in set(read)))


def refuse_escape(path: str) -> None:
    """A relative POSIX path without tricks, or an error."""
    pure = PurePosixPath(path)
    if not path or pure.is_absolute() or ".." in pure.parts or "\\" in path or "\0" in path or pure.as_posix() != path:
        raise StepFailedError(
            SOURCE_ESCAPES, f"{path!r} leads out of the checkpoint's folder: name files by their path inside it"
        )


def list_folder(folder: Path) -> Iterator[str]:
    """Relative paths of the regular files below a folder; links and special files are refused by name."""
    pending = [folder]
    while pending:
        for path in sorted(pending.pop().iterdir()):
            mode = path.lstat().st_mode
            relative = path.relative_to(folder).as_posix()
            if stat.S_ISLNK(mode):
                raise StepFailedError(LINK_REFUSED, f"{relative} is a symbolic link: put the file itself there")
            if stat.S_ISDIR(mode):
                if not path.name.startswith(".") and path.name != "lost+found":
                    pending.append(path)
            elif stat.S_ISREG(mode):
                yield relative
            else:
                raise StepFailedError(
                    LINK_REFUSED, f"{relative} is a device, socket or pipe: remove it from the source"
                )


def inspect(folder: Path, paths: Iterable[str]) -> None:
    """Looks into every file that will be read: no disguise, no hostile key, and the parts without which it is none."""
    present = frozenset(paths)
    for path in sorted(present):
        refuse_disguise(folder / path, path)
        if path.endswith(".json"):
            value = read_json(folder, path)
            if PurePosixPath(path).name not in _VOCABULARIES:
                refuse_hostile_keys(value, path)
    _refuse_incomplete(folder, present)


def refuse_disguise(file: Path, path: str) -> None:
    with open_regular(file) as stream:
        head = stream.read(9)
    if not head.startswith(_MAGIC):
        return
    if path.endswith(".safetensors"):
        # A length that happens to begin so is followed by the header's JSON.
        if head[8:] != b"{":
            raise StepFailedError(
                PICKLE_REFUSED,
                f"{path} is no safetensors file: it begins like a pickle, an archive or a program; convert the weights",
            )
        return
    raise StepFailedError(
        FILE_DISGUISED,
        f"{path} is no text: it begins like a pickle, an archive or a program; remove it from the source",
    )


def read_json(folder: Path, path: str) -> Any:
    """A JSON file of the checkpoint."""
    with open_regular(folder / path) as stream:
        data = stream.read(TEXT_LIMIT + 1)
    if len(data) > TEXT_LIMIT:
        raise StepFailedError(JSON_CORRUPT, f"{path} is larger than {TEXT_LIMIT} bytes: a configuration file never is")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise StepFailedError(JSON_CORRUPT, f"{path} is no JSON ({error}): copy the file again") from error


def read_object(folder: Path, path: str) -> dict[str, Any]:
    value = read_json(folder, path)
    if not isinstance(value, dict):
        raise StepFailedError(
            CONFIG_INVALID, f"{path} holds a JSON {type(value).__name__}, not an object: repair the file"
        )
    return value


def read_preprocessor(folder: Path, part: str, called: str) -> tuple[str, dict[str, Any]]:
    """What is said of an extractor, and where: in a file of its own, or in newer ones as a part of all processors'."""
    if (folder / PREPROCESSOR).is_file():
        return PREPROCESSOR, read_object(folder, PREPROCESSOR)
    value = read_object(folder, PROCESSOR).get(part) if (folder / PROCESSOR).is_file() else None
    if not isinstance(value, dict):
        raise StepFailedError(TOKENIZER_MISSING, f"{PREPROCESSOR} is missing: save the {called} beside the model")
    return PROCESSOR, value


def refuse_hostile_keys(value: object, path: str) -> None:
    pending: list[tuple[object, int]] = [(value, 0)]
    while pending:
        item, depth = pending.pop()
        if depth > _DEPTH_LIMIT:
            raise StepFailedError(
                JSON_CORRUPT, f"{path} is nested more than {_DEPTH_LIMIT} levels deep: no configuration is"
            )
        if isinstance(item, list):
            pending += [(element, depth + 1) for element in item]
        if not isinstance(item, dict):
            continue
        for key, inner in item.items():
            if key in _CODE_KEYS and inner not in (None, False, {}, []):
                raise StepFailedError(
                    REMOTE_CODE_REFUSED,
                    f"{path} sets {key}, which asks for code or files from elsewhere: remove the key",
                )
            if key in _ATTENTION_KEYS and inner not in (None, *_ATTENTION):
                raise StepFailedError(
                    REMOTE_CODE_REFUSED,
                    f"{path} sets {key} to {str(inner)[:80]!r}, which names code from elsewhere: remove the key",
                )
            pending.append((inner, depth + 1))


def _refuse_incomplete(folder: Path, present: frozenset[str]) -> None:
    for shard in shards_of(folder, present):
        if shard not in present:
            raise StepFailedError(SHARD_MISSING, f"{shard} is missing, which {WEIGHTS_INDEX} names: upload all shards")


def shards_of(folder: Path, present: frozenset[str]) -> tuple[str, ...]:
    """The files the weights are in, main file first."""
    if WEIGHTS in present:
        return (WEIGHTS,)
    if WEIGHTS_INDEX not in present:
        raise StepFailedError(CHECKPOINT_INCOMPLETE, f"{WEIGHTS} is missing: save the checkpoint as safetensors")
    weight_map = read_object(folder, WEIGHTS_INDEX).get("weight_map")
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(name, str) for name in weight_map.values())
    ):
        raise StepFailedError(
            CONFIG_INVALID, f"{WEIGHTS_INDEX} has no weight_map from tensor to file: save the checkpoint again"
        )
    shards = tuple(sorted(set(weight_map.values())))
    for shard in shards:
        refuse_escape(shard)
        if not shard.endswith(".safetensors"):
            raise StepFailedError(
                PICKLE_REFUSED,
                f"{WEIGHTS_INDEX} names {shard!r}, which is not safetensors: save the checkpoint as safetensors",
            )
    return shards
