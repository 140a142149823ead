# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Flux around encoders that people have: VideoMAE, V-JEPA 2 and ViViT, each encoding only the tokens worth it.

The encoder is the library's own; `flux_videomae.py`, `flux_vjepa2.py` and `flux_vivit.py` say how to take it apart.
Shape letters: B batch, T frames, T' = T / tubelet_size, L patches a frame, D width, K kept tokens, n class tokens.
"""

import copy
import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel
from transformers import initialization as init
from transformers.models.auto.modeling_auto import MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES
from transformers.models.videomae.modeling_videomae import VideoMAELayer, VideoMAESelfAttention
from transformers.models.vivit.modeling_vivit import VivitAttention, VivitLayer
from transformers.models.vjepa2.modeling_vjepa2 import (
    VJEPA2AttentivePooler,
    VJEPA2Layer,
    VJEPA2PoolerCrossAttention,
    VJEPA2RopeAttention,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring, can_return_tuple, logging
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .budget_heads import count_tokens, nearest_head, nothing_of
from .configuration_flux import FluxConfig, check_backbone_type
from .flux_backbones import FluxBackbone, FluxGrid
from .flux_videomae import FluxVideoMAE
from .flux_vivit import FluxVivit
from .flux_vjepa2 import FluxVJEPA2
from .modeling_fluxvit import (
    FluxViTAlignmentDecoder,
    FluxViTForVideoClassificationOutput,
    FluxViTModelOutput,
    copies_of,
)
from .patch_grids import check_keep_indices
from .token_selection import as_count, select_tokens_at_budgets


logger = logging.get_logger(__name__)

BACKBONES: dict[str, type[FluxBackbone]] = {"videomae": FluxVideoMAE, "vivit": FluxVivit, "vjepa2": FluxVJEPA2}
# What a config says of labels; it is the whole model's to say.
LABEL_FIELDS = ("id2label", "label2id", "problem_type")
# Options of `from_backbone` that are the config's, and those that say where a checkpoint is.
OWN_FIELDS = (
    *("token_budget", "separate_heads", "token_selection", "num_token_groups", "token_plan"),
    *("num_frames", "image_size", "classifier_dropout", "drop_path_rate"),
)
HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only", "force_download", "subfolder")


@auto_docstring
class FluxPreTrainedModel(PreTrainedModel):
    config: FluxConfig
    base_model_prefix = "flux"
    main_input_name = "pixel_values_videos"
    input_modalities = ("video",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["FluxVivitEmbeddings", "VideoMAELayer", "VJEPA2Layer", "VivitLayer", "VJEPA2AttentivePooler"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _can_record_outputs = {
        "hidden_states": [VideoMAELayer, VJEPA2Layer, VivitLayer],
        "attentions": [VideoMAESelfAttention, VJEPA2RopeAttention, VivitAttention],
        "pooler_attentions": OutputRecorder(VJEPA2PoolerCrossAttention, index=1),
    }
    # Mean losses: transformers.Trainer has to divide by the accumulation steps itself, for every problem type.
    accepts_loss_kwargs = False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Heads; the encoder has its own initialisation."""
        super()._init_weights(module)
        if isinstance(module, VJEPA2AttentivePooler):
            init.trunc_normal_(module.query_tokens, std=self.config.initializer_range)

    # The four steps, as in FluxViT: `flux_hf.protocol`.

    def embed(self, pixel_values_videos: Tensor) -> tuple[Tensor, FluxGrid]:
        """Embeds every patch.

        Args:
            pixel_values_videos: (B, T, C, H, W).

        Returns:
            Patches (B, T', L, D) before positions, in float32 whatever the model's dtype, and their grid.

        Raises:
            ValueError: another rank or channel count, or a clip that is not whole patches.
        """
        base = self.base_model
        return base.taken_apart.embed(base.backbone, pixel_values_videos)

    def select(self, patches: Tensor, token_budgets: Sequence[int | None]) -> list[Tensor]:
        """Chooses patches by `config.token_selection`, scoring them once.

        Args:
            patches: (B, T', L, D) of `embed`.
            token_budgets: Tokens to keep; None and budgets above the clip's patches keep all.

        Returns:
            For each budget keep_indices (B, K), rising positions in the flattened (time, row, column) grid.
        """
        return select_tokens_at_budgets(
            patches, token_budgets, self.config.token_selection, self.config.num_token_groups
        )

    def encode(
        self, patches: Tensor, grid: FluxGrid, keep_indices: Tensor, layers: Sequence[int] = ()
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Encodes some of the patches.

        Args:
            patches, grid: Of `embed`.
            keep_indices: (B, K) rising positions in the flattened grid.
            layers: Layers whose outputs are wanted too, counted from 0.

        Returns:
            The encoder's output after its last norm (B, n + K, D), the class token first where there is one; and what
            each of `layers` gave, before that norm.

        Raises:
            ValueError: indices of another kind, shape or range, or a layer that the model does not have.
        """
        unknown = [layer for layer in layers if not 0 <= layer < self.config.num_hidden_layers]
        if unknown:
            raise ValueError(f"layers must lie in [0, {self.config.num_hidden_layers}), got {unknown}")
        check_keep_indices(keep_indices, patches.shape[0], patches.shape[1] * patches.shape[2])
        return self._encode(patches, grid, keep_indices, layers, in_order=True)

    def _encode(
        self, patches: Tensor, grid: FluxGrid, keep_indices: Tensor, layers: Sequence[int], in_order: bool
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        base, states = self.base_model, {}
        hidden_states, told = base.taken_apart.place(base.backbone, patches, grid, keep_indices, in_order)
        for index, layer in enumerate(base.taken_apart.layers(base.backbone)):
            hidden_states = base.taken_apart.run(layer, hidden_states, told)
            if index in layers:
                states[index] = hidden_states
        return base.taken_apart.finish(base.backbone, hidden_states), tuple(states[index] for index in layers)

    def pool(self, hidden_states: Tensor, head: int, attention: bool = False) -> tuple[Tensor, None]:
        """Pools tokens as the encoder's classifier does: their mean, the class token, or an attentive pooler.

        Args:
            hidden_states: (B, n + K, D) of `encode`.
            head: Index into `config.token_budgets`; all mean the same pooler without `config.separate_heads`.
            attention: None of these poolings hands out weights: `forward` records V-JEPA 2's
                (`output_pooler_attentions=True`, eager attention).

        Returns:
            Features (B, D), and None.
        """
        return self.base_model.poolers[self._module_of(head)](hidden_states), None

    def _module_of(self, head: int) -> int:
        return head if self.config.separate_heads else 0

    def resolve_head(self, kept_tokens: int, head: int | None = None) -> int:
        """`head`, or the one trained nearest `kept_tokens`, ties to the larger.

        Raises:
            ValueError: `head` is not an index into `config.token_budgets`.
        """
        return nearest_head(self.config.token_budgets, kept_tokens, head)

    def parameter_depth(self, name: str) -> int:
        """The depth of a parameter for layer-wise learning rates: 0 for the embeddings, i + 1 for layer i, and
        `num_hidden_layers + 1` for the last norm and the heads."""
        name = name.removeprefix(f"{self.base_model_prefix}.")
        inside = name.startswith("backbone.")
        depth = self.base_model.taken_apart.parameter_depth(name.removeprefix("backbone.")) if inside else None
        return self.config.num_hidden_layers + 1 if depth is None else depth

    def takes_weight_decay(self, name: str, parameter: Tensor) -> bool:
        """Whether weight decay is for this parameter: matrices, but not class tokens, queries and position tables."""
        return parameter.ndim > 1 and self.base_model.taken_apart.takes_weight_decay(name)

    def lora_targets(self) -> list[str]:
        """Names of the layers' linear maps, by which peft finds them."""
        base = self.base_model
        [prefix] = [name for name, m in base.named_modules() if m is base.taken_apart.layers(base.backbone)]
        names = base.taken_apart.lora_targets
        return [f"{prefix}.{i}.{name}" for i in range(self.config.num_hidden_layers) for name in names]

    def compile_layers(self, **kwargs) -> None:
        """Compiles each layer in place, as `torch.nn.Module.compile` does; all have one graph."""
        for layer in self.base_model.taken_apart.layers(self.base_model.backbone):
            layer.compile(**kwargs)


@auto_docstring(custom_intro="An encoder of the library that encodes only some tokens of a clip, and its poolers.")
class FluxModel(FluxPreTrainedModel):
    def __init__(self, config: FluxConfig):
        super().__init__(config)
        self.taken_apart = BACKBONES[config.backbone_config.model_type](config.backbone_config)
        self.backbone = self.taken_apart.build()
        self.poolers = nn.ModuleList([self.taken_apart.make_pooler() for _ in range(config.num_heads)])
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.taken_apart.projection(self.backbone)

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    @auto_docstring
    def forward(
        self,
        pixel_values_videos: torch.FloatTensor,
        token_budget: int | None = None,
        head: int | None = None,
        keep_indices: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> FluxViTModelOutput:
        r"""
        token_budget (`int`, *optional*, defaults to `config.token_budget`):
            How many patches to encode. At or above the number of patches of the clip, all are.
        head (`int`, *optional*):
            Index into `config.token_budgets`: whose pooler to use. By default the one trained nearest the number of
            tokens kept, a tie going to the larger budget.
        keep_indices (`torch.LongTensor` of shape `(batch_size, kept_tokens)`, *optional*):
            Encode these patches (rising positions in the flattened (time, row, column) patch grid) instead of
            selecting by `token_budget`.
        """
        token_budget = self.config.token_budget if token_budget is None else as_count("token_budget", token_budget)
        patches, grid = self.embed(pixel_values_videos)
        given = keep_indices is not None  # in any order, then
        if given:
            check_keep_indices(keep_indices, patches.shape[0], patches.shape[1] * patches.shape[2])
        else:
            [keep_indices] = self.select(patches, [token_budget])
        hidden_states, _ = self._encode(patches, grid, keep_indices, (), in_order=not given)
        pooled, _ = self.pool(hidden_states, self.resolve_head(keep_indices.shape[1], head))
        return FluxViTModelOutput(last_hidden_state=hidden_states, pooler_output=pooled, keep_indices=keep_indices)


@auto_docstring(
    custom_intro="""
    Flux with a classifier: one for all token budgets, or with `config.separate_heads` a pooler and a classifier for
    each, and alignment decoders.
    """
)
class FluxForVideoClassification(FluxPreTrainedModel):
    def __init__(self, config: FluxConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.flux = FluxModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        heads = range(config.num_heads)
        self.classifiers = nn.ModuleList([nn.Linear(config.projection_dim, config.num_labels) for _ in heads])
        self.alignment_decoders = nn.ModuleList([FluxViTAlignmentDecoder(config) for _ in heads[1:]])
        self.post_init()

    @classmethod
    def from_backbone(
        cls, source: str | os.PathLike | PreTrainedModel, token_budgets: Sequence[int] | None = None, **options: Any
    ) -> "FluxForVideoClassification":
        """Flux around a VideoMAE, V-JEPA 2 or ViViT checkpoint: all weights, the classifier and its labels.

        At the native clip with all its tokens (the default budget) it gives the logits of the library's model. A
        checkpoint without a classifier gets a new one. Left out is what no classifier uses: V-JEPA 2's predictor.

        Args:
            source: A folder, a Hub id, or a model of the library, whose weights are copied.
            token_budgets: As in `FluxConfig`.
            options: Fields of `FluxConfig`, and of `from_pretrained`: revision, cache_dir, dtype, attn_implementation,
                num_labels, ...

        Raises:
            ValueError: an encoder that Flux cannot be put around, with the reason.
        """
        own = {name: options.pop(name) for name in OWN_FIELDS if name in options}
        model = source if isinstance(source, PreTrainedModel) else _library_model(source, options)
        check_backbone_type(model.config.model_type)
        backbone_config = copy.deepcopy(model.config)
        labels = {name: getattr(backbone_config, name) for name in LABEL_FIELDS}
        backbone_config.num_labels, backbone_config.problem_type, backbone_config.architectures = 2, None, None
        classifies = isinstance(model, BACKBONES[backbone_config.model_type].classifier_class)
        if not classifies and backbone_config.model_type == "videomae":
            backbone_config.use_mean_pooling = True  # as fine-tuning does; a pretrained encoder's config says False
        config = FluxConfig(backbone_config=backbone_config, token_budgets=token_budgets, **own, **labels)
        config._attn_implementation = model.config._attn_implementation
        flux = cls(config).to(model.device, model.dtype)
        weights = flux.flux.taken_apart.from_library(model.state_dict(), range(config.num_heads))
        missing, unexpected = flux.load_state_dict(weights, strict=False)
        new = ("alignment_decoders.",) if classifies else ("alignment_decoders.", "classifiers.", "flux.poolers.")
        lacking = [name for name in missing if not name.startswith(new)]
        if lacking or unexpected:
            raise ValueError(f"{model.name_or_path} does not fit: it lacks {lacking}, and has {unexpected} beside")
        if not classifies:
            logger.warning(f"{model.name_or_path} has no classifier: a new one with {config.num_labels} labels")
        return flux.train(model.training)

    def classify(self, pooled: Tensor, head: int) -> Tensor:
        """Pooled features (B, D) -> logits (B, num_labels) of a head's classifier."""
        return self.classifiers[self._module_of(head)](self.dropout(pooled))

    def align(self, pooled: Tensor, head: int) -> Tensor:
        """Pooled features (B, D) of a head below the largest -> L2-normalised (B, D), to compare with head 0's.

        Raises:
            ValueError: head 0, which is what the others are aligned to, or no head of the model.
        """
        if not 1 <= head <= len(self.alignment_decoders):
            raise ValueError(f"head must be from 1 to {len(self.alignment_decoders)} to be aligned, got {head}")
        return self.alignment_decoders[head - 1](pooled)

    def freeze_alignment(self) -> None:
        """Leaves the alignment decoders as they are, for training that aligns nothing."""
        self.alignment_decoders.requires_grad_(False)

    def heads(self) -> list[nn.Module]:
        """All that follows the encoder: poolers, classifiers and alignment decoders."""
        return [self.flux.poolers, self.classifiers, self.alignment_decoders]

    def _heads_without(self, head: int) -> list[nn.Module]:
        used, both = self._module_of(head), (self.flux.poolers, self.classifiers)
        return [*(m for modules in both for k, m in enumerate(modules) if k != used), self.alignment_decoders]

    def with_token_budgets(self, token_budgets: Sequence[int]) -> "FluxForVideoClassification":
        """The model with one head for each of `token_budgets`, each a copy of the one trained nearest.

        Alignment decoders are copied in the same way where the model has some, else new. The encoder is shared with
        this model, not copied. The default budget is the second one.

        Raises:
            ValueError: the budgets are not falling whole numbers of at least 1.
        """
        budgets, old, separate = list(token_budgets), self.config, len(token_budgets) > 1
        if budgets == old.token_budgets and separate == (old.num_heads > 1):
            return self
        default = sorted(budgets, reverse=True)[min(1, len(budgets) - 1)]
        changes = {"token_budgets": budgets, "token_budget": default, "separate_heads": separate}
        config = type(old)(**{**old.to_dict(), **changes})
        config._attn_implementation = old._attn_implementation
        sources = [self._module_of(self.resolve_head(budget)) for budget in config.token_budgets]
        new = type(self)(config)
        new.flux.backbone, new.dropout = self.flux.backbone, self.dropout
        new.flux.poolers = copies_of(self.flux.poolers, sources)
        new.classifiers = copies_of(self.classifiers, sources)
        if len(self.alignment_decoders):
            new.alignment_decoders = copies_of(self.alignment_decoders, [max(source, 1) - 1 for source in sources[1:]])
        return new.train(self.training)

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        pixel_values_videos: torch.FloatTensor,
        token_budget: int | None = None,
        head: int | None = None,
        labels: torch.Tensor | None = None,
        keep_indices: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> FluxViTForVideoClassificationOutput:
        r"""
        token_budget (`int`, *optional*, defaults to `config.token_budget`):
            How many patches to encode. At or above the number of patches of the clip, all are.
        head (`int`, *optional*):
            Index into `config.token_budgets`: whose pooler and classifier to use. By default the one trained nearest
            the number of tokens kept, a tie going to the larger budget.
        labels (`torch.Tensor`, *optional*):
            Class indices `(batch_size,)`, multi-label targets `(batch_size, num_labels)` in float, or regression
            targets, as `config.problem_type` says.
        keep_indices (`torch.LongTensor` of shape `(batch_size, kept_tokens)`, *optional*):
            Encode these patches (rising positions in the flattened (time, row, column) patch grid) instead of
            selecting by `token_budget`.
        """
        outputs: FluxViTModelOutput = self.flux(
            pixel_values_videos, token_budget=token_budget, head=head, keep_indices=keep_indices, **kwargs
        )
        head = self.resolve_head(outputs.keep_indices.shape[1], head)
        logits = self.classify(outputs.pooler_output, head)
        if torch.is_grad_enabled() and dist.is_available() and dist.is_initialized():
            logits = logits + nothing_of(self._heads_without(head))
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        return FluxViTForVideoClassificationOutput(loss=loss, logits=logits, **outputs)

    def flops(
        self,
        num_frames: int | None = None,
        size: int | None = None,
        token_budget: int | None = None,
        dense_embedding: bool = False,
    ) -> int:
        """Multiply-adds of one clip as the paper counts: embedding of the kept patches, layers, pooler, classifier.

        Args:
            num_frames: Frames of the clip; the config's by default.
            size: Side of the square frames, in pixels; the config's by default.
            token_budget: As in `forward`.
            dense_embedding: Count the embedding of every patch, which is what runs: tokens are selected by it.

        Raises:
            ValueError: the frames are not whole tubelets, the sides not whole patches, or a value is below 1.
        """
        config, taken_apart = self.config, self.flux.taken_apart
        patches, kept = count_tokens(config, num_frames, size, token_budget)
        tokens = kept + taken_apart.num_class_tokens
        pixels = config.num_channels * config.tubelet_size * config.patch_size**2
        embedding = (patches if dense_embedding else kept) * config.hidden_size * pixels
        layers = config.num_hidden_layers * taken_apart.layer_multiply_adds(tokens)
        return embedding + layers + taken_apart.pooler_multiply_adds(tokens) + config.hidden_size * config.num_labels


def _library_model(source: str | os.PathLike, options: dict[str, Any]) -> PreTrainedModel:
    """The library's classifier of a checkpoint, or its bare encoder where it has none."""
    config = AutoConfig.from_pretrained(source, **{name: options[name] for name in HUB_OPTIONS if name in options})
    check_backbone_type(config.model_type)
    backbone = BACKBONES[config.model_type]
    classifies = backbone.classifier_class.__name__ in (config.architectures or [])
    if backbone.old_names:
        options = {"key_mapping": backbone.old_names, **options}
    return (backbone.classifier_class if classifies else backbone.model_class).from_pretrained(source, **options)


# The stock video-classification pipeline looks a model's name up in this table, which Auto classes' `register` leaves
# alone, and logs an error where it is missing.
MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES.setdefault(FluxConfig.model_type, "FluxForVideoClassification")

__all__ = ["FluxForVideoClassification", "FluxModel", "FluxPreTrainedModel"]
