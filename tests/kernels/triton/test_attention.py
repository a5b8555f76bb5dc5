"""Attention of single new tokens, and of stretches of tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.kernels.triton.interpreter import (
    FLOATS,
    HALF_AND_FULL,
    LIMITS,
    NAN,
    guarded,
    name_of,
    randn,
    relative_error,
    with_gaps,
)
from xverse_kernels.kv_rows import Int8Rows, Rows, read_rows, to_int8
from xverse_kernels.reference_backend import ReferenceBackend
from xverse_kernels.triton import launch
from xverse_kernels.triton.attention import (
    attend_each,
    attend_span,
    prefill_attention,
    torch_attention,
)
from xverse_kernels.triton.launch import Workspace
from xverse_kernels.types import Rotary

ONE_PART, EIGHT_PARTS, ALL_PARTS = 200, 1000, 5000  # `longest` for so many parts of the past
SHAPES = [(2, 2, 80), (4, 2, 64), (3, 1, 128), (2, 1, 80)]  # heads, kv_heads, head_dim


def rotary_table(capacity: int, dim: int) -> Rotary:
    frequencies = 1e4 ** -(torch.arange(0, dim, 2) / dim)
    angles = torch.outer(torch.arange(capacity).float(), frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    return Rotary(guarded(angles.cos()), guarded(angles.sin()))


class Case:
    """Sequences of different lengths, and their newest tokens; NaN where nothing is cached yet."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        capacity: int,
        pasts: dict[int, int],
        dtype: torch.dtype = torch.float32,
        tokens: int = 1,
        sequences: int = 0,
    ) -> None:
        heads, kv_heads, dim = shape
        rows = len(pasts) * tokens
        self.rotary = rotary_table(capacity, dim)
        self.qkv = guarded(randn(rows, (heads + 2 * kv_heads) * dim, seed=rows).to(dtype))
        cache = (sequences or max(pasts) + 1, kv_heads, capacity, dim)
        self.keys, self.values = (guarded(torch.full(cache, NAN).to(dtype)) for _ in range(2))
        for sequence, past in pasts.items():
            filled = (kv_heads, past, dim)
            self.keys[sequence, :, :past] = randn(*filled, seed=2 * sequence).to(dtype)
            self.values[sequence, :, :past] = randn(*filled, seed=2 * sequence + 1).to(dtype)
        self.sequences = torch.tensor(list(pasts), dtype=torch.int32)
        self.positions = torch.tensor(list(pasts.values()), dtype=torch.int32)
        self.wide_keys: Rows = self.keys.to(torch.float32, copy=True)
        self.wide_values: Rows = self.values.to(torch.float32, copy=True)

    def in_int8(self) -> Case:
        """The same in int8; the reference gets a cache like it."""
        for name in ("keys", "values"):
            rows = to_int8(getattr(self, name))
            setattr(self, name, Int8Rows(*map(guarded, rows)))
            setattr(self, f"wide_{name}", Int8Rows(*(one.clone() for one in rows)))
        return self

    def expect_each(self) -> Tensor:
        """The reference in fp32; it fills the wide caches."""
        return ReferenceBackend().attend_each(
            self.qkv.float(),
            self.rotary,
            self.wide_keys,
            self.wide_values,
            self.sequences,
            self.positions,
            0,
        )

    def each(self, workspace: Workspace, longest: int) -> Tensor:
        return attend_each(
            self.qkv,
            *self.rotary,
            self.keys,
            self.values,
            self.positions,
            self.sequences,
            workspace,
            longest=longest,
        )

    def check_caches(self) -> None:
        """They hold what the reference's hold, and NaN in all other places."""
        limit = 8e-3 if self.qkv.dtype == torch.bfloat16 else 1e-3
        for ours, theirs in ((self.keys, self.wide_keys), (self.values, self.wide_values)):
            if isinstance(ours, Int8Rows):
                assert (ours.integers.int() - theirs.integers).abs().max() <= 1
                assert torch.allclose(ours.scales, theirs.scales, rtol=1.5e-3, equal_nan=True)
                continue
            assert torch.allclose(ours.float(), theirs, atol=limit, rtol=limit, equal_nan=True)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_a_token_each_of_several_sequences(
    shape: tuple[int, int, int], dtype: torch.dtype, workspace: Workspace
) -> None:
    # positions: the first ones, around the edge of a block of 32, the last place
    pasts = {5: 63, 2: 0, 0: 31, 4: 32, 1: 33, 3: 1}
    case = Case(shape, 64, pasts, dtype, sequences=7)
    expected = case.expect_each()
    actual = case.each(workspace, ONE_PART)
    assert actual.dtype == dtype
    assert relative_error(actual, expected) < LIMITS[dtype]
    case.check_caches()


