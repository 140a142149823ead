# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""What token budgets make of any model: FluxViT and Flux around other encoders share these classes.

A model brings the four steps of `flux_hf.protocol` (`embed`, `_place` and `_run`, `pool`, `classify`); here they are
composed, for clips of one shape in a tensor, and of several in a list: those are one batch from the first layer on.
Shape letters: B batch, T frames, T' = T / tubelet_size, L patches a frame, D width, K kept tokens, n class tokens,
P projection width.
"""

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers.modeling_outputs import ModelOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .patch_grids import check_keep_indices, group_by_shape, join_groups
from .token_selection import as_count, select_tokens_at_budgets


@dataclass
@auto_docstring(custom_intro="Output of an encoder with token budgets, [`FluxViTModel`] or [`FluxModel`].")
class FluxViTModelOutput(ModelOutput):
    r"""
    last_hidden_state (`torch.FloatTensor` of shape `(batch_size, class_tokens + kept_tokens, hidden_size)`):
        Output of the encoder, the class token first where there is one.
    pooler_output (`torch.FloatTensor` of shape `(batch_size, projection_dim)`):
        Output of the chosen head's pooling, before the classifier and, in FluxViT, its LayerNorm.
    keep_indices (`torch.LongTensor` of shape `(batch_size, kept_tokens)`):
        Which patches were encoded: rising positions in the flattened (time, row, column) patch grid.
    pooler_attentions (`tuple(torch.FloatTensor)` of one tensor `(batch_size, heads, 1, class_tokens + kept_tokens)`):
        Attention of the pooling query, with `output_pooler_attentions=True`.
    """

    last_hidden_state: torch.FloatTensor | None = None
    pooler_output: torch.FloatTensor | None = None
    keep_indices: torch.LongTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    pooler_attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
@auto_docstring(custom_intro="Output of a classifier with token budgets.")
class FluxViTForVideoClassificationOutput(ModelOutput):
    r"""
    loss (`torch.FloatTensor` of shape `(1,)`):
        Classification (or regression) loss, when `labels` are given.
    logits (`torch.FloatTensor` of shape `(batch_size, num_labels)`):
        Scores before the softmax, of the chosen head.
    last_hidden_state (`torch.FloatTensor` of shape `(batch_size, class_tokens + kept_tokens, hidden_size)`):
        Output of the encoder, the class token first where there is one.
    pooler_output (`torch.FloatTensor` of shape `(batch_size, projection_dim)`):
        Output of the chosen head's pooling, before the classifier and, in FluxViT, its LayerNorm.
    keep_indices (`torch.LongTensor` of shape `(batch_size, kept_tokens)`):
        Which patches were encoded: rising positions in the flattened (time, row, column) patch grid.
    pooler_attentions (`tuple(torch.FloatTensor)` of one tensor `(batch_size, heads, 1, class_tokens + kept_tokens)`):
        Attention of the pooling query, with `output_pooler_attentions=True`.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    last_hidden_state: torch.FloatTensor | None = None
    pooler_output: torch.FloatTensor | None = None
    keep_indices: torch.LongTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    pooler_attentions: tuple[torch.FloatTensor, ...] | None = None


