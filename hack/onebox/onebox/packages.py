"""The Debian packages of the host that onebox uses; installed only where something is missing.

Refuses to install without root or on a machine without apt: there it names what is missing instead.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from onebox.console import OneboxError, run, say, stage

# What proves that a package is there: a program in PATH or a file. Other distributions name packages otherwise,
# so the proof counts and the name is only asked for when the proof fails.
_PROOFS = {
    "buildah": "buildah",
    "catatonit": "/usr/libexec/podman/catatonit",
    "conntrack": "conntrack",
    "containernetworking-plugins": "/usr/lib/cni/bridge",
    "crun": "crun",
    "gcc": "gcc",
    "iproute2": "ip",
    "libc6-dev": "/usr/include/stdlib.h",
    "libseccomp-dev": "/usr/include/seccomp.h",
    "mmdebstrap": "mmdebstrap",
    "nftables": "nft",
    "pkg-config": "pkg-config",
}
CATATONIT = (Path("/usr/bin/catatonit"), Path("/usr/libexec/podman/catatonit"))


def _is_there(proof: str) -> bool:
    if proof.endswith("/catatonit"):
        return any(path.exists() for path in CATATONIT)
    return Path(proof).exists() if proof.startswith("/") else shutil.which(proof) is not None


def missing() -> list[str]:
    """The packages whose proof is absent."""
    return [package for package, proof in _PROOFS.items() if not _is_there(proof)]


def ensure() -> None:
    """Install what is missing; a machine that has all is left alone."""
    absent = missing()
    if not absent:
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        message = f"missing on this machine: {', '.join(absent)} (Debian's names); install them and try again"
        raise OneboxError(message)
    say(f"installing {', '.join(absent)}")
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    with stage("packages"):
        run(["apt-get", "update", "-qq"], env=quiet)
        run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *absent], env=quiet)
    still = missing()
    if still:
        message = f"installed, yet not found: {', '.join(still)}"
        raise OneboxError(message)