@pytest.mark.parametrize("shape", [(2, 2, 64), (2, 1, 80)])
@pytest.mark.parametrize(
    ("longest", "pasts"),
    [
        (EIGHT_PARTS, {1: 0, 0: 1}),
        (EIGHT_PARTS, {0: 255, 2: 256, 1: 257}),
        (ALL_PARTS, {1: 523, 0: 33}),
    ],
)
def test_a_past_in_parts_some_of_them_empty(
    shape: tuple[int, int, int], longest: int, pasts: dict[int, int], workspace: Workspace
) -> None:
    case = Case(shape, max(pasts.values()) + 1, pasts)
    expected = case.expect_each()
    for _ in range(2):  # the second launch finds the partial results of the first
        assert relative_error(case.each(workspace, longest), expected) < LIMITS[torch.float32]
        assert not workspace.counters.any()
    case.check_caches()


@pytest.mark.parametrize("longest", [ONE_PART, EIGHT_PARTS])
def test_scores_far_apart_stay_finite(longest: int, workspace: Workspace) -> None:
    case = Case((2, 2, 64), 100, {0: 99})
    case.qkv *= 40
    case.keys *= 40
    case.wide_keys *= 40
    expected = case.expect_each()
    assert relative_error(case.each(workspace, longest), expected) < 1e-4


@pytest.mark.parametrize("shape", [*SHAPES, (16, 4, 64)])
@pytest.mark.parametrize("dtype", HALF_AND_FULL, ids=name_of)
@pytest.mark.parametrize(("past", "tokens"), [(0, 1), (0, 17), (5, 1), (30, 3)])
def test_a_stretch_of_tokens(
    shape: tuple[int, int, int], dtype: torch.dtype, past: int, tokens: int
) -> None:
    capacity = past + tokens + (past == 0)  # to the last place of the cache, or not
    case = Case(shape, capacity, {1: past}, dtype, tokens=tokens, sequences=3)
    expected = ReferenceBackend().attend_span(
        case.qkv.float(), case.rotary, case.wide_keys, case.wide_values, 1, past
    )
    actual = attend_span(case.qkv, *case.rotary, case.keys, case.values, 1, past)
    assert actual.dtype == dtype
    assert relative_error(actual, expected) < 2 * LIMITS[dtype]
    case.check_caches()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_a_token_each_with_an_int8_cache(
    shape: tuple[int, int, int], dtype: torch.dtype, workspace: Workspace
) -> None:
    case = Case(shape, 64, {5: 63, 2: 0, 0: 31, 4: 32, 3: 1}, dtype, sequences=7).in_int8()
    expected = case.expect_each()
    actual = case.each(workspace, ONE_PART)
    assert actual.dtype == dtype
    # an integer of the newest key or value may be rounded the other way
    assert relative_error(actual, expected) < max(LIMITS[dtype], 1e-4)
    case.check_caches()


@pytest.mark.parametrize(
    ("longest", "pasts"), [(EIGHT_PARTS, {0: 255, 2: 257}), (ALL_PARTS, {1: 523})]
)
def test_an_int8_past_in_parts(longest: int, pasts: dict[int, int], workspace: Workspace) -> None:
    case = Case((2, 1, 80), max(pasts.values()) + 1, pasts).in_int8()
    expected = case.expect_each()
    assert relative_error(case.each(workspace, longest), expected) < 1e-4
    case.check_caches()


@pytest.mark.parametrize("shape", [*SHAPES, (16, 4, 64)])
@pytest.mark.parametrize("dtype", HALF_AND_FULL, ids=name_of)
@pytest.mark.parametrize(("past", "tokens"), [(0, 17), (5, 1), (30, 3)])
def test_a_stretch_of_tokens_with_an_int8_cache(
    shape: tuple[int, int, int], dtype: torch.dtype, past: int, tokens: int
) -> None:
    case = Case(shape, past + tokens + 1, {1: past}, dtype, tokens=tokens, sequences=3).in_int8()
    expected = ReferenceBackend().attend_span(
        case.qkv.float(), case.rotary, case.wide_keys, case.wide_values, 1, past
    )
    actual = attend_span(case.qkv, *case.rotary, case.keys, case.values, 1, past)
    assert actual.dtype == dtype
    assert relative_error(actual, expected) < max(2 * LIMITS[dtype], 1e-4)
    case.check_caches()


def test_prompts_and_tokens_fill_an_int8_cache_alike(workspace: Workspace) -> None:
    """So that a cache can be continued, or filled anew, wherever it was cut."""
    whole = Case((4, 2, 80), 12, {0: 0}, tokens=9).in_int8()
    together = attend_span(whole.qkv, *whole.rotary, whole.keys, whole.values, 0, 0)
    single = Case((4, 2, 80), 12, {0: 0}, tokens=9).in_int8()
    for row in range(9):
        actual = attend_each(
            single.qkv[row : row + 1],
            *single.rotary,
            single.keys,
            single.values,
            torch.tensor([row], dtype=torch.int32),
            torch.zeros(1, dtype=torch.int32),
            workspace,
            longest=ONE_PART,
        )
        assert relative_error(actual, together[row : row + 1]) < 3e-6
    for ours, theirs in ((single.keys, whole.keys), (single.values, whole.values)):
        assert torch.equal(ours.integers[:, :, :9], theirs.integers[:, :, :9])
        assert torch.equal(ours.scales[:, :, :9], theirs.scales[:, :, :9])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of the interpreter
