import pytest
import torch
from gaussian import GaussianTeacher
from torch import Tensor, nn

from smsff.embedded.controls import choose_t, img2img, one_step, train_paired
from smsff.generator.unet import UNetGenerator


def photo(b: int = 2, h: int = 24, w: int = 37) -> Tensor:
    return torch.rand(b, 3, h, w, generator=torch.Generator().manual_seed(1)) * 1.6 - 0.8


def teacher_of(mean: float, std: float) -> GaussianTeacher:
    return GaussianTeacher(mean_base=0.0, std_base=1.0, mean_style=mean, std_style=std)


@pytest.mark.parametrize("t0", [50, 400, 900])
def test_img2img_ends_on_a_style_that_is_one_point(t0):
    """If the style is a point mass, one look at any noise level gives it exactly."""
    y = img2img(teacher_of(0.3, 1e-6), photo(), prompt="", t0=t0)
    torch.testing.assert_close(y, torch.full((2, 3, 24, 37), 0.3), atol=1e-3, rtol=0)


def test_img2img_from_little_noise_keeps_the_photo_and_from_much_does_not():
    x, teacher = photo(), teacher_of(0.5, 0.3)
    changes = [(img2img(teacher, x, prompt="", t0=t0) - x).abs().mean() for t0 in (0, 100, 400, 900)]
    assert changes[0] < 0.03  # the noise of t = 0 has a deviation of 0.029
    assert changes[0] < changes[1] < changes[2] < changes[3]


def test_img2img_depends_on_the_seed_alone():
    x, teacher = photo(), teacher_of(0.0, 0.5)
    first = img2img(teacher, x, prompt="", t0=500, seed=1)
    torch.rand(3)
    assert torch.equal(first, img2img(teacher, x, prompt="", t0=500, seed=1))
    assert not torch.equal(first, img2img(teacher, x, prompt="", t0=500, seed=2))


@pytest.mark.parametrize("t", [50, 400])
def test_one_step_is_the_difference_of_the_two_clean_predictions(t):
    """With point masses the style's prediction is 0.3 and the base's -0.1 at every t."""
    teacher = GaussianTeacher(mean_base=-0.1, std_base=1e-6, mean_style=0.3, std_style=1e-6)
    x = photo()
    y = one_step(teacher, x, prompt="", source="", t=t, draws=2)
    torch.testing.assert_close(y, (x + 0.4).clamp(-1, 1), atol=2e-3, rtol=0)


def test_choose_t_takes_the_best_on_the_photo():
    x, teacher = photo(1, 40, 44), teacher_of(0.0, 0.5)
    best, scores = choose_t(lambda t: img2img(teacher, x, prompt="", t0=t), x, (300, 20, 700))
    assert best == 20
    assert list(scores) == [300, 20, 700]
    assert scores[20] > scores[300] > scores[700]


class Affine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.mix(x)
        return out


def test_paired_training_learns_a_style_that_the_network_can_express():
    torch.manual_seed(0)
    network = Affine()
    crops = (torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(i)) * 2 - 1 for i in range(400))
    loss = train_paired(network, crops, lambda x: 1 - 0.5 * x, steps=400, lr=0.05)
    assert loss < 0.01
    x = photo()
    torch.testing.assert_close(network(x), 2 * (1 - 0.5 * (x + 1) / 2) - 1, atol=0.02, rtol=0)
    assert not network.training


def test_paired_training_says_when_data_run_out():
    with pytest.raises(ValueError, match="5 batches are needed, only 3 came"):
        train_paired(Affine(), [torch.zeros(1, 3, 24, 24)] * 3, lambda x: x, steps=5)


def test_paired_training_leaves_the_border_out():
    def spoiled(x: Tensor) -> Tensor:
        y = torch.full_like(x, 1e3)
        y[..., 8:-8, 8:-8] = x[..., 8:-8, 8:-8]
        return y

    assert train_paired(Affine(), [torch.zeros(1, 3, 24, 24)] * 3, spoiled, steps=3) < 1


def test_the_ceiling_trains_in_16_bits_too() -> None:
    losses = {}
    for half in (False, True):
        torch.manual_seed(0)
        generator = UNetGenerator(widths=(8,), encoder_blocks=(1,), decoder_blocks=(), head_width=4)
        crops = (torch.rand(2, 3, 24, 32, generator=torch.Generator().manual_seed(i)) * 2 - 1 for i in range(40))
        losses[half] = train_paired(generator, crops, lambda x: 1 - x, steps=40, lr=3e-3, half=half)
    assert losses[True] == pytest.approx(losses[False], rel=0.1)
    assert losses[True] != losses[False]
