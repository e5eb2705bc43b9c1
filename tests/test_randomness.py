from __future__ import annotations

import torch

from smsff.randomness import keyed_generator, keyed_rand, keyed_randn, keyed_seed


def test_a_draw_depends_on_its_key_alone() -> None:
    first = keyed_randn(3, "noise", 7, [0, 1, 2, 3], (4, 5, 6))
    torch.randn(100)
    assert torch.equal(first, keyed_randn(3, "noise", 7, [0, 1, 2, 3], (4, 5, 6)))
    assert torch.equal(first[2:], keyed_randn(3, "noise", 7, [2, 3], (4, 5, 6)))


def test_every_part_of_the_key_matters() -> None:
    keys = [(s, name, i, p) for s in (0, 1) for name in ("a", "b") for i in (0, 1, 12) for p in (0, 1, 2)]
    assert len({keyed_seed(*key) for key in keys}) == len(keys)
    assert keyed_seed(0, "a", 1, 12) != keyed_seed(0, "a", 11, 2)
    draws = [torch.randn(3, generator=keyed_generator(*key)) for key in keys]
    assert len({tuple(draw.tolist()) for draw in draws}) == len(keys)


def test_global_random_state_is_left_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    keyed_randn(0, "noise", 0, range(4), (2,))
    assert torch.equal(torch.rand(3), expected)


def test_draws_across_iterations_and_positions_are_uniform_and_uncorrelated() -> None:
    u = torch.stack([keyed_rand(0, "t", i, range(8)) for i in range(500)]).double()
    assert u.min() >= 0
    assert u.max() < 1
    histogram = torch.histc(u, bins=10, min=0, max=1) / u.numel()
    assert (histogram - 0.1).abs().max() < 0.02
    centred = u - u.mean()
    assert ((centred[1:] * centred[:-1]).mean() / u.var()).abs() < 0.06
    assert ((centred[:, 1:] * centred[:, :-1]).mean() / u.var()).abs() < 0.06


def test_normal_draws_have_unit_scale_and_the_asked_shape() -> None:
    z = keyed_randn(5, "noise", 2, [4, 9, 1], (4, 40, 30))
    assert z.shape == (3, 4, 40, 30)
    assert z.dtype == torch.float32
    assert abs(z.mean().item()) < 0.03
    assert abs(z.std().item() - 1) < 0.03
    assert keyed_randn(5, "noise", 2, [], (4, 3)).shape == (0, 4, 3)
    assert keyed_rand(5, "noise", 2, []).shape == (0,)


def test_known_values_do_not_change_between_versions() -> None:
    assert keyed_seed(0, "noise", 0, 0) == 8126767680768205265
