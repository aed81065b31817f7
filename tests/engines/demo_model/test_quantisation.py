"""The int4 grid: exact in 16 bits, stable, and the identity for gradients."""

import torch

from engines.demo_model.fake_quant import GROUP, round_to_five_bits, snap, straight_through


def weights(rows: int = 24, columns: int = 2 * GROUP) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(5)) * 0.05


def test_snapping_twice_changes_nothing():
    once = snap(weights())
    assert torch.equal(snap(once), once)


def test_snapped_weights_are_exact_in_bfloat16_and_float16():
    snapped = snap(weights())
    assert torch.equal(snapped.to(torch.bfloat16).float(), snapped)
    assert torch.equal(snapped.to(torch.float16).float(), snapped)


def test_each_group_has_at_most_sixteen_levels_and_one_at_minus_eight():
    groups = snap(weights()).reshape(-1, GROUP)
    for group in groups:
        scale = group[group.abs().argmax()] / -8
        levels = group / scale
        assert torch.equal(levels, levels.round())
        assert levels.min() == -8
        assert levels.max() <= 7


def test_a_group_of_zeros_stays_zero():
    assert torch.equal(snap(torch.zeros(2, GROUP)), torch.zeros(2, GROUP))


def test_gradients_pass_unchanged():
    weight = weights().requires_grad_()
    (straight_through(weight) * 3).sum().backward()
    assert torch.equal(weight.grad, torch.full_like(weight, 3))


def test_round_to_five_bits():
    x = torch.tensor([1.0, -1.0, 31.0, 33.0, 0.1])
    assert round_to_five_bits(x).tolist() == [1.0, -1.0, 31.0, 34.0, 0.1015625]
