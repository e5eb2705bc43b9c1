"""The weights of the baselines for their tests."""

from baseline_parts import controlnet, image_encoder, ip_adapter, teacher  # noqa: F401
