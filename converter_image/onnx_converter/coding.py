"""How many of a model's programs are right: whether a completion makes its test pass, and pass@k of many.

The programs run in sandbox.py's processes. Refuses to run any where those cannot be confined, and to go on without an
answer.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from onnx_converter import sandbox
from onnx_converter.footprint import PROGRAM
from onnx_converter.reasons import CRASHED, SPEC_IMPOSSIBLE, StepFailedError

if TYPE_CHECKING:
    from collections.abc import Iterator

#: What a program may take of a processor, and of time where it waits.
SECONDS: Final = 5
DEADLINE: Final = 20
#: Where a completion ends that goes on to something else, as in the paper of HumanEval.
STOPS: Final = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
_STARTED: Final = 60


@dataclass(frozen=True, slots=True)
class Problem:
    """What a program is to do, as a line of the data says it."""

    prompt: str
    test: str
    entry_point: str


@dataclass(frozen=True, slots=True)
class Runner:
    """Runs one program after the other."""

    process: int
    asked: int
    told: int
    seconds: int
    deadline: int

    @classmethod
    @contextmanager
    def started(cls, seconds: int = SECONDS, deadline: int = DEADLINE) -> Iterator[Runner]:
        # Nothing of this process is in that one; sets have one order, whoever is asked.
        program = [sys.executable, "-S", "-s", "-B", "-P", str(Path(sandbox.__file__).resolve())]
        with subprocess.Popen(
            program,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={"PYTHONHASHSEED": "0"},
            cwd="/",
            start_new_session=True,
        ) as process:
            assert process.stdin is not None  # noqa: S101  as asked for
            assert process.stdout is not None  # noqa: S101
            runner = cls(process.pid, process.stdin.fileno(), process.stdout.fileno(), seconds, deadline)
            try:
                if runner._hear(_STARTED) != "confined":
                    raise StepFailedError(
                        SPEC_IMPOSSIBLE,
                        "the kernel or the container runtime takes no seccomp filter, so that programs of a model "
                        "cannot be kept from files and network: leave evaluations by passAtK out, or use other nodes",
                    )
                yield runner
            finally:
                process.kill()

    def passes(self, problem: Problem, completion: str) -> bool:
        entry = problem.entry_point
        try:
            os.write(self.asked, sandbox.LIMITS.pack(self.seconds, self.deadline, PROGRAM))
            for text in (entry, problem.prompt + completion, entry, problem.prompt, problem.test):
                sandbox.send(self.asked, text)
        except BrokenPipeError as error:
            raise _lost() from error
        return self._hear(self.deadline + _STARTED) == "passed"

    def _hear(self, seconds: int) -> str:
        try:
            if select.select([self.told], [], [], seconds)[0]:
                return sandbox.receive(self.told)
        except EOFError as error:
            raise _lost() from error
        raise _lost()


def _lost() -> StepFailedError:
    return StepFailedError(
        CRASHED, "the process that runs a model's programs ended or does not answer; a bug to report"
    )


def ended(completion: str) -> str:
    """Up to where it goes on to something else."""
    return completion[: min((place for one in STOPS if (place := completion.find(one)) >= 0), default=None)]


def pass_at_k(programs: int, right: int, k: int) -> float:
    """How likely one of k is right where so many of so many are: unbiased, of Chen and others 2021."""
    missed = 1.0
    for number in range(programs - right + 1, programs + 1):
        missed *= max(1 - k / number, 0)
    return 1 - missed
