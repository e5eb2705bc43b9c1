from __future__ import annotations

import pytest
import torch

from smsff.teacher.condition import Condition


def condition(rows: int, *, pooled: bool = True, start: float = 0.0) -> Condition:
    tokens = start + torch.arange(rows * 6.0).view(rows, 3, 2)
    return Condition(tokens, start + 100 + torch.arange(rows * 4.0).view(rows, 4) if pooled else None)


def rows_of(c: Condition) -> list[tuple[float, float | None]]:
    """The first number of each row: enough to tell rows apart."""
    pooled = [None] * len(c) if c.pooled is None else c.pooled[:, 0].tolist()
    return list(zip(c.tokens[:, 0, 0].tolist(), pooled, strict=True))


@pytest.mark.parametrize("pooled", [False, True])
def test_rows_stay_together(pooled: bool) -> None:
    c = condition(4, pooled=pooled)
    a, b, d, e = rows_of(c)
    assert rows_of(c[1:3]) == [b, d]
    assert rows_of(c[torch.tensor([3, 0])]) == [e, a]
    assert rows_of(c.repeat(2)) == [a, b, d, e, a, b, d, e]
    assert rows_of(c[:1].expand(3)) == [a, a, a]
    assert rows_of(c.expand(4)) == [a, b, d, e]
    assert [rows_of(part) for part in c.chunk(2)] == [[a, b], [d, e]]
    assert rows_of(Condition.cat([c[2:], c[:1]])) == [d, e, a]
    assert Condition.cat(c.chunk(4)).tokens.equal(c.tokens)


def test_dtype_and_gradient_of_every_tensor() -> None:
    c = condition(2).map(lambda x: x.double().requires_grad_())
    assert c.pooled is not None
    half, cut = c.to(torch.bfloat16), c.detach()
    assert half.pooled is not None
    assert cut.pooled is not None
    assert (half.tokens.dtype, half.pooled.dtype) == (torch.bfloat16, torch.bfloat16)
    assert not cut.tokens.requires_grad
    assert not cut.pooled.requires_grad


def test_shorter_prompts_get_zeros_behind_a_mask() -> None:
    long, short = condition(2, pooled=False), Condition(torch.ones(1, 1, 2))
    both = Condition.cat([long, short])
    assert both.tokens.shape == (3, 3, 2)
    assert both.mask is not None
    assert both.mask.tolist() == [[True] * 3, [True] * 3, [True, False, False]]
    assert not both.tokens[2, 1:].any()
    again = Condition.cat([both[2:], both[:1]]).to(torch.bfloat16)
    assert again.mask is not None
    assert again.mask.dtype == torch.bool
    assert again.mask.sum(1).tolist() == [1, 3]
    assert [None if m is None else int(m.sum()) for m in both.masks] == [3, 3, 1]
    assert long.masks == [None, None]
