"""A checkpoint, or a file of a dataset, from a hub that speaks Hugging Face's protocol, through huggingface_hub.

Refuses a redirect into the cluster or to a machine's metadata service, a revision that resolves to another commit
than the one asked for, and a file whose size or digest is not what the hub announced. Only files that the policy
lets be read are downloaded at all.
"""

from __future__ import annotations

import errno
import hashlib
import ipaddress
import os
import shutil
import socket
import ssl
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit
from urllib.request import getproxies

from onnx_converter import held, policy
from onnx_converter.digest import chunks_of, open_regular
from onnx_converter.progress import without_queries
from onnx_converter.reasons import (
    DIGEST_MISMATCH,
    DISK_FULL,
    SOURCE_ESCAPES,
    SOURCE_NOT_FOUND,
    SOURCE_UNAUTHORIZED,
    SOURCE_UNREACHABLE,
    StepFailedError,
    gist,
)
from onnx_converter.spec import COMMIT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoSibling

    from onnx_converter.progress import Progress
    from onnx_converter.spec import Dataset, HubSource

DEFAULT_ENDPOINT: Final = "https://huggingface.co"
_METADATA_HOSTS: Final = frozenset({ipaddress.ip_address("fd00:ec2::254"), ipaddress.ip_address("100.100.100.200")})
_TIMEOUT: Final = 30.0
_UNAUTHORIZED: Final = (401, 403)
_NOT_FOUND: Final = (404, 410, 451)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Hub:
    """Where to ask, and as whom."""

    endpoint: str
    token: str | None

    variable: str = "HF_TOKEN"

    @classmethod
    def from_environment(cls, variable: str = "HF_TOKEN") -> Hub:
        endpoint = (os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")
        return cls(endpoint, os.environ.get(variable) or None, variable)


@contextmanager
def _asked(source: HubSource, hub: Hub, field: str) -> Iterator[HfApi]:
    """The hub; whatever goes wrong in between ends as one of our reasons."""
    # Read once, when huggingface_hub is imported; the image turns the hub off for every other step.
    os.environ["HF_HUB_OFFLINE"] = "0"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # The plain protocol goes through the client guarded below; the other one through a library of its own.
    os.environ["HF_HUB_DISABLE_XET"] = "1"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    from huggingface_hub import HfApi, set_client_factory  # noqa: PLC0415

    guard = Guard.of(hub.endpoint)
    set_client_factory(guard.client)
    try:
        yield HfApi(endpoint=hub.endpoint, token=hub.token or False)
    except Exception as error:
        raise _sort(error, f"{source.repository}@{source.revision}", hub, field) from error


def download(source: HubSource, hub: Hub, folder: Path, progress: Progress) -> str:
    """Puts the files of one commit into the folder and returns the commit."""
    with _asked(source, hub, "source.huggingFace") as api:
        found = api.model_info(source.repository, revision=source.revision, files_metadata=True, timeout=_TIMEOUT)
        commit = _commit_of(found.sha, source)
        siblings = {item.rfilename: item for item in found.siblings or ()}
        selection = policy.select(siblings)
        _refuse_too_large(folder, [siblings[path] for path in selection.read])
        progress.tell("SourceResolved", repository=source.repository, commit=commit, files=len(selection.read))
        for number, path in enumerate(selection.read):
            api.hf_hub_download(source.repository, path, revision=commit, local_dir=folder, force_download=True)
            _refuse_changed(folder / path, siblings[path])
            progress.tell("FileFetched", percent=100 * (number + 1) // len(selection.read), file=path)
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    return commit


def download_file(dataset: Dataset, hub: Hub, folder: Path, field: str, most_bytes: int) -> Path:
    """Puts the file of a dataset's repository into the folder; nobody has compared it with its digest yet."""
    source = dataset.hugging_face
    assert source is not None  # noqa: S101  those of other places are mounted
    with _asked(source, hub, f"{field}.huggingFace") as api:
        found = api.dataset_info(source.repository, revision=source.revision, files_metadata=True, timeout=_TIMEOUT)
        commit = _commit_of(found.sha, source)
        siblings = {item.rfilename: item for item in found.siblings or ()}
        if source.path not in siblings:
            like = [name for name in siblings if name.endswith((".jsonl", ".json", ".csv", ".txt"))]
            raise StepFailedError(
                SOURCE_NOT_FOUND,
                f"{field}.huggingFace.path: {source.repository}@{source.revision} has no {source.path!r}; of what can "
                f"be read it has {', '.join(like[:10]) or 'nothing: export it to JSON lines'}",
            )
        if (siblings[source.path].size or 0) > most_bytes:
            raise held.too_large(dataset, field, most_bytes)
        api.hf_hub_download(
            source.repository, source.path, repo_type="dataset", revision=commit, local_dir=folder, force_download=True
        )
        _refuse_changed(folder / source.path, siblings[source.path])
    return folder / source.path


def _commit_of(sha: str | None, source: HubSource) -> str:
    commit = sha or ""
    if COMMIT.fullmatch(commit) and (commit == source.revision or not COMMIT.fullmatch(source.revision)):
        return commit
    raise StepFailedError(
        DIGEST_MISMATCH,
        f"{source.repository}@{source.revision} resolved to commit {commit!r}: "
        "the hub does not serve the revision that was asked for",
    )


def _refuse_too_large(folder: Path, siblings: Iterable[RepoSibling]) -> None:
    wanted = sum(item.size or 0 for item in siblings)
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise StepFailedError(
            DISK_FULL, f"the checkpoint has {wanted} bytes and the work volume {free} left: enlarge or empty the volume"
        )


def _refuse_changed(file: Path, announced: RepoSibling) -> None:
    """Against the sha256 of a large file, the git blob id of a small one."""
    size = file.stat().st_size
    if announced.size is not None and size != announced.size:
        raise StepFailedError(
            DIGEST_MISMATCH, f"{announced.rfilename} has {size} bytes, the hub announced {announced.size}"
        )
    if announced.lfs is not None:
        wanted, digest = announced.lfs.sha256, hashlib.sha256()
    elif announced.blob_id is not None:
        wanted, digest = announced.blob_id, hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    else:
        raise StepFailedError(
            DIGEST_MISMATCH,
            f"the hub announces no digest for {announced.rfilename}: it cannot be trusted to serve one commit",
        )
    with open_regular(file) as stream:
        for chunk in chunks_of(stream):
            digest.update(chunk)
    if digest.hexdigest() != wanted:
        raise StepFailedError(
            DIGEST_MISMATCH, f"{announced.rfilename} has digest {digest.hexdigest()}, the hub announced {wanted}"
        )


def _sort(error: Exception, name: str, hub: Hub, field: str) -> Exception:
    """Our reason for whatever huggingface_hub raised; the cause may lie several exceptions below."""
    chain: list[BaseException] = [error]
    while (below := chain[-1].__cause__ or chain[-1].__context__) is not None and below not in chain:
        chain.append(below)
    if any(isinstance(link, OSError) and link.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO) for link in chain):
        return error
    return next((found for link in chain if (found := _refusal_of(link, name, hub, field))), None) or _trouble_of(
        error, name, hub, field
    )


def _refusal_of(link: BaseException, name: str, hub: Hub, field: str) -> StepFailedError | None:
    """A lasting no, or None."""
    from huggingface_hub import errors  # noqa: PLC0415

    as_whom = f"with the token of {hub.variable}" if hub.token else "without a token"
    match link:
        case StepFailedError():
            return link
        case errors.GatedRepoError() | errors.DisabledRepoError():
            what = (
                f"{field}: {name} is gated or disabled {as_whom}: request access, or give in tokenSecretRef a token "
                "that has it"
            )
            return StepFailedError(SOURCE_UNAUTHORIZED, what)
        case errors.HfHubHTTPError() if link.response.status_code in _UNAUTHORIZED:
            what = (
                f"{field}: {hub.endpoint} answers {link.response.status_code} for {name} {as_whom}: check repository "
                "and tokenSecretRef"
            )
            return StepFailedError(SOURCE_UNAUTHORIZED, what)
        case errors.HfHubHTTPError() if link.response.status_code in _NOT_FOUND:
            what = f"{hub.endpoint} has no {name}: check {field}.repository and revision"
            return StepFailedError(SOURCE_NOT_FOUND, what)
        case ssl.SSLCertVerificationError():
            what = f"the certificate of {hub.endpoint} is not trusted ({link.verify_message}): mount its authority"
            return StepFailedError(SOURCE_UNAUTHORIZED, what)
        case _:
            return None


def _trouble_of(error: Exception, name: str, hub: Hub, field: str) -> Exception:
    """Whatever the network did is worth another try; anything else is a bug and stays what it is."""
    import httpx2  # noqa: PLC0415
    from huggingface_hub import errors  # noqa: PLC0415

    if not isinstance(
        error, errors.HfHubHTTPError | errors.LocalEntryNotFoundError | httpx2.HTTPError | OSError | ValueError
    ):
        return error
    what = without_queries(gist(error))
    return StepFailedError(
        SOURCE_UNREACHABLE, f"{field}: {hub.endpoint} could not be read for {name}: {type(error).__name__}: {what}"
    )


@dataclass(frozen=True, slots=True)
class Guard:
    """Which machines a request may reach, judged before it is sent and again by the peer that answered.

    A hub may redirect to its content network, never inwards: not to link-local addresses (where clouds keep
    credentials), and to private or loopback ones only if the hub itself, chosen by the platform team, is there.
    """

    host: str
    is_encrypted: bool
    allows_private: bool
    allows_loopback: bool
    has_proxy: bool

    @classmethod
    def of(cls, endpoint: str) -> Guard:
        url = urlsplit(endpoint)
        addresses = _resolve(url.hostname or "", url.port or 443)
        return cls(
            host=url.hostname or "",
            is_encrypted=url.scheme == "https",
            allows_private=any(not address.is_global for address in addresses),
            allows_loopback=any(address.is_loopback for address in addresses),
            has_proxy=bool({"http", "https", "all"} & getproxies().keys()),
        )

    def client(self) -> httpx2.Client:
        import httpx2  # noqa: PLC0415

        hooks: dict[str, list[Callable[..., Any]]] = {
            "request": [self.check_request],
            "response": [self.check_response],
        }
        return httpx2.Client(event_hooks=hooks, follow_redirects=True, timeout=_TIMEOUT)

    def check_request(self, request: httpx2.Request) -> None:
        if request.url.host == self.host:
            return
        if self.is_encrypted and request.url.scheme != "https":
            raise StepFailedError(
                SOURCE_ESCAPES, f"the hub redirects to {request.url.host} without encryption: it is not followed"
            )
        for address in _resolve(request.url.host, request.url.port or 443, literal_only=self.has_proxy):
            self._refuse(address, request.url.host)

    def check_response(self, response: httpx2.Response) -> None:
        """A name may resolve to another address when the connection is made than when it was judged."""
        stream = response.extensions.get("network_stream")
        peer = stream.get_extra_info("server_addr") if stream is not None else None
        if peer and not self.has_proxy and response.request.url.host != self.host:
            self._refuse(ipaddress.ip_address(str(peer[0]).partition("%")[0]), response.request.url.host)

    def _refuse(self, address: Address, host: str) -> None:
        mapped = getattr(address, "ipv4_mapped", None) or address
        allowed = mapped.is_global or (
            self.allows_loopback if mapped.is_loopback else self.allows_private and mapped.is_private
        )
        if allowed and not (
            mapped.is_link_local or mapped.is_multicast or mapped.is_unspecified or mapped in _METADATA_HOSTS
        ):
            return
        raise StepFailedError(
            SOURCE_ESCAPES,
            f"the hub redirects to {host} ({mapped}), an address inside the cluster or machine: it is not followed",
        )


def _resolve(host: str, port: int, *, literal_only: bool = False) -> list[Address]:
    try:
        return [ipaddress.ip_address(host.strip("[]"))]
    except ValueError:
        pass
    if literal_only:
        return []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        # The connection will fail in its turn and be told as unreachable.
        return []
    return [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
