"""A device that computes at once but copies when it likes, and raises where a real one may err.

Uploads arrive in their order, each after a delay that the test chooses, or when somebody waits for
them; until then their rows hold garbage. Copies to the host arrive when a mark behind them is
waited for. Whatever could be read too early or overwritten too early on a real device is an error
here, also where this time it would have gone well.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from xverse_runtime.offload.patience import Awaited, Patience, await_computations, await_upload
from xverse_runtime.offload.transfer import NOTHING_NAMED, BlockCopy, SmallCopies

GARBAGE = 0xA5


class HazardError(AssertionError):
    """Something that is right by luck only."""


class FakeUpload:
    """See `Upload`."""

    def __init__(
        self, device: FakeDevice, pool: Tensor, copies: Sequence[BlockCopy], delay: int
    ) -> None:
        self._device = device
        self.pool = pool
        self.copies = copies
        self.bytes_when_asked = [block.clone() for block, _ in copies]
        self.nbytes = sum(block.nbytes for block, _ in copies)
        self.left = delay
        self.arrived = False

    @property
    def rows(self) -> set[int]:
        return {row for _, row in self.copies}

    def is_done(self) -> bool:
        self._device.tick()
        if self.arrived:
            self._device.seen(self)
        return self.arrived

    def seconds(self) -> float | None:
        assert self.arrived
        return self._device.upload_seconds(self.nbytes)

    def wait(self, awaited: Awaited = NOTHING_NAMED) -> None:
        await_upload(self._device.patience, lambda: not self._device.uploads_stick, awaited)
        self._device.arrive(self)
        self._device.seen(self)

    def check(self) -> None:
        """Raise if a block was written before the host could know that it was on the device."""
        for (block, row), as_asked in zip(self.copies, self.bytes_when_asked, strict=True):
            if not same_bytes(block, as_asked):
                raise HazardError(f"a block was written while it was being uploaded to row {row}")


class FakeMark:
    """See `Mark`."""

    def __init__(self, device: FakeDevice, place: int) -> None:
        self._device = device
        self.place = place

    def wait(self, awaited: Awaited = NOTHING_NAMED) -> None:
        device = self._device
        await_computations(
            device.patience,
            lambda: self.place < device.sticks_at,
            lambda: not device.uploads_stick,
            awaited,
        )
        device.reach(self.place)


class FakeDevice:
    """`OffloadDevice` on host memory."""

    checks = True

    def __init__(
        self,
        rng: random.Random | None = None,
        *,
        most_delay: int = 6,
        pins: Callable[[int], bool] = lambda _bytes: True,
        memory: int | None = None,
        reads_in_place: bool = False,
        copy_small: Callable[[SmallCopies], None] | None = None,
        upload_seconds: Callable[[int], float] = lambda nbytes: 1e-4 + nbytes / 1e10,
    ) -> None:
        """
        Args:
            rng: of the delays.
            most_delay: of an upload, in looks at the device.
            pins: whether so many bytes can be pinned.
            memory: bytes that `empty` can give in all.
            reads_in_place: whether computations reach buffers of the host.
            copy_small: also told of the small copies.
            upload_seconds: what an upload is said to have taken.
        """
        self._rng = rng or random.Random(0)
        self._most_delay = most_delay
        self._pins = pins
        self._memory = memory
        self.reads_in_place = reads_in_place
        self._copy_small = copy_small
        self.upload_seconds = upload_seconds
        self._uploads: list[FakeUpload] = []  # under way, in their order
        self._unseen: list[tuple[int, FakeUpload]] = []  # over, but the host cannot know it yet
        self._asked = 0  # of computations and small copies
        self._to_host: list[tuple[int, Tensor, Tensor]] = []
        self._read: list[tuple[int, Tensor, Tensor]] = []  # buffers, and what was in them
        self._reachable: list[Tensor] = []
        self._touched: dict[int, int] = {}  # rows, and the last computation that reads them
        self._reached = 0  # of what was asked for, the host knows that so much is over
        self.uploads = 0
        self.patience = Patience()
        self.uploads_stick = False  # from now on none arrives
        self.sticks_at = math.inf  # the first computation that never ends

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def empty(self, *shape: int, dtype: torch.dtype) -> Tensor:
        made = torch.empty(shape, dtype=dtype)
        if self._memory is not None:
            self._memory -= made.nbytes
            if self._memory < 0:
                self._memory += made.nbytes
                raise torch.OutOfMemoryError("fake memory is full")
        made.view(torch.uint8).fill_(GARBAGE)
        return made

    def free(self, memory: Tensor) -> None:
        while self._uploads:
            self._finish(self._uploads[0])
        self.reach(self._asked)
        if self._memory is not None:
            self._memory += memory.nbytes
        memory.view(torch.uint8).fill_(GARBAGE)  # for whoever still reads it

    def free_bytes(self) -> int:
        return 2**40 if self._memory is None else self._memory

    def take(self, nbytes: int) -> None:
        """Another program has so much of the memory from now on."""
        assert self._memory is not None
        self._memory -= nbytes

    def host_buffer(self, *shape: int, dtype: torch.dtype) -> Tensor:
        made = torch.zeros(shape, dtype=dtype)
        self._reachable.append(made)
        return made

    def pin(self, blocks: Tensor) -> bool:
        if not self._pins(blocks.nbytes):
            return False
        self._reachable.append(blocks)
        return True

    def to_host(self, copies: SmallCopies) -> None:
        self._asked += 1
        for source, target in copies:
            self._must_reach(target)
            assert source.numel() == target.numel()
        copied = [torch.empty_like(target) for _, target in copies]
        self._copy([(source, one) for (source, _), one in zip(copies, copied, strict=True)])
        for one, (_, target) in zip(copied, copies, strict=True):
            self._to_host.append((self._asked, one, target))
            target.view(torch.uint8).fill_(GARBAGE)

    def to_device(self, source: Tensor, target: Tensor) -> None:
        self.reading_in_place(source)
        self._copy([(source, target)])

    def _copy(self, copies: SmallCopies) -> None:
        if self._copy_small is not None:
            self._copy_small(copies)  # whose launches a test may only write down
        for source, target in copies:
            target.copy_(source)

    def reading_in_place(self, buffer: Tensor) -> None:
        self._must_reach(buffer)
        self._asked += 1
        self._read.append((self._asked, buffer, buffer.clone()))

    def mark(self) -> FakeMark:
        return FakeMark(self, self._asked)

    def reading(self, rows: Iterable[int]) -> None:
        rows = list(rows)
        self._asked += 1
        self._must_be_still(rows)
        self._touched.update(dict.fromkeys(rows, self._asked))

    def upload(
        self, pool: Tensor, copies: Sequence[BlockCopy], *, after: FakeMark | None = None
    ) -> FakeUpload:
        for block, row in copies:
            self._must_reach(block)
            if after is not None and self._touched.get(row, 0) > after.place:
                raise HazardError(f"row {row} would be overwritten while it may still be needed")
        upload = FakeUpload(self, pool, copies, self._rng.randint(0, self._most_delay))
        rows = [row for _, row in copies]
        assert len(set(rows)) == len(rows)
        assert copies
        for row in rows:
            pool[row].fill_(GARBAGE)
        self._uploads.append(upload)
        self.uploads += 1
        return upload

    def compute_after(self, upload: FakeUpload) -> None:
        self._asked += 1
        if self.uploads_stick:
            self.sticks_at = min(self.sticks_at, self._asked)
            return
        before = list(self._uploads)
        self.arrive(upload)  # as computations happen at once
        self._unseen += [(self._asked, one) for one in before if one.arrived]

    def close(self) -> None:
        self._uploads.clear()

    # ------------------------------------------------------------------ for its own parts

    def tick(self) -> None:
        """Time passes: the first upload under way comes nearer."""
        if self._uploads and not self.uploads_stick:
            first = self._uploads[0]
            first.left -= 1
            if first.left <= 0:
                self._finish(first)

    def arrive(self, upload: FakeUpload) -> None:
        """Everything up to this upload is there."""
        while not upload.arrived:
            self._finish(self._uploads[0])

    def reach(self, place: int) -> None:
        """The host knows that the computations up to here are over."""
        self._reached = max(self._reached, place)
        for _, buffer, as_asked in [one for one in self._read if one[0] <= place]:
            if not same_bytes(buffer, as_asked):
                raise HazardError("a buffer was written while the device may still be reading it")
        self._read = [one for one in self._read if one[0] > place]
        for _, source, target in [one for one in self._to_host if one[0] <= place]:
            target.copy_(source)
        self._to_host = [one for one in self._to_host if one[0] > place]
        for asked, upload in self._unseen:
            if asked <= place:
                upload.check()
        self._unseen = [one for one in self._unseen if one[0] > place]
        if self._rng.random() < 0.5:
            self.tick()

    def seen(self, upload: FakeUpload) -> None:
        """The host knows that this upload, and all before it, are over."""
        places = [place for place, (_, one) in enumerate(self._unseen) if one is upload]
        for _, one in self._unseen[: places[0] + 1 if places else 0]:
            one.check()
        del self._unseen[: places[0] + 1 if places else 0]

    def _finish(self, upload: FakeUpload) -> None:
        assert self._uploads[0] is upload
        upload.check()
        for block, row in upload.copies:
            upload.pool[row].copy_(block)
        upload.arrived = True
        del self._uploads[0]

    def stick(self) -> None:
        """Computations that are asked for from now on never end."""
        self.sticks_at = self._asked + 1

    def _must_be_still(self, rows: Iterable[int]) -> None:
        if self._asked > self.sticks_at:
            return  # never happens
        coming = {row for upload in self._uploads for row in upload.rows}
        early = sorted(coming & set(rows))
        if early:
            raise HazardError(f"rows {early} would be read while an upload to them is under way")

    def _must_reach(self, memory: Tensor) -> None:
        first, last = memory.data_ptr(), memory.data_ptr() + memory.nbytes
        inside = any(
            one.data_ptr() <= first and last <= one.data_ptr() + one.nbytes
            for one in self._reachable
        )
        if not inside:
            raise HazardError("an asynchronous copy of memory that is not pinned")


def same_bytes(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
