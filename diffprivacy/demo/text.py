"""The text encoder's vocabulary: the few words of the training captions, and one row for all other words.

CLIP's table has 49408 rows, 25 MB in half precision at this width. The demo model has seen a few dozen words, so only
those rows are kept, and the table that ComfyUI and transformers expect is filled in when the weights are loaded.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

VOCABULARY_SIZE = 49408


class CompactEmbedding(nn.Module):
    """Token embedding with a row for each known token id and a last row for every other id.

    While ``pseudo_words`` (B,D) is set, the placeholder's embedding is each row's pseudo-word instead.
    """

    def __init__(self, token_ids: list[int], width: int, placeholder: int):
        super().__init__()
        self.placeholder = placeholder
        self.pseudo_words: Tensor | None = None
        rows = torch.full((VOCABULARY_SIZE,), len(token_ids), dtype=torch.int64)
        rows[torch.tensor(token_ids)] = torch.arange(len(token_ids))
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("token_ids", torch.tensor(token_ids))
        self.weight = nn.Parameter(torch.randn(len(token_ids) + 1, width) * 0.02)
        self.rows: Tensor

    def forward(self, token_ids: Tensor) -> Tensor:
        embeddings = self.weight[self.rows[token_ids]]
        if self.pseudo_words is None:
            return embeddings
        is_placeholder = (token_ids == self.placeholder)[..., None]
        return torch.where(is_placeholder, self.pseudo_words[:, None].to(embeddings.dtype), embeddings)


def full_table(weight: Tensor, token_ids: Tensor) -> Tensor:
    """CLIP's table (49408,D) from the kept rows (K+1,D) of the K token_ids; the last row stands for all others."""
    table = weight[-1:].repeat(VOCABULARY_SIZE, 1)
    table[token_ids] = weight[:-1]
    return table
