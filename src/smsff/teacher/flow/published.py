"""The published shapes of the models of ``conf/teacher``: what they need is known before a file of them is there."""

from __future__ import annotations

from typing import Any

from smsff.teacher.flow.families import FAMILIES, FlowConfig

_LEVELS = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
_KL: dict[str, Any] = {
    **_LEVELS,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 16,
}
_KL |= {"use_quant_conv": False, "use_post_quant_conv": False}
_CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_CLIP_L |= {"vocab_size": 49408, "projection_dim": 768}
_CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
_CLIP_G |= {"vocab_size": 49408, "projection_dim": 1280}
_T5: dict[str, Any] = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
}
_T5 |= {"feed_forward_proj": "gated-gelu"}
_QWEN3: dict[str, Any] = {"vocab_size": 151936, "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36}
_QWEN3 |= {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True}
_QWEN_TEXT = {"vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28}
_QWEN_TEXT |= {"num_attention_heads": 28, "num_key_value_heads": 4}
_QWEN_VISION = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584}
_SD35: dict[str, Any] = {"sample_size": 128, "num_layers": 24, "num_attention_heads": 24, "attention_head_dim": 64}
_SD35 |= {"joint_attention_dim": 4096, "caption_projection_dim": 1536, "pooled_projection_dim": 2048}
_SD35 |= {"pos_embed_max_size": 384, "dual_attention_layers": list(range(13)), "qk_norm": "rms_norm"}
_FLUX1 = {"guidance_embeds": True, "joint_attention_dim": 4096, "pooled_projection_dim": 768}
_KLEIN: dict[str, Any] = {
    "num_layers": 5,
    "num_single_layers": 20,
    "num_attention_heads": 24,
    "joint_attention_dim": 7680,
}
_KLEIN |= {"guidance_embeds": False}

# What is left out is the default of the class.
PUBLISHED_FLOWS: dict[str, FlowConfig] = {
    "black-forest-labs/FLUX.2-klein-base-4B": FlowConfig(FAMILIES["Flux2KleinPipeline"], _KLEIN, {}, (_QWEN3,)),
    "Tongyi-MAI/Z-Image": FlowConfig(FAMILIES["ZImagePipeline"], {"cap_feat_dim": 2560}, _KL, (_QWEN3,)),
    "black-forest-labs/FLUX.1-dev": FlowConfig(FAMILIES["FluxPipeline"], _FLUX1, _KL, (_CLIP_L, _T5)),
    "stabilityai/stable-diffusion-3.5-medium": FlowConfig(
        FAMILIES["StableDiffusion3Pipeline"], _SD35, _KL, (_CLIP_L, _CLIP_G, _T5)
    ),
    "Qwen/Qwen-Image": FlowConfig(
        FAMILIES["QwenImagePipeline"],
        {"joint_attention_dim": 3584},
        {},
        ({"text_config": _QWEN_TEXT, "vision_config": _QWEN_VISION, "tie_word_embeddings": False},),
    ),
}
