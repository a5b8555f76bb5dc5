"""English: errors."""

from __future__ import annotations

from xverse_cli.messages.en_errors_chat import CHAT_ERRORS
from xverse_cli.messages.en_errors_models import MODEL_ERRORS
from xverse_cli.messages.en_errors_plan import PLAN_ERRORS
from xverse_cli.messages.en_simulate import SIMULATE_ERRORS

_GET = (
    "Fetch it: xverse pull {model}\n"
    "  (from a mirror: HF_ENDPOINT=https://MIRROR xverse pull {model})\n"
    "Or try the built-in demo: xverse chat --model demo"
)
_AGAIN = (
    "The file is damaged or its download was cut short. Of a model from the Hub, fetch what is"
    " broken again: xverse verify MODEL --repair"
)
_CONVERT = (
    "Make again what is broken in it: xverse verify MODEL --repair. Or remove it, then make it"
    " again: xverse rm MODEL --precision P, then xverse convert MODEL --precision P; or, without"
    " its source, xverse pull MODEL --precision P --delete-source. xverse list names both."
)
_HELP = "The options: {command} --help"

# Error code: (message, hint). The hint says what to do next; it may be empty.
ERRORS: dict[str, tuple[str, str]] = {
    **CHAT_ERRORS,
    **MODEL_ERRORS,
    **PLAN_ERRORS,
    **SIMULATE_ERRORS,
    # Finding the model.
    "model.not_cached": ("The model {model} is not on this machine (looked in {path}).", _GET),
    "model.no_such_revision": (
        "The model {model} is here, but not its revision {revision} (present: {present}).",
        "Fetch it: xverse pull {model}@{revision}",
    ),
    "model.incomplete_download": (
        "The download of {model} is incomplete: {names} not there ({path}).",
        "Finish it with: xverse pull {model}\nOr try the built-in demo: xverse chat --model demo",
    ),
    "model.packing_begun": (
        "Fetching {model} and packing it to {precision} was interrupted.",
        "Go on with it: xverse pull {model} --precision {precision} --delete-source\n"
        "Or try the built-in demo: xverse chat --model demo",
    ),
    "model.no_such_directory": (
        "There is no model directory {path}.",
        "Check the path, or try the built-in demo: xverse chat --model demo",
    ),
    "model.is_a_file": (
        "{path} is a file; a model is a directory.",
        "Give the directory that holds config.json, perhaps: --model {parent}",
    ),
    "model.unknown_name": (
        'There is no model "{model}": no such directory here, and not a Hub id (owner/name).',
        "Name a directory, a Hub id such as xverse/XVERSE-MoE-A4.2B-Chat, or demo.",
    ),
    "model.not_a_directory": ("{path} is not a directory.", "A model is a directory."),
    "model.no_config": (
        "There is no config.json in {path}.",
        "Give the directory that holds the model's config.json and weights.",
    ),
    "model.no_weights": (
        "There are no weights in {path}.",
        "Expected *.safetensors or pytorch_model*.bin. Is the download complete?",
    ),
    # Reading the model.
    "config.not_json": ("{path} is not valid JSON: {detail}.", _AGAIN),
    "config.missing_key": ("{path} lacks the key {key}.", "Is this a model of the XVERSE family?"),
    "config.bad_value": (
        "{path} says {key} = {value}; expected {expected}.",
        "Is this a model of the XVERSE family? If so, download that file again.",
    ),
    "config.unsupported": (
        "The model's configuration says {key} = {value}, which is not supported"
        " (supported: {supported}).",
        "Only models of the XVERSE family can be run.",
    ),
    "path.outside": (
        "{name} leads out of the model directory {path}; it is not read.",
        "Do not use this model unless you know why it points elsewhere.",
    ),
    "path.unreadable": ("{path} cannot be read: {detail}.", "Check who may read it: ls -l {path}"),
    "path.missing": ("{name} is not there ({path}).", "Download the model again."),
    "checkpoint.corrupt": ("{path} cannot be read: {detail}.", _AGAIN),
    "checkpoint.unsafe_pickle": (
        "{path} holds more than weights and was not opened: {detail}.",
        "Such a file can run any program. Get the model from a source that you trust.",
    ),
    "checkpoint.index_invalid": ("The list of weight files {path} is wrong: {detail}.", _AGAIN),
    "checkpoint.missing_shards": (
        "Weight files are missing in {path}: {names}.",
        "The download is incomplete: download the model again.",
    ),
    "checkpoint.mismatch": (
        "The weights in {path} do not fit the configuration. Missing: {missing}."
        " Surplus: {surplus}. Of another shape: {misshaped}.",
        "config.json and the weights must come from the same model.",
    ),
    "checkpoint.bad_dtype": ("The tensor {tensor} has the unsupported type {dtype}.", ""),
    "tokenizer.missing": (
        "There is no tokenizer in {path}.",
        "Expected tokenizer.json or tokenizer.model. Is the download complete?",
    ),
    "tokenizer.invalid": ("The tokenizer {path} cannot be read: {detail}.", _AGAIN),
    "tokenizer.unsupported": ("The tokenizer {path} is not supported: {detail}.", ""),
    "checkpoint.not_finite": (
        "The tensor {tensor} holds values that are no finite numbers: {detail}.",
        _AGAIN,
    ),
    # Converted models.
    "store.manifest_invalid": ("The converted model {path} is damaged: {detail}.", _CONVERT),
    "store.file_missing": ("{name} is missing in the converted model {path}.", _CONVERT),
    "store.file_size": (
        "{name} in the converted model {path} has {found} bytes instead of {expected}.",
        _CONVERT,
    ),
    "store.hash": ("{name} in the converted model {path} has changed.", _CONVERT),
    "store.tensors": ("{name} does not hold what the model needs: {tensors}.", _CONVERT),
    "store.newer": (
        "The converted model {path} has format {version}; this program knows up to {supported}.",
        "Update the program, or convert the model again.",
    ),
    "store.byte_order": (
        "The converted model {path} was made for machines of another byte order ({found}).",
        "Convert the model on this machine.",
    ),
    "store.written_wrong": (
        "{name} in {path} is not as it was written.",
        "Start the conversion again: it makes this file anew. If it fails again, check the disk.",
    ),
    "store.unlisted": (
        "{path} holds files that no conversion wrote there: {names}.",
        "Move them elsewhere: nothing says whether they are as they should be.",
    ),
    "store.is_source": (
        "{path} is a converted model already.",
        "Only published weights can be converted; use this one as it is: --model {path}",
    ),
    "store.target_exists": ("{path} exists already.", "Choose another name, or remove it first."),
    "store.busy": ("Another conversion is writing to {path}.", "Wait until it is done."),
    "store.width": ("This model cannot be converted: {detail}.", ""),
    "store.disk_full": (
        "Not enough space in {path}: {needed_bytes} needed, {free_bytes} free.",
        "Make room, then start the conversion again: it goes on where it stopped.",
    ),
    "store.not_writable": ("{path} cannot be written: {detail}.", "Choose another place."),
    # Chat templates.
    "template.unknown": (
        'There is no chat template "{name}".',
        "Choose one of {choices}, or name a Jinja file.",
    ),
    "template.file_unreadable": ("The chat template {path} cannot be read: {detail}.", ""),
    "template.jinja_invalid": ("The chat template ({source}) is not valid Jinja: {detail}.", ""),
    "template.no_messages": (
        "The chat template ({source}) never uses the messages: what you say would be dropped.",
        "Is it a template at all? Choose human-assistant, system-user-assistant or raw.",
    ),
    "template.render_failed": (
        "The chat template failed: {detail}.",
        "Choose another one with --chat-template, or complete plain text with --raw.",
    ),
    "template.invalid_messages": (
        "The chat template cannot take these messages: {detail}.",
        "",
    ),
    # Devices and memory.
    "offload.stuck_upload": (
        "The copy of experts {experts} of layer {layer} to the GPU has not ended after {seconds}"
        " seconds.",
        "Look for errors of the GPU in the system log (dmesg) and start again; --device cpu does"
        " without it.",
    ),
    "offload.stuck_computations": (
        "The GPU has not ended its computations of layer {layer} after {seconds} seconds.",
        "Look for errors of the GPU in the system log (dmesg) and start again; --device cpu does"
        " without it.",
    ),
    "device.unknown": ('There is no device "{device}".', "Choose one of {choices}."),
    "device.unavailable": (
        "The device {device} cannot be used: {reason}.",
        "Run on the processor: --device cpu",
    ),
    "backend.unavailable": ("The kernel backend {backend} cannot be used: {reason}.", ""),
    "precision.unsupported": (
        "The precision {precision} is not supported here (supported: {supported}).",
        "Leave the choice to the program: --precision auto",
    ),
    "precision.needs_conversion": (
        "The model has to be converted before it can run in {precision}.",
        "Convert it once: xverse convert {model} --precision {precision}",
    ),
    "precision.other_store": (
        "The model was converted to {stored}; it cannot run in {precision}.",
        "Leave the choice to the program: --precision auto",
    ),
    "memory.insufficient": (
        "Not enough memory on {device}: {needed_bytes} needed, {free_bytes} free.",
        "Close other programs, choose a smaller --context, or try: --model demo",
    ),
    "memory.exhausted": (
        "The memory of {device} is full. Needed: {needed_bytes}; free: {free_bytes}; held by this"
        " program: {held_bytes}, by drivers and other programs: {others_bytes} ({detail}).",
        "Close other programs that use it, or choose a smaller --context.",
    ),
    # Routing traces.
    "trace.unwritable": ("The routing trace {path} cannot be written: {detail}.", ""),
    "trace.unreadable": ("The routing trace {path} cannot be read: {detail}.", ""),
    "trace.disk": (
        "The routing trace {path} could not be written to its end: {detail}.",
        "Is the disk full? What is in the file so far can be read, but for a last part.",
    ),
    "trace.no_experts": ("{model} has no experts to choose from.", "Leave out --record-routing."),
    "trace.not_local": ("Only models that run on this machine can be recorded.", ""),
    "trace.shape": (
        "A trace of {experts} experts in each of {layers} layers cannot be recorded.",
        "Traces hold up to 256 experts of up to 1024 layers.",
    ),
    "trace.invalid": (
        "{path} is not a whole routing trace: {detail} (byte {offset}).",
        "Record it again: xverse generate --record-routing FILE",
    ),
    # Generating.
    "context.overflow": (
        "The prompt has {prompt_tokens} tokens; the context holds {context_length}.",
        "Shorten the prompt.",
    ),
    "batch.no_logprobs": (
        "Several prompts at once give no log-probabilities.",
        "Leave out --logprobs, or give one prompt.",
    ),
    "batch.sequences": (
        "{sequences} replies at a time is not possible.",
        "Choose 1 or more.",
    ),
    "batch.sampling": (
        "Several prompts at once need --top-k from 1 to 64, or --temperature 0; not {top_k}.",
        "Choose --top-k 64.",
    ),
    "context.too_long": (
        "A context of {requested} tokens is more than the model can take ({maximum}).",
        "Choose --context {maximum} or less.",
    ),
    "sampling.non_finite": (
        "The model's output at token {step} is not a number.",
        "Try a higher precision: --precision fp32. If it stays, the weights are damaged.",
    ),
    "prompt.empty": ("The prompt has no tokens.", "Write something into it."),
    "prompt.bad_token": (
        "The prompt has the token {token_id}; the model knows {vocab_size} tokens.",
        "The tokenizer and the weights must come from the same model.",
    ),
    "sampling.bad_value": ("{name} is {value}; expected {expected}.", ""),
    # The command line's own.
    "convert.delete_unasked": (
        "--delete-source asks before it deletes, and nobody is at the terminal.",
        "Add --yes.",
    ),
    "convert.output_needed": (
        "Only a Hub id has a place of its own for its stores.",
        "Say where this one goes, for example: --output {example}",
    ),
    "convert.demo_stays": ("The demo is part of the program; its weights are not deleted.", ""),
    "input.too_large": (
        "{source} holds more than {most_bytes}, far beyond any context.",
        "Shorten it, or give it in parts.",
    ),
    "bench.two_models": ("--model and --synthetic name two models.", "Give one of them."),
    "bench.overflow": (
        "{prompt_tokens} tokens of prompt and {new_tokens} new ones are more than the context of"
        " {context_length} holds.",
        "Choose fewer with --prompt-tokens or --new-tokens, or a larger --context.",
    ),
    "bench.not_local": ("Only models that run on this machine can be measured.", ""),
    "bench.precision": (
        "Synthetic weights come in {supported}, not in {precision}.",
        "Choose one: xverse bench --synthetic a4.2b --precision int4",
    ),
    "settings.bad_value": ('{where}: "{value}" is not {expected}.', ""),
    "settings.unknown_key": (
        "Unknown key {key} in the settings file {path}.",
        "Known keys: {known}",
    ),
    "settings.unknown_key_near": (
        "Unknown key {key} in the settings file {path}.",
        "Did you mean {nearest}?",
    ),
    "settings.file_unreadable": ("The settings file {path} cannot be read: {detail}.", ""),
    "settings.file_invalid": ("The settings file {path} is not valid TOML: {detail}.", ""),
    "input.not_utf8": (
        "{source} is not UTF-8 text: byte {offset} is wrong.",
        "Convert it first, for example: iconv -f GB18030 -t UTF-8",
    ),
    "input.unreadable": ("{source} cannot be read: {detail}.", ""),
    "input.two_dashes": ('"-" may stand only once: there is one standard input.', ""),
    "input.empty": (
        "There is no prompt.",
        'Give one: xverse generate "What is a mixture of experts?"\n'
        "or pipe it in: echo 'What is this?' | xverse generate",
    ),
    "input.system_with_raw": ("--system has no meaning with --raw.", ""),
    "input.logprobs_without_json": ("--logprobs are only shown with --json.", "Add --json."),
    "usage": ("{detail}", _HELP),
}
