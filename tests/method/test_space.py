"""Steps in latent space carried over to pictures by the decoder."""

from __future__ import annotations

import torch
from torch import Tensor

from smsff.method.space import decoded_step


def test_a_linear_decoder_gives_its_matrix_times_the_step_cut_to_the_picture() -> None:
    torch.manual_seed(0)
    up = torch.nn.ConvTranspose2d(5, 3, 2, stride=2).double()
    z, step = torch.randn(2, 2, 5, 4, 7, dtype=torch.float64)
    with torch.no_grad():
        expected = up(step) - up.bias.view(1, 3, 1, 1)
    torch.testing.assert_close(decoded_step(up, z, step, (7, 13)), expected[..., :7, :13])


def test_a_small_step_goes_as_the_derivative_of_the_decoder() -> None:
    def decode(z: Tensor) -> Tensor:
        return torch.tanh(2 * z[:, :3]) * z[:, 3:]

    z, step = torch.randn(2, 2, 6, 3, 5, dtype=torch.float64)
    step = 1e-5 * step
    _, derivative = torch.func.jvp(decode, (z,), (step,))
    torch.testing.assert_close(decoded_step(decode, z, step, (3, 5)), derivative, rtol=1e-3, atol=1e-9)


def test_no_gradient_comes_through_it() -> None:
    z = torch.randn(1, 3, 4, 6, requires_grad=True)
    assert not decoded_step(lambda q: 2 * q, z, z, (4, 6)).requires_grad


def test_mixed_precision_does_not_round_the_step_away() -> None:
    decoder = torch.nn.Conv2d(3, 3, 3, padding=1)
    z, step = torch.randn(2, 1, 3, 6, 8)
    with torch.no_grad():
        exact = decoded_step(decoder, z, 1e-4 * step, (6, 8))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(decoded_step(decoder, z, 1e-4 * step, (6, 8)), exact)
