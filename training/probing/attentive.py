# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Attentive probes, a grid of them trained at once: V-JEPA's pooler and classifier on frozen tokens.

Source: V-JEPA, V-JEPA 2: a cross-attention block with one learnt query, with 3 self-attention blocks before it in
V-JEPA 2, then a linear map; AdamW, whose decay is of all parameters; one probe for each learning rate and decay.

Shapes: G probes, B clips, K tokens, D their width, H heads of E = D / H, C classes. All parameters of the probes have
G in front; they begin equal, and each is trained as if it were alone.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..engine.optim import cosine_schedule


INIT_STD = 0.02
MLP_RATIO = 4
MOST_HEADS, LEAST_HEAD_WIDTH = 16, 32


class Linears(nn.Module):
    """G linear maps, (G, ..., in) -> (G, ..., out)."""

    def __init__(self, number: int, width: int, out: int, generator: torch.Generator, std: float = INIT_STD):
        super().__init__()
        weight = nn.init.trunc_normal_(torch.empty(out, width), std=std, generator=generator)
        self.weight = nn.Parameter(weight.expand(number, -1, -1).clone())
        self.bias = nn.Parameter(torch.zeros(number, out))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias[:, None], x.flatten(1, -2), self.weight.mT).unflatten(1, x.shape[1:-1])


class Norms(nn.Module):
    """G layer norms of (G, ..., D), or of (1, ..., D), which they share."""

    def __init__(self, number: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(number, width))
        self.bias = nn.Parameter(torch.zeros(number, width))

    def forward(self, x: Tensor) -> Tensor:
        shape = (len(self.weight), *[1] * (x.ndim - 2), x.shape[-1])
        return functional.layer_norm(x, x.shape[-1:]) * self.weight.view(shape) + self.bias.view(shape)


class Mlps(nn.Module):
    """G times two linear maps around a GELU."""

    def __init__(self, number: int, width: int, generator: torch.Generator, std: float):
        super().__init__()
        self.fc1 = Linears(number, width, MLP_RATIO * width, generator)
        self.fc2 = Linears(number, MLP_RATIO * width, width, generator, std)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(x)))


class SelfAttentions(nn.Module):
    """G pre-norm blocks, (G or 1, B, K, D) -> (G, B, K, D)."""

    def __init__(self, number: int, width: int, heads: int, generator: torch.Generator, std: float):
        super().__init__()
        self.heads = heads
        self.layer_norm1, self.layer_norm2 = Norms(number, width), Norms(number, width)
        self.q_proj, self.k_proj, self.v_proj = (Linears(number, width, width, generator) for _ in range(3))
        self.out_proj = Linears(number, width, width, generator, std)
        self.mlp = Mlps(number, width, generator, std)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.layer_norm1(x)
        projections = (self.q_proj, self.k_proj, self.v_proj)
        of_heads = (proj(normed).unflatten(-1, (self.heads, -1)).transpose(2, 3).flatten(0, 1) for proj in projections)
        mixed = functional.scaled_dot_product_attention(*of_heads)  # (G * B, H, K, E)
        x = x + self.out_proj(mixed.transpose(1, 2).flatten(2).unflatten(0, (-1, x.shape[1])))
        return x + self.mlp(self.layer_norm2(x))


