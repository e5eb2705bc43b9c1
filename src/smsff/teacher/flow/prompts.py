"""Prompts to embeddings, as each family's stock pipeline makes them.

Each function takes text encoders, tokenizers and one prompt, and returns a condition of one row.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smsff.errors import UserError
from smsff.teacher.condition import Condition
from smsff.teacher.prompts import warn_if_cut
from smsff.training.speed import to_device

KLEIN_LAYERS = (9, 18, 27)
QWEN_TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
QWEN_START = 34
"""Tokens of the template before the prompt, which the transformer does not see."""


def sd35(encoders: Sequence[Any], tokenizers: Sequence[Any], prompt: str) -> Condition:
    """Both CLIPs' states before the last layer side by side, then T5's 256; pooled projections of the CLIPs."""
    outputs = [
        encoder(_ids(encoder, tokenizer, prompt), output_hidden_states=True)
        for encoder, tokenizer in zip(encoders[:2], tokenizers[:2], strict=True)
    ]
    clip = torch.cat([output.hidden_states[-2] for output in outputs], -1)
    t5 = _t5(encoders[2], tokenizers[2], prompt, 256)
    tokens = torch.cat([F.pad(clip, (0, t5.shape[-1] - clip.shape[-1])), t5], 1)
    return Condition(tokens, torch.cat([output.text_embeds for output in outputs], -1))


def flux1(encoders: Sequence[Any], tokenizers: Sequence[Any], prompt: str) -> Condition:
    """T5's 512 tokens and CLIP's pooled state."""
    pooled = encoders[0](_ids(encoders[0], tokenizers[0], prompt)).pooler_output
    return Condition(_t5(encoders[1], tokenizers[1], prompt, 512), pooled)


def klein(encoders: Sequence[Any], tokenizers: Sequence[Any], prompt: str) -> Condition:
    """Three layers of Qwen3 side by side, 512 tokens; the transformer sees the padding too."""
    ids = _chat(encoders[0], tokenizers[0], prompt, thinking=False)
    states = encoders[0](**ids, output_hidden_states=True, use_cache=False).hidden_states
    return Condition(torch.cat([states[layer] for layer in KLEIN_LAYERS], -1))


def zimage(encoders: Sequence[Any], tokenizers: Sequence[Any], prompt: str) -> Condition:
    """Qwen3's states before the last layer, without padding."""
    ids = _chat(encoders[0], tokenizers[0], prompt, thinking=True)
    states = encoders[0](**ids, output_hidden_states=True, use_cache=False).hidden_states[-2]
    return Condition(states[:, ids["attention_mask"][0].bool()])


def qwen(encoders: Sequence[Any], tokenizers: Sequence[Any], prompt: str) -> Condition:
    """The last states of Qwen2.5-VL after the beginning of its template, at most 1024."""
    text = QWEN_TEMPLATE.format(prompt)
    warn_if_cut(tokenizers[0], [text], QWEN_START + 1024)
    ids = tokenizers[0]([text], max_length=QWEN_START + 1024, truncation=True, return_tensors="pt")
    ids = {name: ids[name].to(_device(encoders[0])) for name in ("input_ids", "attention_mask")}
    return Condition(encoders[0](**ids, output_hidden_states=True).hidden_states[-1][:, QWEN_START:])


def _ids(encoder: Any, tokenizer: Any, prompt: str, length: int | None = None) -> Tensor:
    length = length or tokenizer.model_max_length
    options = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
    return tokenizer([prompt], **options).input_ids.to(_device(encoder))


def _t5(encoder: Any, tokenizer: Any, prompt: str, length: int) -> Tensor:
    warn_if_cut(tokenizer, [prompt], length)
    return encoder(_ids(encoder, tokenizer, prompt, length))[0]


def _chat(encoder: Any, tokenizer: Any, prompt: str, *, thinking: bool) -> dict[str, Tensor]:
    """A question of the user with 512 tokens, padded."""
    message = [{"role": "user", "content": prompt}]
    options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": thinking}
    text = tokenizer.apply_chat_template(message, **options)
    warn_if_cut(tokenizer, [text], 512)
    ids = tokenizer([text], padding="max_length", max_length=512, truncation=True, return_tensors="pt")
    return {name: ids[name].to(_device(encoder)) for name in ("input_ids", "attention_mask")}


def _device(encoder: nn.Module) -> torch.device:
    return next(encoder.parameters()).device


class FlowPrompts:
    """Embeddings of prompts, each made once, alone, and kept in main memory in the dtype of the text encoders.

    The text encoders are larger than some of the transformers: they are on the GPU only while they encode. They are
    frozen, and no LoRA adapts them.

    Args:
        embed: one of the functions above.
    """

    text_encoders: Sequence[nn.Module] = ()
    """Those that a LoRA can adapt: none."""

    def __init__(
        self,
        embed: Callable[[Sequence[Any], Sequence[Any], str], Condition],
        encoders: Sequence[nn.Module],
        tokenizers: Sequence[Any],
    ) -> None:
        self._embed, self._tokenizers = embed, tokenizers
        self._frozen: Sequence[nn.Module] | None = [encoder.requires_grad_(False).eval() for encoder in encoders]
        self._cache: dict[str, Condition] = {}

    def encode(self, prompts: Sequence[str], *, device: torch.device, adapter: str | None = None) -> Condition:
        """One row a prompt on `device`, shorter ones filled up with zeros behind a mask; `adapter` has no effect.

        Raises:
            UserError: for a prompt that was not encoded before the text encoders were dropped.
        """
        new = list(dict.fromkeys(prompt for prompt in prompts if prompt not in self._cache))
        if new and self._frozen is None:
            raise UserError(
                f"the prompt {new[0]!r} was not encoded before the text encoder was dropped; encode every prompt "
                "and caption of the run first"
            )
        for encoder in self._frozen or () if new else ():
            encoder.to(_place(device))
        with torch.no_grad():
            for prompt in new:
                self._cache[prompt] = self._embed(self._frozen or (), self._tokenizers, prompt).to("cpu")
        for encoder in self._frozen or () if new else ():
            encoder.to("cpu")
        return Condition.cat([self._cache[prompt] for prompt in prompts]).map(lambda x: to_device(x, device))

    def drop(self) -> None:
        """Free the text encoders; what has been encoded stays available."""
        self._frozen, self._tokenizers = None, ()


def _place(device: torch.device) -> torch.device:
    """Where text encoders run: the GPU of this process, also before the training has sent its networks there."""
    if device.type != "cpu" or not torch.cuda.is_available():
        return device
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
