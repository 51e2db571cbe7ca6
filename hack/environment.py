"""Make the project's virtual environment from the locks; do nothing when it is current.

With `cuda` as a second word, one with the onnxruntime-gpu of that flavour of the converter's image. It runs on the CPU
alone, as torch's libraries for a device are left out all the same: for one, install the flavour's own lock.

Standard library only, because it runs before anything is installed. The environment is keyed by the content of
what shapes it, and the key is written last, so what a killed run left half made is made anew.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = (ROOT / "requirements" / "dev.txt", ROOT / "requirements" / "uv.txt")
CUDA = ROOT / "requirements" / "converter-cuda.txt"
STANDINS = ROOT / "converter_image" / "cuda_standins.py"


def run(*command: str | Path) -> None:
    subprocess.run([str(part) for part in command], check=True)


def packages(flavour: str) -> str:
    """The lock of the tests, with the onnxruntime of the flavour."""
    lock = LOCKS[0].read_text()
    if flavour == "cpu":
        return lock
    (theirs,) = re.findall(r"^onnxruntime-gpu==.*\n(?: +--hash.*\n)+", CUDA.read_text(), re.MULTILINE)
    made, count = re.subn(r"^onnxruntime==.*\n(?: +--hash.*\n)+", lambda _: theirs, lock, flags=re.MULTILINE)
    if count != 1:
        sys.exit(f"{LOCKS[0].name} has no onnxruntime")
    return made


def key(flavour: str) -> str:
    digest = hashlib.sha256(sys.version.encode() + packages(flavour).encode())
    for file in (*LOCKS, STANDINS, Path(__file__)):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def uv() -> Path:
    """The pinned uv, in an environment of its own."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    base = Path(os.environ.get("ONNX_OPERATOR_CACHE", cache / "onnx-operator"))
    home = base / f"uv-{hashlib.sha256(LOCKS[1].read_bytes() + sys.version.encode()).hexdigest()[:12]}"
    binary = home / "bin" / "uv"
    if not (home / ".done").exists():
        shutil.rmtree(home, ignore_errors=True)
        run(sys.executable, "-m", "venv", home)
        run(home / "bin" / "pip", "install", "--quiet", "--require-hashes", "-r", LOCKS[1])
        (home / ".done").touch()
    return binary


def main(target: Path, flavour: str = "cpu") -> None:
    stamp = target / ".key"
    if stamp.exists() and stamp.read_text() == key(flavour):
        return
    print(f"making {target.name} (about 2 GB; a minute or two) ...", flush=True)
    shutil.rmtree(target, ignore_errors=True)
    tool = uv()
    run(tool, "venv", "--quiet", "--python", sys.executable, target)
    lock = target / "lock.txt"
    lock.write_text(packages(flavour))
    run(tool, "pip", "sync", "--quiet", "--python", target / "bin" / "python", "--require-hashes", lock)
    site = next((target / "lib").glob("python3.*")) / "site-packages"
    run(target / "bin" / "python", STANDINS, site)
    paths = "\n".join(str(ROOT / folder) for folder in ("operator", "converter_image", "tests"))
    (site / "onnx_operator_checkout.pth").write_text(paths + "\n")
    # For what installs locked packages from inside the environment, which has no pip.
    (target / "bin" / "uv").symlink_to(tool)
    stamp.write_text(key(flavour))


if __name__ == "__main__":
    main((ROOT / sys.argv[1]).absolute(), *sys.argv[2:])
