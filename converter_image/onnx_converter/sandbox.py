"""Runs programs that nobody has read: each in a process that can compute, and answer to the test of another process.

Standard library only; started by coding.py as a program of its own, with an empty environment, so that nothing of the
step is in its memory. It forks two processes for each question. One runs the program and never sees the test. The other
runs the test, hears the program's answers as text, and alone can say that all was right: a program that ends, prints or
forges says nothing by it. Both are confined by the kernel before they run anything: of its calls they are left those
that take memory, read the clock, and read and write what is open, which are their pipes. So they open no file, start no
process or thread, signal nobody and reach no network, whatever user they are. Refuses to begin where that fails.
"""

from __future__ import annotations

import ast
import builtins
import ctypes
import importlib
import os
import platform
import random
import resource
import select
import signal
import struct
import time
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: What a program may import: nothing can be loaded later.
_MODULES: Final = (
    *("abc", "array", "base64", "bisect", "calendar", "cmath", "collections", "collections.abc", "contextlib", "copy"),
    *("dataclasses", "datetime", "decimal", "enum", "fractions", "functools", "hashlib", "heapq", "io", "itertools"),
    *("json", "keyword", "math", "numbers", "operator", "queue", "random", "re", "statistics", "string", "struct"),
    *("textwrap", "threading", "time", "types", "typing", "unicodedata", "warnings", "zlib", "_strptime"),
)
#: Most bytes of one message.
_MOST: Final = 1 << 20
_LENGTH: Final = struct.Struct("<I")
#: Seconds of a processor, of time, and bytes of address space.
LIMITS: Final = struct.Struct("<III")

