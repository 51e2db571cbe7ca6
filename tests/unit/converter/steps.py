"""Steps run as the image runs them, only in this process: flags in, summary out."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnx_converter import cli, summary

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Ended:
    """How a step ended, and every line it said."""

    code: int
    summary: summary.Summary
    lines: list[dict[str, Any]]

    @property
    def details(self) -> dict[str, Any]:
        assert self.summary.outcome == "Succeeded", self.summary
        return dict(self.summary.details)


@dataclass(frozen=True, slots=True)
class Line:
    """The folders of one model, from source to artifact, and the steps between them."""

    root: Path

    @property
    def work(self) -> Path:
        return self.root / "work"

    def checkpoint(self, digest: str) -> Path:
        return self.root / "checkpoints" / digest.removeprefix("sha256:")

    def fetch(self, source: Path, *flags: str) -> Ended:
        claim = {"persistentVolumeClaim": {"claimName": "models", "path": source.name}}
        return run(
            "fetch",
            ("--source", json.dumps(claim), "--source-root", source.parent),
            ("--output", self.root / "checkpoints", *flags),
        )

    def convert(self, digest: str, *flags: str, **spec: Any) -> Ended:
        return run(
            "convert",
            ("--checkpoint", self.checkpoint(digest), "--source-digest", digest),
            ("--spec", json.dumps(spec), "--output", self.work / "graph", *flags),
        )

    def refuses(self, folder: Path, reason: str, words: str, *flags: str, **spec: Any) -> None:
        """A checkpoint that is fetched, and not converted: for this reason, in these words."""
        ended = self.convert(self.fetch(folder).details["digest"], *flags, **spec)
        assert ended.summary.reason == reason, ended.summary.message
        assert words in ended.summary.message

    def validate(self, digest: str, parity: dict[str, str] | None = None, benchmark: int = 0, **spec: Any) -> Ended:
        provider = spec.get("providers", ["CPUExecutionProvider"])[0]
        return run(
            "validate",
            ("--checkpoint", self.checkpoint(digest), "--graph", self.work / "graph", "--provider", provider),
            ("--spec", json.dumps(spec), "--parity", json.dumps(parity or {})),
            ("--output", self.work / f"validation-{provider}", "--benchmark", benchmark),
        )

    def publish(self, **spec: Any) -> Ended:
        return run(
            "publish",
            ("--work", self.work, "--store", self.root / "artifacts", "--spec", json.dumps(spec)),
            ("--serving", "{}", "--lineage", '{"model": "m"}'),
        )

    def artifact(self, digest: str) -> Path:
        return self.root / "artifacts" / digest.removeprefix("sha256:")

    def beside(self, digest: str, name: str) -> Path:
        """What was measured of an artifact."""
        folder = self.artifact(digest)
        return folder.with_name(f"{folder.name}.{name}")

    def assemble(self, digest: str, provider: str = "CPUExecutionProvider") -> Ended:
        return run(
            "assemble",
            ("--artifact", self.artifact(digest), "--digest", digest, "--provider", provider),
            ("--model-name", "minilm", "--version", "7", "--repository", self.root / "models"),
        )


def run(step: str, *flags: tuple[object, ...]) -> Ended:
    """One step, in this process."""
    stream = io.StringIO()
    code = cli.main([step, *(str(flag) for group in flags for flag in group)], stream)
    lines = stream.getvalue().splitlines()
    return Ended(code, summary.parse(lines[-1]), [json.loads(line) for line in lines[:-1]])
