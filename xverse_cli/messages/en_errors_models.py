"""English: errors of getting, checking and deleting models."""

from __future__ import annotations

# As in `en_errors`: (message, hint).
MODEL_ERRORS: dict[str, tuple[str, str]] = {
    # Getting models.
    "pull.demo": (
        "The demo is part of the program: there is nothing to fetch.",
        "Use it: xverse chat --model demo",
    ),
    "pull.no_hub_id": (
        '"{model}" is no Hub id.',
        "Give owner/name or owner/name@revision, such as xverse/XVERSE-MoE-A4.2B-Chat, or the"
        " address of its page on huggingface.co, hf-mirror.com or modelscope.cn.",
    ),
    "pull.delete_without_precision": (
        "--delete-source has no meaning without --precision: nothing would be left.",
        "Say what to convert to, for example: --precision int4",
    ),
    "pull.endpoint": (
        "HF_ENDPOINT is {endpoint}, which is no address.",
        "Write it with its scheme: HF_ENDPOINT=https://{endpoint}",
    ),
    "pull.offline": (
        "{model} is not on this machine, and HF_HUB_OFFLINE forbids to fetch it.",
        "Unset HF_HUB_OFFLINE. Or try the built-in demo: xverse chat --model demo",
    ),
    "pull.no_such_model": (
        "There is no model {model} on {endpoint}, or not for everyone.",
        "Check the name. For a private model, set HF_TOKEN or log in: hf auth login",
    ),
    "pull.no_such_revision": (
        "{model} has no revision {revision} on {endpoint}.",
        "Check the name of the branch, tag or commit after the @.",
    ),
    "pull.no_model": (
        "{model} holds no model that can be run: no config.json with *.safetensors or"
        " pytorch_model*.bin.",
        "Is this the right repository?",
    ),
    "pull.gated": (
        "{model} is only given to those who have been granted access.",
        "Ask for it at {endpoint}/{model}, then set HF_TOKEN or log in: hf auth login",
    ),
    "pull.unauthorised": (
        "{host} does not accept your token for {name} (HTTP {status}).",
        "Set HF_TOKEN to a valid one, or log in anew: hf auth login",
    ),
    "pull.forbidden": (
        "{host} refuses {name} (HTTP {status}).",
        "May your token read it? A proxy or a mirror can refuse too: try another --source.",
    ),
    "pull.file_gone": (
        "{name} is not there any more ({host} says HTTP {status}).",
        "The repository has changed. Start again: what did not change is kept.",
    ),
    "pull.refused": ("{host} refuses {name} (HTTP {status}).", "Try another --source."),
    "pull.rate_limited": (
        "{endpoint} wants fewer requests for now (HTTP 429).",
        "Wait a few minutes, then start the same command again: what has come is kept."
        " A token gets more: hf auth login",
    ),
    "pull.server": (
        "The server gives no good answer for {name}: {detail}.",
        "Start the same command again later: what has come is kept. Or try another source:"
        " --source modelscope, or HF_ENDPOINT=https://MIRROR",
    ),
    "pull.unreachable": (
        "{name} cannot be reached: {detail}.",
        "Check the connection (HTTPS_PROXY is followed), then start the same command again: what"
        " has come is kept. Or try another source: --source modelscope, or HF_ENDPOINT=https://MIRROR",
    ),
    "pull.unreachable_too": (
        "{name} cannot be reached either: {detail}.",
        "Check the connection (HTTPS_PROXY is followed), then start the same command again: what"
        " has come is kept. Or name a mirror: HF_ENDPOINT=https://MIRROR",
    ),
    "offer.no_way": (
        "{model} cannot be fetched now: {detail}.",
        "Once there is a connection (HTTPS_PROXY is followed): {command}\n"
        "  (from a mirror: HF_ENDPOINT=https://MIRROR {command})\n"
        "Or try the built-in demo: xverse chat --model demo",
    ),
    "pull.no_socks": (
        "The proxy {proxy} is a SOCKS proxy, for which a library is missing.",
        "Install it: pip install PySocks. Or name an HTTP proxy in HTTPS_PROXY.",
    ),
    "pull.remote_changed": (
        "{name} has changed at its source while it was being fetched.",
        "Start the same command again: it looks anew, and keeps what did not change.",
    ),
    "pull.wrong_bytes": (
        "{name} came with wrong bytes twice: its SHA-256 is not the published one.",
        "Something on the way alters it. Try another source (--source, HF_ENDPOINT) or network.",
    ),
    "pull.shards_missing": (
        "{index} names weight files that the repository does not have: {names}.",
        "The repository is incomplete. Try another --source or revision.",
    ),
    "pull.too_large": ("{name} has {size_bytes}, which is too much for what it is.", ""),
    "pull.disk_full": (
        "Not enough space in {path}: {needed_bytes} needed, {free_bytes} free.",
        "Make room (xverse list, xverse rm), or put the cache elsewhere with HF_HOME (stores:"
        " XDG_DATA_HOME), then start the same command again: what has come is kept. For a large"
        " model, --precision int4 --delete-source needs the least.",
    ),
    "pull.not_writable": (
        "{path} cannot be written: {detail}.",
        "Check whose it is: ls -ld {path}. HF_HOME puts the cache elsewhere.",
    ),
    "pull.licence_unasked": (
        "Nobody is at the terminal to accept the licence of the weights.",
        "Read it with the model, then: {command} --accept-license",
    ),
    "pull.licence_declined": ("The licence was not accepted; nothing was fetched.", ""),
    # Checking and deleting them.
    "verify.no_store": (
        "{model} is no converted model; published files carry no digests to compare with.",
        "Make a store of it: xverse convert {model}",
    ),
    "verify.no_store_here": (
        "{model} is no converted model; published files carry no digests to compare with.",
        "A store carries them: xverse convert {model} --output {example}, then xverse verify"
        " {example}",
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
