"""Lay out a runnable tritonserver from the locked wheels: the one recipe, used by the Dockerfile and by the tests.

    python3 assemble_server.py --requirements ../requirements/triton.txt --output /opt/tritonserver
    cp -r bin backends /opt/tritonserver/

It refuses to resolve dependencies, to build from source, and to install what the lock has no hash for. It adds none of
our own code: that is copied beside it afterwards, so that a change of ours is a small layer of an image.
Where the wheels come from is pip's (or uv's) own configuration, read from the environment.

The result, which may be moved or copied as a whole:

    wheel/     the parts of nvidia-pytriton that serve, at the depth that their relative RPATHs expect
    backends/  python -> the Python backend, with numpy and onnxruntime beside it
    lib/       libpython of the interpreter that ran this, which the backend's stub processes embed
"""

from __future__ import annotations

import argparse
import compileall
import importlib.util
import os
import py_compile
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

STUB = "triton_python_backend_stub"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
SERVER = Path("pytriton/tritonserver")

# Nothing here is loaded when a model is served; together they are more than a third of the bytes.
UNUSED = (
    "onnxruntime/capi/libonnxruntime.so*",  # the C API again: Python loads its own, statically linked one
    "onnxruntime/transformers",
    "onnxruntime/quantization",
    "onnxruntime/tools",
    "onnxruntime/datasets",
    "numpy/**/tests",
)


class AssemblyError(Exception):
    """The server cannot be laid out here; the message says what to install or change."""


def main(arguments: list[str] | None = None) -> int:
    """Assemble into a directory beside the output and rename, so that what exists is complete."""
    parser = argparse.ArgumentParser(description="Lay out a runnable tritonserver from the locked wheels.")
    parser.add_argument("--requirements", type=Path, required=True, help="the lock, with hashes")
    parser.add_argument("--output", type=Path, required=True, help="the folder to create; must not exist")
    options = parser.parse_args(arguments)
    output: Path = options.output.absolute()
    if output.exists():
        parser.error(f"--output: {output} exists already; remove it or name another folder")
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as scratch:
            packages = Path(scratch, "packages")
            install(options.requirements, packages)
            root = Path(scratch, "root")
            lay_out(packages, root)
            check_stub(root)
            root.rename(output)
    except (AssemblyError, OSError) as error:
        sys.stderr.write(f"assemble_server: {error}\n")
        return 1
    return 0


def install(requirements: Path, target: Path) -> None:
    """Unpack the locked wheels into a folder, without dependencies, without running code of theirs."""
    command = [*installer(), "--target", str(target), "--no-deps", "--require-hashes", "--only-binary", ":all:"]
    done = subprocess.run([*command, "--requirement", str(requirements)], check=False)
    if done.returncode != 0:
        raise AssemblyError(f"{requirements}: the locked packages could not be installed (output above)")


def installer() -> list[str]:
    """Pip of this interpreter, or uv for it where a uv-made environment has no pip."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--root-user-action=ignore"]
    uv = shutil.which("uv")
    if uv:
        return [uv, "pip", "install", "--quiet", "--python", sys.executable]
    raise AssemblyError(f"{sys.executable} has no pip and there is no uv on PATH; install one of them")


def lay_out(packages: Path, root: Path) -> None:
    """Move what serves to where it serves from; leave the rest behind."""
    stub = packages / SERVER / "python_backend_stubs" / PYTHON / STUB
    if not stub.exists():
        known = ", ".join(sorted(path.name for path in stub.parents[1].iterdir()))
        raise AssemblyError(f"nvidia-pytriton has no backend stub for Python {PYTHON}; it has {known}")
    for pattern in UNUSED:
        for path in list(packages.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    wheel = root / "wheel"
    backend = wheel / SERVER / "backends" / "python"
    for kept in ("bin", "backends", "caches"):
        (wheel / SERVER).mkdir(parents=True, exist_ok=True)
        (packages / SERVER / kept).rename(wheel / SERVER / kept)
    stub.rename(backend / STUB)
    for program in (backend / STUB, wheel / SERVER / "bin" / "tritonserver"):
        # Triton would chmod a stub that is not executable, which a read-only root file system forbids.
        program.chmod(0o755)

    (packages / "nvidia_pytriton.libs").rename(wheel / "nvidia_pytriton.libs")
    for library in (wheel / "nvidia_pytriton.libs").glob("libpython3-*"):
        library.unlink()  # for the stub of another Python version

    # The stub ignores PYTHONPATH and puts the Python backend's own folder on sys.path: packages go there.
    for path in packages.iterdir():
        if path.name.split("-")[0].split(".")[0] in {"numpy", "onnxruntime"}:
            path.rename(backend / path.name)
    # Hash-based, unchecked: timestamps change when an image layer is unpacked, and nothing can be rewritten there.
    compileall.compile_dir(backend, quiet=2, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)

    (root / "backends").mkdir()
    (root / "backends" / "python").symlink_to(Path("..", "wheel", SERVER, "backends", "python"))
    (root / "lib").mkdir()
    (root / "lib" / f"libpython{PYTHON}.so.1.0").symlink_to(libpython())


def libpython() -> Path:
    """The shared library of this Python version: the system's, else that of the interpreter that runs this.

    In this order, because the server may run as a user who cannot read a Python in somebody's home.
    """
    name = f"libpython{PYTHON}.so.1.0"
    folders = (
        Path("/usr/lib", str(sysconfig.get_config_var("MULTIARCH") or f"{os.uname().machine}-linux-gnu")),
        Path(str(sysconfig.get_config_var("LIBDIR"))),
    )
    for folder in folders:
        if (folder / name).exists():
            return folder / name
    raise AssemblyError(
        f"{name} not found: on Debian install the package libpython{PYTHON}, elsewhere run this with a Python "
        "that was built with --enable-shared"
    )


def check_stub(root: Path) -> None:
    """Start a stub without arguments: it prints its usage if, and only if, all its libraries are found."""
    libraries = f"{root}/lib:{root}/wheel/nvidia_pytriton.libs"
    stub = root / "backends" / "python" / STUB
    done = subprocess.run(
        [str(stub)], capture_output=True, text=True, check=False, env={"LD_LIBRARY_PATH": libraries}, timeout=60
    )
    said = (done.stdout + done.stderr).strip()
    if "arguments" not in said:
        raise AssemblyError(f"the Python backend's stub does not start: {said}")


if __name__ == "__main__":
    sys.exit(main())
