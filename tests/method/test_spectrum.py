from __future__ import annotations

import pytest
import torch
from torch import Tensor

from smsff.method.spectrum import NoRegularizer, SpectrumRegularizer, dct_2d, dct_matrix, low_pass_mask

SIZES = [(1, 1), (1, 6), (5, 7), (8, 8), (12, 9), (33, 64)]


def draw(seed: int, height: int = 5, width: int = 7, batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 4, height, width, generator=generator, dtype=torch.float64)


def idct_2d(x: Tensor) -> Tensor:
    rows, columns = (dct_matrix(size, x.device, x.dtype) for size in x.shape[-2:])
    return rows.mT @ x @ columns


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_inverse_and_parseval(height: int, width: int) -> None:
    x = draw(0, height, width)
    coefficients = dct_2d(x)
    assert coefficients.dtype == torch.float64
    torch.testing.assert_close(idct_2d(coefficients), x)
    torch.testing.assert_close(dct_2d(idct_2d(x)), x)
    torch.testing.assert_close((coefficients**2).sum((1, 2, 3)), (x**2).sum((1, 2, 3)))


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_agrees_with_scipy(height: int, width: int) -> None:
    fft = pytest.importorskip("scipy.fft")
    x = draw(1, height, width)
    expected = torch.from_numpy(fft.dctn(x.numpy(), axes=(-2, -1), norm="ortho"))
    torch.testing.assert_close(dct_2d(x), expected)


def test_matrices_are_shared_and_dtype_is_kept() -> None:
    device = torch.device("cpu")
    assert dct_matrix(11, device, torch.float32) is dct_matrix(11, device, torch.float32)
    x = draw(0)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert dct_2d(x.to(dtype)).dtype == dtype
    torch.testing.assert_close(dct_2d(x.float()).double(), dct_2d(x), atol=1e-6, rtol=1e-5)


def test_matrix_made_in_inference_mode_still_trains() -> None:
    with torch.inference_mode():
        dct_2d(torch.ones(1, 1, 17, 19))
    x = torch.ones(1, 1, 17, 19, requires_grad=True)
    (dct_2d(x) ** 2).sum().backward()
    assert x.grad is not None


def test_autocast_does_not_coarsen_it() -> None:
    x = draw(0).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = dct_2d(x)
    assert torch.equal(inside, dct_2d(x))


@pytest.mark.parametrize(("height", "width"), [*SIZES, (64, 48), (48, 64)])
def test_mask_is_exact_and_grows_with_t(height: int, width: int) -> None:
    t = torch.arange(0, 1001, 50)
    mask = low_pass_mask(t, height, width)
    assert mask.shape == (len(t), 1, height, width)
    for i, step in enumerate(t.tolist()):
        # Exact integers: int(t / T * (h + w - 2)) without a rounding error.
        cutoff = step * (height + width - 2) // 1000
        kept = sum(u + v <= cutoff for u in range(height) for v in range(width))
        assert mask[i].sum().item() == kept
    assert (mask[1:] >= mask[:-1]).all()
    assert mask[0].sum() == 1
    assert mask[-1].all()


def test_t_scale_is_where_everything_is_kept() -> None:
    t = torch.tensor([250, 499, 500, 900])
    mask = low_pass_mask(t, 16, 10, t_scale=500)
    assert mask.flatten(1).all(1).tolist() == [False, False, True, True]
    assert torch.equal(mask[0], low_pass_mask(torch.tensor([500]), 16, 10)[0])


@pytest.mark.parametrize(
    ("height", "width", "t", "threshold"),
    [(64, 48, 125, 23), (64, 48, 375, 70), (48, 64, 125, 31), (48, 64, 375, 94), (51, 51, 265, 52)],
)
def test_last_axis_cutoff_of_the_reference(height: int, width: int, t: int, threshold: int) -> None:
    """Thresholds measured on the authors' code: wrong on rectangles, and 52 where 53 is exact by float truncation."""
    order = torch.arange(height)[:, None] + torch.arange(width)
    step = torch.tensor([t])
    mask = low_pass_mask(step, height, width, t_scale=500, cutoff="last_axis")
    assert torch.equal(mask[0, 0], order <= threshold)
    exact = low_pass_mask(step, height, width, t_scale=500)
    assert torch.equal(exact[0, 0], order <= t * (height + width - 2) // 500)


def test_last_axis_is_exact_on_squares_but_for_rounding_and_survives_landscapes() -> None:
    t = torch.arange(0, 500, 7)
    exact = low_pass_mask(t, 32, 32, t_scale=500)
    assert torch.equal(low_pass_mask(t, 32, 32, t_scale=500, cutoff="last_axis"), exact)
    # Here the reference stops: its threshold 124 is beyond the last coefficient.
    assert low_pass_mask(torch.tensor([499]), 48, 64, t_scale=500, cutoff="last_axis").all()


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("cutoff", ["exact", "last_axis"])
@pytest.mark.parametrize(("height", "width"), [(5, 7), (12, 9)])
def test_value_and_gradient_in_closed_form(norm: str, cutoff: str, height: int, width: int) -> None:
    regularizer = SpectrumRegularizer(norm=norm, cutoff=cutoff)  # type: ignore[arg-type]
    z, z_src = draw(0, height, width).requires_grad_(), draw(1, height, width).requires_grad_()
    t = torch.tensor([100, 500, 950])
    value = regularizer(z, z_src, t)
    mask = low_pass_mask(t, height, width, cutoff=cutoff)  # type: ignore[arg-type]
    difference = (mask * dct_2d(z) - mask * dct_2d(z_src)).detach()
    elements = difference[0].numel()
    size = difference**2 if norm == "l2" else difference.abs()
    torch.testing.assert_close(value, size.sum((1, 2, 3)) / elements)
    value.sum().backward()
    slope = 2 * difference if norm == "l2" else difference.sign()
    torch.testing.assert_close(z.grad, idct_2d(mask * slope) / elements)
    assert z_src.grad is None


def test_high_frequencies_are_free_at_small_t() -> None:
    z_src = draw(1, 8, 12)
    t = torch.tensor([200, 200, 999])
    coefficients = dct_2d(z_src)
    coefficients[..., 7, 11] += 5.0
    value = SpectrumRegularizer()(idct_2d(coefficients), z_src, t)
    torch.testing.assert_close(value, torch.zeros(3, dtype=torch.float64), atol=1e-20, rtol=0)
    coefficients[..., 0, 1] += 1.0
    value = SpectrumRegularizer()(idct_2d(coefficients), z_src, t)
    torch.testing.assert_close(value, torch.full((3,), 1 / (8 * 12), dtype=torch.float64))


def test_sixteen_bit_latents_are_compared_in_float32() -> None:
    z, z_src, t = draw(0).bfloat16(), draw(1).bfloat16(), torch.tensor([10, 300, 800])
    value = SpectrumRegularizer()(z, z_src, t)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, SpectrumRegularizer()(z.float(), z_src.float(), t))


def test_runs_without_reading_values_back() -> None:
    z = torch.empty(2, 4, 8, 6, device="meta")
    t = torch.empty(2, dtype=torch.long, device="meta")
    for cutoff in ("exact", "last_axis"):
        assert SpectrumRegularizer(cutoff=cutoff)(z, z, t).shape == (2,)  # type: ignore[arg-type]


def test_none() -> None:
    assert torch.equal(NoRegularizer()(draw(0), draw(1), torch.zeros(3).long()), torch.zeros(3).double())
