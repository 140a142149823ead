# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""FluxViT as the student of a frozen teacher (Flux-UMT): the encoder, and decoders into the teacher's features.

Shape letters: B batch, T frames, D width, K kept tokens, D' and P' the teacher's width and projection width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import ModelOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_fluxvit import FluxViTConfig
from .modeling_fluxvit import FluxViTGrid, FluxViTModel, FluxViTPositionEmbeddings, FluxViTPreTrainedModel
from .token_selection import as_count


@dataclass
@auto_docstring(custom_intro="Output of [`FluxViTForPreTraining`]: what is compared with a teacher's features.")
class FluxViTForPreTrainingOutput(ModelOutput):
    r"""
    layer_features (`tuple(torch.FloatTensor)` of tensors `(batch_size, 1 + kept_tokens, teacher_hidden_size)`):
        For each of `config.alignment_layers` its output decoded, L2-normalised, the class token first.
    pooled_feature (`torch.FloatTensor` of shape `(batch_size, teacher_projection_dim)`):
        The pooled feature decoded, L2-normalised.
    last_hidden_state (`torch.FloatTensor` of shape `(batch_size, 1 + kept_tokens, hidden_size)`):
        Output of the encoder, the class token first.
    keep_indices (`torch.LongTensor` of shape `(batch_size, kept_tokens)`):
        Which patches were encoded: rising positions in the flattened (time, row, column) patch grid.
    pooler_attentions (`tuple(torch.FloatTensor)` of one tensor `(batch_size, heads, 1, 1 + kept_tokens)`):
        Attention of the pooling query, with `output_pooler_attentions=True`.
    """

    layer_features: tuple[torch.FloatTensor, ...] | None = None
    pooled_feature: torch.FloatTensor | None = None
    last_hidden_state: torch.FloatTensor | None = None
    keep_indices: torch.LongTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    pooler_attentions: tuple[torch.FloatTensor, ...] | None = None


class FluxViTFeatureDecoder(nn.Module):
    """Maps features to the teacher's: two linear layers around a GELU, LayerNorm, L2. Source: InternVideo2's MLP."""

    def __init__(self, width: int, teacher_width: int, eps: float):
        super().__init__()
        self.fc1 = nn.Linear(width, width)
        self.fc2 = nn.Linear(width, teacher_width)
        self.norm = nn.LayerNorm(teacher_width, eps=eps)

    def forward(self, features: Tensor) -> Tensor:
        """(..., D) -> (..., D'), L2-normalised in float32."""
        decoded = self.norm(self.fc2(nn.functional.gelu(self.fc1(features))))
        return nn.functional.normalize(decoded.float(), dim=-1)


@auto_docstring(
    custom_intro="FluxViT with decoders of its aligned layers and its pooled feature, to learn from a frozen teacher."
)
class FluxViTForPreTraining(FluxViTPreTrainedModel):
    def __init__(self, config: FluxViTConfig):
        super().__init__(config)
        missing = [
            name
            for name in ("alignment_layers", "teacher_hidden_size", "teacher_projection_dim")
            if getattr(config, name) is None
        ]
        if missing:
            raise ValueError(f"pretraining needs to know its teacher: {missing} of the config must be given")
        self.fluxvit = FluxViTModel(config)
        width, eps = config.teacher_hidden_size, config.layer_norm_eps
        # InternVideo2 gives the decoders a position table of their own.
        self.decoder_position_embeddings = FluxViTPositionEmbeddings(config, with_encoding=False)
        self.layer_decoders = nn.ModuleList(
            [FluxViTFeatureDecoder(config.hidden_size, width, eps) for _ in config.alignment_layers]
        )
        self.pooled_decoder = FluxViTFeatureDecoder(config.projection_dim, config.teacher_projection_dim, eps)
        self.post_init()

    def features(
        self,
        patches: Tensor,
        grid: FluxViTGrid,
        keep_indices: Tensor,
        head: int = 0,
        in_order: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> FluxViTForPreTrainingOutput:
        """What is compared with a teacher's features, of clips that are embedded.

        Args:
            patches: (B, T', L, D) of `embed`.
            grid: Likewise.
            keep_indices: (B, K), of the patches to encode.
            head: Index into `config.token_budgets`: whose projector pools.
            in_order: Whether the indices rise.
        """
        hidden_states, states = self._encode(
            patches, grid, keep_indices, self.config.alignment_layers, in_order, **kwargs
        )
        table = self.decoder_position_embeddings(grid.frames, grid.rows, grid.columns)
        of_class = table[:, :1].expand(keep_indices.shape[0], -1, -1)
        positions = torch.cat([of_class, table[0, 1:][keep_indices]], dim=1)
        decoders = zip(self.layer_decoders, states, strict=True)
        pooled, _ = self.pool(hidden_states, head, **kwargs)
        return FluxViTForPreTrainingOutput(
            layer_features=tuple(decoder(state + positions) for decoder, state in decoders),
            pooled_feature=self.pooled_decoder(pooled),
            last_hidden_state=hidden_states,
            keep_indices=keep_indices,
        )

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    @auto_docstring
    def forward(
        self,
        pixel_values_videos: torch.FloatTensor,
        token_budget: int | None = None,
        keep_indices: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> FluxViTForPreTrainingOutput:
        r"""
        token_budget (`int`, *optional*, defaults to `config.token_budget`):
            How many patches to encode. At or above the number of patches of the clip, all are.
        keep_indices (`torch.LongTensor` of shape `(batch_size, kept_tokens)`, *optional*):
            Encode these patches (rising positions in the flattened (time, row, column) patch grid) instead of
            selecting by `token_budget`.
        """
        token_budget = self.config.token_budget if token_budget is None else as_count("token_budget", token_budget)
        patches, grid, kept, in_order = self._embed_kept(pixel_values_videos, token_budget, keep_indices)
        return self.features(patches, grid, kept, self.resolve_head(kept.shape[1]), in_order=in_order, **kwargs)


__all__ = ["FluxViTForPreTraining", "FluxViTForPreTrainingOutput"]
