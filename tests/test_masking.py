"""The masking kernels: the fused ones against the loops, and the contract that both keep."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from masksd.masking import apply_mask, correlate, keyed_noise, mask_correlated, select_tokens

ROUNDINGS = ["nearest", "stochastic", "floor", "floor_or_one", "ceil", "independent"]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
shares = st.one_of(
    st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0]), st.floats(0, 1, allow_subnormal=False)
)


@st.composite
def draws(draw, max_length=24):
    """Scores with many ties, noise with some, and any set of valid tokens, none included."""
    batch, length = draw(st.integers(1, 4)), draw(st.integers(1, max_length))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scores = torch.randint(-3, 4, (batch, length), generator=generator).to(
        draw(st.sampled_from(DTYPES))
    )
    scores[torch.rand(batch, length, generator=generator) < 0.1] = math.inf
    scores[torch.rand(batch, length, generator=generator) < 0.1] = -math.inf
    noise = torch.rand(batch, length, generator=generator)
    if draw(st.booleans()):
        noise = (noise * 4).floor() / 4
    valid = torch.rand(batch, length, generator=generator) < draw(st.sampled_from([0.0, 0.3, 1.0]))
    return scores, noise, draw(st.sampled_from([None, valid]))


def options():
    return st.fixed_dictionaries(
        {
            "top_k": shares,
            "ratio": shares,
            "selection": st.sampled_from(["top", "bottom"]),
            "rounding": st.sampled_from(ROUNDINGS),
            "count": st.sampled_from(["words", "sequence"]),
        }
    )


@settings(max_examples=300, deadline=None)
@given(draws(), options())
def test_fused_selection_equals_the_reference(drawn, options):
    scores, noise, valid = drawn
    expected = select_tokens(
        scores, noise=noise, valid=valid, implementation="reference", **options
    )
    assert torch.equal(select_tokens(scores, noise=noise, valid=valid, **options), expected)


@settings(max_examples=200, deadline=None)
@given(draws(), options())
def test_counts_are_exact_and_inside_the_top_k(drawn, options):
    scores, noise, valid = drawn
    mask = select_tokens(scores, noise=noise, valid=valid, **options)
    for row in range(len(scores)):
        allowed = [i for i in range(scores.shape[1]) if valid is None or valid[row, i]]
        n = len(allowed) if options["count"] == "words" else scores.shape[1]
        kept = math.ceil(options["top_k"] * n - 1e-9)
        share = options["ratio"] * kept
        chosen = mask[row].nonzero()[:, 0].tolist()
        assert set(chosen) <= set(allowed)
        if options["rounding"] == "independent":
            below = {i for i in allowed if float(noise[row, i]) < options["ratio"]}
            assert set(chosen) <= below
            assert len(below) - len(chosen) <= max(0, len(allowed) - kept)
        wanted = {
            "independent": set(range(kept + 1)),
            "floor_or_one": {max(math.floor(share + 1e-9), 1 if share > 0 else 0)},
            "floor": {math.floor(share + 1e-9)},
            "ceil": {math.ceil(share - 1e-9)},
            "nearest": {max(math.floor(share + 0.5 + 1e-9), 1 if share > 0 else 0)},
            "stochastic": {math.floor(share + 1e-9), math.floor(share + 1e-9) + 1},
        }[options["rounding"]]
        assert len(chosen) in {min(w, len(allowed)) for w in wanted}
        worst_first = sorted((float(scores[row, i]) for i in allowed), reverse=True)
        if options["selection"] == "bottom":
            worst_first.reverse()
        if chosen:  # no chosen score is beyond that of the last one kept
            limit = worst_first[min(kept, len(allowed)) - 1]
            got = [float(scores[row, i]) for i in chosen]
            assert min(got) >= limit if options["selection"] == "top" else max(got) <= limit


def test_extremes():
    scores, noise = torch.tensor([[1.0, 3.0, 2.0, 0.0]]), torch.tensor([[0.1, 0.2, 0.3, 0.4]])

    def select(top_k, ratio, **more):
        return select_tokens(scores, top_k, ratio, noise=noise, **more)[0].int().tolist()

    assert select(1.0, 1.0) == [1, 1, 1, 1]
    assert select(1.0, 0.0) == [0, 0, 0, 0]
    assert select(0.0, 1.0) == [0, 0, 0, 0]
    assert select(0.5, 1.0) == [0, 1, 1, 0]
    assert select(0.5, 1.0, selection="bottom") == [1, 0, 0, 1]
    only = torch.tensor([[False, False, False, True]])
    assert select(0.5, 0.1, valid=only) == [0, 0, 0, 1]
    assert select(0.5, 1.0, valid=~only & only) == [0, 0, 0, 0]
    assert select(0.5, 1.0, valid=only, count="sequence") == [0, 0, 0, 1]


def test_floor_or_one_is_floor_but_for_nothing():
    flat = torch.zeros(4, 11)
    noise = keyed_noise(4, 11, seed=0, step=0)
    valid = torch.arange(11) < torch.tensor([[0], [3], [8], [11]])
    mask = select_tokens(flat, 1.0, 0.25, noise=noise, valid=valid, rounding="floor_or_one")
    assert mask.sum(1).tolist() == [0, 1, 2, 2]
    none = select_tokens(flat, 1.0, 0.0, noise=noise, rounding="floor_or_one")
    assert not none.any()


def test_independent_masking_has_the_share_and_any_count():
    rows = 40_000
    noise = keyed_noise(rows, 4, seed=0, step=0)
    mask = select_tokens(torch.zeros(rows, 4), 1.0, 0.15, noise=noise, rounding="independent")
    assert torch.equal(mask, noise.double() < 0.15)
    each = mask.float().mean(0)
    assert (each - 0.15).abs().max() < 4 * (0.15 * 0.85 / rows) ** 0.5
    pairs = (mask[:, 0] & mask[:, 1]).float().mean()
    assert abs(pairs - 0.15**2) < 4 * (0.15**2 / rows) ** 0.5
    assert set(mask.sum(1).tolist()) == {0, 1, 2, 3, 4}


def test_strides_do_not_matter_and_the_same_noise_draws_the_same_mask():
    scores, noise = torch.randn(9, 4), torch.rand(9, 4)
    valid = torch.rand(9, 4) < 0.8
    strided = select_tokens(scores.T, 0.5, 0.5, noise=noise.T, valid=valid.T)
    whole = select_tokens(
        scores.T.contiguous(), 0.5, 0.5, noise=noise.T.contiguous(), valid=valid.T.contiguous()
    )
    assert torch.equal(strided, whole)
    again = select_tokens(scores.T, 0.5, 0.5, noise=noise.T, valid=valid.T)
    assert torch.equal(strided, again)


def test_equal_scores_and_equal_noise_keep_their_order():
    flat = torch.zeros(1, 6)
    assert select_tokens(flat, 0.5, 0.4, noise=flat)[0].int().tolist() == [1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("selection", ["top", "bottom"])
def test_nan_is_never_masked_and_the_reference_refuses_it(selection):
    scores = torch.tensor([[math.nan, 1.0, math.nan, -math.inf, math.inf, 0.0]])
    noise = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.5, 0.5]])
    mask = select_tokens(scores, 1.0, 1.0, noise=noise, selection=selection)
    assert mask[0].int().tolist() == [0, 1, 0, 1, 1, 1]
    with pytest.raises(ValueError, match="scores hold NaN"):
        select_tokens(scores, 1.0, 1.0, noise=noise, implementation="reference")


def test_nan_in_the_padding_is_nobodys_business():
    scores = torch.tensor([[1.0, math.nan]])
    valid, noise = torch.tensor([[True, False]]), torch.zeros(1, 2)
    for implementation in ("fused", "reference"):
        mask = select_tokens(
            scores, 1.0, 1.0, noise=noise, valid=valid, implementation=implementation
        )
        assert mask.tolist() == [[True, False]]


def test_an_invalid_token_never_passes_before_a_valid_one_of_minus_infinity():
    scores = torch.tensor([[math.inf, -math.inf, -math.inf]])
    valid = torch.tensor([[False, False, True]])
    mask = select_tokens(scores, 1.0, 1.0, noise=torch.zeros(1, 3), valid=valid)
    assert mask[0].int().tolist() == [0, 0, 1]


def test_stochastic_rounding_has_the_exact_expectation_and_no_favourites():
    rows = 40_000
    scores = torch.zeros(rows, 4)
    noise = keyed_noise(rows, 4, seed=0, step=0)
    mask = select_tokens(scores, 0.5, 0.3, noise=noise, rounding="stochastic")  # 0.3 * 2 = 0.6
    count = mask.sum(1).float()
    assert set(count.unique().tolist()) == {0.0, 1.0}
    assert abs(count.mean() - 0.6) < 4 * (0.24 / rows) ** 0.5
    first, second = mask[:, 0].float().mean(), mask[:, 1].float().mean()
    assert abs(first - second) < 4 * (0.6 / rows) ** 0.5
    assert not mask[:, 2:].any()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(DTYPES), st.booleans())
def test_correlate_equals_the_reference(seed, dtype, normalize):
    generator = torch.Generator().manual_seed(seed)
    local = torch.randn(2, 5, 7, generator=generator).to(dtype)
    pooled = torch.randn(2, 7, generator=generator).to(dtype)
    local[0, 0] = 0.0  # whose cosine must not be NaN
    got = correlate(local, pooled, normalize)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = correlate(local, pooled, normalize, implementation="reference")
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_correlate_stays_in_float32_under_autocast():
    local, pooled = torch.randn(2, 5, 64), torch.randn(2, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(correlate(local, pooled), correlate(local.clone(), pooled))
        assert correlate(local, pooled).dtype == torch.float32
    half = torch.full((1, 1, 4), 300.0, dtype=torch.float16)  # 4 * 300 * 300 overflows float16
    assert correlate(half, half[:, 0]).item() == 360_000.0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["BNC", "BhwC", "BChw"])
@pytest.mark.parametrize("a_position", [False, True])
def test_apply_mask_equals_the_reference_and_keeps_the_rest_bit_for_bit(dtype, layout, a_position):
    shape, channel_dim = {
        "BNC": ((2, 6, 5), -1),
        "BhwC": ((2, 2, 3, 5), -1),
        "BChw": ((2, 5, 2, 3), 1),
    }[layout]
    embeddings = torch.randn(shape).to(dtype)
    positions = list(shape)
    positions.pop(channel_dim)
    mask = torch.rand(positions) < 0.5
    first = (0,) * len(positions)
    mask[first] = False
    embeddings.movedim(channel_dim, -1)[first] = math.nan  # unmasked NaN survives
    token = torch.randn(*(positions[1:] if a_position else []), 5)
    got = apply_mask(embeddings, mask, token, channel_dim)
    expected = apply_mask(embeddings, mask, token, channel_dim, implementation="reference")
    assert got.dtype == dtype
    assert torch.equal(got.nan_to_num(7.0), expected.nan_to_num(7.0))
    kept = ~mask.unsqueeze(channel_dim).expand(shape)
    assert torch.equal(got[kept].nan_to_num(7.0), embeddings[kept].nan_to_num(7.0))


def test_apply_mask_takes_non_contiguous_embeddings():
    embeddings = torch.randn(2, 5, 6).transpose(1, 2)
    mask, token = torch.rand(2, 6) < 0.5, torch.randn(10)[::2]
    expected = apply_mask(embeddings.contiguous(), mask, token.contiguous())
    assert torch.equal(apply_mask(embeddings, mask, token), expected)


@pytest.mark.parametrize("a_position", [False, True])
def test_gradients_equal_those_of_the_reference(a_position):
    generator = torch.Generator().manual_seed(0)

    def leaves():
        generator.manual_seed(0)
        return [
            torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True)
            for s in [(2, 6, 5), (2, 6, 3), (2, 3), (6, 5) if a_position else (5,)]
        ]

    grads = []
    for implementation in ("fused", "reference"):
        embeddings, local, pooled, token = leaves()
        masked, mask = mask_correlated(
            embeddings,
            local,
            pooled,
            token,
            0.6,
            0.5,
            noise=keyed_noise(2, 6, seed=0, step=0),
            implementation=implementation,
        )
        assert mask.any()
        (masked * torch.arange(60, dtype=torch.float64).view(2, 6, 5).sin()).sum().backward()
        assert local.grad is None  # nothing flows through the selection
        assert pooled.grad is None
        grads.append((embeddings.grad, token.grad))
    for fused, reference in zip(*grads, strict=True):
        torch.testing.assert_close(fused, reference, rtol=1e-14, atol=1e-14)


def test_apply_mask_under_functorch():
    embeddings, mask, token = torch.randn(2, 5, 3), torch.rand(2, 5) > 0.5, torch.randn(3)
    gradient = torch.func.grad(lambda t: apply_mask(embeddings, mask, t).sum())(token)
    torch.testing.assert_close(gradient, mask.sum().expand(3).float())


def test_gradcheck_of_apply_mask():
    embeddings = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    token = torch.randn(3, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(2, 4) < 0.5
    assert torch.autograd.gradcheck(lambda e, t: apply_mask(e, mask, t), (embeddings, token))
    assert torch.autograd.gradgradcheck(lambda e, t: apply_mask(e, mask, t), (embeddings, token))


def whole(embeddings, local, pooled, token, noise, valid, rounding="stochastic"):
    return mask_correlated(
        embeddings, local, pooled, token, 0.5, 0.3, noise=noise, valid=valid, rounding=rounding
    )


def arguments(batch, length, device=None):
    generator = torch.Generator().manual_seed(batch * 100 + length)

    def normal(*shape):
        return torch.randn(*shape, generator=generator).to(device)

    return (
        normal(batch, length, 8),
        normal(batch, length, 6),
        normal(batch, 6),
        normal(8),
        keyed_noise(batch, length, seed=0, step=1, device=device),
        normal(batch, length) > -0.5,
    )


def test_compiles_full_graph_once_for_any_batch_and_length():
    torch._dynamo.reset()  # graphs of other tests are not ours to count
    compiled = torch.compile(whole, fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch, length in [(3, 17), (5, 33), (2, 20), (7, 100)]:
            args = arguments(batch, length)
            for got, expected in zip(compiled(*args), whole(*args), strict=True):
                assert torch.equal(got, expected)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_every_rounding_compiles_full_graph(rounding):
    torch._dynamo.reset()
    compiled = torch.compile(whole, fullgraph=True, dynamic=True, backend="eager")
    for batch, length in [(3, 17), (5, 33)]:
        args = (*arguments(batch, length), rounding)
        assert torch.equal(compiled(*args)[1], whole(*args)[1])


def test_runs_on_the_meta_device():
    masked, mask = whole(*arguments(3, 17, "meta"))
    assert masked.device.type == "meta"
    assert masked.shape == (3, 17, 8)
    assert mask.shape == (3, 17)
    assert mask.dtype == torch.bool


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"top_k": 1.5}, r"top_k must be a number in \[0, 1\], got 1.5"),
        ({"ratio": -0.1}, r"ratio must be a number in \[0, 1\], got -0.1"),
        ({"ratio": math.nan}, r"ratio must be a number in \[0, 1\], got nan"),
        ({"selection": "botom"}, "unknown selection 'botom'; did you mean 'bottom'"),
        ({"rounding": "flor"}, "unknown rounding 'flor'; did you mean 'floor'"),
        ({"count": "word"}, "unknown count 'word'; did you mean 'words'"),
        (
            {"implementation": "naive"},
            "unknown implementation 'naive'; Known: 'fused', 'reference'",
        ),
        ({"noise": torch.zeros(2, 4)}, r"noise must be \(2, 3\) as scores are, got \(2, 4\)"),
        ({"noise": torch.zeros(2, 3).int()}, "noise must have a floating dtype, got torch.int32"),
        ({"valid": torch.ones(2, 3)}, r"valid must be bool \(2, 3\) .* got torch.float32"),
        ({"scores": torch.zeros(3)}, r"scores must be \(B, N\), got \(3,\)"),
    ],
)
def test_selection_says_what_is_wrong(call, message):
    arguments = {
        "scores": torch.zeros(2, 3),
        "top_k": 0.5,
        "ratio": 0.5,
        "noise": torch.zeros(2, 3),
    } | call
    with pytest.raises(ValueError, match=message):
        select_tokens(**arguments)


def test_the_others_say_what_is_wrong():
    with pytest.raises(ValueError, match=r"local must be \(B, N, C\) and pooled \(B, C\), got"):
        correlate(torch.zeros(2, 3, 4), torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"pooled must have a floating dtype, got torch.int64"):
        correlate(torch.zeros(2, 3, 4), torch.zeros(2, 4).long())
    embeddings, mask = torch.zeros(2, 3, 4), torch.zeros(2, 3).bool()
    with pytest.raises(ValueError, match=r"mask must be bool \(2, 3\) .* got torch.bool \(3, 2\)"):
        apply_mask(embeddings, mask.T, torch.zeros(4))
    with pytest.raises(ValueError, match=r"token must be \(4,\) or \(3, 4\), got \(5,\)"):
        apply_mask(embeddings, mask, torch.zeros(5))
    with pytest.raises(ValueError, match="with channel_dim=0"):
        apply_mask(embeddings, mask, torch.zeros(4), channel_dim=0)
