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
from transformers.utils import auto_docstring, logging
from transformers.utils.output_capturing import OutputRecorder

from .budget_models import TokenBudgetClassifier, TokenBudgetEncoder, TokenBudgetModel, copies_of
from .configuration_flux import FluxConfig, check_backbone_type
from .flux_backbones import FluxBackbone, FluxGrid
from .flux_videomae import FluxVideoMAE
from .flux_vivit import FluxVivit
from .flux_vjepa2 import FluxVJEPA2
from .modeling_fluxvit import FluxViTAlignmentDecoder


logger = logging.get_logger(__name__)

BACKBONES: dict[str, type[FluxBackbone]] = {"videomae": FluxVideoMAE, "vivit": FluxVivit, "vjepa2": FluxVJEPA2}
# What a config says of labels; it is the whole model's to say.
LABEL_FIELDS = ("id2label", "label2id", "problem_type")
# Options of `from_backbone` that are the config's, and those that say where a checkpoint is.
OWN_FIELDS = (
    *("token_budget", "separate_heads", "token_selection", "num_token_groups", "token_threshold", "token_plan"),
    *("auto_budgets", "num_frames", "image_size", "classifier_dropout", "drop_path_rate"),
)
HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only", "force_download", "subfolder")


@auto_docstring
class FluxPreTrainedModel(TokenBudgetModel, PreTrainedModel):
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

    def _place(self, patches, grid, keep_indices, in_order):
        base = self.base_model
        return base.taken_apart.place(base.backbone, patches, grid, keep_indices, in_order)

    def _run(self, hidden_states, told, layers, **kwargs):
        base, states = self.base_model, {}
        for index, layer in enumerate(base.taken_apart.layers(base.backbone)):
            hidden_states = base.taken_apart.run(layer, hidden_states, told)
            if index in layers:
                states[index] = hidden_states
        return base.taken_apart.finish(base.backbone, hidden_states), tuple(states[index] for index in layers)

    def pool(self, hidden_states: Tensor, head: int, attention: bool = False, **kwargs) -> tuple[Tensor, None]:
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
class FluxModel(TokenBudgetEncoder, FluxPreTrainedModel):
    def __init__(self, config: FluxConfig):
        super().__init__(config)
        self.taken_apart = BACKBONES[config.backbone_config.model_type](config.backbone_config)
        self.backbone = self.taken_apart.build()
        self.poolers = nn.ModuleList([self.taken_apart.make_pooler() for _ in range(config.num_heads)])
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.taken_apart.projection(self.backbone)


@auto_docstring(
    custom_intro="""
    Flux with a classifier: one for all token budgets, or with `config.separate_heads` a pooler and a classifier for
    each, and alignment decoders.
    """
)
class FluxForVideoClassification(TokenBudgetClassifier, FluxPreTrainedModel):
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
        changes["auto_budgets"] = None  # calibrated for the old heads
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

    def _multiply_adds(self, kept_tokens: int) -> int:
        taken_apart, tokens = self.flux.taken_apart, kept_tokens + self.flux.taken_apart.num_class_tokens
        layers = self.config.num_hidden_layers * taken_apart.layer_multiply_adds(tokens)
        return layers + taken_apart.pooler_multiply_adds(tokens)


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
