"""Checkpoints of MAE (He et al. 2021, arXiv:2111.06377; facebookresearch/mae efb2a80, CC-BY-NC 4.0).

The network (models_mae.py:25-70,150-170,223-245): pre-norm, final norm, every eps 1e-6, exact GELU, qkv with biases, no
LayerScale. Its position table of sines and cosines lies in the file; at another size that table is resized as for
fine-tuning (util/pos_embed.py:75-96).

Files: the released encoder ({'model'}, bare keys; evalkit's own without 'model'), the whole pretraining network (issue 8:
'model' with the decoder), the training file of util/misc.py:295-312 (beside optimizer, epoch, scaler, args), of
main_linprobe.py too, whose head (line 222) is dropped. Files that were fine-tuned on the mean of the patches have `fc_norm`
in place of `norm` (models_vit.py:27-33, 51-54): then the normed mean of the patch tokens takes the class token's place, as
their classifier reads it, and the patches have no norm.

main_linprobe.py evaluates the class token after the final norm. There is no projection: the decoder predicts pixels.
Expect 68.0 % by a linear probe for vit_base_patch16 (its FINETUNE.md).
"""

from __future__ import annotations

from dataclasses import replace

from evalkit.adapters.encoder import by_its_norm
from evalkit.adapters.family import Layout, ViTFamily
from evalkit.adapters.loading import Rule, State
from evalkit.adapters.renames import renamed
from evalkit.adapters.vit import ViTConfig

VERSION = 1
NEEDS_FILE = True

ARCHITECTURES: dict[str, ViTConfig] = {
    "vit_base_patch16": ViTConfig(dim=768, depth=12, heads=12, patch=16, positions="bicubic"),
    "vit_large_patch16": ViTConfig(dim=1024, depth=24, heads=16, patch=16, positions="bicubic"),
    "vit_huge_patch14": ViTConfig(dim=1280, depth=32, heads=16, patch=14, positions="bicubic"),
    "vit_micro_patch8_64": ViTConfig(dim=192, depth=6, heads=3, patch=8, size=64, positions="bicubic"),
}

DECODER = Rule(
    "decoder",
    "it predicts pixels from the encoder's tokens during pretraining and is never evaluated",
    r"mask_token|decoder_pos_embed|decoder_(embed|norm|pred)\.(weight|bias)"
    r"|decoder_blocks\.\d+\.(norm[12]|attn\.(qkv|proj)|mlp\.fc[12])\.(weight|bias)",
)
CLASSIFIER = Rule(
    "classifier",
    "trained with labels on top of the encoder, alone or behind a batch norm",
    r"head\.(1\.)?(weight|bias)|head\.0\.(running_mean|running_var|num_batches_tracked)",
)


def rename(state: State) -> State:
    """The norm of the mean under the shared transformer's name."""
    return renamed(state, r"fc_norm\.(weight|bias)", r"cls_norm.\1")


def adapt(config: ViTConfig, backbone: State) -> ViTConfig:
    """With the norm of the mean where the file has it."""
    return replace(config, final_norm=False, cls_norm=True) if "cls_norm.weight" in backbone else config


FAMILY = ViTFamily(
    version=VERSION,
    layout=Layout(
        entries=("model",),
        rename=rename,
        drop=(DECODER, CLASSIFIER),
    ),
    architectures=ARCHITECTURES,
    source="facebookresearch/mae efb2a80, main_linprobe.py:137-141: ImageNet mean and std",
    adapt=adapt,
    encoder=by_its_norm,
)
load = FAMILY.load