class TokenBudgetModel:
    """Of a model's base class: what follows from its config alone, and the step `encode`."""

    def select(self, patches: Tensor, token_budgets: Sequence[int | None]) -> list[Tensor]:
        """Chooses patches by `config.token_selection`, scoring them once.

        Args:
            patches: (B, T', L, D) of `embed`.
            token_budgets: Tokens to keep; None and budgets above the clip's patches keep all.

        Returns:
            For each budget keep_indices (B, K), rising positions in the flattened (time, row, column) grid.
        """
        config = self.config
        return select_tokens_at_budgets(
            patches, token_budgets, config.token_selection, config.num_token_groups, config.token_threshold
        )

    def encode(
        self,
        patches: Tensor,
        grid: Any,
        keep_indices: Tensor,
        layers: Sequence[int] = (),
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Encodes some of the patches.

        Args:
            patches, grid: Of `embed`.
            keep_indices: (B, K) rising positions in the flattened grid.
            layers: Layers whose outputs are wanted too, counted from 0.

        Returns:
            The encoder's output (B, n + K, D), the class token first where there is one, after its last norm where it
            has one; and what each of `layers` gave, before that norm.

        Raises:
            ValueError: indices of another kind, shape or range, or a layer that the model does not have.
        """
        unknown = [layer for layer in layers if not 0 <= layer < self.config.num_hidden_layers]
        if unknown:
            raise ValueError(f"layers must lie in [0, {self.config.num_hidden_layers}), got {unknown}")
        check_keep_indices(keep_indices, patches.shape[0], patches.shape[1] * patches.shape[2])
        return self._encode(patches, grid, keep_indices, layers, in_order=True, **kwargs)

    def take_clips(self, patches: Tensor, grid: Any, clips: Tensor) -> tuple[Tensor, Any]:
        """Some of the clips that were embedded, so that only these are encoded.

        Args:
            patches, grid: Of `embed`.
            clips: (B',) int64, which of the B.

        Returns:
            Patches (B', T', L, D), and their grid.
        """
        return patches[clips], grid._replace(class_token=grid.class_token[clips])

    def _encode(
        self, patches: Tensor, grid: Any, keep_indices: Tensor, layers: Sequence[int], in_order: bool, **kwargs
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """`encode` without its checks; `in_order`: whether the indices rise."""
        hidden_states, told = self._place(patches, grid, keep_indices, in_order)
        return self._run(hidden_states, told, layers, **kwargs)

    def _place(
        self, patches: Tensor, grid: Any, keep_indices: Tensor, in_order: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The class token and the kept patches at their positions, (B, n + K, D), and what layers are told beside them,
        (B or 1, ...)."""
        raise NotImplementedError

    def _run(
        self, hidden_states: Tensor, told: dict[str, Tensor], layers: Sequence[int], **kwargs
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """What `encode` gives, of what `_place` gave."""
        raise NotImplementedError

    def _embed_kept(
        self, pixel_values_videos: Tensor, token_budget: int | None, keep_indices: Tensor | None
    ) -> tuple[Tensor, Any, Tensor, bool]:
        """What `embed` gives, the given or selected keep_indices, and whether these rise; given ones need not.

        Raises:
            ValueError: clips or indices that cannot be.
        """
        patches, grid = self.embed(pixel_values_videos)
        if keep_indices is None:
            return patches, grid, self.select(patches, [token_budget])[0], True
        check_keep_indices(keep_indices, patches.shape[0], patches.shape[1] * patches.shape[2])
        return patches, grid, keep_indices, False

    def count_kept(self, num_frames: int, height: int, width: int, token_budget: int | None = None) -> int:
        """How many tokens of a clip are kept, by a threshold at most: a list takes clips of which equally many are.

        Args:
            num_frames, height, width: Of the clip; whole tubelets and patches.
            token_budget: As in `forward`.
        """
        budget = self.config.token_budget if token_budget is None else token_budget
        grid = self._grid_of(num_frames, height, width)
        if self.config.selects_by_threshold:
            patches = math.prod(grid)
            return patches if budget is None else min(as_count("token_budget", budget), patches)
        [keep_indices] = self.select(torch.empty(1, *grid, 1, device="meta"), [budget])
        return keep_indices.shape[1]

    def _grid_of(self, num_frames: int, height: int, width: int) -> tuple[int, int]:
        """(T', L) of a clip."""
        tubelet, patch = self.config.tubelet_size, self.config.patch_size
        # V-JEPA 2 makes a tubelet of an image
        return max(num_frames // tubelet, 1), (height // patch) * (width // patch)

    def resolve_head(self, kept_tokens: int, head: int | None = None) -> int:
        """The head to use: `head`, or the one trained nearest `kept_tokens`, ties to the larger budget.

        Raises:
            ValueError: `head` is not an index into `config.token_budgets`.
        """
        budgets = self.config.token_budgets
        if head is None:
            nearest = 0  # a loop, for torch.compile cannot trace min() over sizes that vary
            for index, budget in enumerate(budgets):
                if abs(budget - kept_tokens) < abs(budgets[nearest] - kept_tokens):
                    nearest = index
            return nearest
        if isinstance(head, bool) or not isinstance(head, (int, np.integer)) or not 0 <= head < len(budgets):
            raise ValueError(f"head must be an index from 0 to {len(budgets) - 1} into token_budgets, got {head!r}")
        return int(head)


class TokenBudgetEncoder:
    """Of an encoder with its poolings: `forward`, which composes the steps."""

    def _start(
        self, pixel_values_videos: Tensor, token_budget: int | None, keep_indices: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Clips (B, T, C, H, W) up to the first layer: what `_place` gives, and the keep_indices."""
        patches, grid, kept, in_order = self._embed_kept(pixel_values_videos, token_budget, keep_indices)
        return *self._place(patches, grid, kept, in_order), kept

    def _start_list(
        self, clips: Sequence[Tensor], token_budget: int | None, keep_indices: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """`_start` of clips of several shapes, those of one shape together; all views in the order of the list."""
        groups = group_by_shape(clips)
        if keep_indices is not None:
            views = [1 if clip.ndim == 4 else len(clip) for clip in clips]
            check_keep_indices(keep_indices, sum(views), max(self._tokens_of(clips)))
            given = keep_indices.split(views)
        started = []
        for group in groups:
            chosen = None if keep_indices is None else torch.cat([given[index] for index in group])
            try:
                started.append(self._start(torch.cat(list(group.values())), token_budget, chosen))
            except ValueError as error:
                raise ValueError(f"clips {list(group)} of the list: {error}") from error
        placed, tellings, kept = zip(*started, strict=True)
        if len({indices.shape[1] for indices in kept}) > 1:
            raise ValueError(self._why_not_one_batch(clips, token_budget))
        told = {name: join_groups([telling[name] for telling in tellings], groups) for name in tellings[0]}
        return join_groups(placed, groups), told, join_groups(kept, groups)

    def _tokens_of(self, clips: Sequence[Tensor]) -> list[int]:
        """How many tokens each clip of a list has."""
        return [math.prod(self._grid_of(clip.shape[-4], *clip.shape[-2:])) for clip in clips]

    def _why_not_one_batch(self, clips: Sequence[Tensor], token_budget: int | None) -> str:
        tokens = self._tokens_of(clips)
        fewest = min(tokens)
        if token_budget is None or token_budget > fewest:
            why = f"clip {tokens.index(fewest)} has only {fewest}: the largest token_budget for this list is {fewest}"
        else:
            kept = [self.count_kept(clip.shape[-4], *clip.shape[-2:], token_budget) for clip in clips]
            why = f"token_selection={self.config.token_selection!r} keeps {kept} of them"
        return f"at token_budget={token_budget} clips of a list must keep equally many tokens, but {why}"

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    @auto_docstring
    def forward(
        self,
        pixel_values_videos: torch.FloatTensor | Sequence[torch.FloatTensor],
        token_budget: int | None = None,
        head: int | None = None,
        keep_indices: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> FluxViTModelOutput:
        r"""
        pixel_values_videos (`torch.FloatTensor` of shape `(batch_size, num_frames, num_channels, height, width)`):
            Clips; or a list of clips of any shapes, each `(num_frames, num_channels, height, width)` or with views in
            front, encoded as one batch: a row of the output for each clip, or view, in the order of the list.
        token_budget (`int`, *optional*, defaults to `config.token_budget`):
            How many patches to encode. At or above the number of patches of the clip, all are; of the clips of a list
            equally many must be.
        head (`int`, *optional*):
            Index into `config.token_budgets`: whose pooling to use. By default that of the one trained nearest the
            number of tokens kept, a tie going to the larger budget.
        keep_indices (`torch.LongTensor` of shape `(batch_size, kept_tokens)`, *optional*):
            Encode these patches (rising positions in the clip's flattened (time, row, column) patch grid) instead of
            selecting by `token_budget`.

        Examples:

        ```python
        >>> import torch
        >>> from flux_hf import FluxViTConfig, FluxViTModel

        >>> model = FluxViTModel(FluxViTConfig.small(num_hidden_layers=1)).eval()
        >>> video = torch.randn(1, 8, 3, 112, 112)  # 8 frames of 8x8 patches: 512 tokens
        >>> with torch.no_grad():
        ...     outputs = model(video, token_budget=128)
        >>> outputs.last_hidden_state.shape, outputs.pooler_output.shape, outputs.keep_indices.shape
        (torch.Size([1, 129, 384]), torch.Size([1, 768]), torch.Size([1, 128]))
        ```
        """
        token_budget = self.config.token_budget if token_budget is None else as_count("token_budget", token_budget)
        start = self._start_list if isinstance(pixel_values_videos, (list, tuple)) else self._start
        hidden_states, told, keep_indices = start(pixel_values_videos, token_budget, keep_indices)
        hidden_states, _ = self._run(hidden_states, told, (), **kwargs)
        pooled, _ = self.pool(hidden_states, self.resolve_head(keep_indices.shape[1], head), **kwargs)
        return FluxViTModelOutput(last_hidden_state=hidden_states, pooler_output=pooled, keep_indices=keep_indices)


class TokenBudgetClassifier:
    """Of a classifier: `forward`, what Flux-Multi aligns, and the count of operations.

    It has `base_model`, a `TokenBudgetEncoder`, and `alignment_decoders`.
    """

    def align(self, pooled: Tensor, head: int) -> Tensor:
        """Pooled features (B, P) of a head below the largest -> L2-normalised (B, P), to compare with head 0's.

        Raises:
            ValueError: head 0, which is what the others are aligned to, or no head of the model.
        """
        if not 1 <= head <= len(self.alignment_decoders):
            raise ValueError(f"head must be from 1 to {len(self.alignment_decoders)} to be aligned, got {head}")
        return self.alignment_decoders[head - 1](pooled)

    def freeze_alignment(self) -> None:
        """Leaves the alignment decoders as they are, for training that aligns nothing."""
        self.alignment_decoders.requires_grad_(False)

    def _heads_without(self, head: int) -> list[nn.Module]:
        """What this head does not use."""
        raise NotImplementedError

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        pixel_values_videos: torch.FloatTensor | Sequence[torch.FloatTensor],
        token_budget: int | None = None,
        head: int | None = None,
        labels: torch.Tensor | None = None,
        keep_indices: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> FluxViTForVideoClassificationOutput:
        r"""
        pixel_values_videos (`torch.FloatTensor` of shape `(batch_size, num_frames, num_channels, height, width)`):
            Clips; or a list of clips of any shapes, each `(num_frames, num_channels, height, width)` or with views in
            front, encoded as one batch: a row of the output for each clip, or view, in the order of the list.
        token_budget (`int`, *optional*, defaults to `config.token_budget`):
            How many patches to encode. At or above the number of patches of the clip, all are; of the clips of a list
            equally many must be.
        head (`int`, *optional*):
            Index into `config.token_budgets`: whose pooling and classifier to use. By default those of the one trained
            nearest the number of tokens kept, a tie going to the larger budget.
        labels (`torch.Tensor`, *optional*):
            Class indices `(batch_size,)`, multi-label targets `(batch_size, num_labels)` in float, or regression
            targets, as `config.problem_type` says.
        keep_indices (`torch.LongTensor` of shape `(batch_size, kept_tokens)`, *optional*):
            Encode these patches (rising positions in the clip's flattened (time, row, column) patch grid) instead of
            selecting by `token_budget`.

        Examples:

        ```python
        >>> import torch
        >>> from flux_hf import FluxViTConfig, FluxViTForVideoClassification

        >>> model = FluxViTForVideoClassification(FluxViTConfig.small(num_hidden_layers=1, num_labels=10)).eval()
        >>> with torch.no_grad():
        ...     logits = model(torch.randn(1, 8, 3, 112, 112), token_budget=128).logits
        >>> logits.shape
        torch.Size([1, 10])
        ```
        """
        outputs: FluxViTModelOutput = self.base_model(
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
        token_budget: int | Sequence[int] | None = None,
        dense_embedding: bool = False,
    ) -> int:
        """Multiply-adds of one clip as the paper counts: embedding of kept patches, layers, a pooling, a classifier.

        Args:
            num_frames: Frames of the clip; the config's by default.
            size: Side of the square frames, in pixels; the config's by default.
            token_budget: As in `forward`; or several, for passes one after another: each is counted, but a patch's
                embedding once.
            dense_embedding: Count the embedding of every patch, which is what runs: tokens are selected by it.

        Raises:
            ValueError: the frames are not whole tubelets, the sides not whole patches, or a value is below 1.
        """
        config = self.config
        num_frames = config.num_frames if num_frames is None else as_count("num_frames", num_frames)
        height, width = config.image_height_width if size is None else (as_count("size", size), size)
        if num_frames % config.tubelet_size:
            raise ValueError(f"num_frames must be a multiple of {config.tubelet_size}, got {num_frames}")
        if height % config.patch_size or width % config.patch_size:
            raise ValueError(f"size must be a multiple of {config.patch_size}, got {size}")
        patches = math.prod(self._grid_of(num_frames, height, width))
        budgets = token_budget if isinstance(token_budget, (list, tuple)) else [token_budget]
        budgets = [config.token_budget if budget is None else as_count("token_budget", budget) for budget in budgets]
        kept = [patches if budget is None else min(budget, patches) for budget in budgets]
        pixels = config.num_channels * config.tubelet_size * config.patch_size**2
        embedding = (patches if dense_embedding else max(kept)) * config.hidden_size * pixels
        classifier = config.projection_dim * config.num_labels
        return embedding + sum(self._multiply_adds(tokens) + classifier for tokens in kept)

    def _multiply_adds(self, kept_tokens: int) -> int:
        """Of the layers and a pooling."""
        raise NotImplementedError


def nothing_of(modules: Iterable[nn.Module]) -> Tensor | float:
    """0, through all trained parameters of modules that a step does not use: DDP waits for every one's gradient."""
    parameters = [p for module in modules for p in module.parameters()]
    # sharded ones (FSDP, ZeRO-3) are gathered by their own modules, which wait for nothing
    sums = [p.sum() for p in parameters if p.requires_grad and p.numel() and not hasattr(p, "placements")]
    return 0.0 * torch.stack(sums).sum() if sums else 0.0


def copies_of(modules: nn.ModuleList, indices: Sequence[int]) -> nn.ModuleList:
    """Copies of some modules, one for each index."""
    return nn.ModuleList([copy.deepcopy(modules[index]) for index in indices])


__all__ = [
    "FluxViTForVideoClassificationOutput",
    "FluxViTModelOutput",
    "TokenBudgetClassifier",
    "TokenBudgetEncoder",
    "TokenBudgetModel",
    "copies_of",
    "nothing_of",
]
