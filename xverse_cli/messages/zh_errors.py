"""Chinese: errors."""

from __future__ import annotations

from xverse_cli.messages.zh_errors_chat import CHAT_ERRORS
from xverse_cli.messages.zh_errors_models import MODEL_ERRORS
from xverse_cli.messages.zh_errors_plan import PLAN_ERRORS
from xverse_cli.messages.zh_simulate import SIMULATE_ERRORS

_GET = (
    "下载：xverse pull {model}\n"
    "  （使用镜像：HF_ENDPOINT=https://MIRROR xverse pull {model}）\n"
    "或试用内置的演示模型：xverse chat --model demo"
)
_AGAIN = (
    "文件已损坏，或下载未完成。来自 Hub 的模型可以重新下载损坏的部分：xverse verify MODEL --repair"
)
_CONVERT = (
    "重新制作损坏的部分：xverse verify MODEL --repair。或先删除转换后的模型，再重新制作："
    "xverse rm MODEL --precision P，然后 xverse convert MODEL --precision P；没有原始权重时："
    "xverse pull MODEL --precision P --delete-source。xverse list 会列出 MODEL 和 P。"
)
_HELP = "查看选项：{command} --help"
_FAMILY = "这是 XVERSE 系列的模型吗？"

# As in `en_errors`: (message, hint).
ERRORS: dict[str, tuple[str, str]] = {
    **CHAT_ERRORS,
    **MODEL_ERRORS,
    **PLAN_ERRORS,
    **SIMULATE_ERRORS,
    # Finding the model.
    "model.not_cached": ("模型 {model} 不在本机（查找位置：{path}）。", _GET),
    "model.no_such_revision": (
        "本机有模型 {model}，但没有版本 {revision}（现有：{present}）。",
        "下载：xverse pull {model}@{revision}",
    ),
    "model.incomplete_download": (
        "模型 {model} 的下载不完整：缺少 {names}（{path}）。",
        "继续下载：xverse pull {model}\n或试用内置的演示模型：xverse chat --model demo",
    ),
    "model.packing_begun": (
        "下载 {model} 并打包为 {precision} 时曾被中断。",
        "继续：xverse pull {model} --precision {precision} --delete-source\n"
        "或试用内置的演示模型：xverse chat --model demo",
    ),
    "model.no_such_directory": (
        "模型目录 {path} 不存在。",
        "请检查路径，或试用内置的演示模型：xverse chat --model demo",
    ),
    "model.is_a_file": (
        "{path} 是文件，而模型应是目录。",
        "请给出含有 config.json 的目录，也许是：--model {parent}",
    ),
    "model.unknown_name": (
        "没有模型“{model}”：当前位置没有这个目录，它也不是 Hub ID（owner/name）。",
        "请给出目录、Hub ID（如 xverse/XVERSE-MoE-A4.2B-Chat），或 demo。",
    ),
    "model.not_a_directory": ("{path} 不是目录。", "模型应是一个目录。"),
    "model.no_config": (
        "{path} 中没有 config.json。",
        "请给出含有模型的 config.json 和权重的目录。",
    ),
    "model.no_weights": (
        "{path} 中没有权重。",
        "应有 *.safetensors 或 pytorch_model*.bin。下载完整吗？",
    ),
    # Reading the model.
    "config.not_json": ("{path} 不是有效的 JSON：{detail}。", _AGAIN),
    "config.missing_key": ("{path} 缺少键 {key}。", _FAMILY),
    "config.bad_value": (
        "{path} 中 {key} = {value}；应为：{expected}。",
        "这是 XVERSE 系列的模型吗？如果是，请重新下载该文件。",
    ),
    "config.unsupported": (
        "模型配置中 {key} = {value}，尚不支持（支持：{supported}）。",
        "只能运行 XVERSE 系列的模型。",
    ),
    "path.outside": (
        "{name} 指向模型目录 {path} 之外，未读取。",
        "除非清楚它为何指向别处，否则不要使用此模型。",
    ),
    "path.unreadable": ("无法读取 {path}：{detail}。", "请检查读取权限：ls -l {path}"),
    "path.missing": ("缺少 {name}（{path}）。", "请重新下载模型。"),
    "checkpoint.corrupt": ("无法读取 {path}：{detail}。", _AGAIN),
    "checkpoint.unsafe_pickle": (
        "{path} 中除权重外还有其他内容，未打开：{detail}。",
        "这样的文件可以运行任意程序。请从可信的来源获取模型。",
    ),
    "checkpoint.index_invalid": ("权重文件清单 {path} 有误：{detail}。", _AGAIN),
    "checkpoint.missing_shards": (
        "{path} 缺少权重文件：{names}。",
        "下载不完整：请重新下载模型。",
    ),
    "checkpoint.mismatch": (
        "{path} 中的权重与配置不符。缺少：{missing}。多余：{surplus}。形状不同：{misshaped}。",
        "config.json 和权重必须来自同一个模型。",
    ),
    "checkpoint.bad_dtype": ("张量 {tensor} 的类型 {dtype} 不受支持。", ""),
    "tokenizer.missing": (
        "{path} 中没有分词器。",
        "应有 tokenizer.json 或 tokenizer.model。下载完整吗？",
    ),
    "tokenizer.invalid": ("无法读取分词器 {path}：{detail}。", _AGAIN),
    "tokenizer.unsupported": ("不支持分词器 {path}：{detail}。", ""),
    "checkpoint.not_finite": ("张量 {tensor} 含有非有限的数值：{detail}。", _AGAIN),
    # Converted models.
    "store.manifest_invalid": ("转换后的模型 {path} 已损坏：{detail}。", _CONVERT),
    "store.file_missing": ("转换后的模型 {path} 缺少 {name}。", _CONVERT),
    "store.file_size": (
        "转换后的模型 {path} 中，{name} 为 {found} 字节，应为 {expected} 字节。",
        _CONVERT,
    ),
    "store.hash": ("转换后的模型 {path} 中，{name} 已被改动。", _CONVERT),
    "store.tensors": ("{name} 不含模型所需的内容：{tensors}。", _CONVERT),
    "store.newer": (
        "转换后的模型 {path} 为格式 {version}，本程序最高支持 {supported}。",
        "请更新程序，或重新转换模型。",
    ),
    "store.byte_order": (
        "转换后的模型 {path} 是为另一种字节序（{found}）的机器制作的。",
        "请在本机重新转换模型。",
    ),
    "store.written_wrong": (
        "{path} 中的 {name} 与写入的内容不符。",
        "请重新开始转换，该文件会重新生成。如果再次失败，请检查磁盘。",
    ),
    "store.unlisted": (
        "{path} 中有并非转换生成的文件：{names}。",
        "请把它们移到别处：无从得知其内容是否正确。",
    ),
    "store.is_source": (
        "{path} 已是转换后的模型。",
        "只能转换原始权重；此模型可直接使用：--model {path}",
    ),
    "store.target_exists": ("{path} 已存在。", "请换个名称，或先将其删除。"),
    "store.busy": ("另一个转换正在写入 {path}。", "请等待其完成。"),
    "store.width": ("无法转换此模型：{detail}。", ""),
    "store.disk_full": (
        "{path} 空间不足：需要 {needed_bytes}，可用 {free_bytes}。",
        "请腾出空间，再重新开始转换：会从中断处继续。",
    ),
    "store.not_writable": ("无法写入 {path}：{detail}。", "请换个位置。"),
    # Chat templates.
    "template.unknown": (
        "没有对话模板“{name}”。",
        "可选 {choices}，或给出一个 Jinja 文件。",
    ),
    "template.file_unreadable": ("无法读取对话模板 {path}：{detail}。", ""),
    "template.jinja_invalid": ("对话模板（{source}）不是有效的 Jinja：{detail}。", ""),
    "template.no_messages": (
        "对话模板（{source}）从未使用消息，输入的内容会被丢弃。",
        "这真的是模板吗？可选 human-assistant、system-user-assistant 或 raw。",
    ),
    "template.render_failed": (
        "对话模板出错：{detail}。",
        "请用 --chat-template 另选模板，或用 --raw 直接续写文本。",
    ),
    "template.invalid_messages": ("对话模板无法处理这些消息：{detail}。", ""),
    # Devices and memory.
    "offload.stuck_upload": (
        "{seconds} 秒后，第 {layer} 层的专家 {experts} 仍未复制到 GPU。",
        "请在系统日志（dmesg）中查看 GPU 错误，然后重新启动；--device cpu 可以不用 GPU。",
    ),
    "offload.stuck_computations": (
        "{seconds} 秒后，GPU 仍未完成第 {layer} 层的计算。",
        "请在系统日志（dmesg）中查看 GPU 错误，然后重新启动；--device cpu 可以不用 GPU。",
    ),
    "device.unknown": ("没有设备“{device}”。", "可选 {choices}。"),
    "device.unavailable": (
        "无法使用设备 {device}：{reason}。",
        "在处理器上运行：--device cpu",
    ),
    "backend.unavailable": ("无法使用计算内核 {backend}：{reason}。", ""),
    "precision.unsupported": (
        "此处不支持精度 {precision}（支持：{supported}）。",
        "交给程序选择：--precision auto",
    ),
    "precision.needs_conversion": (
        "模型需先转换，才能以 {precision} 运行。",
        "只需转换一次：xverse convert {model} --precision {precision}",
    ),
    "precision.other_store": (
        "模型已转换为 {stored}，不能以 {precision} 运行。",
        "交给程序选择：--precision auto",
    ),
    "memory.insufficient": (
        "{device} 的内存不足：需要 {needed_bytes}，可用 {free_bytes}。",
        "请关闭其他程序，或缩小 --context，或试用：--model demo",
    ),
    "memory.exhausted": (
        "{device} 的内存已满。需要：{needed_bytes}；可用：{free_bytes}；本程序占用：{held_bytes}，"
        "驱动程序和其他程序占用：{others_bytes}（{detail}）。",
        "请关闭占用它的其他程序，或缩小 --context。",
    ),
    # Routing traces.
    "trace.unwritable": ("无法写入路由记录 {path}：{detail}。", ""),
    "trace.unreadable": ("无法读取路由记录 {path}：{detail}。", ""),
    "trace.disk": (
        "路由记录 {path} 未能写完：{detail}。",
        "磁盘满了吗？已写入的部分仍可读取，只缺最后一段。",
    ),
    "trace.no_experts": ("{model} 没有可供选择的专家。", "请去掉 --record-routing。"),
    "trace.not_local": ("只能记录在本机运行的模型。", ""),
    "trace.shape": (
        "无法记录 {layers} 层、每层 {experts} 个专家的路由。",
        "路由记录最多支持 1024 层，每层 256 个专家。",
    ),
    "trace.invalid": (
        "{path} 不是完整的路由记录：{detail}（第 {offset} 字节）。",
        "请重新记录：xverse generate --record-routing FILE",
    ),
    # Generating.
    "context.overflow": (
        "提示词有 {prompt_tokens} 个词元，上下文只能容纳 {context_length}。",
        "请缩短提示词。",
    ),
    "batch.no_logprobs": (
        "同时处理多条提示词时，不提供对数概率。",
        "请去掉 --logprobs，或只给一条提示词。",
    ),
    "batch.sequences": ("不能同时生成 {sequences} 个回复。", "请选择 1 或更多。"),
    "batch.sampling": (
        "同时处理多条提示词时，--top-k 应为 1 到 64，或用 --temperature 0；不能是 {top_k}。",
        "请用 --top-k 64。",
    ),
    "context.too_long": (
        "{requested} 个词元的上下文超出了模型的上限（{maximum}）。",
        "请用 --context {maximum} 或更小的值。",
    ),
    "sampling.non_finite": (
        "模型在第 {step} 个词元处的输出不是数。",
        "请试用更高的精度：--precision fp32。如果依旧，则权重已损坏。",
    ),
    "prompt.empty": ("提示词中没有词元。", "请写点内容。"),
    "prompt.bad_token": (
        "提示词中有词元 {token_id}，而模型只认识 {vocab_size} 个词元。",
        "分词器和权重必须来自同一个模型。",
    ),
    "sampling.bad_value": ("{name} 为 {value}；应为：{expected}。", ""),
    # The command line's own.
    "convert.delete_unasked": (
        "--delete-source 在删除前会询问，但终端前无人应答。",
        "请加上 --yes。",
    ),
    "convert.output_needed": (
        "只有 Hub ID 才有打包模型的默认位置。",
        "请说明存放位置，例如：--output {example}",
    ),
    "convert.demo_stays": ("演示模型是本程序的一部分，不会删除其权重。", ""),
    "input.too_large": (
        "{source}：超过 {most_bytes}，远超任何上下文。",
        "请缩短，或分几次给出。",
    ),
    "bench.two_models": ("--model 和 --synthetic 指定了两个模型。", "请只给一个。"),
    "bench.overflow": (
        "{prompt_tokens} 个词元的提示词加 {new_tokens} 个新词元，"
        "超出了 {context_length} 个词元的上下文。",
        "请用 --prompt-tokens 或 --new-tokens 减少数量，或加大 --context。",
    ),
    "bench.not_local": ("只能测量在本机运行的模型。", ""),
    "bench.precision": (
        "合成权重有 {supported}，没有 {precision}。",
        "选择其一：xverse bench --synthetic a4.2b --precision int4",
    ),
    "settings.bad_value": ("{where}：“{value}”无效，应为{expected}。", ""),
    "settings.unknown_key": (
        "设置文件 {path} 中有未知的键 {key}。",
        "已知的键：{known}",
    ),
    "settings.unknown_key_near": (
        "设置文件 {path} 中有未知的键 {key}。",
        "是否想用 {nearest}？",
    ),
    "settings.file_unreadable": ("无法读取设置文件 {path}：{detail}。", ""),
    "settings.file_invalid": ("设置文件 {path} 不是有效的 TOML：{detail}。", ""),
    "input.not_utf8": (
        "{source}：不是 UTF-8 文本，第 {offset} 字节有误。",
        "请先转换编码，例如：iconv -f GB18030 -t UTF-8",
    ),
    "input.unreadable": ("{source}：无法读取（{detail}）。", ""),
    "input.two_dashes": ("“-”只能出现一次：标准输入只有一个。", ""),
    "input.empty": (
        "没有提示词。",
        '请给出提示词：xverse generate "什么是混合专家模型？"\n'
        "或用管道输入：echo '这是什么？' | xverse generate",
    ),
    "input.system_with_raw": ("--system 与 --raw 同用没有意义。", ""),
    "input.logprobs_without_json": ("--logprobs 只在 --json 中显示。", "请加上 --json。"),
    "usage": ("{detail}", _HELP),
}
