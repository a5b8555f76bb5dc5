"""Putting damaged models right: broken files are fetched again, broken stores made again."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from xverse_cli.host import Host
from xverse_cli.messages import text
from xverse_cli.models.hub_folder import HubFolder
from xverse_runtime.errors import ModelNotFoundError


def refetch(snapshot: Path, names: Iterable[str], host: Host) -> None:
    """Delete these files of a revision in the Hub's cache, and pull that revision.

    Branches stay where they are: a commit is pulled, which is the name of itself.

    Raises:
        ModelNotFoundError: ``pull.offline``, before anything is deleted; and what `pull_model`
            raises.
    """
    from xverse_cli.models.download.huggingface import is_offline
    from xverse_cli.models.pull import sole_puller
    from xverse_cli.models.pull_flow import PullWish, pull_model

    folder, commit = HubFolder(snapshot.parent.parent), snapshot.name
    if is_offline():
        raise ModelNotFoundError("pull.offline", model=folder.repo)

    def waiting() -> None:
        host.streams.warn(text("pull.waiting", model=folder.repo))

    with sole_puller(folder, waiting):
        for name in names:
            _delete(folder, snapshot / name)
    pull_model(PullWish(f"{folder.repo}@{commit}", accept_licence=True), host)


def remake(store: Path, host: Host) -> bool:
    """Convert again what a damaged store was made of.

    Returns:
        Whether it was done: only with the same published weights on this machine, whole.
    """
    from xverse_cli.commands import convert
    from xverse_cli.models.hub_cache import find_snapshot
    from xverse_cli.models.remove import remove_store
    from xverse_runtime.model_dir import ModelDirectory
    from xverse_runtime.store.manifest import Manifest

    manifest = Manifest.read(ModelDirectory.open(store))
    name, commit = manifest.source.get("name", ""), manifest.source.get("revision", "")
    try:
        find_snapshot(name, commit or "?")
    except ModelNotFoundError:
        return False
    parts = manifest.precision
    remove_store(store)
    convert.make_store(
        convert.Request(
            f"{name}@{commit}",
            parts.experts,
            parts.attention,
            parts.head,
            str(store),
            threads=None,
            delete_source=False,
            yes=True,
        ),
        host,
    )
    return True


def _delete(folder: HubFolder, name: Path) -> None:
    """A name, and the blob it leads to: other revisions get that back with the pull."""
    blob = name.resolve()
    if blob.parent == folder.blobs.resolve():
        blob.unlink(missing_ok=True)
    name.unlink(missing_ok=True)