@pytest.mark.parametrize("part", ["key", "value"])
@pytest.mark.parametrize("value", [NAN, float("inf")])
def test_what_is_not_finite_stays_so_in_int8(part: str, value: float, workspace: Workspace) -> None:
    """Whoever sees it gets NaN, in a prompt also who shares its tile; zeros stay zeros."""
    case = Case((2, 2, 64), 8, {0: 0}, tokens=5).in_int8()
    case.qkv[2, {"key": 2, "value": 4}[part] * 64 + 5] = value
    case.qkv[1, 128:] = 0
    out = attend_span(case.qkv, *case.rotary, case.keys, case.values, 0, 0)
    assert out[2:, :64].isnan().all()
    assert out[:, 64:].isfinite().all()
    assert not case.keys.integers[0, :, 1].any()
    assert not case.keys.scales[0, :, 1].any()
    again = attend_each(
        case.qkv[2:3],
        *case.rotary,
        case.keys,
        case.values,
        torch.tensor([2], dtype=torch.int32),
        torch.zeros(1, dtype=torch.int32),
        workspace,
        longest=ONE_PART,
    )
    assert again[0, :64].isnan().all()
    assert again[0, 64:].isfinite().all()


def test_torchs_attention_reads_int8() -> None:
    case = Case((4, 2, 80), 12, {0: 5}, tokens=3).in_int8()
    q = randn(4, 3, 80)
    rows = case.keys, case.values
    for one in rows:
        one.scales[0, :, 5:8], one.integers[0, :, 5:8] = 0.01, 50
    wide = (read_rows(one, (slice(None),), q.dtype) for one in rows)
    assert torch.equal(torch_attention(q, *rows, 0, 5), torch_attention(q, *wide, 0, 5))


REFUSED = pytest.raises(ValueError, match=r"call \.contiguous\(\) first")


@pytest.mark.parametrize(
    "which", ["qkv", "keys", "values", "cos", "sin", "positions", "sequences", "scales"]
)
def test_rows_with_gaps_are_refused(which: str, workspace: Workspace) -> None:
    case = Case((2, 2, 64), 8, {0: 3, 1: 5})
    if which == "scales":
        case.in_int8()
        case.keys = case.keys._replace(scales=with_gaps(case.keys.scales))
    elif which in ("cos", "sin"):
        case.rotary = case.rotary._replace(**{which: with_gaps(getattr(case.rotary, which))})
    else:
        setattr(case, which, with_gaps(getattr(case, which)))
    with REFUSED:
        case.each(workspace, ONE_PART)
    if which not in ("positions", "sequences"):  # which a stretch of tokens does not have
        with REFUSED:
            attend_span(case.qkv, *case.rotary, case.keys, case.values, 0, 3)


def test_rotated_queries_with_gaps_are_refused() -> None:
    case = Case((2, 2, 64), 8, {0: 3})
    with REFUSED:
        prefill_attention(with_gaps(torch.zeros(2, 1, 64)), case.keys, case.values, 0, 3)


def test_more_tokens_and_heads_than_there_were_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "COUNTERS", 4)
    space = Workspace(torch.device("cpu"))
    case = Case((2, 1, 64), 40, {2: 33, 0: 7, 1: 39})
    expected = case.expect_each()
    for _ in range(2):
        assert relative_error(case.each(space, EIGHT_PARTS), expected) < LIMITS[torch.float32]
        assert not space.counters.any()
    assert space.counters.numel() >= 6
    case.check_caches()


@pytest.mark.parametrize("longest", [256, 1024, 1 << 30])
def test_more_sequences_than_have_addresses_are_refused(longest: int) -> None:
    """In the true model's shape, whatever the past is divided into: one token fewer is launched."""
    meta = torch.device("meta")
    rows = torch.empty(1, 32, 256, 80, dtype=torch.bfloat16, device=meta)
    angles = torch.empty(256, 80, device=meta)

    def launched(tokens: int) -> int:
        qkv = torch.empty(tokens, 96 * 80, dtype=torch.bfloat16, device=meta)
        place = torch.empty(tokens, dtype=torch.int32, device=meta)
        with launch.recording(launch.Abilities("mma", 86)) as found:
            attend_each(
                qkv, angles, angles, rows, rows, place, place, Workspace(meta), longest=longest
            )
        splits = {version.constant["SPLITS"] for version in found}
        return max(32 * 82 * splits.pop(), 96 * 80)

    most = (2**31 - 1) // launched(1)
    launched(most)
    with pytest.raises(ValueError, match=f"{most} at most"):
        launched(most + 1)
