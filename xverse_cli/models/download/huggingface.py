"""The Hugging Face Hub, or the mirror that `HF_ENDPOINT` names, through huggingface_hub."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from xverse_cli.models.download.http import TransientError, reason, retry_after
from xverse_cli.models.download.patience import Patience
from xverse_cli.models.download.reach import check_reachable
from xverse_cli.models.download.remote import (
    Location,
    RemoteFile,
    RemoteModel,
    UnreachableError,
    no_such_model,
    no_such_revision,
    read_commit,
    read_file,
    refused,
    unreachable,
)
from xverse_runtime.errors import ModelNotFoundError, UsageError, XverseError

LONG_WAIT_S = 10
TRIES = 3  # for what is known about a model; files get more patience


@dataclass(frozen=True)
class HuggingFace:
    """Metadata, addresses and credentials of the Hub."""

    patience: Patience
    sleep: Callable[[float], None] = time.sleep
    name: str = "huggingface"

    @property
    def endpoint(self) -> str:
        from huggingface_hub import constants

        return str(constants.ENDPOINT)

    def describe(self, repo: str, revision: str) -> RemoteModel:
        """See `Source`."""
        from huggingface_hub import HfApi

        if "://" not in self.endpoint:
            raise UsageError("pull.endpoint", endpoint=self.endpoint)
        try:
            check_reachable(self.endpoint, self.patience.ask_s)
        except TransientError as error:
            raise unreachable(self.endpoint, str(error), reached=False) from None
        api = HfApi(endpoint=self.endpoint, library_name="xverse")
        info = self._patiently(
            lambda: api.model_info(
                repo, revision=revision, files_metadata=True, timeout=self.patience.stall_s
            ),
            repo,
            revision,
        )
        try:
            files = tuple(_remote_file(one) for one in info.siblings or ())
            return RemoteModel(repo, revision, read_commit(info.sha), files, _licence(info))
        except ValueError as error:
            raise unreachable(repo, f"it lists {error}", reached=True) from None

    def locate(self, model: RemoteModel, file: RemoteFile) -> Location:
        """See `Source`."""
        from huggingface_hub import get_token, hf_hub_url

        url = hf_hub_url(model.repo, file.name, revision=model.commit, endpoint=self.endpoint)
        token = get_token()
        return Location(url, {"Authorization": f"Bearer {token}"} if token else {})

    def _patiently(self, ask: Callable[[], Any], repo: str, revision: str) -> Any:
        for attempt in range(1, TRIES + 1):
            try:
                return ask()
            except Exception as error:
                final, wait = _meaning(error, repo, revision, self.endpoint)
                # who has to wait for long had better know it, or ask another source
                long = wait is not None and wait > LONG_WAIT_S
                done = attempt == TRIES or long or _found_nobody(error)
                if done or not isinstance(final, UnreachableError):
                    raise final from None
                self.sleep(self.patience.wait(attempt, wait))
        raise AssertionError


def _found_nobody(error: Exception) -> bool:
    """Whether connecting took too long, as it does where the Hub is blocked: more tries would only
    keep the user from another source. It is told by its name, the same with requests and httpx."""
    return any(kind.__name__ == "ConnectTimeout" for kind in type(error).__mro__)


def is_offline() -> bool:
    """Whether `HF_HUB_OFFLINE` forbids the network."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _remote_file(sibling: Any) -> RemoteFile:
    lfs = sibling.lfs
    sha256 = lfs.get("sha256") if isinstance(lfs, dict) else getattr(lfs, "sha256", None)
    return read_file(sibling.rfilename, sibling.size, sha256, sibling.blob_id)


def _licence(info: Any) -> str | None:
    card = getattr(info, "card_data", None)
    told = getattr(card, "license_name", None) or getattr(card, "license", None)
    tags = [tag.partition(":")[2] for tag in info.tags or () if tag.startswith("license:")]
    return str(told) if told else tags[0] if tags else None


def _meaning(
    error: Exception, repo: str, revision: str, endpoint: str
) -> tuple[XverseError, float | None]:
    """What an error of huggingface_hub tells a user, and for how long a server asks to wait."""
    from huggingface_hub import errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return ModelNotFoundError("pull.offline", model=repo), None
    if isinstance(error, errors.HFValidationError):
        return ModelNotFoundError("model.unknown_name", model=repo), None
    if isinstance(error, errors.GatedRepoError):
        return ModelNotFoundError("pull.gated", model=repo, endpoint=endpoint), None
    if isinstance(error, errors.RevisionNotFoundError):
        return no_such_revision(repo, revision, endpoint), None
    if isinstance(error, errors.RepositoryNotFoundError):
        return no_such_model(repo, endpoint), None
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if status is None:
        return unreachable(endpoint, reason(error), reached=False), None
    if status == 429:
        wait = retry_after(response.headers.get("retry-after")) if response is not None else None
        return UnreachableError("pull.rate_limited", endpoint=endpoint), wait
    if status == 404:
        return no_such_model(repo, endpoint), None
    if status < 500:
        return refused(status, repo, urlsplit(endpoint).netloc), None
    return unreachable(repo, f"HTTP {status}", reached=True), None
