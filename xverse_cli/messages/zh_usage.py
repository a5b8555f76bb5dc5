"""Chinese: what Typer says, in help and of command lines that cannot be read."""

from __future__ import annotations

USAGE_TEXTS: dict[str, str] = {
    "help.usage": "用法：",
    "help.heading": "{name}：",
    "help.arguments": "参数",
    "help.options": "选项",
    "help.commands": "命令",
    "help.help": "显示此帮助并退出。",
    "help.default": "默认：{default}",
    "help.required": "必填",
    "usage.no_such_option": "没有选项 {option}。",
    "usage.no_such_command": "没有命令 {command}。",
    "usage.perhaps": "{problem}是否想用 {nearest}？",
    "usage.missing_argument": "缺少参数 {name}。",
    "usage.missing_option": "缺少选项 {name}。",
    "usage.surplus": "多余的参数：{arguments}。",
    "usage.needs_value": "选项 {option} 需要一个值。",
    "usage.takes_no_value": "选项 {option} 不接受值。",
    "usage.bad_value": "{name}：{problem}",
}