#: By machine: how seccomp calls it, and the numbers of its calls read, write, close, fstat, lseek, mmap, mprotect,
#: munmap, brk, rt_sigaction, rt_sigprocmask, rt_sigreturn, mremap, madvise, getpid, exit, exit_group, futex,
#: sigaltstack, clock_gettime, gettimeofday, gettid, getrandom, clock_getres.
_CALLS: Final[dict[str, tuple[int, tuple[int, ...]]]] = {
    "x86_64": (
        0xC000003E,
        (0, 1, 3, 5, 8, 9, 10, 11, 12, 13, 14, 15, 25, 28, 39, 60, 231, 202, 131, 228, 96, 186, 318, 229),
    ),
    "aarch64": (
        0xC00000B7,
        (
            63,
            64,
            57,
            80,
            62,
            222,
            226,
            215,
            214,
            134,
            135,
            139,
            216,
            233,
            172,
            93,
            94,
            98,
            132,
            113,
            169,
            178,
            278,
            114,
        ),
    ),
}
_LOAD_CALL, _LOAD_MACHINE = (0x20, 0, 0, 0), (0x20, 0, 0, 4)
_JUMP_IF_EQUAL, _RETURN = 0x15, 0x06
_ALLOW, _KILL, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050001  # the last one: EPERM
_SET_DEATH_SIGNAL, _SET_SECCOMP, _SET_NO_NEW_PRIVILEGES, _FILTER = 1, 22, 38, 2


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def _filter() -> bytes:
    machine, allowed = _CALLS[platform.machine()]
    steps = [_LOAD_MACHINE, (_JUMP_IF_EQUAL, 1, 0, machine), (_RETURN, 0, 0, _KILL), _LOAD_CALL]
    # Each jumps over those after it and the refusal.
    steps += [(_JUMP_IF_EQUAL, len(allowed) - place, 0, call) for place, call in enumerate(allowed)]
    steps += [(_RETURN, 0, 0, _REFUSE), (_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


def _confine(seconds: int, memory: int, kept: tuple[int, ...]) -> None:
    """From here on there is no way back."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    silence = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(silence, descriptor)
    last = 2
    for descriptor in (*sorted(kept), os.sysconf("SC_OPEN_MAX")):
        os.closerange(last + 1, descriptor)
        last = descriptor
    limits = {"CPU": seconds, "AS": memory, "FSIZE": 0, "CORE": 0, "NOFILE": 0, "NPROC": 0}
    for name, most in limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))
    code = _filter()
    program = _Program(len(code) // 8, code)
    if libc.prctl(_SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0) or libc.prctl(_SET_SECCOMP, _FILTER, ctypes.byref(program), 0, 0):
        raise OSError(ctypes.get_errno(), "the kernel takes no seccomp filter")


def _read(descriptor: int, size: int) -> bytes:
    found = b""
    while len(found) < size:
        piece = os.read(descriptor, size - len(found))
        if not piece:
            raise EOFError
        found += piece
    return found


def receive(descriptor: int) -> str:
    (size,) = _LENGTH.unpack(_read(descriptor, _LENGTH.size))
    if size > _MOST:
        raise ValueError(f"a message of {size} bytes")
    return _read(descriptor, size).decode("utf-8", "surrogatepass")


def send(descriptor: int, text: str) -> None:
    data = text.encode("utf-8", "surrogatepass")
    data = _LENGTH.pack(len(data)) + data
    while data:
        data = data[os.write(descriptor, data) :]


def _plain(value: Any) -> Any:
    """What behaves as a number, a text, a list or a dict is one; anything else cannot be said."""
    if value is None:
        return None
    if isinstance(value, dict):
        return {_plain(key): _plain(one) for key, one in value.items()}
    kinds: tuple[Any, ...] = (list, tuple, set, bool, int, float, complex, str, bytes)
    kind = next((kind for kind in kinds if isinstance(value, kind)), None)
    if kind is None:
        raise TypeError(f"{type(value).__name__} is no plain value")
    return kind(map(_plain, value) if kind in (list, tuple, set) else value)


def _said(value: Any) -> str:
    return repr(_plain(value))


def _understood(text: str) -> Any:
    return ast.literal_eval(text)


def _answer(entry: str, program: str, questions: int, answers: int) -> None:
    """The program's process: its function, asked until nobody asks any more."""
    random.seed(0)
    names: dict[str, Any] = {"__name__": "program"}
    exec(compile(program, "program", "exec"), names)  # noqa: S102  what all of this is for
    function = names[entry]
    send(answers, "ready")
    while True:
        arguments, named = _understood(receive(questions))
        try:
            said = "= " + _said(function(*arguments, **named))
        except Exception as error:  # noqa: BLE001  the test may be about it
            said = f"! {type(error).__name__}"
        send(answers, said)


def _test(entry: str, prompt: str, test: str, questions: int, answers: int) -> None:
    """The test's process, which returns only where all was right."""
    # What the prompt defines besides the function belongs to the test as well.
    names: dict[str, Any] = {"__name__": "test"}
    with suppress(Exception):
        exec(compile(f"{prompt}\n    pass\n", "prompt", "exec"), names)  # noqa: S102
    is_gone = False

    def candidate(*arguments: Any, **named: Any) -> Any:
        nonlocal is_gone
        question = _said((arguments, named))
        is_gone = True
        send(questions, question)
        said = receive(answers)
        is_gone = False
        if said.startswith("! "):
            kind = getattr(builtins, said[2:], None)
            raise kind if isinstance(kind, type) and issubclass(kind, Exception) else RuntimeError(said[2:])
        return _understood(said.removeprefix("= "))

    if receive(answers) != "ready":
        raise ValueError("the program did not begin")
    names[entry] = candidate
    exec(compile(test, "test", "exec"), names)  # noqa: S102
    names["check"](candidate)
    # A test that forgives every error does not forgive a program that is not there to answer.
    if is_gone:
        raise EOFError


@contextmanager
def _forked(work: Callable[[], None]) -> Iterator[int]:
    """A process that ends well only where it comes to the end of its work; afterwards it is gone."""
    if not (process := os.fork()):
        with suppress(BaseException):
            work()
            os._exit(0)
        os._exit(1)
    try:
        yield process
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


def _judged(asked: int, limits: tuple[int, int, int]) -> str:
    """One question, which only the two processes read: what they are told is never in the memory that is forked."""
    seconds, wall, memory = limits
    questions, answers, loaded, verdict = (os.pipe() for _ in range(4))

    def answers_questions() -> None:
        entry, program = receive(asked), receive(asked)
        os.write(loaded[1], b"+")
        _confine(seconds, memory, (questions[0], answers[1]))
        _answer(entry, program, questions[0], answers[1])

    def tests(nonce: bytes) -> None:
        entry, prompt, test = receive(asked), receive(asked), receive(asked)
        _confine(seconds, memory, (questions[1], answers[0], verdict[1]))
        _test(entry, prompt, test, questions[1], answers[0])
        os.write(verdict[1], nonce)

    try:
        with _forked(answers_questions):
            _close(loaded[1], questions[0], answers[1])
            if not os.read(loaded[0], 1):
                raise EOFError
            nonce = os.urandom(16)
            with _forked(partial(tests, nonce)) as tester:
                _close(questions[1], answers[0], verdict[1])
                return "passed" if _heard(verdict[0], nonce, wall) and _is_well(tester) else "failed"
    finally:
        _close(loaded[0], verdict[0])


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _heard(verdict: int, nonce: bytes, wall: int) -> bool:
    """Whether this and nothing else was said before the time was over."""
    deadline, found = time.monotonic() + wall, b""
    while select.select([verdict], [], [], max(0, deadline - time.monotonic()))[0]:
        piece = os.read(verdict, len(nonce) + 1)
        if not piece:
            return found == nonce
        found += piece
    return False


def _is_well(process: int) -> bool:
    ended = os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
    return ended is not None and (ended.si_code, ended.si_status) == (os.CLD_EXITED, 0)


def _opens_nothing() -> None:
    _confine(10, 1 << 30, ())
    try:
        os.open(os.devnull, os.O_RDONLY)
    except PermissionError:
        return
    raise OSError("it was opened")


def main() -> None:
    for name in _MODULES:
        importlib.import_module(name)
    libc = ctypes.CDLL(None)
    libc.prctl(_SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    asked, told = os.dup(0), os.dup(1)
    with _forked(_opens_nothing) as process:
        send(told, "confined" if _is_well(process) else "open")
    with suppress(EOFError):
        while True:
            limits = LIMITS.unpack(_read(asked, LIMITS.size))
            send(told, _judged(asked, limits))


if __name__ == "__main__":
    main()
