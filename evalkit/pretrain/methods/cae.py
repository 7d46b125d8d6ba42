"""CAE, context autoencoder (Chen et al. 2022, arXiv:2202.03026; lxtGH/CAE d725971, which states no licence: nothing of it
is in this file).

Half of the patches is masked, in blocks. The encoder sees the others. A regressor, cross-attention from mask queries to
the visible patches' latents and to the queries themselves, predicts the latents of the masked patches; a decoder makes the
targets from those predictions alone. The loss (Eq. 1) is the decoder's error plus twice the squared distance of the
predicted latents from what the encoder itself says of the masked patches, which gets no gradient. No loss reads the class
token: features are means of patches.

Deviations: the paper's targets are the 8,192 codes of DALL-E's tokenizer, which is not at hand; here they are the pixels
of each masked patch, standardised, with squared error as in MAE. The aligned latents come from the encoder of the same
step, as the paper says; the code takes that of the step before (tools/run_pretraining.py:158, base_momentum 0). Regressor
and decoder are as wide as the encoder, as in the runs that the code states (scripts/).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from evalkit.adapters.vit import ViTConfig
from evalkit.errors import PretrainError
from evalkit.pretrain.augment import View, draw
from evalkit.pretrain.masking import exact_block_mask, partition
from evalkit.pretrain.method import Method, Now, Output, transformer
from evalkit.pretrain.patches import at, patches_of, standardised
from evalkit.pretrain.precision import full
from evalkit.pretrain.regressor import Predictor


@dataclass(frozen=True)
class Config:
    """Defaults: scripts/cae_base_800e.sh and tools/run_pretraining.py:120-163.

    view: crop and flip only. masked: patches of an image that are masked. smallest: a block's area in patches.
    regressor, decoder: blocks of each. layer_scale: theirs. align: weight of the alignment. drop_path: of all three.
    """

    view: View = field(default_factory=lambda: View(224, (0.08, 1.0), jitter_p=0.0, grey_p=0.0))
    masked: int = 98
    smallest: int = 16
    regressor: int = 4
    decoder: int = 4
    layer_scale: float = 0.1
    align: float = 2.0
    drop_path: float = 0.1


@dataclass(frozen=True)
class Views:
    """images: (B, 3, s, s), normalised. visible, masked: (B, K) and (B, M) indices of patches, ascending."""

    images: Tensor
    visible: Tensor
    masked: Tensor


def decoding(predicted: Tensor, target: Tensor) -> Tensor:
    """The first term of Eq. 1, here a mean squared error over the pixels of masked patches (B, M, pixels). A scalar."""
    return (full(predicted) - full(target)).square().mean()


def alignment(predicted: Tensor, latents: Tensor, weight: float) -> Tensor:
    """The second term of Eq. 1 with its weight: mean squared error of latents (B, M, D), the encoder's held fixed."""
    return weight * (full(predicted) - full(latents.detach())).square().mean()


class CAE(Method):
    """Encoder, regressor, decoder."""

    family = "cae"

    def __init__(self, arch: ViTConfig, config: Config) -> None:
        super().__init__()
        if config.view.size != arch.size:
            raise PretrainError(
                f"CAE's regressor knows {arch.size} pixels and views have {config.view.size}: state one size"
            )
        patches = arch.grid[0] * arch.grid[1]
        if not 0 < config.masked < patches:
            raise PretrainError(f"masked = {config.masked} of {patches} patches; choose within 1 and {patches - 1}")
        self.arch, self.config = arch, config
        self.encoder = transformer(replace(arch, drop_path=config.drop_path))
        depths = config.regressor, config.decoder
        self.predictor = Predictor(arch, depths, layer_scale=config.layer_scale, drop_path=config.drop_path)
        with torch.no_grad():  # sines and cosines, rows first
            self.encoder.pos_embed[:, arch.prefix_rows :] = self.predictor.positions
        self.encoder.pos_embed.requires_grad_(False)

    def views(self, images: Tensor, rng: torch.Generator) -> Views:
        """One crop and its visible patches."""
        c = self.config
        mask = exact_block_mask(len(images), self.arch.grid, c.masked, rng, smallest=c.smallest)
        return Views(draw(images, c.view, rng).pixels, *partition(mask, c.masked))

    def forward(self, views: Views, now: Now) -> Output:
        """The losses `pixels` and `align`."""
        visible = self.encoder(views.images, keep=views.visible)[:, 1:]
        with torch.no_grad():
            latents = self.encoder(views.images, keep=views.masked)[:, 1:]
        said, pixels = self.predictor(visible, (views.masked, views.visible))
        target = standardised(at(patches_of(views.images, self.arch.patch), views.masked))
        losses = {"pixels": decoding(pixels, target), "align": alignment(said, latents, self.config.align)}
        return losses, {"features": visible.detach().mean(1)}

    @torch.no_grad()
    def after_step(self, now: Now) -> None:
        """Keys have no bias in CAE's encoder (modeling_cae_helper.py:44). It could change nothing but roundings, and is
        kept at zero so that the exported file, which has no place for it, is the network."""
        for block in self.encoder.blocks:
            block.attn.qkv.bias[self.arch.dim : 2 * self.arch.dim] = 0  # type: ignore[union-attr,index,operator]

    def encode(self, images: Tensor) -> Tensor:
        """Means of the patches of whole images: no loss reads the class token."""
        return self.encoder(images)[:, 1:].mean(1)  # type: ignore[no-any-return]

    def export(self) -> dict[str, Tensor]:
        """The encoder under the family's names: `encoder.`, gains without a module, separate biases of queries and values."""
        state = dict[str, Tensor]()
        for key, value in self.encoder.state_dict().items():
            if key.endswith("attn.qkv.bias"):
                stem = key.removesuffix("qkv.bias")
                state[f"encoder.{stem}q_bias"], _, state[f"encoder.{stem}v_bias"] = value.chunk(3)
            else:
                name = key.replace(".ls1.gamma", ".gamma_1").replace(".ls2.gamma", ".gamma_2")
                state[f"encoder.{name}"] = value
        return state


METHOD = CAE
