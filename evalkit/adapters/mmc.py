"""Checkpoints of MMC, masked momentum contrast (Wu et al. 2023, arXiv:2308.11448).

Neither code nor weights could be found: layout from the paper and from SiT, the previous method of the same group
(Sara-Ahmed/SiT 7f22e9c, GPL, described only); official code not seen. Stated by the paper: ViT-S/16 and ViT-B/16 with
a class token, teacher as moving average of the student, three independent 3-layer heads (reconstruction, patches,
class token). Assumed:
- the transformer is SiT's, which computes what DINO's does (vision_transformer.py:138-242: eps 1e-6, exact GELU, 6
  and 12 heads, DINO's resizing of positions, final norm);
- a training file is SiT's (main.py:184-190: student, teacher, optimizer, epoch, args, fp16_scaler; both networks
  under `module.`, since its heads have batch norm), the encoder under `backbone.`; a backbone alone is bare or under
  'state_dict';
- the teacher is evaluated, with ImageNet mean and std at 224.
The heads' names and layers are unknown: what is called `head` or `head_...` is left out by a rule and nothing is
offered as a projection; any other key is refused. A `head` whose layers are those of SiT's contrastive head is read: the
files of evalkit's own pretraining (`backbone.` and `head.`, the teacher's) have it, for the class token.
"""

from __future__ import annotations

from evalkit.adapters.family import Layout, Place, ViTFamily
from evalkit.adapters.heads import batch_norm_head
from evalkit.adapters.loading import Rule, State
from evalkit.adapters.vit import ViTConfig

VERSION = 1
NEEDS_FILE = True

ARCHITECTURES: dict[str, ViTConfig] = {
    "vit_small_patch16": ViTConfig(dim=384, depth=12, heads=6, patch=16),
    "vit_base_patch16": ViTConfig(dim=768, depth=12, heads=12, patch=16),
    "vit_micro_patch8_64": ViTConfig(dim=192, depth=6, heads=3, patch=8, size=64),
}

HEADS = Rule("heads", "the three pretraining heads, whose layers are not published", r"head(_[a-z]+)?\..+")


def _prepare(state: State) -> State:
    """A head of known layers under a name that the rule for unknown ones does not match."""
    if "head.mlp.7.running_mean" not in state:
        return dict(state)
    return {f"known_{key}" if key.startswith("head.") else key: value for key, value in state.items()}


FAMILY = ViTFamily(
    version=VERSION,
    layout=Layout(
        networks={"teacher": (Place("teacher"),), "student": (Place("student"),)},
        entries=("state_dict",),
        backbone="backbone.",
        head="known_head.",
        prepare=_prepare,
        drop=(HEADS,),
    ),
    architectures=ARCHITECTURES,
    source="assumed as in SiT and DINO: ImageNet mean and std",
    head=lambda state, config: batch_norm_head(state, config.dim),
)
load = FAMILY.load
