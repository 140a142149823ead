"""The smallest encoder that implements `flux_hf.protocol.VideoTokenClassifier`: mean colours of patches, one layer."""

from types import SimpleNamespace

import torch
from torch import nn


class ToyEncoder(nn.Module):
    def __init__(self, num_labels: int = 3, token_budgets=(16, 8, 4), width: int = 8):
        super().__init__()
        self.config = SimpleNamespace(
            token_budgets=list(token_budgets),
            token_budget=token_budgets[1],
            token_plan=None,
            num_hidden_layers=1,
            num_frames=4,
            patch_size=14,
            tubelet_size=1,
            num_labels=num_labels,
            id2label={index: f"class {index}" for index in range(num_labels)},
            problem_type=None,
        )
        self.embeddings, self.layer = nn.Linear(3, width), nn.Linear(width, width)
        self.heads = nn.ModuleList([nn.Linear(width, num_labels) for _ in token_budgets])

    def embed(self, pixel_values_videos):
        cut = pixel_values_videos.unfold(3, 14, 14).unfold(4, 14, 14).mean((-2, -1))
        return self.embeddings(cut.flatten(3).transpose(2, 3)), cut.shape[1::2]

    def select(self, patches, token_budgets):
        brightest_first = patches.flatten(1, 2).norm(dim=-1).argsort(descending=True)
        return [brightest_first[:, :budget].sort().values for budget in token_budgets]

    def encode(self, patches, grid, keep_indices, layers=()):
        tokens = patches.flatten(1, 2).gather(1, keep_indices[..., None].expand(-1, -1, patches.shape[-1]))
        hidden_states = torch.tanh(self.layer(tokens))
        return hidden_states, (hidden_states,) * len(layers)

    def pool(self, hidden_states, head, attention=False):
        return hidden_states.mean(1), None

    def classify(self, feature, head):
        return self.heads[head](feature)

    def align(self, feature, head):
        return nn.functional.normalize(feature, dim=-1)

    def resolve_head(self, kept_tokens, head=None):
        distances = [abs(budget - kept_tokens) for budget in self.config.token_budgets]
        return distances.index(min(distances)) if head is None else head

    def count_kept(self, num_frames, height, width, token_budget=None):
        dense = num_frames * (height // 14) * (width // 14)
        return min(token_budget or self.config.token_budget, dense)

    def parameter_depth(self, name):
        return {"embeddings": 0, "layer": 1, "heads": 2}[name.split(".")[0]]

    def takes_weight_decay(self, name, parameter):
        return parameter.ndim > 1

    def flops(self, num_frames, size, token_budget=None):
        return 1000 * (token_budget or self.config.token_budget)
