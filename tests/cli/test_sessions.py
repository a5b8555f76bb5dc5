"""Sessions on disk: whatever happens to the file, what was written before reads."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from xverse_cli.chat.conversation import Conversation, Made, Turn
from xverse_cli.chat.sessions import folder
from xverse_cli.chat.sessions.journal import Journal
from xverse_cli.chat.sessions.reading import read_session
from xverse_cli.chat.sessions.recorder import Recorder
from xverse_runtime.errors import UsageError

SETTINGS = {"temperature": 0.5, "seed": 7, "stop": ["x"]}


def made(left_out: int = 0, summary: str | None = None) -> Made:
    return Made(
        "m", "raw", SETTINGS, 11, "d", 3, "stop", "cpu", "fp32", left_out=left_out, summary=summary
    )


class Writing:
    """A conversation and the file it goes to."""

    def __init__(self, system: str | None = None) -> None:
        self.conversation = Conversation(system)
        self.complaints: list[str] = []
        self.recorder = Recorder(self.conversation, self.complaints.append)
        self.recorder.model("asked", "m", "raw", "cpu", "fp32")

    def say(self, user: str, assistant: str, **fields: Any) -> None:
        self.recorder.message(user)
        self.conversation.add(Turn(user, assistant, made=made(), **fields))
        self.recorder.turn()

    def read(self) -> Conversation:
        return read_session(self.recorder.path).conversation


def test_a_conversation_comes_back_whole() -> None:
    writing = Writing("Be 简短。")
    writing.say("一\x1b[2J\u2028 \ud800", "A\n")
    writing.say("two", "B", interrupted=True)
    saved = read_session(writing.recorder.path)
    assert saved.conversation == writing.conversation
    assert (saved.asked_for, saved.model, saved.template) == ("asked", "m", "raw")
    turn = saved.conversation.turns[0]
    assert turn.made is not None
    assert turn.made.settings == SETTINGS
    assert (turn.made.prompt_digest, turn.made.finish) == ("d", "stop")
    assert (saved.unsent, saved.damaged) == ("", 0)


def test_nothing_is_written_before_there_is_something_to_keep() -> None:
    writing = Writing("System.")
    writing.recorder.system()
    assert not writing.recorder.path.exists()
    writing.recorder.message("one")
    assert writing.recorder.path.exists()
    assert writing.read().system == "System."


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_sessions_are_private() -> None:
    writing = Writing()
    old = os.umask(0)
    try:
        writing.say("one", "A")
    finally:
        os.umask(old)
    assert stat.S_IMODE(writing.recorder.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(writing.recorder.path.parent.stat().st_mode) == 0o700


def test_a_file_cut_short_anywhere_reads_as_far_as_it_goes(tmp_path: Path) -> None:
    writing = Writing("S")
    ends = []
    for number in range(2):
        writing.say(f"message {number} 混合", f"reply {number}")
        ends.append(writing.recorder.path.stat().st_size)
    data = writing.recorder.path.read_bytes()
    cut = tmp_path / "cut.jsonl"
    for length in (*range(0, ends[0], 7), *range(ends[0], len(data))):
        cut.write_bytes(data[:length])
        saved = read_session(cut)
        # A line is whole without the line break that ends it.
        whole = sum(end <= length + 1 for end in ends)
        assert saved.conversation.turns == writing.conversation.turns[:whole]
        assert saved.damaged <= 1


def test_writing_goes_on_behind_a_line_that_was_cut_short() -> None:
    writing = Writing()
    writing.say("one", "A")
    writing.recorder.close()
    path = writing.recorder.path
    path.write_bytes(path.read_bytes() + b'{"type": "turn", "at": 1, "us')
    again = Writing()
    saved = read_session(path)
    again.conversation.become(saved.conversation)
    again.recorder.resume(saved)
    again.recorder.model("another", "m", "raw", "cpu", "fp32")
    again.say("two", "B")
    assert [turn.user for turn in again.read().turns] == ["one", "two"]
    assert read_session(path).damaged == 1
    assert read_session(path).asked_for == "another"  # the first line that was added


@pytest.mark.parametrize(
    "line",
    [
        b"[" * 100_000,
        b'{"type": "undo", "turns": 1e999}',
        b'{"type": "undo", "turns": -1}',
        b'{"type": "session", "version": Infinity, "time": ""}',
        b'{"type": "turn", "at": -1, "user": "x", "reply": "y", "interrupted": 0, "left_out": 0}',
    ],
)
def test_a_line_that_makes_no_sense_is_damage(line: bytes) -> None:
    writing = Writing()
    writing.say("one", "A")
    writing.recorder.close()
    path = writing.recorder.path
    path.write_bytes(path.read_bytes() + line + b"\n")
    (saved,) = folder.saved_sessions()
    assert saved.damaged == 1
    assert saved.conversation == writing.conversation


def test_damage_in_the_middle_costs_only_what_is_damaged() -> None:
    writing = Writing()
    for word in ("one", "two", "three"):
        writing.say(word, word.upper())
    path = writing.recorder.path
    lines = path.read_bytes().split(b"\n")
    number = next(i for i, line in enumerate(lines) if b'"user": "two"' in line)
    lines[number] = b"\x00\xff" * 20
    path.write_bytes(
        b"\n".join([*lines[:-1], b"[1]", b'{"type": "turn"}', b'{"type": "new"}', b""])
    )
    saved = read_session(path)
    assert [turn.user for turn in saved.conversation.turns] == ["one", "three"]
    assert saved.damaged == 3  # a kind of record that is not known is no damage


def test_a_message_without_a_reply_is_not_lost() -> None:
    writing = Writing()
    writing.say("one", "A")
    writing.recorder.message("two, which took long to write")
    saved = read_session(writing.recorder.path)
    assert saved.unsent == "two, which took long to write"
    assert [turn.user for turn in saved.conversation.turns] == ["one"]
    writing.recorder.message("/exit, as text")
    assert read_session(writing.recorder.path).unsent == "//exit, as text"
    writing.recorder.draft("/help")
    assert read_session(writing.recorder.path).unsent == "/help"


def test_a_message_that_was_given_up_does_not_come_back() -> None:
    writing = Writing()
    writing.recorder.message("one")
    writing.recorder.draft("one")  # is there already
    size = writing.recorder.path.stat().st_size
    writing.recorder.draft("")
    assert writing.recorder.path.stat().st_size > size
    assert read_session(writing.recorder.path).unsent == ""
    writing.recorder.draft("two")
    assert read_session(writing.recorder.path).unsent == "two"


def test_taking_back_and_replacing_turns() -> None:
    writing = Writing()
    for word in ("one", "two", "three"):
        writing.say(word, word.upper())
    writing.conversation.take_last()
    writing.recorder.undo()
    assert [turn.user for turn in writing.read().turns] == ["one", "two"]
    writing.conversation.keep(0)
    writing.say("other", "X")
    assert [turn.user for turn in writing.read().turns] == ["other"]


def test_turns_left_out_and_their_summary() -> None:
    writing = Writing()
    for word in ("one", "two"):
        writing.say(word, word.upper())
    writing.conversation.drop_oldest(2)
    writing.conversation.summary = "Sum."
    writing.conversation.add(Turn("three", "THREE", made=made(2, "Sum.")))
    writing.recorder.turn()
    assert writing.read() == writing.conversation
    assert writing.read().all_turns == writing.conversation.all_turns
    # Going back before the cut brings everything before it into the context again.
    writing.conversation.keep(1)
    writing.recorder.undo()
    assert writing.read() == writing.conversation == Conversation(turns=[Turn("one", "ONE")])


def test_a_full_disk_is_spoken_of_and_caught_up_with(monkeypatch: pytest.MonkeyPatch) -> None:
    writing = Writing()
    writing.say("one", "A")
    before = writing.recorder.path.read_bytes()
    write, room = os.write, [20]

    def little_room(descriptor: int, data: Any) -> int:
        if room[0] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = write(descriptor, bytes(data[: room[0]]))
        room[0] -= count
        return count

    monkeypatch.setattr("xverse_cli.chat.sessions.journal.os.write", little_room)
    writing.say("two", "B")
    assert writing.complaints[-1].startswith("NOT SAVED: ")
    assert "No space left on device" in writing.complaints[-1]
    assert writing.recorder.path.read_bytes() == before  # no half line
    assert not writing.recorder.saving
    monkeypatch.undo()
    writing.say("three", "C")
    assert "Saving works again" in writing.complaints[-1]
    assert [turn.user for turn in writing.read().turns] == ["one", "two", "three"]


def test_a_state_directory_that_cannot_be_is_spoken_of() -> None:
    folder.state_dir().parent.mkdir(parents=True)
    folder.state_dir().write_text("in the way", encoding="utf-8")
    writing = Writing()
    writing.say("one", "A")
    assert "NOT SAVED" in writing.complaints[0]
    assert len(writing.complaints) == 1  # once for the message and its reply
    writing.say("two", "B")
    assert len(writing.complaints) == 2
    folder.state_dir().unlink()
    writing.recorder.close()
    assert [turn.user for turn in writing.read().turns] == ["one", "two"]


@pytest.mark.skipif(os.name == "nt", reason="open files cannot be deleted there")
def test_a_file_that_is_deleted_is_written_anew() -> None:
    writing = Writing("S")
    writing.say("one", "A")
    writing.recorder.path.unlink()
    writing.say("two", "B")
    assert "was deleted" in writing.complaints[-1]
    assert writing.read() == writing.conversation


def test_without_saving_there_is_no_file_until_it_is_wanted() -> None:
    conversation = Conversation("S")
    recorder = Recorder(conversation, lambda line: None, enabled=False)
    conversation.add(Turn("one", "A"))
    recorder.message("one")
    recorder.turn()
    assert not folder.sessions_dir().exists()
    recorder.start()
    assert read_session(recorder.path).conversation == conversation


def test_a_session_is_open_only_once() -> None:
    writing = Writing()
    writing.say("one", "A")
    saved = read_session(writing.recorder.path)
    with pytest.raises(UsageError) as caught:
        Writing().recorder.resume(saved)
    assert caught.value.code == "session.in_use"
    with pytest.raises(UsageError):
        folder.remove_session(saved.path)
    writing.recorder.close()
    Writing().recorder.resume(saved)


class WindowsLocks:
    """`msvcrt.locking`: bytes from the file's position on, for one descriptor at a time."""

    LK_UNLCK, LK_NBLCK = 0, 2

    def __init__(self) -> None:
        self.holders: dict[tuple[int, int], int] = {}  # by file and place

    def locking(self, descriptor: int, mode: int, count: int) -> None:
        assert count == 1
        byte = os.fstat(descriptor).st_ino, os.lseek(descriptor, 0, os.SEEK_CUR)
        if self.holders.get(byte) != (None if mode == self.LK_NBLCK else descriptor):
            raise PermissionError(errno.EACCES, "Permission denied")
        if mode == self.LK_NBLCK:
            self.holders[byte] = descriptor
        else:
            del self.holders[byte]


