"""ModelScope through its plain HTTP API: no library, no account for public models.

It has the same ids as the Hub. Of a model it tells path, size and SHA-256 of each file, but no
commit of the whole, so a snapshot is called by the digest of that list.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from xverse_cli.models.download.http import Connections, StatusError, TransientError
from xverse_cli.models.download.patience import Patience
from xverse_cli.models.download.reach import check_reachable
from xverse_cli.models.download.remote import (
    Location,
    RemoteFile,
    RemoteModel,
    no_such_model,
    no_such_revision,
    read_file,
    refused,
    unreachable,
)

TRIES = 3
MOST_BYTES = 2**25  # of an answer
_MAIN = {"main": "master"}  # what the Hub calls main


@dataclass(frozen=True)
class ModelScope:
    """``endpoint``: a URL without a slash at its end."""

    endpoint: str
    patience: Patience
    sleep: Callable[[float], None] = time.sleep
    name: str = "modelscope"

    def describe(self, repo: str, revision: str) -> RemoteModel:
        """See `Source`."""
        query = urlencode({"Revision": _MAIN.get(revision, revision), "Recursive": "true"})
        url = f"{self.endpoint}/api/v1/models/{quote(repo)}/repo/files?{query}"
        entries = self._files(url, repo, revision)
        try:
            files = tuple(
                read_file(one["Path"], one.get("Size"), one.get("Sha256"), None)
                for one in entries
                if one.get("Type") != "tree" and one.get("Sha256")
            )
        except ValueError as error:
            raise unreachable(repo, f"it lists {error}", reached=True) from None
        listed = "\n".join(sorted(f"{file.sha256} {file.name}" for file in files))
        commit = hashlib.sha1(listed.encode(), usedforsecurity=False).hexdigest()
        return RemoteModel(repo, revision, commit, files)

    def locate(self, model: RemoteModel, file: RemoteFile) -> Location:
        """See `Source`. The branch may move on: the file's SHA-256 tells."""
        revision = _MAIN.get(model.revision, model.revision)
        query = urlencode({"Revision": revision, "FilePath": file.name})
        return Location(f"{self.endpoint}/api/v1/models/{quote(model.repo)}/repo?{query}", {})

    def _files(self, url: str, repo: str, revision: str) -> list[dict[str, Any]]:
        connections = self.patience.connections()
        try:
            check_reachable(self.endpoint, self.patience.ask_s)
            files = self._ask(connections, url)["Data"]["Files"]
            if files is None:
                raise no_such_revision(repo, revision, self.endpoint)
            return [one for one in files if isinstance(one, dict) and one.get("Path")]
        except StatusError as error:
            if error.status == 404:
                raise no_such_model(repo, self.endpoint) from None
            raise refused(error.status, repo, error.host) from None
        except TransientError as error:
            raise unreachable(self.endpoint, str(error), reached=error.reached) from None
        except (KeyError, TypeError, ValueError):
            # what it says about a model that it does not have depends on the day
            raise no_such_model(repo, self.endpoint) from None
        finally:
            connections.close()

    def _ask(self, connections: Connections, url: str) -> Any:
        for attempt in range(1, TRIES + 1):
            try:
                body = connections.get(url, {})
                data = b""
                while (piece := body.read(2**16)) and len(data) < MOST_BYTES:
                    data += piece
                body.close(reusable=True)
                return json.loads(data)
            except TransientError as error:
                if attempt == TRIES:
                    raise
                self.sleep(self.patience.wait(attempt, error.retry_after))
        raise AssertionError
