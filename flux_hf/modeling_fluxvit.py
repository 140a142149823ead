# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""FluxViT: a video transformer that encodes only the most informative tokens of a densely sampled clip.

Read bottom-up: patch and position embeddings, token selection, attention, layer, encoder, attention pooling, models.
Shape letters: B batch, T frames, T' = T / tubelet_size, L patches a frame, N = T' * L, D width, K kept tokens,
P projection width. Facts about the method come from the paper (ICCV 2025) and the official code.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.auto.modeling_auto import MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring
from transformers.utils.output_capturing import OutputRecorder

from .budget_models import TokenBudgetClassifier, TokenBudgetEncoder, TokenBudgetModel, copies_of
from .configuration_fluxvit import FluxViTConfig
from .patch_grids import check_clip, place_patches, resize_position_table


class FluxViTRMSNorm(nn.Module):
    """RMSNorm with float32 statistics; the normalised input is cast back before the weight is applied."""

    def __init__(self, hidden_size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        wide = hidden_states.float()
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)  # the squares are never written down
        wide = wide * torch.rsqrt(length.square() / wide.shape[-1] + self.eps)
        return wide.to(hidden_states.dtype) * self.weight

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, eps={self.eps}"


class FluxViTAffine(nn.Module):
    """One scale and one offset a channel: what the depth-wise 1x1x1 convolutions of GPE and LPE amount to."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.bias = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, hidden_states: Tensor) -> Tensor:
        return torch.addcmul(self.bias, hidden_states, self.weight)


class FluxViTPatchProjection(nn.Linear):
    """The patch embedding as one matmul over (time, row, column, channel) pixels, always in float32.

    The embedding is what tokens are scored on; in half precision most scores would tie and other tokens be kept.
    """

    def forward(self, patches: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        return nn.functional.linear(patches.float(), self.weight.float(), bias)


class FluxViTPatchEmbeddings(nn.Module):
    """Cuts a clip into patches and embeds each, between two RMSNorms if the model has dual patch norm."""

    def __init__(self, config: FluxViTConfig):
        super().__init__()
        self.num_channels = config.num_channels
        self.patch_size = config.patch_size
        self.tubelet_size = config.tubelet_size
        patch_dim = config.num_channels * config.tubelet_size * config.patch_size**2
        dual = config.use_dual_patch_norm
        self.norm_before = FluxViTRMSNorm(patch_dim, config.rms_norm_eps) if dual else nn.Identity()
        self.projection = FluxViTPatchProjection(patch_dim, config.hidden_size)
        self.norm = FluxViTRMSNorm(config.hidden_size, config.rms_norm_eps) if dual else nn.Identity()

    def patchify(self, pixel_values_videos: Tensor) -> Tensor:
        """(B, T, C, H, W) -> (B, T', L, tubelet * patch * patch * C), a patch's pixels as (t, row, column, channel)."""
        batch, frames, channels, height, width = pixel_values_videos.shape
        tubelet, patch = self.tubelet_size, self.patch_size
        cut = pixel_values_videos.reshape(
            batch, frames // tubelet, tubelet, channels, height // patch, patch, width // patch, patch
        )
        return cut.permute(0, 1, 4, 6, 2, 5, 7, 3).flatten(4).flatten(2, 3)

    def forward(self, pixel_values_videos: Tensor) -> Tensor:
        """(B, T, C, H, W) -> (B, T', L, D) in float32, also under autocast.

        Raises:
            ValueError: the clip has another rank or channel count, or sides that are not whole patches.
        """
        check_clip(pixel_values_videos, self.num_channels, self.tubelet_size, self.patch_size)
        device = pixel_values_videos.device.type
        with nullcontext() if device == "meta" else torch.autocast(device, enabled=False):
            patches = self.patchify(pixel_values_videos.float())
            return self.norm(self.projection(self.norm_before(patches)))


def sincos_position_table(grid: list[int], hidden_size: int) -> Tensor:
    """The official initial position table: (1, 1 + T0 * h0 * w0, D), zeros for the class token.

    A quarter of the channels encodes time, the rest space (column first, then row), each half sine, half cosine.
    Channels that do not divide evenly stay zero.
    """

    def encode(positions: np.ndarray, channels: int) -> np.ndarray:
        table = np.zeros((positions.size, channels))
        half = channels // 2
        angles = positions[:, None] / 10000 ** (np.arange(half) / max(half, 1))
        table[:, :half], table[:, half : 2 * half] = np.sin(angles), np.cos(angles)
        return table

    frames, rows, columns = (np.arange(size, dtype=np.float64) for size in grid)
    time_channels = hidden_size // 4
    column_channels = (hidden_size - time_channels) // 2
    row_channels = hidden_size - time_channels - column_channels
    shape = (len(frames), len(rows), len(columns))
    parts = (
        encode(frames, time_channels)[:, None, None],
        encode(columns, column_channels)[None, None, :],
        encode(rows, row_channels)[None, :, None],
    )
    table = np.concatenate([np.broadcast_to(part, (*shape, part.shape[-1])) for part in parts], axis=-1)
    table = np.concatenate([np.zeros((1, hidden_size)), table.reshape(-1, hidden_size)])
    return torch.from_numpy(table).float()[None]


def _is_same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


MAX_CACHED_GRIDS = 32  # as many as token optimization looks at in turn; flexible sampling draws from 18


class FluxViTPositionEmbeddings(nn.Module):
    """Learnable position table, with the global position encoding if the model has one and it is not left out, resized
    to the grid of the clip at hand.
    """

    def __init__(self, config: FluxViTConfig, with_encoding: bool = True):
        super().__init__()
        self.grid = list(config.position_embedding_grid)
        frames, rows, columns = self.grid
        self.table = nn.Parameter(torch.zeros(1, 1 + frames * rows * columns, config.hidden_size))
        encoded = config.use_glpe and with_encoding
        self.global_position_encoding = FluxViTAffine(config.hidden_size) if encoded else nn.Identity()
        self._cached: tuple[list[Tensor], dict[tuple[int, int, int], Tensor]] | None = None

    def forward(self, frames: int, rows: int, columns: int) -> Tensor:
        """(1, 1 + frames * rows * columns, D): the class token's row as it is, then the grid's rows.

        On a CPU, results are used again, when no gradient is wanted, for the same grid and the same weights. They are
        compared by value, which costs a tenth of interpolating: versions and pointers miss writes through `.data`. On a
        GPU the comparison would wait for all that was asked of it before.
        """
        weights = list(self.parameters())
        # sharded, fake and meta tensors have no values to compare at hand
        plain = all(type(weight) is nn.Parameter and weight.device.type == "cpu" for weight in weights)
        recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if recorded or torch.is_grad_enabled() or not plain:
            return self._interpolate(frames, rows, columns)
        cached = self._cached  # read once: threads may share the model
        if cached is None or not all(map(_is_same, cached[0], weights)):
            cached = self._cached = [weight.detach().clone() for weight in weights], {}
        tables = cached[1]
        table = tables.get((frames, rows, columns))
        if table is None:
            table = self._interpolate(frames, rows, columns)
            if len(tables) >= MAX_CACHED_GRIDS:
                tables.clear()
            tables[frames, rows, columns] = table
        return table

    def _interpolate(self, frames: int, rows: int, columns: int) -> Tensor:
        cls_row, grid_rows = self.table[:, :1], self.global_position_encoding(self.table[:, 1:])
        if [frames, rows, columns] == self.grid:
            return torch.cat([cls_row, grid_rows], dim=1)
        table = resize_position_table(grid_rows[0], self.grid, (frames, rows, columns))
        return torch.cat([cls_row, table.to(cls_row.dtype)[None]], dim=1)


class FluxViTGrid(NamedTuple):
    """Where the patches of embedded clips are: the shape of their grid, and what the encoder adds to them.

    `class_token` (B, 1, D) is placed already; `positions` (1, N, D) are those of all patches in raster order.
    """

    frames: int
    rows: int
    columns: int
    class_token: Tensor
    positions: Tensor


class FluxViTEmbeddings(nn.Module):
    """From pixels to patches, and the positions that are added once it is known which of them are kept."""

    def __init__(self, config: FluxViTConfig):
        super().__init__()
        self.patch_embeddings = FluxViTPatchEmbeddings(config)
        self.position_embeddings = FluxViTPositionEmbeddings(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))

    def forward(self, pixel_values_videos: Tensor) -> tuple[Tensor, FluxViTGrid]:
        """(B, T, C, H, W) -> patches (B, T', L, D) in float32, and their grid in the model's dtype."""
        patches = self.patch_embeddings(pixel_values_videos)
        rows, columns = (side // self.patch_embeddings.patch_size for side in pixel_values_videos.shape[-2:])
        positions = self.position_embeddings(patches.shape[1], rows, columns)
        class_token = (self.cls_token + positions[:, :1]).expand(patches.shape[0], -1, -1)
        return patches, FluxViTGrid(patches.shape[1], rows, columns, class_token, positions[:, 1:])


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[Tensor, Tensor]:
    """Attention written out. q, k, v (B, heads, length, head_dim) -> (B, length, heads, head_dim) and the weights."""
    weights = torch.matmul(query * scaling, key.transpose(2, 3))
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


def _split_heads(states: Tensor, num_heads: int) -> Tensor:
    """(B, length, D) -> (B, heads, length, D / heads)."""
    return states.unflatten(2, (num_heads, -1)).transpose(1, 2)


class FluxViTAttention(nn.Module):
    """Self-attention; queries and keys normalised over the whole width; the local encoding is added to the values."""

    def __init__(self, config: FluxViTConfig, layer_index: int):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = False  # SDPA takes a missing attribute for True
        width, qk_norm = config.hidden_size, config.use_qk_norm
        self.qkv = nn.Linear(width, 3 * width, bias=config.qkv_bias)
        self.q_norm = FluxViTRMSNorm(width, config.rms_norm_eps) if qk_norm else nn.Identity()
        self.k_norm = FluxViTRMSNorm(width, config.rms_norm_eps) if qk_norm else nn.Identity()
        self.local_position_encoding = FluxViTAffine(width) if config.use_glpe else None
        self.out_proj = _residual_linear(width, width, config, layer_index)

    def forward(self, hidden_states: Tensor, **kwargs: Unpack[TransformersKwargs]) -> tuple[Tensor, Tensor | None]:
        """(B, 1 + K, D) -> (B, 1 + K, D) and, with eager attention, weights (B, heads, 1 + K, 1 + K)."""
        query, key, value = self.qkv(hidden_states).chunk(3, dim=-1)
        # Under autocast a float32 norm weight would widen queries and keys, and flex attention wants one dtype.
        query, key = self.q_norm(query).to(value.dtype), self.k_norm(key).to(value.dtype)
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        attended, weights = attention(
            self,
            _split_heads(query, self.num_heads),
            _split_heads(key, self.num_heads),
            _split_heads(value, self.num_heads),
            None,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        attended = attended.reshape(hidden_states.shape).contiguous()
        if self.local_position_encoding is not None:
            attended = attended + self.local_position_encoding(value)
        return self.out_proj(attended), weights


def _residual_linear(inputs: int, outputs: int, config: FluxViTConfig, layer_index: int) -> nn.Linear:
    """A linear layer that ends a residual branch: the official initialisation divides it by sqrt(2 * layer)."""
    linear = nn.Linear(inputs, outputs)
    # Read by `_init_weights`, which transformers calls on modules with parameters of their own only.
    linear.init_std = config.initializer_range / (2 * (layer_index + 1)) ** 0.5
    return linear


class FluxViTMLP(nn.Module):
    def __init__(self, config: FluxViTConfig, layer_index: int):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = _residual_linear(config.intermediate_size, config.hidden_size, config, layer_index)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(hidden_states)))


class FluxViTLayerScale(nn.Module):
    """Scales a residual branch channel by channel and adds it, in one pass over memory."""

    def __init__(self, config: FluxViTConfig):
        super().__init__()
        self.initial_value = config.layer_scale_init_value
        self.weight = nn.Parameter(torch.full((config.hidden_size,), float(config.layer_scale_init_value)))

    def forward(self, hidden_states: Tensor, branch: Tensor) -> Tensor:
        return torch.addcmul(hidden_states, branch, self.weight)


class FluxViTDropPath(nn.Module):
    """Stochastic depth: in training, a residual branch is dropped for a whole sample with probability `rate`."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, hidden_states: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return hidden_states
        kept = torch.rand(hidden_states.shape[0], 1, 1, device=hidden_states.device) >= self.rate
        return hidden_states * kept.to(hidden_states.dtype) / (1 - self.rate)

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


class FluxViTLayer(GradientCheckpointingLayer):
    """Pre-norm transformer layer with LayerScale and stochastic depth on both branches."""

    def __init__(self, config: FluxViTConfig, layer_index: int):
        super().__init__()
        self.norm1 = FluxViTRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = FluxViTAttention(config, layer_index)
        self.layer_scale1 = FluxViTLayerScale(config)
        self.norm2 = FluxViTRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = FluxViTMLP(config, layer_index)
        self.layer_scale2 = FluxViTLayerScale(config)
        # Plain arithmetic: nothing in a constructor may read a tensor, which may be on the meta device.
        self.drop_path = FluxViTDropPath(config.drop_path_rate * layer_index / max(config.num_hidden_layers - 1, 1))

    def forward(self, hidden_states: Tensor, **kwargs: Unpack[TransformersKwargs]) -> Tensor:
        """(B, 1 + K, D) -> (B, 1 + K, D)."""
        attended, _ = self.attention(self.norm1(hidden_states), **kwargs)
        hidden_states = self.layer_scale1(hidden_states, self.drop_path(attended))
        widened = self.mlp(self.norm2(hidden_states))
        return self.layer_scale2(hidden_states, self.drop_path(widened))


class FluxViTEncoder(nn.Module):
    def __init__(self, config: FluxViTConfig):
        super().__init__()
        self.layer = nn.ModuleList([FluxViTLayer(config, index) for index in range(config.num_hidden_layers)])

    def forward(
        self, hidden_states: Tensor, layers: Sequence[int] = (), **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(B, 1 + K, D) -> the last layer's output, and those of `layers`, in their order."""
        states = {}
        for index, layer in enumerate(self.layer):
            hidden_states = layer(hidden_states, **kwargs)
            if index in layers:
                states[index] = hidden_states
        return hidden_states, tuple(states[index] for index in layers)


class FluxViTAttentionPoolingHead(nn.Module):
    """Pools tokens by one query, their mean (class token included), and projects the result."""

    def __init__(self, config: FluxViTConfig):
        super().__init__()
        self.config = config
        width, eps = config.hidden_size, config.layer_norm_eps
        self.num_heads = config.num_pooling_heads
        self.head_dim = width // config.num_pooling_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.norm_q = nn.LayerNorm(width, eps=eps)
        self.norm_k = nn.LayerNorm(width, eps=eps)
        self.norm_v = nn.LayerNorm(width, eps=eps)
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, config.projection_dim)

    def forward(self, hidden_states: Tensor, **kwargs: Unpack[TransformersKwargs]) -> tuple[Tensor, Tensor | None]:
        """(B, 1 + K, D) -> (B, P) and the query's attention (B, heads, 1, 1 + K) where the implementation has it."""
        query = self.q_proj(self.norm_q(hidden_states.mean(1, keepdim=True)))
        key, value = self.k_proj(self.norm_k(hidden_states)), self.v_proj(self.norm_v(hidden_states))
        if kwargs.get("output_pooler_attentions"):
            attention: Callable = eager_attention_forward  # one query: writing the weights out costs nothing
        else:
            attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        pooled, weights = attention(
            self,
            _split_heads(query, self.num_heads),
            _split_heads(key, self.num_heads),
            _split_heads(value, self.num_heads),
            None,
            dropout=0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.out_proj(pooled.reshape(hidden_states.shape[0], -1)), weights


class FluxViTAlignmentDecoder(nn.Module):
    """Maps a smaller budget's pooled feature to where it is compared with the largest budget's."""

    def __init__(self, config: FluxViTConfig):
        super().__init__()
        self.dense = nn.Linear(config.projection_dim, config.projection_dim)
        self.norm = nn.LayerNorm(config.projection_dim, eps=config.layer_norm_eps)

    def forward(self, pooled: Tensor) -> Tensor:
        """(B, P) -> (B, P), L2-normalised."""
        return nn.functional.normalize(self.norm(self.dense(pooled)), dim=-1)


@auto_docstring
class FluxViTPreTrainedModel(TokenBudgetModel, PreTrainedModel):
    config: FluxViTConfig
    base_model_prefix = "fluxvit"
    main_input_name = "pixel_values_videos"
    input_modalities = ("video",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["FluxViTEmbeddings", "FluxViTLayer", "FluxViTAttentionPoolingHead"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": FluxViTLayer,
        "attentions": OutputRecorder(FluxViTAttention, index=1, layer_name="layer"),
        "pooler_attentions": OutputRecorder(FluxViTAttentionPoolingHead, index=1),
    }
    _input_embed_layer = "patch_embeddings"
    # Mean losses: transformers.Trainer has to divide by the accumulation steps itself, for every problem type.
    accepts_loss_kwargs = False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """The official initialisation, in distribution."""
        super()._init_weights(module)
        if isinstance(module, FluxViTPatchProjection):
            bound = module.in_features**-0.5  # torch's default for the convolution this stands for
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=getattr(module, "init_std", self.config.initializer_range))
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, FluxViTLayerScale):
            init.constant_(module.weight, module.initial_value)
        elif isinstance(module, FluxViTAffine):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, FluxViTPositionEmbeddings):
            init.copy_(module.table, sincos_position_table(module.grid, self.config.hidden_size))
        elif isinstance(module, FluxViTEmbeddings):
            init.trunc_normal_(module.cls_token, std=self.config.initializer_range)

    # The four steps. `forward` composes them, and so do training and evaluation at several budgets and a teacher.

    def embed(self, pixel_values_videos: Tensor) -> tuple[Tensor, FluxViTGrid]:
        """Embeds every patch.

        Args:
            pixel_values_videos: (B, T, C, H, W).

        Returns:
            Patches (B, T', L, D) before positions, in float32 whatever the model's dtype, and their grid.

        Raises:
            ValueError: another rank or channel count, or a clip that is not whole patches.
        """
        return self.base_model.embeddings(pixel_values_videos)

    def _place(self, patches, grid, keep_indices, in_order):
        tokens = patches.flatten(1, 2).to(grid.class_token.dtype)
        return torch.cat([grid.class_token, place_patches(tokens, grid.positions, keep_indices, in_order)], dim=1), {}

    def _run(self, hidden_states, told, layers, **kwargs):
        return self.base_model.encoder(hidden_states, layers, **told, **kwargs)

    def pool(
        self, hidden_states: Tensor, head: int, attention: bool = False, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[Tensor, Tensor | None]:
        """Pools tokens by a head's projector.

        Args:
            hidden_states: (B, 1 + K, D) of `encode`.
            head: Index into `config.token_budgets`.
            attention: Whether the query's attention is wanted.

        Returns:
            Features (B, P), and the attention (B, num_pooling_heads, 1, 1 + K), or None.
        """
        if attention:
            kwargs["output_pooler_attentions"] = True
        pooled, weights = self.base_model.projectors[head](hidden_states, **kwargs)
        return pooled, weights if attention else None

    def parameter_depth(self, name: str) -> int:
        """The depth of a parameter for layer-wise learning rates: 0 for the embeddings, i + 1 for layer i, and
        `num_hidden_layers + 1` for what comes after them and, as in the official code, the global position encoding.
        """
        parts = name.removeprefix(f"{self.base_model_prefix}.").split(".")
        if parts[:2] == ["encoder", "layer"]:
            return int(parts[2]) + 1
        if parts[0] == "embeddings" and "global_position_encoding" not in parts:
            return 0
        return self.config.num_hidden_layers + 1

    def takes_weight_decay(self, name: str, parameter: Tensor) -> bool:
        """Whether weight decay is for this parameter: matrices, but not the class token and the position table."""
        return parameter.ndim > 1 and not name.endswith(("cls_token", "position_embeddings.table"))

    def lora_targets(self) -> list[str]:
        """Names of the layers' linear maps, by which peft finds them."""
        names = ("attention.qkv", "attention.out_proj", "mlp.fc1", "mlp.fc2")
        return [f"layer.{i}.{name}" for i in range(self.config.num_hidden_layers) for name in names]

    def compile_layers(self, **kwargs) -> None:
        """Compiles each layer in place, as `torch.nn.Module.compile` does; all have one graph."""
        for layer in self.base_model.encoder.layer:
            layer.compile(**kwargs)


@auto_docstring(custom_intro="The FluxViT encoder with its attention-pooling projectors, one for each trained budget.")
class FluxViTModel(TokenBudgetEncoder, FluxViTPreTrainedModel):
    def __init__(self, config: FluxViTConfig):
        super().__init__(config)
        self.embeddings = FluxViTEmbeddings(config)
        self.encoder = FluxViTEncoder(config)
        self.projectors = nn.ModuleList([FluxViTAttentionPoolingHead(config) for _ in config.token_budgets])
        self.post_init()

    def get_input_embeddings(self) -> FluxViTPatchEmbeddings:
        return self.embeddings.patch_embeddings


@auto_docstring(
    custom_intro="FluxViT with a classifier on top of each budget's pooled feature, behind one shared LayerNorm."
)
class FluxViTForVideoClassification(TokenBudgetClassifier, FluxViTPreTrainedModel):
    def __init__(self, config: FluxViTConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.fluxvit = FluxViTModel(config)
        self.fc_norm = nn.LayerNorm(config.projection_dim, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.classifier_dropout)
        heads = config.token_budgets
        self.classifiers = nn.ModuleList([nn.Linear(config.projection_dim, config.num_labels) for _ in heads])
        self.alignment_decoders = nn.ModuleList([FluxViTAlignmentDecoder(config) for _ in heads[1:]])
        self.post_init()

    def classify(self, pooled: Tensor, head: int) -> Tensor:
        """Pooled features (B, P) of projector `head` -> logits (B, num_labels) of its classifier."""
        return self.classifiers[head](self.fc_norm(self.dropout(pooled)))

    def _heads_without(self, head: int) -> list[nn.Module]:
        others = [self.fluxvit.projectors[k] for k in range(len(self.classifiers)) if k != head]
        return [*others, *(c for k, c in enumerate(self.classifiers) if k != head), self.alignment_decoders]

    def heads(self) -> list[nn.Module]:
        """All that follows the encoder: projectors, norm, classifiers and alignment decoders."""
        return [self.fluxvit.projectors, self.fc_norm, self.classifiers, self.alignment_decoders]

    def with_token_budgets(self, token_budgets: Sequence[int]) -> "FluxViTForVideoClassification":
        """The model with one head for each of `token_budgets`, each a copy of the one trained nearest.

        Alignment decoders are copied in the same way where the model has some; the first budgets of a model without
        any get new ones. The encoder is shared with this model, not copied. The default budget is the second one.

        Raises:
            ValueError: the budgets are not falling whole numbers of at least 1.
        """
        budgets, old = list(token_budgets), self.config
        if budgets == old.token_budgets:
            return self
        default = sorted(budgets, reverse=True)[min(1, len(budgets) - 1)]
        changes = {"token_budgets": budgets, "token_budget": default}
        changes["auto_budgets"] = None  # calibrated for the old heads
        config = type(old)(**{**old.to_dict(), **changes})
        config._attn_implementation = old._attn_implementation
        sources = [self.resolve_head(budget) for budget in config.token_budgets]
        new = type(self)(config)
        new.fluxvit.embeddings, new.fluxvit.encoder = self.fluxvit.embeddings, self.fluxvit.encoder
        new.fluxvit.projectors = copies_of(self.fluxvit.projectors, sources)
        new.fc_norm, new.dropout = self.fc_norm, self.dropout
        new.classifiers = copies_of(self.classifiers, sources)
        if len(self.alignment_decoders):
            new.alignment_decoders = copies_of(self.alignment_decoders, [max(source, 1) - 1 for source in sources[1:]])
        return new.train(self.training)

    def _multiply_adds(self, kept_tokens: int) -> int:
        config, tokens, dim = self.config, kept_tokens + 1, self.config.hidden_size
        layer = tokens * dim * (4 * dim + 2 * config.intermediate_size) + 2 * tokens**2 * dim
        pooling = 2 * tokens * dim**2 + 2 * tokens * dim + dim**2 + dim * config.projection_dim
        return config.num_hidden_layers * layer + pooling


# The stock video-classification pipeline looks a model's name up in this table, which Auto classes' `register` leaves
# alone, and logs an error where it is missing.
MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES.setdefault(FluxViTConfig.model_type, "FluxViTForVideoClassification")

__all__ = ["FluxViTForVideoClassification", "FluxViTModel", "FluxViTPreTrainedModel"]
