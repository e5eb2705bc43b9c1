"""Images to latents and back, through the auto-encoder of the base model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLFlux2, AutoencoderKLQwenImage, AutoencoderTiny
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Extend (B, C, H, W) at the right and the bottom until both sides are multiples of `multiple`.

    The border is mirrored; a side too short to be mirrored that far is repeated instead.
    """
    height, width = x.shape[-2:]
    bottom, right = -height % multiple, -width % multiple
    if bottom == 0 and right == 0:
        return x
    mode = "reflect" if bottom < height and right < width else "replicate"
    return F.pad(x, (0, right, 0, bottom), mode=mode)


def translate(x: Tensor, offset: Tensor) -> Tensor:
    """Each picture of (B, C, H, W) moved up and left by its own `offset` (B, 2) >= 0 in pixels; the last rows repeat.

    An encoder that strides sees a picture on a grid, and its gradient prints that grid on the picture. With a random
    offset below the stride the print averages out.
    """
    height, width = x.shape[-2:]
    reach = int(offset.max())
    padded = F.pad(x, (0, reach, 0, reach), mode="replicate")
    moved = [p[:, dy : dy + height, dx : dx + width] for p, (dy, dx) in zip(padded, offset.tolist(), strict=True)]
    return torch.stack(moved)


class AutoencoderLatent(nn.Module):
    """A `LatentCoder` over an auto-encoder of diffusers: z = (posterior mean - shift) / std * scaling_factor.

    Shift and std come from the auto-encoder's configuration: ``latents_mean`` and ``latents_std``, one number for each
    channel, or else ``shift_factor`` and 1; FLUX.2's are the statistics of its batch norm, for each channel and place
    in a patch of 2 x 2. The auto-encoder is frozen and stays in evaluation mode, but lets the gradient of z through to
    the image.

    Args:
        vae: AutoencoderKL, AutoencoderTiny, or that of FLUX.2 or Qwen-Image (which takes videos, here of one frame);
            its configuration gives the number of channels, the downscale factor and the scaling.
        patch: sides of the latents are multiples of this.
        gradient_checkpointing: recompute the encoder's blocks in the backward pass instead of keeping their
            activations; without effect where no gradient is wanted.
    """

    def __init__(self, vae: Any, *, patch: int = 1, gradient_checkpointing: bool = False) -> None:
        super().__init__()
        self.vae = vae.requires_grad_(False).eval()
        self._tiny, self._video = isinstance(vae, AutoencoderTiny), isinstance(vae, AutoencoderKLQwenImage)
        self._patched = isinstance(vae, AutoencoderKLFlux2)
        config = vae.config
        name = "encoder_block_out_channels" if self._tiny else "dim_mult" if self._video else "block_out_channels"
        widths = config[name]
        self.downscale: int = 2 ** (len(widths) - 1)
        self.multiple = self.downscale * patch
        self.channels: int = config.z_dim if self._video else config.latent_channels
        # AutoencoderTiny has neither mean nor std.
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if self._patched:
            mean, std = vae.bn.running_mean, (vae.bn.running_var.double() + config.batch_norm_eps).sqrt()
        shift = config.get("shift_factor") or 0.0 if mean is None else mean
        self.scaling: float = config.get("scaling_factor", 1.0)
        factor = self.scaling / torch.as_tensor(1.0 if std is None else std, dtype=torch.float64)
        self._exact = torch.as_tensor(shift, dtype=torch.float64).view(-1, 1, 1), factor.view(-1, 1, 1)
        self._sent: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}
        # AutoencoderTiny's own checkpointing skips the step from [-1, 1] to [0, 1] in its encoder, and Qwen-Image's has
        # none: there the whole encoder is one segment.
        self._checkpoint_whole = gradient_checkpointing and (self._tiny or self._video)
        if gradient_checkpointing and not self._checkpoint_whole:
            vae.enable_gradient_checkpointing()

    def train(self, mode: bool = True) -> AutoencoderLatent:
        """Never leaves evaluation mode, whatever the training loop asks for."""
        return super().train(False)

    def encode(self, x: Tensor) -> Tensor:
        """Scaled latents, the mean of the posterior, differentiable in x.

        Args:
            x: (B, 3, H, W) in [-1, 1], any H and W: the image is padded here, by reflection at the right and bottom.

        Returns:
            (B, channels, h, w), at least float32: h and w are the padded H and W over `downscale`.
        """
        if isinstance(self.vae.encoder, nn.Identity):
            raise RuntimeError("the encoder was dropped, as the one picture of this run is encoded already")
        x = pad_to_multiple(x, self.multiple).to(self.vae.dtype)
        whole = self._checkpoint_whole and torch.is_grad_enabled() and x.requires_grad
        mean = checkpoint(self._mean, x, use_reentrant=False) if whole else self._mean(x)
        shift, factor = self._constants(x.device, x.dtype)
        return self._by_patch(mean.to(x.dtype), lambda z: (z - shift) * factor)

    def _by_patch(self, z: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        """`change` applied to the latents, or to their patches of 2 x 2 as channels 4 c + 2 dy + dx."""
        return F.pixel_shuffle(change(F.pixel_unshuffle(z, 2)), 2) if self._patched else change(z)

    def _constants(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Shift and factor; sent to a device once, for that waits for it."""
        key = device, dtype
        if key not in self._sent:
            with torch.inference_mode(False):
                self._sent[key] = self._exact[0].to(device, dtype), self._exact[1].to(device, dtype)
        return self._sent[key]

    def _mean(self, x: Tensor) -> Tensor:
        encoded = self.vae.encode(x[:, :, None] if self._video else x)
        mean = encoded.latents if self._tiny else encoded.latent_dist.mean
        return mean[:, :, 0] if self._video else mean

    def drop_decoder(self) -> None:
        """Free the decoder, half of the auto-encoder and more; `decode` is then an error."""
        self._drop("decoder", "post_quant_conv")

    def drop_encoder(self) -> None:
        """Free the encoder; `encode` is then an error."""
        self._drop("encoder", "quant_conv")

    def _drop(self, *parts: str) -> None:
        for part in parts:
            if getattr(self.vae, part, None) is not None:
                setattr(self.vae, part, nn.Identity())  # not None: Qwen-Image's encoder looks at its decoder too

    def decode(self, z: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Images (B, 3, H, W), about [-1, 1] and not clipped, of scaled latents z (B, channels, h, w).

        Args:
            size: crop to these (H, W), those of the image that was encoded; None keeps h and w times `downscale`.
        """
        if isinstance(self.vae.decoder, nn.Identity):
            raise RuntimeError("the decoder was dropped, as nothing in this run decodes")
        shift, factor = self._constants(z.device, self.vae.dtype)
        z = self._by_patch(z.to(self.vae.dtype), lambda z: z / factor + shift)
        x = self.vae.decode(z[:, :, None]).sample[:, :, 0] if self._video else self.vae.decode(z).sample
        return x if size is None else x[..., : size[0], : size[1]]
