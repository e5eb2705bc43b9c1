from __future__ import annotations

import pytest
import torch

from smsff.generator import ImageGenerator, LatentGenerator


@pytest.mark.parametrize(("kind", "space", "channels"), [(ImageGenerator, "image", 3), (LatentGenerator, "latent", 4)])
def test_holds_a_copy_of_the_source_and_learns(kind: type, space: str, channels: int) -> None:
    source = torch.rand(2, channels, 5, 9, dtype=torch.float64)
    kept = source.clone()
    held = kind(source)
    assert held.space == space
    assert torch.equal(held(source), source)
    target = torch.rand_like(source)
    optimizer = torch.optim.SGD(held.parameters(), lr=0.5)
    (0.5 * (held(source) - target).square().sum()).backward()
    optimizer.step()
    torch.testing.assert_close(held(source), 0.5 * (kept + target))
    assert torch.equal(source, kept)  # the caller's tensor is left alone


def test_another_shape_is_refused() -> None:
    held = ImageGenerator(torch.zeros(1, 3, 8, 12))
    for shape in [(2, 3, 8, 12), (1, 3, 12, 8)]:
        with pytest.raises(ValueError, match=r"holds one picture of shape \(1, 3, 8, 12\)"):
            held(torch.zeros(shape))
    with pytest.raises(ValueError, match="needs a tensor"):
        LatentGenerator(torch.zeros(3, 8, 8))


def test_config_is_the_shape() -> None:
    assert LatentGenerator(torch.zeros(1, 4, 6, 7)).config() == {"shape": [1, 4, 6, 7]}
