"""What a person sees while something slow runs, and the one way to run another program.

Nothing here decides; a program that fails becomes a `OneboxError` that carries the end of its output.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

_STARTED = time.monotonic()
_TAIL_CHARACTERS = 4000


class OneboxError(Exception):
    """Something that the person at the terminal can act on; the message says how."""


def say(text: str) -> None:
    """One progress line on stderr: stdout belongs to the command's result (a path, an `export` line)."""
    print(f"[{time.monotonic() - _STARTED:6.1f}s] {text}", file=sys.stderr, flush=True)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Say when a stage has ended and what it took."""
    began = time.monotonic()
    yield
    say(f"{name}: {time.monotonic() - began:.1f} s")


@contextmanager
def one_at_a_time(lock: Path, who_else: str) -> Iterator[None]:
    """Hold a lock of the machine; say who is waited for while another process has it."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{who_else}: waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def heartbeat(name: str, seconds: float = 30.0) -> Iterator[None]:
    """Say every so often that a stage of minutes is still alive."""
    over = threading.Event()
    began = time.monotonic()

    def beat() -> None:
        while not over.wait(seconds):
            say(f"{name}: still at it after {time.monotonic() - began:.0f} s")

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def run(
    command: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: str | None = None,
    timeout: float | None = None,
) -> str:
    """Run a program to its end and return its stdout; `env` is added to this process's own."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            input=stdin,
            stdin=None if stdin is not None else subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError as missing:
        message = f"{words[0]} is not installed: run `python3 hack/onebox packages` (as root)"
        raise OneboxError(message) from missing
    except subprocess.TimeoutExpired as late:
        message = f"`{' '.join(words)}` did not end within {timeout:.0f} s"
        raise OneboxError(message) from late
    if done.returncode != 0:
        output = (done.stdout + done.stderr).strip()[-_TAIL_CHARACTERS:]
        message = f"`{' '.join(words)}` ended with {done.returncode}:\n{output}"
        raise OneboxError(message)
    return done.stdout
