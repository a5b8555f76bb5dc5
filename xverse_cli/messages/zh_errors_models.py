"""Chinese: errors of getting, checking and deleting models."""

from __future__ import annotations

# As in `en_errors`: (message, hint).
MODEL_ERRORS: dict[str, tuple[str, str]] = {
    # Getting models.
    "pull.demo": (
        "演示模型是本程序的一部分，无需下载。",
        "直接使用：xverse chat --model demo",
    ),
    "pull.no_hub_id": (
        "“{model}”不是 Hub ID。",
        "请给出 owner/name 或 owner/name@revision，例如 xverse/XVERSE-MoE-A4.2B-Chat，"
        "或它在 huggingface.co、hf-mirror.com、modelscope.cn 上的网址。",
    ),
    "pull.delete_without_precision": (
        "--delete-source 没有 --precision 就没有意义：什么都不会留下。",
        "请说明转换为什么，例如：--precision int4",
    ),
    "pull.endpoint": (
        "HF_ENDPOINT 为 {endpoint}，这不是地址。",
        "请写上协议：HF_ENDPOINT=https://{endpoint}",
    ),
    "pull.offline": (
        "{model} 不在本机，而 HF_HUB_OFFLINE 禁止下载。",
        "请取消 HF_HUB_OFFLINE。或试用内置的演示模型：xverse chat --model demo",
    ),
    "pull.no_such_model": (
        "{endpoint} 上没有模型 {model}，或它未公开。",
        "请检查名称。私有模型请设置 HF_TOKEN，或登录：hf auth login",
    ),
    "pull.no_such_revision": (
        "{endpoint} 上的 {model} 没有版本 {revision}。",
        "请检查 @ 之后的分支、标签或提交的名称。",
    ),
    "pull.no_model": (
        "{model} 中没有可运行的模型：没有 config.json 以及 *.safetensors 或 pytorch_model*.bin。",
        "仓库选对了吗？",
    ),
    "pull.gated": (
        "{model} 只提供给已获授权的用户。",
        "请在 {endpoint}/{model} 申请，然后设置 HF_TOKEN，或登录：hf auth login",
    ),
    "pull.unauthorised": (
        "{host} 不接受用于 {name} 的令牌（HTTP {status}）。",
        "请把 HF_TOKEN 设为有效的令牌，或重新登录：hf auth login",
    ),
    "pull.forbidden": (
        "{host} 拒绝访问 {name}（HTTP {status}）。",
        "令牌有读取权限吗？代理或镜像也可能拒绝：请试用其他 --source。",
    ),
    "pull.file_gone": (
        "{name} 已不存在（{host} 返回 HTTP {status}）。",
        "仓库已有变化。请重新开始：未变的内容会保留。",
    ),
    "pull.refused": ("{host} 拒绝访问 {name}（HTTP {status}）。", "请试用其他 --source。"),
    "pull.rate_limited": (
        "{endpoint} 要求减少请求（HTTP 429）。",
        "请等几分钟，再运行同一条命令：已下载的部分会保留。登录后限额更高：hf auth login",
    ),
    "pull.server": (
        "服务器对 {name} 的响应异常：{detail}。",
        "请稍后再运行同一条命令：已下载的部分会保留。或换个来源：--source modelscope，"
        "或 HF_ENDPOINT=https://MIRROR",
    ),
    "pull.unreachable": (
        "无法连接 {name}：{detail}。",
        "请检查网络连接（支持 HTTPS_PROXY），再运行同一条命令：已下载的部分会保留。"
        "或换个来源：--source modelscope，或 HF_ENDPOINT=https://MIRROR",
    ),
    "pull.unreachable_too": (
        "也无法连接 {name}：{detail}。",
        "请检查网络连接（支持 HTTPS_PROXY），再运行同一条命令：已下载的部分会保留。"
        "或指定镜像：HF_ENDPOINT=https://MIRROR",
    ),
    "offer.no_way": (
        "现在无法下载 {model}：{detail}。",
        "连上网络后（支持 HTTPS_PROXY）：{command}\n"
        "  （使用镜像：HF_ENDPOINT=https://MIRROR {command}）\n"
        "或试用内置的演示模型：xverse chat --model demo",
    ),
    "pull.no_socks": (
        "代理 {proxy} 是 SOCKS 代理，缺少所需的库。",
        "请安装：pip install PySocks。或在 HTTPS_PROXY 中指定 HTTP 代理。",
    ),
    "pull.remote_changed": (
        "下载期间，{name} 在来源处发生了变化。",
        "请再运行同一条命令：会重新检查，未变的部分会保留。",
    ),
    "pull.wrong_bytes": (
        "{name} 两次收到的内容都有误：SHA-256 与发布的不符。",
        "传输途中有什么改动了它。请换个来源（--source、HF_ENDPOINT）或网络。",
    ),
    "pull.shards_missing": (
        "{index} 列出了仓库中没有的权重文件：{names}。",
        "仓库不完整。请试用其他 --source 或版本。",
    ),
    "pull.too_large": ("{name} 有 {size_bytes}，对这类文件来说过大。", ""),
    "pull.disk_full": (
        "{path} 空间不足：需要 {needed_bytes}，可用 {free_bytes}。",
        "请腾出空间（xverse list、xverse rm），或用 HF_HOME 把缓存放到别处（打包模型用"
        " XDG_DATA_HOME），再运行同一条命令：已下载的部分会保留。对于大模型，"
        "--precision int4 --delete-source 所需空间最少。",
    ),
    "pull.not_writable": (
        "无法写入 {path}：{detail}。",
        "请检查所有者：ls -ld {path}。HF_HOME 可把缓存放到别处。",
    ),
    "pull.licence_unasked": (
        "终端前无人应答，无法接受权重许可证。",
        "请先阅读模型所附的许可证，然后：{command} --accept-license",
    ),
    "pull.licence_declined": ("未接受许可证，没有下载任何内容。", ""),
    # Checking and deleting them.
    "verify.no_store": (
        "{model} 不是转换后的模型；原始文件没有可供比对的摘要。",
        "请先转换：xverse convert {model}",
    ),
    "verify.no_store_here": (
        "{model} 不是转换后的模型；原始文件没有可供比对的摘要。",
        "打包模型带有摘要：先运行 xverse convert {model} --output {example}，再运行 xverse verify"
        " {example}",
    ),
    "verify.broken": (
        "{model} 有文件损坏或缺失：{names}。",
        "只重新下载这些文件：xverse verify {model} --repair",
    ),
    "verify.gone": (
        "{model} 的 {names} 无法重新下载：来源处已没有这些文件。",
        "没有删除任何内容。可改为下载最新版本：xverse pull {model}",
    ),
    "rm.demo": ("演示模型是本程序的一部分，不能删除。", "查看：xverse list"),
    "rm.directory": (
        "{path} 不由 xverse 管理，因此不删除。",
        "如有需要，请自行删除。xverse list 会列出 xverse rm 能删除的内容。",
    ),
    "rm.not_ours": (
        "{model} 不是 XVERSE 系列的模型（{path}）。",
        "它属于其他程序：请用该程序删除，或用：hf cache",
    ),
    "rm.nothing": (
        "本机没有可删除的 {model}。",
        "查看现有模型：xverse list。版本写作：owner/name@revision",
    ),
    "rm.two_parts": (
        "--precision 指某个打包模型，--published 指下载的文件：两者不同。",
        "请只给一个；都不给则删除该版本的全部内容。",
    ),
    "rm.unasked": (
        "xverse rm 在删除前会询问，但终端前无人应答。",
        "请加上 --yes，或先用 --dry-run 查看。",
    ),
    "rm.busy": (
        "另一个进程正在下载 {model}，没有删除任何内容。",
        "请先停止那个进程，或等待其完成。",
    ),
}
