"""Keyed noise: a pure function of its key, and as uniform as it claims."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from masksd.masking import keyed_noise

M = 2**32


def mix(x):
    """MurmurHash3's finaliser in Python integers, which do not overflow."""
    x = (x ^ x >> 16) * 0x85EBCA6B % M
    x = (x ^ x >> 13) * 0xC2B2AE35 % M
    return x ^ x >> 16


def oracle(seed, step, stream, position, token):
    key = mix(mix(seed % M) ^ (seed >> 32) % M)
    key = mix(key ^ mix(stream))
    row = mix(mix(step % M ^ key) ^ position % M)
    return (mix(mix((row + token * 0x9E3779B9 % M) % M)) >> 8) / 2**24


@settings(max_examples=80, deadline=None)
@given(
    st.integers(-(2**63), 2**64),
    st.integers(0, 2**40),
    st.integers(0, 9),
    st.integers(0, 10**6),
)
def test_equals_its_definition_in_plain_integers(seed, step, stream, first):
    got = keyed_noise(3, 5, seed=seed, step=step, first=first, stream=stream)
    for row in range(3):
        for token in range(5):
            assert float(got[row, token]) == oracle(seed, step, stream, first + row, token)


def test_a_tensor_step_draws_the_same_and_compiles_to_one_graph():
    torch._dynamo.reset()  # graphs of other tests are not ours to count
    compiled = torch.compile(
        lambda step: keyed_noise(4, 9, seed=3, step=step, stream=1), fullgraph=True
    )
    with torch._dynamo.config.patch(error_on_recompile=True):
        for step in range(3):
            expected = keyed_noise(4, 9, seed=3, step=step, stream=1)
            assert torch.equal(compiled(torch.tensor(step)), expected)


def test_two_ranks_draw_what_one_process_draws():
    whole = keyed_noise(6, 9, seed=1, step=2)
    halves = [keyed_noise(3, 9, seed=1, step=2, first=first) for first in (0, 3)]
    assert torch.equal(whole, torch.cat(halves))


def test_does_not_touch_the_random_stream():
    before = torch.get_rng_state()
    keyed_noise(4, 9, seed=0, step=0)
    assert torch.equal(before, torch.get_rng_state())


def test_is_uniform_and_uncorrelated_over_every_part_of_the_key():
    by = {
        "token": keyed_noise(1, 20_000, seed=0, step=0)[0],
        "position": keyed_noise(20_000, 1, seed=0, step=0)[:, 0],
        "step": torch.stack([keyed_noise(1, 1, seed=0, step=s)[0, 0] for s in range(4000)]),
        "seed": torch.stack([keyed_noise(1, 1, seed=s, step=0)[0, 0] for s in range(4000)]),
        "stream": torch.stack(
            [keyed_noise(1, 1, seed=0, step=0, stream=s)[0, 0] for s in range(4000)]
        ),
    }
    for name, sample in by.items():
        n = len(sample)
        assert sample.min() >= 0, name
        assert sample.max() < 1, name
        counts = torch.histc(sample, 64, 0, 1)
        chi_square = ((counts - n / 64) ** 2 / (n / 64)).sum()
        assert chi_square < 63 + 5 * (2 * 63) ** 0.5, name  # five standard deviations
        neighbours = torch.corrcoef(torch.stack([sample[:-1], sample[1:]]))[0, 1]
        assert abs(neighbours) < 5 / n**0.5, name
