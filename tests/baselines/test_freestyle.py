"""FreeStyle: with factors of one it is the plain U-Net, and each of its steps has a closed form."""

from __future__ import annotations

from typing import Any

import torch
from baseline_parts import Teacher, photos
from diffusers import DDIMScheduler, UNet2DConditionModel
from PIL import Image, ImageFilter
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from smsff.baselines.diffusion import scheduler
from smsff.baselines.freestyle import FreeStyle, enhanced, joints, raised
from smsff.teacher.base.families import family_config

ONES: dict[str, Any] = {"b": 1.0, "s": 1.0, "b_fine": 1.0, "s_fine": 1.0}
OPTIONS: dict[str, Any] = {"prompt": "{words}", "words": "ink", "b": 2.5, "s": 1.0, "n": 8, "b_fine": 1.4}
OPTIONS |= {"s_fine": 0.2, "enhance": True, "steps": 3, "guidance": 5.0, "resolution": 90}
T = torch.tensor([601, 601])


def test_with_factors_of_one_and_one_latent_it_is_the_plain_unet(teacher: Teacher) -> None:
    base, z = teacher("sdxl"), torch.randn(2, 4, 8, 16)
    cond = base.encode_prompts(["ink", "a hill"])
    with torch.no_grad():
        found = FreeStyle(base, **OPTIONS | ONES).joined(z, z, T, cond)
        torch.testing.assert_close(found, base.base(z, T, cond), atol=1e-5, rtol=0)
        for name in ("b", "s", "b_fine", "s_fine"):  # each of them acts
            changed = FreeStyle(base, **OPTIONS | ONES | {name: 2.0}).joined(z, z, T, cond)
            assert (changed - found).abs().max() > 1e-4, name


def test_the_skips_are_those_of_the_noisy_latent(teacher: Teacher) -> None:
    """Equal to two passes of the plain U-Net, of which the second is given the skips that the first has had."""
    base, z, clean = teacher("sdxl"), torch.randn(2, 4, 8, 16), torch.randn(2, 4, 8, 16)
    cond, skips = base.encode_prompts(["ink", "a hill"]), []

    def keep(channels: int, args: tuple[Any, ...]) -> None:
        skips.append(args[0][:, channels:])

    def give(channels: int, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (torch.cat([args[0][:, :channels], skips.pop(0)], 1), *args[1:])

    with torch.no_grad():
        found = FreeStyle(base, **OPTIONS | ONES).joined(clean, z, T, cond)
        for action, latent in ((keep, z), (give, clean)):
            handles = [
                layer.register_forward_pre_hook(lambda _, args, n=channels, do=action: do(n, args))
                for layer, channels, _ in joints(base.unet)
            ]
            wanted = base.base(latent, T, cond)
            for handle in handles:
                handle.remove()
        assert (found - base.base(clean, T, cond)).abs().max() > 1e-3
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_the_first_channels_are_raised_by_the_mean_of_all() -> None:
    hidden = torch.arange(2.0 * 4 * 2 * 3).view(2, 4, 2, 3)  # the mean grows from 0 to 1 in steps of a fifth
    factor = 1 + 1.5 * torch.linspace(0, 1, 6).view(2, 3)
    found = raised(hidden, 3, 1.5)
    torch.testing.assert_close(found[:, :3], hidden[:, :3] * factor)
    assert torch.equal(found[:, 3:], hidden[:, 3:])
    flat = torch.ones(1, 2, 3, 3)
    assert torch.equal(raised(flat, 2, 1.5), flat)


def test_edges_are_enhanced_as_by_pil() -> None:
    x = photos(2, 20, 31)
    wanted = [to_pil_image(one).filter(ImageFilter.EDGE_ENHANCE_MORE) for one in x]
    assert isinstance(wanted[0], Image.Image)
    assert torch.equal(enhanced(x), torch.stack([pil_to_tensor(image) for image in wanted]) / 255)


def test_a_result_depends_on_its_own_picture_words_and_seed(teacher: Teacher) -> None:
    method, x = FreeStyle(teacher("sdxl"), **OPTIONS), photos(2, 50, 83)
    found = method(x, ["", ""], seeds=[1, 2])
    assert found.shape == x.shape
    torch.testing.assert_close(method(x[1:], [""], seeds=[2]), found[1:], atol=1e-5, rtol=0)
    assert (method(x[1:], [""], seeds=[3]) - found[1:]).abs().max() > 1e-3


def test_joins_of_the_published_networks() -> None:
    """SDXL: 1280 channels four times, 640 twice; the last block has no cross-attention."""
    with torch.device("meta"):
        unets = [UNet2DConditionModel.from_config(dict(family_config(name).unet)) for name in ("sdxl", "sd1")]
    found = [[(channels, share) for _, channels, share in joints(unet)] for unet in unets]
    assert found[0] == [(1280, 1.0)] * 4 + [(640, 0.5)] * 2 + [(640, 0.0), (320, 0.0), (320, 0.0)]
    assert found[1] == [(1280, 0.0)] * 3 + [(1280, 1.0)] * 4 + [(640, 0.5)] * 3 + [(320, 0.25)] * 2
    for unet in unets:
        for layer, channels, _ in joints(unet):
            skip = layer.in_channels - channels
            assert skip > 0
            assert skip in unet.config.block_out_channels


def test_thirty_steps_begin_at_958(teacher: Teacher) -> None:
    assert scheduler(DDIMScheduler, teacher("sdxl"), 30).timesteps.tolist()[0] == 958
