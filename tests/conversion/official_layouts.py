"""Names and shapes of official checkpoints: FluxViT, and the ways InternVideo2 is published in."""

from dataclasses import dataclass

import torch


Shapes = dict[str, tuple[int, ...]]


def encoder_shapes(width: int, layers: int, mlp: int, positions: int) -> Shapes:
    """What both models have before their heads."""
    shapes: Shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + positions, width),
        "patch_embed.proj.weight": (width, 3, 1, 14, 14),
        "patch_embed.proj.bias": (width,),
    }
    for layer in range(layers):
        block = f"blocks.{layer}."
        for name in ("norm1", "norm2", "attn.q_norm", "attn.k_norm"):
            shapes[f"{block}{name}.weight"] = (width,)
        for name in ("ls1.gamma", "ls2.gamma", "attn.proj.bias", "mlp.fc2.bias"):
            shapes[block + name] = (width,)
        shapes[block + "attn.qkv.weight"] = (3 * width, width)
        shapes[block + "attn.proj.weight"] = (width, width)
        shapes[block + "mlp.fc1.weight"] = (mlp, width)
        shapes[block + "mlp.fc1.bias"] = (mlp,)
        shapes[block + "mlp.fc2.weight"] = (width, mlp)
    return shapes


def projector_shapes(prefix: str, width: int, projection: int) -> Shapes:
    shapes: Shapes = {}
    for part in "qkv":
        shapes[f"{prefix}norm1_{part}.weight"] = shapes[f"{prefix}norm1_{part}.bias"] = (width,)
        shapes[f"{prefix}cross_attn.{part}.weight"] = (width, width)
        shapes[f"{prefix}cross_attn.{part}_bias"] = (width,)
    shapes[f"{prefix}cross_attn.proj.weight"] = (projection, width)
    shapes[f"{prefix}cross_attn.proj.bias"] = (projection,)
    return shapes


def fluxvit_shapes(width: int, layers: int, positions: int, labels: int) -> Shapes:
    shapes = encoder_shapes(width, layers, 4 * width, positions)
    shapes |= {
        "gpe_proj.depthwise_conv.weight": (width, 1, 1, 1, 1),
        "gpe_proj.depthwise_conv.bias": (width,),
        "patch_embed.norm.weight": (width,),
        "patch_embed.norm_before.weight": (588,),
        "fc_norm.weight": (768,),
        "fc_norm.bias": (768,),
    }
    for layer in range(layers):
        shapes[f"blocks.{layer}.attn.lpe.depthwise_conv.weight"] = (width, 1, 1, 1, 1)
        shapes[f"blocks.{layer}.attn.lpe.depthwise_conv.bias"] = (width,)
    for head in range(3):
        shapes |= projector_shapes(f"clip_projector.{head}.", width, 768)
        shapes[f"head.{head}.weight"], shapes[f"head.{head}.bias"] = (labels, 768), (labels,)
    for decoder in range(2):
        name = f"final_clip_decoder_for_projs.{decoder}."
        shapes[name + "head.weight"] = (768, 768)
        for part in ("head.bias", "norm.weight", "norm.bias"):
            shapes[name + part] = (768,)
    return shapes


@dataclass(frozen=True)
class InternVideo2Layout:
    """One way InternVideo2 is published in: which of its sizes, frames of its position table, and what else is there.

    dropped: by bare names, the parts that only pretraining uses. text: by full names, the other modalities' parts.
    """

    sizes: tuple[str, ...]
    frames: int = 8
    labels: int | None = None
    prefix: str = ""
    dropped: tuple[str, ...] = ()
    text: tuple[str, ...] = ()
    container: str | None = None

    def shapes(self, width: int, layers: int, mlp: int, side: int = 16, projection: int = 768) -> Shapes:
        """Full names and shapes; the sizes of what is dropped do not matter."""
        shapes = encoder_shapes(width, layers, mlp, self.frames * side**2)
        shapes |= projector_shapes("clip_projector.", width, projection)
        if self.labels is not None:
            shapes |= {"fc_norm.weight": (projection,), "fc_norm.bias": (projection,)}
            shapes |= {"head.weight": (self.labels, projection), "head.bias": (self.labels,)}
        shapes |= dict.fromkeys(self.dropped, (2, 3))
        return {self.prefix + name: shape for name, shape in shapes.items()} | dict.fromkeys(self.text, (2, 3))

    def wrap(self, weights: dict[str, torch.Tensor]) -> dict:
        return weights if self.container is None else {self.container: weights}


CLIP_PARTS = (
    "clip_pos_embed",
    *(f"clip_decoder.{index}.{part}" for index in range(6) for part in ("head.0.weight", "head.2.bias", "norm.weight")),
    *(f"final_clip_decoder.{part}" for part in ("head.weight", "head.bias", "norm.weight", "norm.bias")),
)
MAE_PARTS = ("mae_pos_embed", *(f"mae_decoder.{index}.head.weight" for index in range(4)))
TEXT_PARTS = (
    "text_encoder.bert.encoder.layer.0.attention.self.query.weight",
    "vision_proj.weight",
    "text_proj.weight",
    "itm_head.weight",
    "temp",
)
INTERNVIDEO2_LAYOUTS = {
    "fine-tuned": InternVideo2Layout(("S", "B", "L", "1B"), labels=710, container="module"),
    "distilled": InternVideo2Layout(("S", "B", "L"), dropped=CLIP_PARTS),
    "stage 1": InternVideo2Layout(("1B", "6B"), dropped=CLIP_PARTS + MAE_PARTS, container="module"),
    "stage 2": InternVideo2Layout(
        ("1B", "6B"),
        frames=4,
        prefix="vision_encoder.",
        dropped=("img_pos_embed", "clip_img_pos_embed", *CLIP_PARTS),
        text=TEXT_PARTS,
        container="module",
    ),
}
