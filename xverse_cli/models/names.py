"""What people write for a model: addresses of its page are understood, misspellings guessed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import parse_qs, unquote, urlsplit

# Whose configuration is known without their files.
KNOWN_MODELS = ("xverse/XVERSE-MoE-A4.2B-Chat", "xverse/XVERSE-MoE-A4.2B")
_HUB_HOSTS = ("huggingface.co", "hf.co", "hf-mirror.com")
_MODELSCOPE_HOSTS = ("modelscope.cn", "modelscope.com", "modelscope.ai")
_REVISION_AFTER = ("tree", "blob", "raw", "resolve", "commit", "commits", "view")
_LIKENESS = 0.75  # of difflib: a letter or two, or an owner that was left out
_NAME = re.compile(r"[\w][\w.-]*", re.ASCII)


def hub_id(model: str) -> str:
    """``owner/name`` or ``owner/name@revision`` of the address of a model's page or of its files.

    Everything else is returned as it is.
    """
    host, parts, query = _address(model)
    if host in _MODELSCOPE_HOSTS and parts[:1] == ["models"]:
        parts = parts[1:]
    elif host not in _HUB_HOSTS or parts[:1] in (["datasets"], ["spaces"]):
        return model
    if len(parts) < 2 or not all(_NAME.fullmatch(part) for part in parts[:2]):
        return model
    owner, name, *rest = parts
    if rest[:1] == ["file"]:  # ModelScope: file/view/<revision>/<path>
        rest = rest[1:]
    revision = rest[1] if len(rest) > 1 and rest[0] in _REVISION_AFTER else ""
    revision = revision or query.get("revision", query.get("Revision", [""]))[0]
    usual = revision in ("", "main", "master")
    return f"{owner}/{name}" if usual else f"{owner}/{name}@{revision}"


def is_on_modelscope(model: str) -> bool:
    """Whether this is the address of a page there."""
    return _address(model)[0] in _MODELSCOPE_HOSTS


def nearest(model: str, local: Iterable[str]) -> str | None:
    """The model that was probably meant: the demo, a known one or one of ``local``, if any is."""
    from difflib import SequenceMatcher

    known = list(dict.fromkeys(("demo", *KNOWN_MODELS, *local)))
    wanted, _, revision = model.strip().partition("@")
    if wanted in known:
        return None
    best, likeness = None, _LIKENESS
    for name in known:
        if _digits(wanted) not in ("", _digits(name)):  # sizes tell models apart
            continue
        # who leaves the owner out is compared with what is left
        whole = name if "/" in wanted else name.rpartition("/")[2]
        found = SequenceMatcher(None, wanted.lower(), whole.lower()).ratio()
        if found > likeness:
            best, likeness = name, found
    return f"{best}@{revision}" if best and revision else best


def _digits(name: str) -> str:
    return "".join(filter(str.isdigit, name))


def _address(model: str) -> tuple[str, list[str], dict[str, list[str]]]:
    """Host without its ``www.``, parts of the path and query of an address; nothing of a name."""
    model = model.strip()
    if "://" not in model:
        host = model.partition("/")[0].lower().removeprefix("www.")
        if host not in (*_HUB_HOSTS, *_MODELSCOPE_HOSTS):
            return "", [], {}
        model = f"https://{model}"
    try:
        url = urlsplit(model)
        host = (url.hostname or "").removeprefix("www.")
    except ValueError:
        return "", [], {}
    return host, [unquote(part) for part in url.path.split("/") if part], parse_qs(url.query)
