"""FreeStyle: with factors of one it is the plain U-Net, and each of its steps has a closed form."""

from __future__ import annotations

import copy
from typing import Any

import torch
from conftest import Teacher, photos
from diffusers import UNet2DConditionModel
from PIL import Image, ImageFilter
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

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


def test_the_noisy_latent_is_seen_through_the_skips_alone(teacher: Teacher) -> None:
    """Without the columns that read the skips, only the clean latent counts; without those of the features, nothing of
    the decoder's first join does."""
    base, z, clean = copy.deepcopy(teacher("sdxl")), torch.randn(2, 4, 8, 16), torch.randn(2, 4, 8, 16)
    cond, method = base.encode_prompts(["ink", "a hill"]), FreeStyle(base, **OPTIONS | ONES)
    with torch.no_grad():
        both = method.joined(clean, z, T, cond)
        assert (both - base.base(z, T, cond)).abs().max() > 1e-3
        assert (both - base.base(clean, T, cond)).abs().max() > 1e-3
        for layer, channels, _ in joints(base.unet):
            layer.norm1.weight[channels:] = 0
            layer.norm1.bias[channels:] = 0
            layer.conv_shortcut.weight[:, channels:] = 0
        # the norm's groups of features and skips do not overlap where their widths are multiples of a group's
        both, alone = method.joined(clean, z, T, cond), base.base(clean, T, cond)
    assert (both - alone).abs().max() < (both - base.base(z, T, cond).detach()).abs().max()


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
    from smsff.baselines.freestyle import DDIMScheduler, scheduler

    assert scheduler(DDIMScheduler, teacher("sdxl"), 30).timesteps.tolist()[0] == 958