class CrossAttentions(nn.Module):
    """G blocks with one learnt query each, (G or 1, B, K, D) -> (G, B, D).

    With one query, keys and values of the tokens need not be computed: a token's score is its product with what the
    query becomes through the keys' weights, and the mean of the values is the values' map of the mean token. The keys'
    bias adds the same to all scores of a head, so there is none. Where the tokens are the same for all probes, so is
    their norm, but for its weight and bias, which go the same way.
    """

    def __init__(self, number: int, width: int, heads: int, generator: torch.Generator, std: float):
        super().__init__()
        self.heads = heads
        query = nn.init.trunc_normal_(torch.empty(width), std=INIT_STD, generator=generator)
        self.query = nn.Parameter(query.expand(number, -1).clone())
        self.layer_norm1, self.layer_norm2 = Norms(number, width), Norms(number, width)
        self.q_proj, self.k_proj, self.v_proj = (Linears(number, width, width, generator) for _ in range(3))
        self.k_proj.bias = None
        self.mlp = Mlps(number, width, generator, std)

    def forward(self, x: Tensor) -> Tensor:
        (gain, shift), width = (self.layer_norm1.weight, self.layer_norm1.bias), x.shape[-1]
        tokens = functional.layer_norm(x, (width,))
        query = self.q_proj(self.query[:, None]).unflatten(2, (self.heads, -1))[:, 0]
        keys, values = (proj.weight.unflatten(1, (self.heads, -1)) for proj in (self.k_proj, self.v_proj))
        asked = torch.einsum("ghe,ghed->ghd", query, keys) * gain[:, None] * (width // self.heads) ** -0.5
        if len(x) == 1:
            shares = torch.einsum("bkd,ghd->gbhk", tokens[0], asked).softmax(-1)
            mean = torch.einsum("gbhk,bkd->gbhd", shares, tokens[0])
        else:
            shares = torch.einsum("gbkd,ghd->gbhk", tokens, asked).softmax(-1)
            mean = torch.einsum("gbhk,gbkd->gbhd", shares, tokens)
        mean = mean * gain[:, None, None] + shift[:, None, None]
        found = torch.einsum("gbhd,ghed->gbhe", mean, values).flatten(2) + self.v_proj.bias[:, None]
        pooled = self.query[:, None] + found
        return pooled + self.mlp(self.layer_norm2(pooled))


def heads_of(width: int, heads: int | None) -> int:
    """The number of heads; if not given, the most up to V-JEPA's 16 that divide the width, each of 32 or more.

    Raises:
        ValueError: heads that do not divide the width.
    """
    if heads is None:
        most = min(MOST_HEADS, max(1, width // LEAST_HEAD_WIDTH))
        return max(count for count in range(1, most + 1) if width % count == 0)
    if width % heads:
        raise ValueError(f"--probe_heads must divide the tokens' width {width}, got {heads}")
    return heads


class AttentiveProbes(nn.Module):
    """G probes, tokens (B, K, D) -> logits (G, B, C).

    Args:
        number: G.
        width: D.
        num_classes: C.
        blocks: 1, or more with self-attention blocks before the last.
        heads: H, as `heads_of`.
        seed: Of the weights that all begin with.
    """

    def __init__(
        self, number: int, width: int, num_classes: int, blocks: int = 1, heads: int | None = None, seed: int = 0
    ):
        super().__init__()
        heads = heads_of(width, heads)
        generator = torch.Generator().manual_seed(seed)
        stds = [INIT_STD / math.sqrt(block) for block in range(1, blocks + 1)]  # of what is added to the tokens
        self.self_attentions = nn.ModuleList(SelfAttentions(number, width, heads, generator, std) for std in stds[:-1])
        self.cross_attention = CrossAttentions(number, width, heads, generator, stds[-1])
        self.classifier = Linears(number, width, num_classes, generator)

    def forward(self, tokens: Tensor) -> Tensor:
        x = tokens[None]
        for block in self.self_attentions:
            x = block(x)
        return self.classifier(self.cross_attention(x))


class AdamWs(torch.optim.Optimizer):
    """AdamW of parameters with G in front, each with its own rate and decay; the group's `lr` is a factor of all.

    Args:
        params: The parameters.
        learning_rates, weight_decays: (G,).
    """

    def __init__(self, params: Iterable[nn.Parameter], learning_rates: Tensor, weight_decays: Tensor):
        super().__init__(params, {"lr": 1.0, "betas": (0.9, 0.999), "eps": 1e-8})
        self.learning_rates, self.weight_decays = learning_rates, weight_decays

    @torch.no_grad()
    def step(self) -> None:
        """One step."""
        for group in self.param_groups:
            (beta1, beta2), rates = group["betas"], group["lr"] * self.learning_rates
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state |= {"step": 0, "mean": torch.zeros_like(parameter), "square": torch.zeros_like(parameter)}
                state["step"] += 1
                state["mean"].lerp_(parameter.grad, 1 - beta1)
                state["square"].mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
                deviation = state["square"].sqrt().div_(math.sqrt(1 - beta2 ** state["step"])).add_(group["eps"])
                rate = rates.view(-1, *[1] * (parameter.ndim - 1))
                parameter.mul_(1 - rate * self.weight_decays.view_as(rate))
                parameter.addcmul_(state["mean"] / deviation, -rate / (1 - beta1 ** state["step"]))


@dataclass(frozen=True)
class AttentiveTraining:
    """How attentive probes are trained.

    Args:
        num_epochs: Of all clips, each in a new order.
        num_warmup_epochs: In which the rate rises, before its cosine to 0.
        batch_size: Clips.
        heads: As `heads_of`.
        seed: Of weights and orders.
    """

    num_epochs: int = 20
    num_warmup_epochs: float = 1.0
    batch_size: int = 32
    heads: int | None = None
    seed: int = 0


def train_probes(
    tokens: Tensor,
    labels: Tensor,
    num_classes: int,
    blocks: int,
    rates: Sequence[tuple[float, float]],
    how: AttentiveTraining,
    device: torch.device,
) -> AttentiveProbes:
    """Trains a probe for each learning rate and weight decay, all of them by the same batches.

    Args:
        tokens: (n, K, D).
        labels: (n,) int64.
    """
    probes = AttentiveProbes(len(rates), tokens.shape[-1], num_classes, blocks, how.heads, how.seed).to(device)
    optimizer = AdamWs(probes.parameters(), *torch.tensor(rates, device=device).T)
    steps = math.ceil(len(tokens) / how.batch_size)
    schedule = cosine_schedule(optimizer, 1.0, round(steps * how.num_warmup_epochs), steps * how.num_epochs)
    generator = torch.Generator().manual_seed(how.seed)
    for _ in range(how.num_epochs):
        for rows in torch.randperm(len(tokens), generator=generator).split(how.batch_size):
            logits = probes(tokens[rows].to(device).float())
            wanted = labels[rows].to(device).expand(len(rates), -1)
            loss = functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum") / len(rows)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return probes


@torch.no_grad()
def probe_logits(probes: AttentiveProbes, tokens: Tensor, batch_size: int, device: torch.device) -> Tensor:
    """(n, K, D) -> (G, n, C), on the CPU."""
    return torch.cat([probes(rows.to(device).float()).cpu() for rows in tokens.split(batch_size)], dim=1)


def best_probe(logits: Tensor, labels: Tensor) -> int:
    """Of (G, n, C) the probe that is right most often; of equals that of the lower loss. One that diverged is last."""
    expanded = labels.expand(len(logits), -1)
    losses = functional.cross_entropy(logits.movedim(2, 1), expanded, reduction="none").mean(1)
    hits = (logits.argmax(-1) == expanded).float().mean(1)
    hits[~losses.isfinite()] = -1.0
    return max(range(len(logits)), key=lambda probe: (hits[probe].item(), -losses[probe].item()))
