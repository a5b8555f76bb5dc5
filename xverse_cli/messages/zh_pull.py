"""Chinese: getting models."""

from __future__ import annotations

PULL_TEXTS: dict[str, str] = {
    "help.pull": "下载模型，或继续未完成的下载。每个文件都会校验。",
    "help.pull_model": "Hub ID：owner/name 或 owner/name@revision；省略时为默认模型。",
    "help.pull_precision": "下载后转换：bf16、int8、int4 或 auto（见 xverse convert）。",
    "help.pull_delete_source": "配合 --precision：每下载完一个权重文件就打包并删除，"
    "磁盘上始终只有打包模型和两个文件。",
    "help.pull_source": "下载来源：huggingface（可用 HF_ENDPOINT 指定镜像）、modelscope，"
    "或 auto：优先 Hub，无法连接时用 ModelScope。",
    "help.pull_jobs": "同时使用的连接数。",
    "help.accept_license": "接受权重许可证，不再询问。",
    "help.dry_run": "只显示将下载的内容和空间是否足够，不写入。",
    "help.pull_json": "输出一个 JSON 对象，而不是路径。",
    "pull.asking_huggingface": "正在等待 {endpoint} 回复 {model} 的信息……"
    "如果无法访问：--source modelscope，或 HF_ENDPOINT=https://MIRROR",
    "pull.asking_modelscope": "正在等待 {endpoint} 回复 {model} 的信息……",
    "pull.looking": "正在查看模型和本机……",
    "pull.plan": "{model}，版本 {revision}（提交 {commit}），来自 {endpoint}",
    "pull.plan_files": "  {files} 个文件，其中 {weights} 个权重文件：{total_bytes}；需下载："
    "{fetch_bytes}",
    "pull.plan_resumed": "  其中 {here_bytes} 已在本机",
    "pull.resuming": "继续下载 {model}：{total_bytes} 中已有 {here_bytes}。",
    "pull.resuming_packed": "继续下载 {model}，并打包为 {precision}：{total_bytes} 中已完成"
    " {here_bytes}。",
    "pull.stalled": "停滞：已有 {seconds} 秒没有收到数据。",
    "pull.stalled_retry": "停滞：{reason}；{seconds} 秒后重试。",
    "pull.plan_store": "  已是打包模型，可直接运行",
    "pull.plan_converted": "  下载后将转换为 {precision}：{size_bytes}",
    "pull.plan_streamed": "  将边下载边转换为 {precision}，每个权重文件打包后即删除：{size_bytes}",
    "pull.plan_disk": "  磁盘：{path} 需要 {needed_bytes}，可用 {free_bytes}",
    "pull.licence": "权重许可证：{licence}。XVERSE 模型的权重适用厂商的《模型许可协议》"
    "（Apache-2.0 只适用于代码）：对学术研究开放；商业使用免费，但需向 opensource@xverse.cn 申请。"
    "模型可能说出错误、有偏见或冒犯性的内容；厂商不对滥用承担责任。",
    "pull.licence_untold": "来源未注明",
    "pull.licence_accepted": "权重许可证：{licence}；已于 {when} 接受。",
    "pull.licence_question": "接受此许可证？[y/N]",
    "fit.machine": "本机：内存 {memory_bytes}，{gpu}。上下文为 {context} 个词元时需要：",
    "fit.gpu": "{name}（{size_bytes}）",
    "fit.no_gpu": "没有 GPU",
    "fit.row": "  {precision} 权重 {weights}，缓存 {cache}：{verdict}",
    "fit.on_gpu": "显存放得下",
    "fit.in_memory": "内存放得下",
    "fit.too_large": "超出内存：需不断读取磁盘，非常慢",
    "fit.rate": "约 {rate} 词元/秒",
    "fit.rate_unknown": "速度未知",
    "fit.with_rate": "{verdict}，速度：{rate}",
    "fit.advice": "本机最佳选择：--precision {precision}：{quality}。"
    "加 --delete-source 占用磁盘最少。",
    "fit.faster": "更快的选择：--precision {precision}：{quality}。",
    "quality.published": "原始权重，不作改动",
    "quality.light": "舍入很小，回复几乎不变",
    "quality.strong": "大小不到三分之一；舍入较大，回复会略有变化（docs/quantisation.md）",
    "fit.nothing": "任何精度都超出本机的能力。演示模型在哪里都能运行：xverse chat --model demo",
    "offer.question": "现在下载（{fetch_bytes}）？[y/N]",
    "offer.question_packed": "现在下载？[y/{keys}/N]",
    "offer.published": "  y：原样下载，磁盘占用 {fetch_bytes}，{rate}",
    "offer.packed": "  {answer}：边下载边打包为 {precision}，磁盘占用 {size_bytes}，{rate}："
    "{quality}",
    "offer.packed_best": "  {answer}：边下载边打包为 {precision}，磁盘占用 {size_bytes}，{rate}："
    "{quality}（本机最佳）",
    "offer.go_on": "继续吗？{total_bytes} 中已完成 {here_bytes}，还需下载 {fetch_bytes}。[Y/n]",
    "pull.bar_total": "合计",
    "pull.bar_checking": "{name}（校验中）",
    "pull.line": "已下载 {done_bytes}，共 {total_bytes}（{percent}%），{rate_bytes}/s，"
    "剩余 {left}，已完成 {files} 个文件",
    "pull.done": "已下载并校验：{model}（{size_bytes}）。开始对话：xverse chat -m {model}",
    "pull.talk": "开始对话：xverse chat -m {model}",
    "pull.up_to_date": "文件齐全且为最新：{model}（{size_bytes}）。下载时已校验；"
    "如需再次校验：xverse verify {model}",
    "pull.store_there": "此前已转换：{path}",
    "pull.kept": "所有来源都无法连接（{detail}）；模型已在本机：{path}",
    "pull.waiting": "另一个进程正在下载 {model}，等待其完成。",
    "pull.resume": "已下载的部分会保留。继续下载：{command}",
    "pull.retrying": "{name}：{reason}；{seconds} 秒后重试。",
    "pull.no_ranges": "{name}：服务器不支持分段下载，因此只用一个连接，中断后将从头开始。",
    "pull.other_source": "{name}：{reason}；改从内容相同的另一来源继续。",
    "pull.falling_back": "无法使用 {source}（{endpoint}）：{detail}。改用 {other}。",
    "pull.wrong_once": "{name}：收到的内容有误（SHA-256 不符），正在重新下载。",
    "pull.stays": "下载期间 {revision} 已从 {old} 更新到 {new}；本次继续下载 {old}。"
    "如需 {new}，请在完成后再次下载。",
    "pull.moved_on": "{revision} 已从 {old} 更新到 {new}，且 {old} 已不存在。"
    "有变化的文件将重新下载。",
}
