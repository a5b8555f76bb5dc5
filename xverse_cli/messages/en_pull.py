"""English: getting models."""

from __future__ import annotations

PULL_TEXTS: dict[str, str] = {
    "help.pull": "Fetch a model, or go on fetching it. Every file is checked.",
    "help.pull_model": "A Hub id: owner/name or owner/name@revision; otherwise the default model.",
    "help.pull_precision": "Convert it too: bf16, int8, int4, or auto (see xverse convert).",
    "help.pull_delete_source": "With --precision: pack each weight file as it comes and delete it,"
    " so that the disk never holds more than the store and two files.",
    "help.pull_source": "Where from: huggingface (HF_ENDPOINT names a mirror), modelscope, or auto:"
    " the Hub, and ModelScope where it cannot be reached.",
    "help.pull_jobs": "Connections at a time.",
    "help.accept_license": "Accept the licence of the weights without being asked.",
    "help.dry_run": "Show what would be fetched and whether it fits; write nothing.",
    "help.pull_json": "Print one JSON object instead of the path.",
    "pull.asking_huggingface": "Waiting for {endpoint} to answer about {model} … Where it is"
    " blocked: --source modelscope, or HF_ENDPOINT=https://MIRROR",
    "pull.asking_modelscope": "Waiting for {endpoint} to answer about {model} …",
    "pull.looking": "Looking at the model and at this machine …",
    "pull.plan": "{model}, revision {revision} (commit {commit}), from {endpoint}",
    "pull.plan_files": "  {files} files, {weights} of them weights: {total_bytes};"
    " to fetch: {fetch_bytes}",
    "pull.plan_resumed": "  {here_bytes} of it are here already",
    "pull.resuming": "Going on with {model}: {here_bytes} of {total_bytes} are here already.",
    "pull.resuming_packed": "Going on with {model}, to be packed to {precision}: {here_bytes} of"
    " {total_bytes} have come.",
    "pull.stalled": "Stalled: nothing has come for {seconds} s.",
    "pull.stalled_retry": "Stalled: {reason}; trying again in {seconds} s.",
    "pull.plan_store": "  a converted model, to be run as it is",
    "pull.plan_converted": "  to be converted to {precision} afterwards: {size_bytes}",
    "pull.plan_streamed": "  to be converted to {precision} as it comes, each weight file deleted"
    " once it is packed: {size_bytes}",
    "pull.plan_disk": "  disk: {needed_bytes} needed in {path}, {free_bytes} free",
    "pull.licence": "Licence of the weights: {licence}. The weights of XVERSE models are under"
    " the vendor's Model License Agreement (Apache-2.0 is that of the code): open to academic"
    " research, free for commercial use on application to opensource@xverse.cn. The models may say"
    " things that are wrong, biased or offensive; the vendor takes no responsibility for misuse.",
    "pull.licence_untold": "not told by the source",
    "pull.licence_accepted": "Licence of the weights: {licence}; you accepted it on {when}.",
    "pull.licence_question": "Do you accept the licence? [y/N]",
    "fit.machine": "This machine: {memory_bytes} memory, {gpu}. Needed with a context of {context}"
    " tokens:",
    "fit.gpu": "{name} with {size_bytes}",
    "fit.no_gpu": "no GPU",
    "fit.row": "  {precision} {weights} weights, {cache} cache: {verdict}",
    "fit.on_gpu": "fits the GPU",
    "fit.in_memory": "fits the memory",
    "fit.too_large": "larger than the memory: read from the disk all the time, very slow",
    "fit.rate": "about {rate} tokens/s",
    "fit.rate_unknown": "speed unknown",
    "fit.with_rate": "{verdict}, {rate}",
    "fit.advice": "Best here: --precision {precision}: {quality}. With --delete-source it takes the"
    " least disk.",
    "fit.faster": "Faster: --precision {precision}: {quality}.",
    "quality.published": "the published weights as they are",
    "quality.light": "rounded so little that replies hardly change",
    "quality.strong": "a third of the size; rounded more, which changes replies somewhat"
    " (docs/quantisation.md)",
    "fit.nothing": "It is too large for this machine at every precision. The demo runs everywhere:"
    " xverse chat --model demo",
    "offer.question": "Fetch it now ({fetch_bytes})? [y/N]",
    "offer.question_packed": "Fetch it now? [y/{keys}/N]",
    "offer.published": "  y: as published, {fetch_bytes} on disk, {rate}",
    "offer.packed": "  {answer}: packed to {precision} as it comes, {size_bytes} on disk, {rate}:"
    " {quality}",
    "offer.packed_best": "  {answer}: packed to {precision} as it comes, {size_bytes} on disk,"
    " {rate}: {quality} (best here)",
    "offer.go_on": "Go on with it? {here_bytes} of {total_bytes} have come, {fetch_bytes} are still"
    " to come. [Y/n]",
    "pull.bar_total": "together",
    "pull.bar_checking": "{name} (checking)",
    "pull.line": "{done_bytes} of {total_bytes} ({percent} %), {rate_bytes}/s, {left} left,"
    " {files} files done",
    "pull.done": "Fetched and checked: {model} ({size_bytes}). Talk to it: xverse chat -m {model}",
    "pull.talk": "Talk to it: xverse chat -m {model}",
    "pull.up_to_date": "Everything is here and up to date: {model} ({size_bytes}). Its bytes were"
    " checked when they came; to check them now: xverse verify {model}",
    "pull.store_there": "Converted already: {path}",
    "pull.kept": "Nobody can be reached ({detail}); the model is here: {path}",
    "pull.waiting": "Another process is fetching {model}; waiting for it.",
    "pull.resume": "What has come is kept. To go on: {command}",
    "pull.retrying": "{name}: {reason}; trying again in {seconds} s.",
    "pull.no_ranges": "{name}: the server sends no parts of files, so it comes over one connection,"
    " and after an interruption it is sent from its beginning.",
    "pull.other_source": "{name}: {reason}; going on from another source that has the same bytes.",
    "pull.falling_back": "{source} ({endpoint}) cannot be used: {detail}. Trying {other}.",
    "pull.wrong_once": "{name}: wrong bytes have come (SHA-256 differs); fetching it once more.",
    "pull.stays": "{revision} has moved on from {old} to {new} since this download began; it goes"
    " on with {old}. Pull again afterwards for {new}.",
    "pull.moved_on": "{revision} has moved on from {old} to {new}, and {old} is gone. Files that"
    " have changed are fetched anew.",
}
