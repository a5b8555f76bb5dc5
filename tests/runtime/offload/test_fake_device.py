"""The fake device catches what would go wrong on a real one."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from tests.fake_device import FakeDevice, HazardError
from xverse_runtime.offload.table_rows import ROWS_UNDER_WAY, TableRows


@pytest.fixture
def device() -> FakeDevice:
    return FakeDevice(random.Random(1), most_delay=1000)


@pytest.fixture
def pool(device: FakeDevice) -> Tensor:
    return device.empty(4, 8, dtype=torch.uint8)


def block(device: FakeDevice, value: int) -> Tensor:
    made = device.host_buffer(8, dtype=torch.uint8)
    return made.fill_(value)


def test_a_row_is_garbage_until_its_upload_is_waited_for(device: FakeDevice, pool: Tensor) -> None:
    source = block(device, 7)
    upload = device.upload(pool, [(source, 2)])
    assert not upload.is_done()
    assert not torch.equal(pool[2], source)
    device.reading([0, 1, 3])
    with pytest.raises(HazardError, match="read"):
        device.reading([1, 2])
    device.compute_after(upload)
    device.reading([2])
    assert torch.equal(pool[2], source)


def test_uploads_arrive_in_their_order(device: FakeDevice, pool: Tensor) -> None:
    first, second = block(device, 1), block(device, 2)
    uploads = [device.upload(pool, [(one, 0)]) for one in (first, second)]
    uploads[1].wait()
    assert uploads[0].arrived
    assert torch.equal(pool[0], second)


def test_a_block_must_stay_until_the_host_knows_it_was_copied(
    device: FakeDevice, pool: Tensor
) -> None:
    source = block(device, 1)
    upload = device.upload(pool, [(source, 0)])
    source.fill_(2)
    with pytest.raises(HazardError, match="while it was being uploaded"):
        upload.wait()


def test_computing_after_an_upload_tells_the_host_nothing(device: FakeDevice, pool: Tensor) -> None:
    source = block(device, 1)
    upload = device.upload(pool, [(source, 0)])
    device.compute_after(upload)
    mark = device.mark()
    source.fill_(2)
    with pytest.raises(HazardError, match="while it was being uploaded"):
        mark.wait()


def test_the_host_reads_garbage_before_a_mark(device: FakeDevice) -> None:
    source, target = torch.arange(4), device.host_buffer(4, dtype=torch.int64)
    device.to_host([(source, target)])
    mark = device.mark()
    assert not torch.equal(target, source)
    mark.wait()
    assert torch.equal(target, source)


def test_a_mark_says_nothing_of_what_comes_after_it(device: FakeDevice) -> None:
    source, target = torch.arange(4), device.host_buffer(4, dtype=torch.int64)
    mark = device.mark()
    device.to_host([(source, target)])
    mark.wait()
    assert not torch.equal(target, source)


def test_a_buffer_is_left_alone_while_it_goes_to_the_device(device: FakeDevice) -> None:
    source, target = device.host_buffer(4, dtype=torch.float32), torch.empty(4)
    device.to_device(source, target)
    source.fill_(1)
    with pytest.raises(HazardError, match="may still be reading it"):
        device.mark().wait()


def test_a_buffer_is_left_alone_while_it_is_read_where_it_lies(device: FakeDevice) -> None:
    buffer = device.host_buffer(4, dtype=torch.float32)
    device.reading_in_place(buffer)
    device.mark().wait()
    buffer.fill_(1)
    device.reading_in_place(buffer)
    early = device.mark()
    device.reading_in_place(buffer)
    late = device.mark()
    early.wait()
    buffer.fill_(2)
    with pytest.raises(HazardError, match="may still be reading it"):
        late.wait()


def test_copies_need_memory_that_they_can_reach(device: FakeDevice, pool: Tensor) -> None:
    plain = torch.zeros(8, dtype=torch.uint8)
    with pytest.raises(HazardError, match="not pinned"):
        device.upload(pool, [(plain, 0)])
    assert device.pin(plain)
    device.upload(pool, [(plain, 0)])
    assert not FakeDevice(pins=lambda nbytes: nbytes < 8).pin(plain)


def test_memory_runs_out() -> None:
    device = FakeDevice(memory=100)
    device.empty(60, dtype=torch.uint8)
    with pytest.raises(torch.OutOfMemoryError):
        device.empty(60, dtype=torch.uint8)
    device.empty(40, dtype=torch.uint8)


def test_an_upload_begins_behind_all_that_reads_its_row(device: FakeDevice, pool: Tensor) -> None:
    source = block(device, 7)
    before = device.mark()
    device.reading([1, 2])
    behind = device.mark()
    device.reading([4])
    device.upload(pool, [(source, 1)])  # waits for the computations so far
    with pytest.raises(HazardError, match="may still be needed"):
        device.upload(pool, [(source, 2)], after=before)
    device.upload(pool, [(source, 3)], after=before)
    device.upload(pool, [(source, 2)], after=behind)
    with pytest.raises(HazardError, match="may still be needed"):
        device.upload(pool, [(source, 4)], after=behind)


def test_tables_do_not_overtake_each_other(device: FakeDevice) -> None:
    """Many more than the ring has places, with nobody else waiting for the device."""
    rows, target = TableRows(device, 3), device.empty(3, dtype=torch.int32)
    for number in range(5 * ROWS_UNDER_WAY + 3):
        rows.send([number, -1, 7], target)
        assert target.tolist() == [number, -1, 7]
    device.mark().wait()
