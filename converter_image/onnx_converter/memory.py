"""What something adds to the resident memory of this process, by the kernel's own account.

Linux only, standard library only. Refuses to guess: where the kernel does not tell its peak, there is none.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_STATUS: Final = Path("/proc/self/status")
_CLEAR: Final = Path("/proc/self/clear_refs")
#: Written there, it makes the peak what is resident now.
_RESET: Final = "5"

Result = TypeVar("Result")


class Memory:
    """Of one side of several in this process: what it has kept so far and the most that it ever took, in bytes.

    What is watched may watch parts of itself.
    """

    #: The most that was resident since the outer watch began, as far as an inner one made the kernel forget it.
    _forgotten: ClassVar[int] = 0

    def __init__(self, held: int = 0) -> None:
        self.held = held
        self.peak: int | None = held

    def watch(self, act: Callable[[], Result]) -> Result:
        """Does it, and counts by how much resident memory grew meanwhile and what of it stayed."""
        _give_back()
        before = _bytes_of("VmRSS")
        outer, Memory._forgotten = _most(), 0
        is_told = _forget_peak()
        result = act()
        most = _most()
        Memory._forgotten = max(outer, most)
        if self.peak is not None and is_told and before is not None and most:
            self.peak = max(self.peak, self.held + most - before)
            self.held += (_bytes_of("VmRSS") or before) - before
        else:
            self.peak = None
        return result


def _most() -> int:
    return max(Memory._forgotten, _bytes_of("VmHWM") or 0)  # noqa: SLF001  of this module


def _give_back() -> None:
    """What was freed and not given back would be taken anew without growth."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _forget_peak() -> bool:
    try:
        _CLEAR.write_text(_RESET)
    except OSError:
        return False
    return True


def _bytes_of(name: str) -> int | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)
