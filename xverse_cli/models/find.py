"""Turns what `--model` names into a directory on this machine. Never the network."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from xverse_cli.models.hub_cache import DEFAULT_REVISION, find_snapshot
from xverse_runtime.errors import ModelNotFoundError

DEMO = "demo"
HUB_ID = re.compile(r"(?P<repo>[\w][\w.-]*/[\w][\w.-]*)(@(?P<revision>[\w][\w./-]*))?", re.ASCII)


@dataclass(frozen=True)
class FoundModel:
    """A model directory; ``name`` is what users call it, ``None`` where the directory says it.

    ``revision`` is the branch, tag or commit of a Hub id that was asked for by name.
    """

    path: Path
    name: str | None = None
    revision: str | None = None


def find_model(model: str, precision: str | None = None) -> FoundModel:
    """The directory of ``model``: ``demo``, a local directory, or a Hub id in the Hub's cache.

    A local directory goes before a Hub id of the same spelling.

    Args:
        model: what the user wrote.
        precision: with which the model is to run; where a store was made of a Hub id at that
            revision, it goes before the published files. ``None`` wants the published files.

    Raises:
        ModelNotFoundError: ``model.is_a_file``, ``model.no_such_directory``, ``model.not_cached``,
            ``model.no_such_revision``, ``model.incomplete_download`` or ``model.unknown_name``.
    """
    if model == DEMO:
        from xverse_runtime.demo import demo_directory

        return FoundModel(demo_directory(), DEMO)
    path = Path(os.path.abspath(os.path.expanduser(model)))
    if os.path.isdir(path):  # unlike pathlib's, it takes every name a user may come up with
        return FoundModel(path)
    if os.path.exists(path):
        raise ModelNotFoundError("model.is_a_file", path=path, parent=path.parent)
    if looks_local(model):
        raise ModelNotFoundError("model.no_such_directory", path=path)
    match = HUB_ID.fullmatch(model)
    if match is None or ".." in model:
        raise ModelNotFoundError("model.unknown_name", model=model)
    repo, revision = match["repo"], match["revision"]
    if revision == DEFAULT_REVISION:
        revision = None
    if precision is not None:
        from xverse_cli.models.stores import find_store

        if store := find_store(repo, revision, precision):
            return FoundModel(store, repo, revision)
    return FoundModel(find_snapshot(repo, revision or DEFAULT_REVISION), repo, revision)


def find_present(model: str, precision: str | None = None) -> FoundModel:
    """As `find_model`, but a model of which files are missing is found too."""
    try:
        return find_model(model, precision)
    except ModelNotFoundError as error:
        match = HUB_ID.fullmatch(model)
        if error.code != "model.incomplete_download" or match is None:
            raise
        return FoundModel(Path(str(error.params["path"])), match["repo"], match["revision"])


def looks_local(model: str) -> bool:
    """Whether a name is spelt as a path is, rather than as a Hub id."""
    separators = {os.sep, os.altsep} - {None, "/"}
    return (
        model.startswith((".", "/", "~"))
        or any(separator in model for separator in separators if separator)
        or model.split("@")[0].count("/") > 1
        or model.endswith("/")
        or re.match(r"[A-Za-z]:", model) is not None
    )
