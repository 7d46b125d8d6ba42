"""MAE, masked autoencoder (He et al. 2021, arXiv:2111.06377), with lightly's decoder.

The encoder sees a random quarter of the patches. The decoder gets its tokens, a mask token for every other patch, and the
places of all of them; it predicts the pixels of the patches that the encoder did not see, each patch standardised by
itself. The loss is their mean squared error (section 3; the paper numbers no equations). Code of the authors:
facebookresearch/mae efb2a80, models_mae.py (CC-BY-NC 4.0: nothing of it is in this file); what they evaluate is the class
token after the final norm (main_linprobe.py).

Deviations: none in the networks, which start as `VisionTransformer.initialise` and lightly say: Xavier, as the authors' do.
Watched are means over the visible patches' tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from evalkit.adapters.vit import ViTConfig
from evalkit.errors import ExtraMissing, PretrainError
from evalkit.pretrain.augment import View, draw
from evalkit.pretrain.masking import partition, random_mask
from evalkit.pretrain.method import Method, Now, Output, transformer
from evalkit.pretrain.patches import at, patches_of, standardised
from evalkit.pretrain.precision import full

try:
    from lightly.models.modules import MaskedVisionTransformerDecoderTIMM
except ImportError as error:  # pragma: no cover - the message is what matters
    raise ExtraMissing("pretraining", "pretrain") from error


@dataclass(frozen=True)
class Config:
    """Defaults: the paper's (section 4, table 8) and models_mae.py:223-229.

    view: crop and flip only. mask: share of the patches that the encoder does not see, in (0, 1). decoder_*: width, blocks
    and heads of the decoder. standardise: patches are predicted with mean 0 and variance 1 each.
    """

    view: View = field(default_factory=lambda: View(224, (0.2, 1.0), jitter_p=0.0, grey_p=0.0))
    mask: float = 0.75
    decoder_dim: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    standardise: bool = True


@dataclass(frozen=True)
class Views:
    """images: (B, 3, s, s), normalised. visible, masked: (B, K) and (B, P - K) indices of patches, ascending."""

    images: Tensor
    visible: Tensor
    masked: Tensor


def reconstruction(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over masked patches (B, M, pixels), in float32. Returns a scalar."""
    return (full(predicted) - full(target)).square().mean()


class Decoder(nn.Module):
    """From the visible patches' tokens to the pixels of the masked ones."""

    def __init__(self, arch: ViTConfig, config: Config) -> None:
        super().__init__()
        h, w = arch.grid
        self.length = 1 + h * w
        self.embed = nn.Linear(arch.dim, config.decoder_dim)
        self.blocks = MaskedVisionTransformerDecoderTIMM(
            h * w, config.decoder_dim, config.decoder_depth, config.decoder_heads
        )
        self.predict = nn.Linear(config.decoder_dim, arch.patch**2 * 3)
        for layer in (self.embed, self.predict):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor, visible: Tensor, masked: Tensor) -> Tensor:
        """tokens: (B, 1 + K, D), the class token first. Returns (B, M, patch * patch * 3)."""
        x = self.embed(tokens)
        places = torch.cat([torch.zeros_like(visible[:, :1]), visible + 1], 1)
        everywhere = self.blocks.mask_token.to(x.dtype).expand(len(x), self.length, x.shape[-1])
        x = self.blocks(everywhere.scatter(1, places[..., None].expand_as(x), x))
        return self.predict(at(x, masked + 1))  # type: ignore[no-any-return]


class MAE(Method):
    """Encoder and decoder."""

    family = "mae"

    def __init__(self, arch: ViTConfig, config: Config) -> None:
        super().__init__()
        if config.view.size != arch.size:
            raise PretrainError(
                f"MAE's decoder knows {arch.size} pixels and views have {config.view.size}: state one size"
            )
        self.arch, self.config = arch, config
        self.patches = arch.grid[0] * arch.grid[1]
        self.visible = int(self.patches * (1 - config.mask))
        if not 0 < self.visible < self.patches:
            raise PretrainError(
                f"mask {config.mask} leaves {self.visible} of {self.patches} patches; choose within (0, 1)"
            )
        self.encoder = transformer(arch)
        self.encoder.pos_embed.requires_grad_(False)  # sines and cosines
        self.decoder = Decoder(arch, config)

    def views(self, images: Tensor, rng: torch.Generator) -> Views:
        """One crop and its visible patches."""
        crop, masked = draw(images, self.config.view, rng).pixels, self.patches - self.visible
        return Views(crop, *partition(random_mask(len(crop), self.patches, masked, rng), masked))

    def forward(self, views: Views, now: Now) -> Output:
        """The loss `pixels`."""
        tokens = self.encoder(views.images, keep=views.visible)
        predicted = self.decoder(tokens, views.visible, views.masked)
        target = at(patches_of(views.images, self.arch.patch), views.masked)
        if self.config.standardise:
            target = standardised(target)
        return {"pixels": reconstruction(predicted, target)}, {"features": tokens[:, 1:].detach().mean(1)}

    def encode(self, images: Tensor) -> Tensor:
        """The class tokens of whole images."""
        return self.encoder(images)[:, 0]  # type: ignore[no-any-return]

    def export(self) -> dict[str, Tensor]:
        """The encoder, bare keys, as the released encoders have them."""
        return dict(self.encoder.state_dict())


METHOD = MAE
