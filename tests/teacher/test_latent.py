from __future__ import annotations

import pytest
import torch
from tiny_pipelines import TinySpec, build_vae

from smsff.teacher.latent import AutoencoderLatent, pad_to_multiple, translate


@pytest.mark.parametrize("tiny_vae", [False, True])
@pytest.mark.parametrize(("downscale", "channels"), [(2, 8), (8, 4)])
def test_downscale_and_channels_come_from_the_configuration(downscale: int, channels: int, tiny_vae: bool) -> None:
    latent = AutoencoderLatent(build_vae(TinySpec(downscale=downscale, latent_channels=channels, tiny_vae=tiny_vae)))
    z = latent.encode(torch.rand(2, 3, 16, 24) * 2 - 1)
    assert (latent.downscale, latent.channels) == (downscale, channels)
    assert z.shape == (2, channels, 16 // downscale, 24 // downscale)
    assert latent.decode(z).shape == (2, 3, 16, 24)


def test_latents_are_the_scaled_and_shifted_posterior_mean() -> None:
    vae = build_vae(TinySpec(scaling_factor=0.7)).double()
    vae.register_to_config(shift_factor=0.3)
    latent = AutoencoderLatent(vae)
    x = torch.randn(2, 3, 16, 24, dtype=torch.float64)
    mean = vae.encode(x).latent_dist.mean
    torch.testing.assert_close(latent.encode(x), (mean - 0.3) * 0.7, atol=1e-12, rtol=0)
    torch.testing.assert_close(latent.decode(latent.encode(x)), vae.decode(mean).sample, atol=1e-10, rtol=0)


def test_a_mean_and_deviation_for_each_channel() -> None:
    """As in diffusers' pipelines: (posterior mean - latents_mean) * scaling_factor / latents_std."""
    vae = build_vae(TinySpec(scaling_factor=0.5, latent_channels=4)).double()
    mean, std = [0.1, -0.2, 0.3, 0.0], [1.0, 2.0, 0.5, 4.0]
    vae.register_to_config(latents_mean=mean, latents_std=std)
    latent = AutoencoderLatent(vae)
    x = torch.randn(2, 3, 8, 12, dtype=torch.float64)
    raw = vae.encode(x).latent_dist.mean
    z = latent.encode(x)
    for i in range(4):
        torch.testing.assert_close(z[:, i], (raw[:, i] - mean[i]) * 0.5 / std[i], atol=1e-12, rtol=0)
    torch.testing.assert_close(latent.decode(z), vae.decode(raw).sample, atol=1e-10, rtol=0)


@pytest.mark.parametrize("size", [(15, 21), (1, 9), (17, 16)])
def test_any_size_is_padded_by_reflection_and_cropped_back(size: tuple[int, int]) -> None:
    latent = AutoencoderLatent(build_vae(TinySpec(downscale=4, latent_channels=4)))
    x = torch.rand(2, 3, *size)
    z = latent.encode(x)
    assert z.shape[-2:] == (-(-size[0] // 4), -(-size[1] // 4))
    torch.testing.assert_close(z, latent.encode(pad_to_multiple(x, 4)))
    assert latent.decode(z, size).shape == x.shape


def test_padding_mirrors_the_border_and_leaves_the_rest() -> None:
    x = torch.arange(15.0).view(1, 1, 3, 5)
    padded = pad_to_multiple(x, 4)
    assert padded.shape == (1, 1, 4, 8)
    assert torch.equal(padded[..., :3, :5], x)
    assert torch.equal(padded[0, 0, 0], torch.tensor([0.0, 1, 2, 3, 4, 3, 2, 1]))
    assert torch.equal(padded[0, 0, 3], padded[0, 0, 1])
    assert pad_to_multiple(padded, 4) is padded


@pytest.mark.parametrize("tiny_vae", [False, True])
def test_gradient_through_the_encoder_is_the_same_with_checkpointing(tiny_vae: bool) -> None:
    gradients = []
    for checkpoint in (False, True):
        torch.manual_seed(0)
        latent = AutoencoderLatent(build_vae(TinySpec(tiny_vae=tiny_vae)).double(), gradient_checkpointing=checkpoint)
        x = torch.randn(2, 3, 15, 22, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        z = latent.encode(x)
        (z * torch.arange(z.numel()).view_as(z)).sum().backward()
        gradients.append(x.grad)
        assert all(parameter.grad is None for parameter in latent.parameters())
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[1], gradients[0], atol=0, rtol=1e-12)


def test_checkpointing_keeps_less_for_the_backward_pass() -> None:
    def saved(checkpoint: bool) -> int:
        latent = AutoencoderLatent(build_vae(TinySpec()), gradient_checkpointing=checkpoint)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            latent.encode(torch.randn(1, 3, 32, 32, requires_grad=True))
        return sum(sizes)

    assert saved(True) < saved(False) / 3


def test_stays_frozen_and_in_evaluation_mode() -> None:
    latent = AutoencoderLatent(build_vae(TinySpec()))
    torch.nn.ModuleList([latent]).train()
    assert not any(module.training for module in latent.modules())
    assert not any(parameter.requires_grad for parameter in latent.parameters())


def test_translate_moves_each_picture_by_its_own_offset() -> None:
    x = torch.arange(2 * 3 * 5 * 4, dtype=torch.float64).view(2, 3, 5, 4)
    assert torch.equal(translate(x, torch.zeros(2, 2, dtype=torch.long)), x)
    moved = translate(x, torch.tensor([[1, 0], [2, 3]]))
    assert torch.equal(moved[0, :, :4], x[0, :, 1:])
    assert torch.equal(moved[0, :, 4], x[0, :, 4])
    assert torch.equal(moved[1, :, :3, :1], x[1, :, 2:, 3:])
    assert torch.equal(moved[1, :, :, 1:], x[1, :, [2, 3, 4, 4, 4], 3:].expand(-1, -1, 3))


@pytest.mark.parametrize("tiny_vae", [False, True])
def test_a_dropped_decoder_leaves_the_encoder(tiny_vae: bool) -> None:
    latent = AutoencoderLatent(build_vae(TinySpec(tiny_vae=tiny_vae)))
    x = torch.rand(1, 3, 16, 24) * 2 - 1
    z, size = latent.encode(x), sum(p.numel() for p in latent.parameters())
    latent.drop_decoder()
    assert torch.equal(latent.encode(x), z)
    assert sum(p.numel() for p in latent.parameters()) < 0.6 * size
    with pytest.raises(RuntimeError, match="decoder was dropped"):
        latent.decode(z)


@pytest.mark.parametrize("tiny_vae", [False, True])
def test_a_dropped_encoder_leaves_the_decoder(tiny_vae: bool) -> None:
    latent = AutoencoderLatent(build_vae(TinySpec(tiny_vae=tiny_vae)))
    x = torch.rand(1, 3, 16, 24) * 2 - 1
    z, size = latent.encode(x), sum(p.numel() for p in latent.parameters())
    y = latent.decode(z)
    latent.drop_encoder()
    assert torch.equal(latent.decode(z), y)
    assert sum(p.numel() for p in latent.parameters()) < 0.8 * size
    with pytest.raises(RuntimeError, match="encoder was dropped"):
        latent.encode(x)
