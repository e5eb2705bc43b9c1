"""Networks that stylize an image in one pass, and the per-image mode where the parameter is the image itself."""

from smsff.generator.image import ImageGenerator, LatentGenerator
from smsff.generator.resnet import ResNetGenerator
from smsff.generator.unet import UNetGenerator

__all__ = ["ImageGenerator", "LatentGenerator", "ResNetGenerator", "UNetGenerator"]
