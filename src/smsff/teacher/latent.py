"""Images to latents and back, through the auto-encoder of the base model."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderTiny
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
    """A `LatentCoder` over AutoencoderKL or AutoencoderTiny: z = (posterior mean - shift) / std * scaling_factor.

    Shift and std come from the auto-encoder's configuration: ``latents_mean`` and ``latents_std``, one number for each
    channel, or else ``shift_factor`` and 1. The auto-encoder is frozen and stays in evaluation mode, but lets the
    gradient of z through to the image.

    Args:
        vae: the auto-encoder; its configuration gives the number of channels, the downscale factor and the scaling.
        gradient_checkpointing: recompute the encoder's blocks in the backward pass instead of keeping their
            activations; without effect where no gradient is wanted.
    """

    def __init__(self, vae: AutoencoderKL | AutoencoderTiny, *, gradient_checkpointing: bool = False) -> None:
        super().__init__()
        self.vae = vae.requires_grad_(False).eval()
        tiny = isinstance(vae, AutoencoderTiny)
        widths = vae.config.encoder_block_out_channels if tiny else vae.config.block_out_channels
        self.downscale: int = 2 ** (len(widths) - 1)
        self.channels: int = vae.config.latent_channels
        self.scaling: float = vae.config.scaling_factor
        # AutoencoderTiny has neither mean nor std.
        mean, std = vae.config.get("latents_mean"), vae.config.get("latents_std")
        shift = vae.config.shift_factor or 0.0 if mean is None else mean
        factor = self.scaling / torch.tensor(1.0 if std is None else std, dtype=torch.float64)
        self._exact = torch.tensor(shift, dtype=torch.float64).view(-1, 1, 1), factor.view(-1, 1, 1)
        self._sent: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}
        # AutoencoderTiny's own checkpointing skips the step from [-1, 1] to [0, 1] in its encoder, so the whole encoder
        # is one segment there; it is small.
        self._checkpoint_whole = gradient_checkpointing and tiny
        if gradient_checkpointing and not tiny:
            vae.enable_gradient_checkpointing()

    def train(self, mode: bool = True) -> AutoencoderLatent:
        """Never leaves evaluation mode, whatever the training loop asks for."""
        return super().train(False)

    def encode(self, x: Tensor) -> Tensor:
        """Scaled latents, the mean of the posterior, differentiable in x.

        Args:
            x: (B, 3, H, W) in [-1, 1], any H and W: the image is padded here, by reflection at the right and bottom.

        Returns:
            (B, channels, ceil(H / downscale), ceil(W / downscale)), at least float32.
        """
        if self.vae.encoder is None:
            raise RuntimeError("the encoder was dropped, as the one picture of this run is encoded already")
        x = pad_to_multiple(x, self.downscale).to(self.vae.dtype)
        whole = self._checkpoint_whole and torch.is_grad_enabled() and x.requires_grad
        mean = checkpoint(self._mean, x, use_reentrant=False) if whole else self._mean(x)
        shift, factor = self._constants(x.device, x.dtype)
        return (mean.to(x.dtype) - shift) * factor

    def _constants(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Shift and factor; sent to a device once, for that waits for it."""
        key = device, dtype
        if key not in self._sent:
            with torch.inference_mode(False):
                self._sent[key] = self._exact[0].to(device, dtype), self._exact[1].to(device, dtype)
        return self._sent[key]

    def _mean(self, x: Tensor) -> Tensor:
        encoded = self.vae.encode(x)
        return encoded.latents if isinstance(self.vae, AutoencoderTiny) else encoded.latent_dist.mean

    def drop_decoder(self) -> None:
        """Free the decoder, half of the auto-encoder and more; `decode` is then an error."""
        self._drop("decoder", "post_quant_conv")

    def drop_encoder(self) -> None:
        """Free the encoder; `encode` is then an error."""
        self._drop("encoder", "quant_conv")

    def _drop(self, *parts: str) -> None:
        for part in parts:
            if getattr(self.vae, part, None) is not None:
                setattr(self.vae, part, None)

    def decode(self, z: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Images (B, 3, H, W), about [-1, 1] and not clipped, of scaled latents z (B, channels, h, w).

        Args:
            size: crop to these (H, W), those of the image that was encoded; None keeps h and w times `downscale`.
        """
        if self.vae.decoder is None:
            raise RuntimeError("the decoder was dropped, as nothing in this run decodes")
        shift, factor = self._constants(z.device, self.vae.dtype)
        x = self.vae.decode(z.to(self.vae.dtype) / factor + shift).sample
        return x if size is None else x[..., : size[0], : size[1]]
