"""English."""

from __future__ import annotations

from xverse_cli.messages.en_chat import CHAT_TEXTS
from xverse_cli.messages.en_doctor import DOCTOR_TEXTS
from xverse_cli.messages.en_errors import ERRORS
from xverse_cli.messages.en_pull import PULL_TEXTS
from xverse_cli.messages.en_simulate import SIMULATE_TEXTS
from xverse_cli.messages.en_usage import USAGE_TEXTS

__all__ = ["DETAILS", "ERRORS", "TEXTS"]

DETAILS: dict[str, str] = {}  # they are in English

TEXTS: dict[str, str] = {
    **CHAT_TEXTS,
    **DOCTOR_TEXTS,
    **PULL_TEXTS,
    **SIMULATE_TEXTS,
    **USAGE_TEXTS,
    "error": "error: {message}",
    "error.at": "error: {place}: {message}",
    "error.did_you_mean": "Did you mean {nearest}?",
    "error.unexpected": "unexpected {kind}: {detail}",
    "error.unexpected_hint": "This is a bug. XVERSE_DEBUG=1 shows where it happened.",
    "error.memory": "out of memory",
    "error.system": "{problem}: {place}",
    "detail.original": "{words}",
    "interrupted": "Interrupted.",
    "ask.again": "That is none of the answers: {answers}.",
    "list.separator": ", ",
    "list.more": " and {count} more",
    "list.none": "none",
    "size.bytes": "{count} bytes",
    "size.unknown": "unknown",
    "duration.seconds": "{seconds} s",
    "duration.minutes": "{minutes} min",
    "duration.hours": "{hours} h {minutes} min",
    "version": "xverse {version}",
    # What was expected of a value.
    "expected.not": '"{value}" is not {expected}',
    "expected.number_from": "a number of at least {minimum}",
    "expected.number_above": "a number above {minimum}",
    "expected.number_from_to": "a number from {minimum} to {maximum}",
    "expected.number_above_to": "a number above {minimum}, at most {maximum}",
    "expected.integer_from": "a whole number of at least {minimum}",
    "expected.integer_from_to": "a whole number from {minimum} to {maximum}",
    "expected.choice": "one of {choices}",
    "expected.bytes": "an amount of memory, for example 6GiB",
    "expected.text": "a text of at least one character",
    "settings.no_such_file": "no such file",
    "settings.misspelt": "{name} is not a setting; did you mean {nearest}?",
    "input.prompt_part": "The prompt",
    "input.stdin": "Standard input",
    "input.line": "line {number}",
    "output.stdout": "standard output",
    "input.still_waiting": "Still waiting for standard input to end; </dev/null gives none.",
    "input.waiting": "Waiting for text on standard input (Ctrl-D ends it).",
    # Help.
    "help.app": "Run and talk to the XVERSE mixture-of-experts models on your own machine.",
    "help.start": "Start with: xverse chat --model demo",
    "help.version": "Show the version and leave.",
    "help.generate": "Answer one prompt, or continue a text with --raw."
    " The prompt, --file and piped input are joined by blank lines.",
    "help.chat": "Talk to a model. Piped input is taken line by line, one message a line.",
    "help.prompt": 'The prompt; "-" stands for standard input.',
    "help.file": "Add the content of a file to the prompt (may be repeated).",
    "help.raw": "Continue the prompt as plain text, without a chat template.",
    "help.stop": r"End the reply before this text (may be repeated; \n and \t are escapes).",
    "help.logprobs": "With --json: log-probabilities, with this many alternatives a token.",
    "help.json": "Print one JSON object instead of the text.",
    "help.verbose": "Say more on standard error; twice also shows tracebacks.",
    "help.quiet": "Say nothing on standard error but errors.",
    "help.model": "A Hub id, a model directory, or demo.",
    "help.device": "Where to compute: auto, cpu or cuda.",
    "help.precision": "Precision: auto, fp32, bf16, fp16, int8 or int4.",
    "help.context": "Most tokens that prompt and reply may have together.",
    "help.chat_template": "Chat format: human-assistant, system-user-assistant, raw,"
    " or a Jinja file.",
    "help.kv": "What keys and values are kept in: auto, bf16, or int8, which takes half"
    " the memory.",
    "help.threads": "Processor threads to compute with.",
    "help.backend": "Kernels to compute with: auto, triton (GPU), cpu (packed weights)"
    " or reference (plain torch).",
    "help.cuda_graph": "Replay decoding steps as CUDA graphs (on); off helps to find faults.",
    "help.markdown": "Render the reply, or write it as the model does. Neither: rendered on a"
    " terminal, as it is in a pipe.",
    "help.lookup": "Compute several tokens at once where a text repeats itself (on);"
    " what is written stays the same.",
    "help.gpu_memory": "Most memory to use of the GPU, for example 6GiB; experts beyond it stay in"
    " main memory.",
    "help.cpu_memory": "Most main memory to use for experts that the GPU cannot hold.",
    "help.system": "A system message that stands before the conversation.",
    "help.temperature": "Randomness; 0 always takes the likeliest token.",
    "help.top_k": "Choose among this many of the likeliest tokens; 0 is all.",
    "help.top_p": "Choose among the likeliest tokens that have this probability together.",
    "help.min_p": "Leave out tokens this much less likely than the likeliest.",
    "help.repetition_penalty": "Make tokens that have occurred less likely; 1 is off.",
    "help.max_tokens": "Most tokens of a reply.",
    "help.record_routing": "Write to a file which experts the tokens go to (docs/offload.md)."
    " Prompt lookup and CUDA graphs are off meanwhile.",
    "help.seed": "Seed of the random choices; the same seed gives the same reply.",
    # Stores.
    # The first sentence of a command's help stands in the list of commands: at most 64 characters.
    "help.convert": "Make a store of packed weights, which opens in seconds."
    " It takes less memory; the published files stay as they are.",
    "help.verify": "Compare every byte of a model with what it should be."
    " Of a Hub id that was converted, the store is read.",
    "help.verify_published": "Read the published files though there is a store of them.",
    "help.repair": "Fetch what is broken again, and only that. Broken files of a store are made"
    " again; what they are made of is fetched where it is not here.",
    "help.model_argument": "A Hub id or a model directory.",
    "help.convert_precision": "bf16, int8, int4, or auto: the highest that is predicted to run at"
    " reading speed on this machine.",
    "help.convert_attention": "Another format for the attention: bf16, int8 or int4.",
    "help.convert_head": "Another format for the output layer: bf16, int8 or int4.",
    "help.convert_output": "Where the store goes; a Hub id has a place where xverse finds it.",
    "help.convert_threads": "How many experts are packed at a time; otherwise one a processor, as"
    " far as 1.5 GiB of memory reach.",
    "help.delete_source": "Delete the published weights afterwards, once the store is verified."
    " Asks first.",
    "help.yes": "Do not ask.",
    "convert.progress": "Converting {model}",
    "convert.chosen": "Precision {precision}, {rate} tokens/s predicted (xverse doctor).",
    "convert.chosen_unknown": "Precision {precision}; nothing is predicted to fit this machine.",
    "convert.done": "Converted and verified: {path} ({size_bytes}).",
    "convert.already_there": "Already there, made of the same weights: {path} ({size_bytes}).",
    "convert.delete_question": "Delete the published weights in {path} ({size_bytes})? [y/N]",
    "convert.deleted": "Deleted {size_bytes} of published weights.",
    "convert.kept": "The published weights were kept.",
    "verify.progress": "Verifying {model}",
    "verify.done": "{path}: {files} files, {size_bytes}, all as written.",
    "verify.done_published": "{path}: {files} files, {size_bytes}, all as published.",
    "verify.unknown": "Without a digest to compare with: {names}.",
    "verify.refetch": "Damaged: {names}. The published weights that they are made of are not here"
    " any more; {fetch_bytes} have to be fetched again. The undamaged files stay.",
    "verify.refetch_question": "Fetch them now, and make the damaged files again? [Y/n]",
    "verify.repairing": "Fetching again: {names}.",
    # What is on this machine.
    "help.list": "List the models on this machine.",
    "list.heading_model": "MODEL",
    "list.heading_kind": "KIND",
    "list.heading_size": "SIZE",
    "list.heading_revision": "REVISION",
    "list.heading_used": "LAST USE",
    "list.heading_state": "STATE",
    "list.kind_published": "published",
    "list.kind_store": "store",
    "list.kind_synthetic": "synthetic",
    "list.state_complete": "complete",
    "list.state_incomplete": "incomplete",
    "list.state_part": "incomplete: {here_bytes} of {total_bytes}",
    "list.state_no_weights": "without weights",
    "list.state_damaged": "damaged",
    "list.go_on": "To finish what is incomplete: {command}",
    "list.damaged": "Cut short, so damaged: {names}. Put it right: {command}",
    "list.sum": "Together {size_bytes} on disk.",
    "list.path": "{model}: {path}",
    "list.nothing": "No models yet. Fetch one: xverse pull"
    " (the demo is built in: xverse chat --model demo)",
    "help.show": "Show what a model is, without running it.",
    "show.model": "Model",
    "show.revision": "Revision",
    "show.path": "Path",
    "show.parameters": "Parameters",
    "show.parameters_are": "{total}, {active} of them for a token",
    "show.billion": "{number} billion",
    "show.million": "{number} million",
    "show.precision": "Precision",
    "show.untold": "not told",
    "show.layers": "Layers",
    "show.hidden": "Hidden size",
    "show.attention": "Attention",
    "show.attention_is": "{heads} heads of {head_dim}, {kv_heads} for keys and values",
    "show.mlp": "MLP",
    "show.dense": "dense, {width} wide",
    "show.experts": "{experts} experts, {chosen} for a token, {shared} shared; {width} wide",
    "show.vocabulary": "Vocabulary",
    "show.context": "Context",
    "show.tokens": "{tokens} tokens",
    "show.files": "{files} files, {size_bytes}:",
    "show.absent": "not there",
    "show.store": "Converted to {precision}: {path}",
    "show.licence_files": "Licence files: {names}",
    "show.licence_accepted": "You accepted it on {when}.",
    "show.licence_demo": "The demo is part of the program and under its licence (Apache-2.0).",
    "help.rm": "Delete a model, after saying what goes and asking.",
    "help.rm_model": "A Hub id (owner/name or owner/name@revision), or the path of a store that"
    " xverse keeps. A Hub id means what was fetched of that revision and the stores made of it.",
    "help.rm_precision": "Only the store of this precision: bf16, int8 or int4.",
    "help.rm_published": "Only what was fetched; the stores stay.",
    "help.rm_dry_run": "Show what would be deleted; delete nothing.",
    "rm.line": "{model} ({kind}): frees {freed_bytes}",
    "rm.path": "  {path}",
    "rm.shared": "  {shared_bytes} stay, for another revision has them too",
    "rm.question": "Delete this and free {freed_bytes}? [y/N]",
    "rm.done": "Deleted; {freed_bytes} are free again.",
    "rm.kept": "Nothing was deleted.",
    # Measuring.
    "help.bench": "Measure the speed of a model beside what memory allows.",
    "help.bench_synthetic": "Random weights in a true shape (a4.2b), made on first use and kept in"
    " the cache: 15 GB in int4.",
    "help.bench_prompt": "Length of the prompt: 128, simulated 512.",
    "help.bench_new": "Tokens to generate: 16, simulated 256.",
    "help.bench_rounds": "How often to measure, usually 3 times; the medians are shown.",
    "memory.smaller_context": (
        "The context is {context_length} tokens instead of {wished}: more does not fit on the GPU."
    ),
    "memory.smaller_chunk": (
        "The GPU's memory is short: the prompt is computed {tokens} tokens at a time from now on."
    ),
    "memory.int8_cache": (
        "The GPU's memory is short: keys and values are kept in 8 bits from now on, in half the"
        " memory; with --kv bf16 they stay as they are."
    ),
    "memory.fewer_sequences": (
        "The GPU's memory is short: {sequences} replies at a time instead of more."
    ),
    "offload.fewer_slots": (
        "The GPU's memory got short: it holds {slots} experts instead of {wished}."
    ),
    "offload.lent_slots": (
        "Several replies at once need room on the GPU: until they are done it holds {slots} experts"
        " instead of {wished}."
    ),
    "offload.less_pinned": (
        "The system pins the experts of {pinned} of {layers} layers; the CPU computes the misses of"
        " the others."
    ),
    "offload.failed": (
        "Experts could not be divided between GPU and CPU ({reason}); the CPU computes everything."
    ),
    "kernels.gpu_unused": (
        "The GPU is not used, since its kernels cannot run ({reason}); the CPU computes."
    ),
    "kernels.slow": "The GPU's fast kernels cannot run ({reason}); much slower ones stand in.",
    "offload.no_graphs": (
        "CUDA graphs cannot be used here ({reason}); every step is asked for kernel by kernel."
    ),
    "offload.stuck_cpu": (
        "The CPU has been computing experts {experts} of layer {layer} for {seconds} seconds: if"
        " the disk under the model does not answer, end the program and start again."
    ),
    "offload.slow_disk": (
        "Experts are being read from the disk; it gets faster as they come into memory."
    ),
    "bench.making": "Making {path}; this is done once.",
    "bench.progress": "Making {shape}",
    "bench.round": "Round {number} of {rounds}",
    "bench.model": "model",
    "bench.load": "load",
    "bench.prefill": "prefill, {tokens} tokens",
    "bench.decode": "decode, {tokens} tokens",
    "bench.rate": "{rate} tokens/s",
    "bench.range": "{figure} ({least} to {most})",
    "bench.bytes": "weights read a token",
    "bench.bandwidth": "memory read bandwidth",
    "bench.share": "share of it in decode",
    # Loading and generating.
    "load.progress": "Loading {model}",
    "load.kernels": "compiling kernels {done}/{total}",
    "load.done": "Loaded {model} in {seconds} s.",
    "load.forecast": "predicted with a full context: {rate} tokens/s, first token of {prompt} after"
    " {seconds} s",
    "template.chosen": "Chat template: {name} ({reason}).",
    "template.requested": "asked for with --chat-template",
    "template.tokenizer_config": "given by {source}",
    "template.jinja_file": "given by {source}",
    "template.modeling_file": "read from {source}",
    "template.chat_name": "assumed because {source} is called a chat model; its files name none",
    "template.base_model": "no chat template in its files, and {source} is not called a chat model",
    "template.other_reason": "{reason} {source}",
    "statistics.line": "{tokens} tokens, {rate} tokens/s · first after {ttft} s"
    " · prompt {prompt} tokens, {cached} cached",
    "render.table": "table… {rows} × {columns}",
    "statistics.lookup": " · {accepted} of {proposed} proposed tokens right",
    "statistics.forecast": "predicted {predicted}, measured {measured} tokens/s",
    "statistics.hit_rate": "; hit rate predicted {predicted}, measured {measured}",
    "reply.length": "The reply was ended after {tokens} tokens; --max-tokens allows more.",
    "reply.truncated": "The reply was cut off: the context of {context_length} tokens is full.",
    # Headings and cells of the reference (docs/cli.md).
    "reference.option": "Option",
    "reference.meaning": "Meaning",
    "reference.variable": "Variable",
    "reference.key": "Key",
    "reference.default": "Default",
    "reference.of_the_model": "the model's",
    "reference.code": "Code",
    "reference.command": "Command",
    "exit.done": "Done; also when nobody reads the output any more.",
    "exit.error": "An error of another kind.",
    "exit.usage": "Wrong options, settings or input.",
    "exit.model_missing": "The model is not on this machine, or not completely.",
    "exit.integrity": "Model files that are damaged, inconsistent or unsafe.",
    "exit.resources": "Not enough memory or disk.",
    "exit.context_overflow": "The prompt does not fit the context.",
    "exit.partly_failed": "Some of several messages failed (`chat` with piped input).",
    "exit.interrupted": "Interrupted by Ctrl-C, SIGTERM or a closed terminal; what came before is"
    " on stdout.",
    "variable.config": "Path of the settings file.",
    "variable.lang": "Language of the interface: `en` or `zh`; otherwise that of the locale.",
    "variable.debug": "`1` shows the traceback of an error.",
}
