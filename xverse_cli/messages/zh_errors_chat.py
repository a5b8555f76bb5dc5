"""Chinese: errors of chats and saved sessions."""

from __future__ import annotations

_LIST = "查看已保存的会话：xverse sessions list"

CHAT_ERRORS: dict[str, tuple[str, str]] = {
    "context.conversation_full": (
        "加上这条消息，对话共 {prompt_tokens} 个词元；为回复留出空间后，"
        "上下文只能容纳 {context_length}。",
        "请缩短消息，或用 /undo、/clear，或允许移除较早的内容：/set overflow trim，"
        "或 /set overflow summarise",
    ),
    "command.no_such_turn": ("没有第 {number} 轮，对话共有 {count} 轮。", "/show 会列出各轮。"),
    "set.unknown": ("这里没有 {name} 这个设置。可设置：{known}。", "/set 显示所有的值。"),
    "session.not_found": ("没有已保存的会话 {session}。", _LIST),
    "session.ambiguous": ("{session} 对应多个会话：{matches}。", "请写出更多的 ID。"),
    "session.none": ("没有可继续的会话。", "开始新会话：xverse chat"),
    "session.in_use": (
        "会话 {session} 已在另一个对话中打开。",
        "请先在那里退出，或开始新会话。",
    ),
    "session.unreadable": ("无法读取会话 {path}：{detail}。", _LIST),
    "session.newer": (
        "会话 {path} 由更新版本的 xverse 写成（格式 {version}）。",
        "请更新 xverse，或开始新会话。",
    ),
    "session.two_wanted": ("--continue 和 --resume 不能同时使用。", _LIST),
    "session.unasked": ("无人应答是否删除。", "加上 --yes 则不询问。"),
    "session.which": ("没有指定会话。", "请指定会话，或用 --all。" + _LIST),
    "export.exists": ("{path} 已存在，没有写入。", "请换个名称。"),
    "export.unwritable": ("无法写入 {path}：{detail}。", "请换个位置。"),
}
