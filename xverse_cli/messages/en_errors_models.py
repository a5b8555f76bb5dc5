"""English: errors of checking and deleting the models on this machine."""

from __future__ import annotations

# As in `en_errors`: (message, hint).
MODEL_ERRORS: dict[str, tuple[str, str]] = {
    "verify.no_store": (
        "{path} is no converted model; published files carry no digests to compare with.",
        "Make a store of it: xverse convert {model}",
    ),
    "verify.broken": (
        "Files of {model} are damaged or missing: {names}.",
        "Fetch just these again: xverse verify {model} --repair",
    ),
    "verify.gone": (
        "{names} of {model} cannot be fetched again: its source does not have them any more.",
        "Nothing was deleted. Fetch the newest revision instead: xverse pull {model}",
    ),
    "rm.demo": ("The demo is part of the program and is not deleted.", "See: xverse list"),
    "rm.directory": (
        "{path} is not kept by xverse, so it does not delete it.",
        "Delete it yourself if you want to. xverse list shows what xverse rm can delete.",
    ),
    "rm.not_ours": (
        "{model} is not a model of the XVERSE family ({path}).",
        "It belongs to another program: delete it with that, or with: hf cache",
    ),
    "rm.nothing": (
        "There is nothing of {model} to delete on this machine.",
        "See what is here: xverse list. A revision is named like this: owner/name@revision",
    ),
    "rm.two_parts": (
        "--precision means one store, --published what was fetched: that is not the same.",
        "Give one of them; without both, everything of that revision goes.",
    ),
    "rm.unasked": (
        "xverse rm asks before it deletes, and nobody is at the terminal.",
        "Add --yes, or look first with --dry-run.",
    ),
    "rm.busy": (
        "{model} is being fetched by another process; nothing was deleted of it.",
        "Stop that one first, or wait until it is done.",
    ),
}
