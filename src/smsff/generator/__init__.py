"""Networks that stylize an image in one pass, and the per-image mode where the parameter is the image itself."""

from smsff.generator.unet import UNetGenerator

__all__ = ["UNetGenerator"]
