"""Putting damaged models right: broken files are fetched again, broken stores made again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from xverse_cli.host import Host
from xverse_cli.messages import text
from xverse_cli.models.hub_folder import HubFolder
from xverse_cli.models.inventory import stores
from xverse_cli.models.pull_flow import PullWish, pull_model
from xverse_runtime.errors import IntegrityError, ModelNotFoundError


def refetch(snapshot: Path, names: Sequence[str], host: Host) -> None:
    """Delete these files of a revision in the Hub's cache, and pull that revision.

    Branches stay where they are: a commit is pulled, which is the name of itself. Of files that no
    model needs, which other tools fetch too, the broken ones are gone then.

    Raises:
        ModelNotFoundError: ``pull.offline``, before anything is deleted; and what `pull_model`
            raises.
    """
    from xverse_cli.models.download.huggingface import is_offline
    from xverse_cli.models.pull import sole_puller

    folder, commit = HubFolder(snapshot.parent.parent), snapshot.name
    if is_offline():
        raise ModelNotFoundError("pull.offline", model=folder.repo)

    def waiting() -> None:
        host.streams.warn(text("pull.waiting", model=folder.repo))

    wish, offered = _who_has(folder, commit, host)
    if lost := [name for name in names if name not in offered]:
        raise IntegrityError("verify.gone", names=lost, model=folder.repo)
    with sole_puller(folder, waiting):
        for name in names:
            _delete(folder, snapshot / name, offered[name])
    pull_model(wish, host)


def _who_has(folder: HubFolder, commit: str, host: Host) -> tuple[PullWish, dict[str, str]]:
    """How to get a revision, and the digests of its files, before anything is deleted.

    ModelScope tells no commits: a snapshot from there is found by its branch, and has the same
    name as long as its list of files is the same.

    Raises:
        ModelNotFoundError: nobody has it.
    """
    branches = [name for name, one in folder.branches().items() if one == commit]
    wishes = [PullWish(f"{folder.repo}@{commit}", ask_licence=False, told=True)]
    wishes += [
        PullWish(f"{folder.repo}@{name}", source="modelscope", ask_licence=False, told=True)
        for name in branches
    ]
    errors: list[ModelNotFoundError] = []
    for wish in wishes:
        try:
            plan = pull_model(replace(wish, dry_run=True, must_reach=True), host).plan
        except ModelNotFoundError as error:
            errors.append(error)
            continue
        if plan is not None and plan.model.commit == commit:
            return wish, {file.name: file.digest for file in plan.model.files}
    raise (
        errors[0]
        if errors
        else ModelNotFoundError(
            "pull.no_such_revision", model=folder.repo, revision=commit, endpoint=wishes[0].source
        )
    )


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

    manifest = Manifest.read(ModelDirectory.open(store), sizes=False)
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


def refetch_store(store: Path, broken: Sequence[str], host: Host) -> bool:
    """Make the broken files of a store again, fetching what they are made of.

    Returns:
        Whether it was done: not without agreement, nor for a store that `xverse pull` would not
        make as it is: of another place, of parts in formats of their own, of another commit than
        its branch is by now.

    Raises:
        ModelNotFoundError: nobody has the model, or can be reached; nothing was changed.
        ResourceError: ``pull.disk_full``.
    """
    from xverse_runtime.model_dir import ModelDirectory
    from xverse_runtime.store.manifest import Manifest
    from xverse_runtime.store.precision import PRESETS

    made = next((one for one in stores() if one.path.resolve() == store.resolve()), None)
    if made is None or made.precision is None:
        return False
    manifest = Manifest.read(ModelDirectory.open(store), sizes=False)
    if manifest.precision != PRESETS[made.precision]:
        return False
    wish = PullWish(
        made.hub_id,
        precision=made.precision,
        delete_source=True,
        ask_licence=False,
        must_reach=True,
        told=True,
        damaged=tuple(broken),
    )
    plan = pull_model(replace(wish, dry_run=True), host).plan
    if plan is None or plan.model.commit != manifest.source.get("revision"):
        return False
    told = text("verify.refetch", names=broken, fetch_bytes=plan.fetch_bytes)
    host.streams.say(told)
    asked = host.streams.stdin_is_terminal and host.streams.stderr_is_terminal
    if asked and not host.streams.confirm(text("verify.refetch_question"), default=True):
        return False
    pull_model(wish, host)
    return True


def _delete(folder: HubFolder, name: Path, digest: str) -> None:
    """A name, and the blob it leads to: other revisions get that back with the pull."""
    blob = name.resolve()
    if blob.parent == folder.blobs.resolve():
        blob.unlink(missing_ok=True)
    (folder.blobs / digest).unlink(missing_ok=True)
    name.unlink(missing_ok=True)
