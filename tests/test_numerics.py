"""Merging partials is a lawful reduction, and rounding is what the formats say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leansim.errors import UnknownNameError
from leansim.numerics.attention import (
    Partial,
    empty,
    finish,
    from_normalised,
    merge,
    merge_normalised,
    rounded,
    tile_attention,
)
from leansim.numerics.reference import reference_heads

ROWS, DIM = 3, 4

# The reduction


def random_partial(rng: np.random.Generator, scale: float, hidden: float, keys: int = 6) -> Partial:
    """The partial of `keys` keys with scores of size `scale`, a share `hidden` of them masked."""
    scores = scale * rng.uniform(-1, 1, (ROWS, keys))
    scores[rng.random(scores.shape) < hidden] = -np.inf
    m = scores.max(axis=1)
    p = np.where(np.isneginf(scores), 0, np.exp(scores - np.where(np.isneginf(m), 0, m)[:, None]))
    return Partial(m, p.sum(axis=1), p @ rng.standard_normal((keys, DIM)))


partials = st.builds(
    random_partial,
    st.integers(0, 2**32).map(np.random.default_rng),
    scale=st.sampled_from([0.0, 1.0, 30.0, 1e4]),
    hidden=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
)


def assert_close(a: Partial, b: Partial, rtol: float = 1e-13) -> None:
    """Equal maxima; sums and outputs equal to rounding. `|o|` is bounded by about `5 l` here."""
    np.testing.assert_array_equal(a.m, b.m)
    np.testing.assert_allclose(a.l, b.l, rtol=rtol)
    np.testing.assert_allclose(a.o, b.o, rtol=rtol, atol=rtol * 5 * max(1.0, float(a.l.max())))


@given(partials, partials, partials)
def test_merge_is_associative(a: Partial, b: Partial, c: Partial) -> None:
    assert_close(merge(merge(a, b), c), merge(a, merge(b, c)))


@given(partials, partials)
def test_merge_is_commutative_to_the_last_bit(a: Partial, b: Partial) -> None:
    for x, y in zip(vars(merge(a, b)).values(), vars(merge(b, a)).values(), strict=True):
        np.testing.assert_array_equal(x, y)


@given(partials)
def test_empty_is_the_identity_of_merge(a: Partial) -> None:
    for merged in (merge(a, empty(ROWS, DIM)), merge(empty(ROWS, DIM), a)):
        for x, y in zip(vars(merged).values(), vars(a).values(), strict=True):
            np.testing.assert_array_equal(x, y)


@given(partials, partials, partials)
def test_merging_stored_partials_gives_what_merging_raw_ones_does(
    a: Partial, b: Partial, c: Partial
) -> None:
    o, lse = finish(merge(merge(a, b), c))
    stored = [finish(part) for part in (a, b, c)]
    host = finish(merge(merge(a, from_normalised(*stored[1])), from_normalised(*stored[2])))
    for other_o, other_lse in (merge_normalised(stored), host):
        # an lse of 1e4 is kept to 1e-12, and its exponential to as much
        np.testing.assert_allclose(other_lse, lse, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(other_o, o, rtol=1e-11, atol=1e-10)


def test_rows_without_keys_give_zeros_and_minus_infinity() -> None:
    nothing = empty(ROWS, DIM, np.float32)
    np.testing.assert_array_equal(from_normalised(*finish(nothing)).l, np.zeros(ROWS))
    for o, lse in (finish(nothing), merge_normalised([finish(nothing)] * 2)):
        assert o.dtype == lse.dtype == np.float32
        np.testing.assert_array_equal(o, np.zeros((ROWS, DIM)))
        np.testing.assert_array_equal(lse, np.full(ROWS, -np.inf))


def test_a_merge_by_hand() -> None:
    """Scores 0 and ln 3 with values 1 and 5: weights 1/4 and 3/4, so O = 4 and lse = ln 4."""
    one = np.ones(1)
    a = Partial(0 * one, one, np.array([[1.0]]))
    b = Partial(np.log(3) * one, one, np.array([[5.0]]))
    o, lse = finish(merge(a, b))
    assert o[0, 0] == pytest.approx(4, rel=1e-15)
    assert lse[0] == pytest.approx(np.log(4), rel=1e-15)


def test_a_fully_masked_tile_changes_nothing() -> None:
    q, k, v = np.random.default_rng(1).standard_normal((3, ROWS, DIM))
    everything, nothing = np.ones((ROWS, ROWS), dtype=bool), np.zeros((ROWS, ROWS), dtype=bool)
    before = tile_attention(q, k, v, everything, "float64")
    after = tile_attention(q, k, v, nothing, "float64", before=before)
    np.testing.assert_array_equal(before.o, after.o)
    hidden = tile_attention(q, k, v, nothing, "float64")
    np.testing.assert_array_equal(hidden.m, np.full(ROWS, -np.inf))
    np.testing.assert_array_equal(hidden.o, np.zeros((ROWS, DIM)))


# Number formats


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (1.0, 1.0),
        (1 + 2**-8, 1.0),  # a tie goes to the even neighbour below
        (1 + 3 * 2**-8, 1 + 2**-6),  # and to the even neighbour above
        (1 + 2**-8 + 2**-20, 1 + 2**-7),  # just above a tie
        (-3.14159265, -3.140625),
        (0.1, 0.10009765625),
        (2 - 2**-9, 2.0),  # the carry reaches the exponent
        (2.0**-133, 2.0**-133),  # the smallest subnormal
        (np.inf, np.inf),
        (3.4e38, np.inf),  # beyond the largest, 3.39e38, by more than half a step
        (np.nan, np.nan),
    ],
)
def test_bfloat16_rounds_to_nearest_even(value: float, wanted: float) -> None:
    found = rounded(np.array([value]), "bfloat16")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.array([wanted], dtype=np.float32))


@given(st.floats(width=32, allow_nan=False, min_value=-(2.0**120), max_value=2.0**120))
def test_bfloat16_rounding_is_idempotent_and_within_half_a_step(value: float) -> None:
    once = rounded(np.array([value]), "bfloat16")
    np.testing.assert_array_equal(once, rounded(once, "bfloat16"))
    assert abs(float(once[0]) - value) <= max(2.0**-8 * abs(value), 2.0**-134)


def test_other_formats_round_as_numpy_does() -> None:
    values = np.array([1 + 2**-11, 1 + 3 * 2**-11, 0.1])
    np.testing.assert_array_equal(rounded(values, "float16"), values.astype(np.float16))
    assert rounded(values, "float16").dtype == np.float32
    np.testing.assert_array_equal(rounded(values, "float32"), values.astype(np.float32))
    np.testing.assert_array_equal(rounded(values, "float64"), values)
    with pytest.raises(UnknownNameError, match="did you mean 'bfloat16'"):
        rounded(values, "bfloat61")  # type: ignore[arg-type]


def test_probabilities_are_rounded_for_pv_and_not_for_their_sum() -> None:
    """Scores 0 and -1 with values 0 and 1: o is exp(-1) in bfloat16, l is 1 + exp(-1) in float32."""
    q, k, v = np.ones((1, 1)), np.array([[0.0], [-1.0]]), np.array([[0.0], [1.0]])
    step = tile_attention(q, k, v, np.ones((1, 2), dtype=bool), "bfloat16")
    p = np.exp(np.float32(-1))
    assert step.o[0, 0] == rounded(np.array([p]), "bfloat16")[0] == 0.3671875
    assert step.l[0] == pytest.approx(1 + p, rel=1e-7)


def test_rows_that_see_no_key_come_out_as_zeros() -> None:
    """Keys that no row's list has are left out; where a list is empty that is all of them."""
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((4, 2, 8)), rng.standard_normal((10, 8))
    last_alone = reference_heads(q, k, k[:, :4], lists=[(range(4), np.array([9]))])
    assert not last_alone[:3].any()
    assert np.allclose(last_alone[3], k[9, :4])
    assert not reference_heads(q, k, k[:, :4], lists=[(range(4), np.array([], np.int64))]).any()
