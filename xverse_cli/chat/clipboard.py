"""Puts text on the clipboard: by a program of the desktop, or through the terminal itself."""

from __future__ import annotations

import base64
import shutil
import subprocess
import sys
from collections.abc import Mapping

from xverse_cli.host import Host
from xverse_cli.messages import text

_PATIENCE_S = 3.0
MOST_OSC52 = 74_994  # bytes; terminals drop longer sequences, some without a word


def copy_text(content: str, host: Host) -> str:
    """Copy ``content``; what to tell the user about it."""
    command = _program(host.environ)
    if command is not None and _run(command, content):
        return text("copy.done", count=len(content), how=command[0])
    if not host.streams.stderr_is_terminal or host.environ.get("TERM", "dumb") == "dumb":
        return text("copy.no_way")
    data = content.encode("utf-8", "replace")
    if len(data) > MOST_OSC52:
        return text("copy.too_long", count=len(data), most=MOST_OSC52)
    # OSC 52 works through ssh too, where the clipboard is on another machine.
    host.streams.stderr.write(f"\x1b]52;c;{base64.b64encode(data).decode()}\x07")
    host.streams.stderr.flush()
    return text("copy.asked", count=len(content))


def _program(environ: Mapping[str, str]) -> list[str] | None:
    """The program that fits the desktop this runs on; none over ssh, where it would be another's
    clipboard."""
    if environ.get("SSH_CONNECTION"):
        return None
    wanted: list[list[str]] = []
    if sys.platform == "darwin":
        wanted.append(["pbcopy"])
    if sys.platform == "win32" or environ.get("WSL_DISTRO_NAME"):
        wanted.append(["clip.exe"])
    if environ.get("WAYLAND_DISPLAY"):
        wanted.append(["wl-copy"])
    if environ.get("DISPLAY"):
        wanted += [["xclip", "-selection", "clipboard"], ["xsel", "--clipboard", "--input"]]
    return next((one for one in wanted if shutil.which(one[0])), None)


def _run(command: list[str], content: str) -> bool:
    # clip.exe takes UTF-16; the others stay in the background, holding what is written to them
    encoding = "utf-16" if command[0] == "clip.exe" else "utf-8"
    try:
        done = subprocess.run(
            command,
            input=content.encode(encoding, "replace"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_PATIENCE_S,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0
