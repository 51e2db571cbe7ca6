"""Replaces the CUDA libraries that torch links to, where they were left out, by ones that refuse to run.

torch from the package index is the CUDA build: its libraries name cuBLAS, cuDNN, NCCL and others, and the loader
wants every symbol of theirs before `import torch` succeeds. On a machine without an NVIDIA device none is ever
called, and they take 3.4 GB. For each library that is named and absent this links a small one with the same
symbols and versions; each function prints its own name and aborts, so nothing can fail silently.
libcudart and libcupti must be the real ones: torch asks the first how many devices there are.

Refuses to go on when libcudart is absent, when something it would stand in for is data and not a function, or when
the result cannot be loaded. It never replaces a library that is there.

    python cuda_standins.py SITE_PACKAGES      # wants pyelftools, and gcc or the package ziglang
"""

from __future__ import annotations

import ctypes
import shutil
import struct
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elftools.elf.elffile import ELFFile

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

REAL = ("libcudart.so", "libcupti.so")
#: Loaded by torch only when a CUDA device is there; without cuSOLVER and the driver they could not be loaded at all.
UNUSABLE = ("libtorch_cuda_linalg.so", "libcaffe2_nvrtc.so")
CUDA_PREFIXES = ("libcu", "libnv", "libnccl")
FUNCTION = 2
UNTYPED = 0
WEAK = 2


@dataclass(slots=True)
class Library:
    """What one shared object defines, wants and names, read from its dynamic section."""

    needed: tuple[str, ...]
    defined: frozenset[str]
    #: name of a wanted symbol -> (library that versions it or "", version or "", symbol type)
    wanted: dict[str, tuple[str, str, int]]


@dataclass(slots=True)
class StandIn:
    """A library to be made: its functions by version ("" for those without)."""

    functions: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))


def read_library(path: Path) -> Library:
    with path.open("rb") as stream:
        elf = ELFFile(stream)
        sections: dict[str, Any] = {section.name: section for section in elf.iter_sections()}
        needed = tuple(tag.needed for tag in sections[".dynamic"].iter_tags("DT_NEEDED"))
        versions: dict[int, tuple[str, str]] = {}
        if ".gnu.version_r" in sections:
            for library, entries in sections[".gnu.version_r"].iter_versions():
                versions.update({entry["vna_other"]: (library.name, entry.name) for entry in entries})
        symbols, strings = sections[".dynsym"].data(), sections[".dynstr"].data()
        indices = [index & 0x7FFF for (index,) in struct.iter_unpack("<H", sections[".gnu.version"].data())]
    defined: set[str] = set()
    wanted: dict[str, tuple[str, str, int]] = {}
    for (name_at, info, _, home, _, _), index in zip(struct.iter_unpack("<IBBHQQ", symbols), indices, strict=True):
        name = strings[name_at : strings.index(b"\0", name_at)].decode()
        if home:
            defined.add(name)
        elif name and info >> 4 != WEAK:
            wanted[name] = (*versions.get(index, ("", "")), info & 0xF)
    return Library(needed, frozenset(defined), wanted)


def plan_stand_ins(libraries: dict[str, Library], present: frozenset[str]) -> dict[str, StandIn]:
    """Which libraries to make with which functions, from what the libraries at hand want and do not find."""
    absent = {
        name
        for library in libraries.values()
        for name in library.needed
        if name.startswith(CUDA_PREFIXES) and name not in present
    }
    if real := [name for name in absent if name.startswith(REAL)]:
        message = f"{', '.join(sorted(real))} must be the real one: install nvidia-cuda-runtime and nvidia-cuda-cupti"
        raise SystemExit(message)
    defined = frozenset().union(*(library.defined for library in libraries.values()))
    plan = {name: StandIn() for name in sorted(absent)}
    for path, library in sorted(libraries.items()):
        homes = [name for name in library.needed if name in absent]
        for symbol, (versioned_by, version, kind) in library.wanted.items():
            home = versioned_by if version else _home_by_name(symbol, homes)
            if home not in plan or (not version and symbol in defined):
                continue
            if kind not in (FUNCTION, UNTYPED):
                message = f"{path} wants {symbol} of {home}, which is data: it cannot be stood in for"
                raise SystemExit(message)
            plan[home].functions[version].add(symbol)
    return plan


def _home_by_name(symbol: str, homes: Iterable[str]) -> str:
    """The library an unversioned symbol belongs to, told by its prefix (ncclSend: libnccl.so.2); "" when none fits."""
    fitting = [name for name in homes if symbol.lower().startswith(name[3 : name.index(".so")].lower())]
    return max(fitting, key=len, default="")


def source_of(standin: StandIn, soname: str) -> str:
    lines = [
        "extern int dprintf(int, const char *, ...);",
        "extern void abort(void) __attribute__((noreturn));",
        "static void refuse(const char *name) {",
        f'  dprintf(2, "%s of {soname} was called, but this image leaves CUDA out\\n", name);',
        "  abort();",
        "}",
    ]
    lines += [f'void {name}(void) {{ refuse("{name}"); }}' for name in sorted(set().union(*standin.functions.values()))]
    return "\n".join(lines) + "\n"


def version_script_of(standin: StandIn) -> str:
    blocks = [
        f"{version} {{ global: {' '.join(f'{name};' for name in sorted(names))} }};"
        for version, names in sorted(standin.functions.items())
        if version
    ]
    return "\n".join(blocks) + "\n"


def compiler() -> list[str]:
    if (gcc := shutil.which("gcc")) is not None:
        return [gcc]
    return [sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-linux-gnu"]


def link(standin: StandIn, soname: str, folder: Path) -> None:
    """No start files and no libc of the compiler's: both functions used are in the process already."""
    with tempfile.TemporaryDirectory() as work:
        source, script = Path(work, "standin.c"), Path(work, "versions.map")
        source.write_text(source_of(standin, soname))
        script.write_text(version_script_of(standin))
        options = ["-shared", "-fPIC", "-O1", "-s", "-nostdlib", "-w", f"-Wl,-soname,{soname}"]
        if any(standin.functions):
            options.append(f"-Wl,--version-script={script}")
        subprocess.run([*compiler(), *options, str(source), "-o", str(folder / soname)], check=True)


def shared_objects(folders: Iterable[Path]) -> Iterator[Path]:
    for folder in folders:
        yield from sorted(path for path in folder.glob("*.so*") if path.is_file())


def main(site_packages: Path) -> None:
    torch_lib = site_packages / "torch" / "lib"
    if not torch_lib.is_dir():
        message = f"{torch_lib} is not there: install torch first"
        raise SystemExit(message)
    for name in UNUSABLE:
        (torch_lib / name).unlink(missing_ok=True)
    nvidia = [path for path in (site_packages / "nvidia").glob("*/lib") if path.is_dir()]
    present = frozenset(path.name for path in shared_objects([torch_lib, *nvidia]))
    libraries = {path.name: read_library(path) for path in shared_objects([torch_lib])}
    plan = plan_stand_ins(libraries, present)
    for soname, standin in plan.items():
        link(standin, soname, torch_lib)
        sys.stdout.write(f"{soname}: {sum(map(len, standin.functions.values()))} functions\n")
    # RTLD_NOW: every symbol must resolve here and not in the first Job.
    ctypes.CDLL(str(torch_lib / "libtorch_python.so"), mode=2)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
