"""Prompts with a trigger word."""

from __future__ import annotations

import pytest

from smsff.errors import UserError
from smsff.style_lora.prompts import TriggerPrompts


def test_captions_and_prompts_are_left_out_at_their_shares() -> None:
    prompts = TriggerPrompts(trigger="smsff style", caption_dropout=0.25, prompt_dropout=0.2)
    drawn = [prompts.draw("a cat", i / 1000) for i in range(1000)]
    assert {text: drawn.count(text) for text in set(drawn)} == {"": 200, "smsff style": 200, "smsff style, a cat": 600}
    assert set(drawn) == set(prompts.possible(["a cat"]))
    assert TriggerPrompts(trigger="x", caption_dropout=0.0, prompt_dropout=0.0).draw("a", 0.0) == "x, a"
    assert TriggerPrompts(trigger="x", caption_dropout=1.0, prompt_dropout=0.0).draw("a", 0.999) == "x"


def test_templates_leave_no_commas_behind_and_wrong_ones_are_refused() -> None:
    prompts = TriggerPrompts(trigger="smsff", template="{caption}, in {trigger} style")
    assert prompts.fill("a cat") == "a cat, in smsff style"
    assert prompts.fill("") == "in smsff style"
    with pytest.raises(UserError, match=r"prompts\.template"):
        TriggerPrompts(trigger="x", template="{words}")