def test_a_session_is_locked_on_windows_too(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locks = WindowsLocks()
    modules = {"msvcrt": locks}
    monkeypatch.setattr("xverse_cli.chat.sessions.journal._module", modules.get)
    first, second = Journal(home / "a.jsonl"), Journal(home / "a.jsonl")
    first.append({"type": "session"})
    assert folder.in_use(first.path)
    with pytest.raises(UsageError) as caught:
        second.append({"type": "session"})
    assert caught.value.code == "session.in_use"
    # What is locked can be read by nobody else there.
    assert min(place for _, place in locks.holders) > first.path.stat().st_size
    first.append({"type": "undo"})
    first.close()
    assert not locks.holders
    assert not folder.in_use(first.path)
    second.append()
    assert [json.loads(line)["type"] for line in first.path.read_text().splitlines()] == [
        *("session", "undo", "session")
    ]
    second.close()


def test_every_record_is_synced(monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    real = os.fsync
    monkeypatch.setattr(
        "xverse_cli.chat.sessions.journal.os.fsync",
        lambda descriptor: (synced.append(descriptor), real(descriptor)),
    )
    writing = Writing()
    writing.say("one", "A")
    assert len(synced) >= 2  # the message, and the turn


def test_finding_sessions() -> None:
    ids = []
    for number, name in enumerate(("", "trip", "")):
        writing = Writing()
        writing.say(f"message {number}", "A")
        if name:
            writing.recorder.call(name)
        writing.recorder.close()
        os.utime(writing.recorder.path, (number, number))
        ids.append(writing.recorder.id)
    assert [saved.id for saved in folder.saved_sessions()] == ids[::-1]
    assert folder.find_session(ids[0]).id == ids[0]
    assert folder.find_session("trip").id == ids[1]
    assert folder.find_session(ids[2][-6:]).title == "message 2"
    assert folder.latest_session().id == ids[2]
    for wanted, code in ((ids[0][:4], "session.ambiguous"), ("zzz", "session.not_found")):
        with pytest.raises(UsageError) as caught:
            folder.find_session(wanted)
        assert caught.value.code == code


@pytest.mark.skipif(os.name == "nt", reason="no locks there")
def test_the_latest_session_is_one_that_is_not_open() -> None:
    first, second = Writing(), Writing()
    first.say("one", "A")
    first.recorder.close()
    second.say("two", "B")
    assert folder.latest_session().id == first.recorder.id
    first.recorder.path.unlink()
    with pytest.raises(UsageError) as caught:
        folder.latest_session()
    assert caught.value.code == "session.in_use"
    assert caught.value.params == {"session": second.recorder.id}
    second.recorder.close()
    second.recorder.path.unlink()
    with pytest.raises(UsageError) as caught:
        folder.latest_session()
    assert caught.value.code == "session.none"


def test_a_latest_session_that_cannot_be_read_is_said_to_be_so() -> None:
    writing = Writing()
    writing.say("one", "A")
    writing.recorder.close()
    path = writing.recorder.path
    path.write_text(json.dumps({"type": "session", "version": 2, "time": ""}) + "\n")
    with pytest.raises(UsageError) as caught:
        folder.latest_session()
    assert caught.value.code == "session.newer"


def test_a_session_of_a_later_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text(json.dumps({"type": "session", "version": 2, "time": ""}) + "\n")
    with pytest.raises(UsageError) as caught:
        read_session(path)
    assert caught.value.code == "session.newer"


def test_a_second_writer_of_the_same_file_is_kept_out(tmp_path: Path) -> None:
    if os.name == "nt":
        pytest.skip("no locks there")
    first, second = Journal(tmp_path / "s.jsonl"), Journal(tmp_path / "s.jsonl")
    first.append({"type": "a"})
    with pytest.raises(UsageError):
        second.append({"type": "b"})
    first.close()
    second.append({"type": "c"})
    assert (tmp_path / "s.jsonl").read_bytes().count(b"\n") == 3  # what waited came too
