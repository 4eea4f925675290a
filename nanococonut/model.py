"""GPT-2 in one file. Read this first, then coconut.py.

A decoder of n_layer blocks over C channels: attention, then an MLP, each behind a norm and added
to what came in. Positions are learned, and the output head is the token embedding itself.

    attention = softmax(Q K^T / sqrt(D)) V          Q, K, V of shape (B, H, T, D)

Two things exist for the latent loop alone. The model takes embeddings as well as token ids, because
a thought has no id. And new positions can be read on top of a cache of keys and values.

Source: GPT-2 as released by OpenAI, whose parameter names are kept (wte, h.0.attn.c_attn, ln_f).
Letters: B batch, T positions, C channels, H heads, D = C / H head size, V vocabulary, P prompt,
R room in the cache's tail.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanococonut import starts


@dataclass(frozen=True)
class GPTConfig:
    """Sizes of the model; the defaults are GPT-2's smallest."""

    vocab_size: int = 50257
    block_size: int = 1024
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.1
    init: str = "gpt2"  # or "lookup": see starts.py
    init_std: float = 0.02  # GPT-2's


class KV(NamedTuple):
    """Keys and values of one layer, (B, H, T, D) each."""

    k: Tensor
    v: Tensor

    def write(self, slots: Tensor, k: Tensor, v: Tensor) -> "KV":
        """A copy with k and v at slots (T,). A copy, because autograd needs the old ones too."""
        return KV(self.k.index_copy(2, slots, k), self.v.index_copy(2, slots, v))


class Past(NamedTuple):
    """What new positions are read on top of. A tail has R slots, which are filled from the left."""

    prompt: list[
        KV
    ]  # per layer (G, H, P, D): B / G neighbouring rows share one prompt; G = B unless they do
    tail: list[KV]  # per layer (B, H, R, D): what stands between the prompt and the new positions
    slots: Tensor  # (T,) int64: where in the tail the new positions are written
    visible: Tensor  # (B, 1, T, P + R) bool: which keys each new position may look at


def attend(q: Tensor, prompt: KV, tail: KV, visible: Tensor, dropout: float = 0.0) -> Tensor:
    """softmax(Q K^T / sqrt(D)) V over the keys of a prompt and of a tail: (B, H, T, D).

    The scores are joined before the softmax. The keys and values never are: copying the prompt for
    every thought would cost more than the attention.
    """
    P = prompt.k.size(2)
    scores_prompt = ungroup(group(q, prompt.k) @ prompt.k.mT, q)  # (B, H, T, P)
    scores_tail = q @ tail.k.mT  # (B, H, T, R)
    scores = torch.cat([scores_prompt, scores_tail], dim=-1) / math.sqrt(q.size(-1))
    attention = scores.masked_fill(~visible, -math.inf).softmax(dim=-1)  # (B, H, T, P + R)
    attention = F.dropout(attention, dropout).to(q.dtype)
    to_prompt, to_tail = attention[..., :P], attention[..., P:]
    return ungroup(group(to_prompt, prompt.k) @ prompt.v, q) + to_tail @ tail.v


def group(x: Tensor, k: Tensor) -> Tensor:
    """x (B, H, T, n) with the rows that share a prompt side by side; k (G, ...) is the prompts'.

    The B / G rows of a prompt become one long row, (G, H, B / G * T, n): it is read once for all.
    """
    if len(x) == len(k):
        return x
    return (
        x.unflatten(0, (len(k), -1)).transpose(1, 2).flatten(2, 3)
    )  # (G, B/G, H, T, n) -> (G, H, B/G * T, n)


def ungroup(x: Tensor, q: Tensor) -> Tensor:
    """The reverse of group: (G, H, B / G * T, n) -> (B, H, T, n), where q is (B, H, T, D)."""
    if len(x) == len(q):
        return x
    return x.unflatten(2, (-1, q.size(2))).transpose(1, 2).flatten(0, 1)


def at(x: Tensor, index: Tensor) -> Tensor:
    """x (B, T, n) at one position of each row, index (B,): (B, 1, n)."""
    return x[torch.arange(len(x), device=x.device), index].unsqueeze(1)


class CausalSelfAttention(nn.Module):
    """Multi-head attention; c_attn maps to queries, keys and values, one below the other."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        assert config.n_embd % config.n_head == 0, (config.n_embd, config.n_head)
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of x (B, T, C), (B, H, T, D) each."""
        q, k, v = (
            self.c_attn(x).unflatten(-1, (3, self.n_head, -1)).permute(2, 0, 3, 1, 4)
        )  # (3, B, H, T, D)
        return q, k, v

    def forward(
        self, x: Tensor, past: Past | None, layer: int, reader: Tensor | None
    ) -> tuple[Tensor, KV]:
        """What attention adds to x (B, T, C), and the keys and values. See GPT.forward."""
        q, k, v = self.heads(x)
        dropout = self.dropout if self.training else 0.0
        if past is None:  # a whole sequence: each position sees itself and what lies before
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)
            kv = KV(k, v)
        else:  # new positions on top of a cache
            kv = past.tail[layer].write(past.slots, k, v)
            y = attend(q, past.prompt[layer], kv, past.visible, dropout)
        y = y.transpose(1, 2).flatten(2)  # (B, H, T, D) -> (B, T, C)
        if reader is not None:
            y = at(y, reader)  # (B, 1, C)
        return F.dropout(self.c_proj(y), dropout), kv


class MLP(nn.Module):
    """C -> 4C -> C with GPT-2's tanh form of GELU."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.dropout = config.dropout
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.c_fc(x), approximate="tanh")  # (B, T, 4C)
        return F.dropout(self.c_proj(x), self.dropout, self.training)


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x, past=None, layer=0, reader=None) -> tuple[Tensor, KV]:
        """x (B, T, C) one block further, or (B, 1, C) at reader, and the keys and values."""
        y, kv = self.attn(self.ln_1(x), past, layer, reader)
        if reader is not None:
            x = at(x, reader)  # (B, 1, C)
        x = x + y
        return x + self.mlp(self.ln_2(x)), kv


class GPT(nn.Module):
    """Token ids or embeddings in, hidden states out. A plain language model:

    >>> model = GPT(GPTConfig(vocab_size=9, block_size=8, n_layer=1, n_head=1, n_embd=4))
    >>> ids = torch.tensor([[3, 1, 4, 1, 5]])
    >>> hidden, _ = model(ids)  # or of embeddings: model(model.wte(ids))
    >>> logits = model.logits(hidden)  # at each position, scores for the token after it
    >>> loss = F.cross_entropy(logits[0, :-1], ids[0, 1:])
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
        starts.initialize(self)

    def forward(self, x, positions=None, past=None, reader=None) -> tuple[Tensor, list[KV]]:
        """Hidden states (B, T, C) after the final norm, and each layer's keys and values.

        x          token ids (B, T) or embeddings (B, T, C)
        positions  (T,) or (B, T): where they stand in the sequence; default: from 0 on
        past       what x is read on top of; without it x is a whole sequence. What comes back are
                   the keys and values of x, or past's tail with x in it
        reader     (B,): the only position of each row whose hidden state is wanted; (B, 1, C)
                   comes back, and the last layer does little at the other positions
        """
        if x.dim() == 2:
            x = self.wte(x)  # (B, T, C)
        if positions is None:
            positions = torch.arange(x.size(1), device=x.device)
        x = F.dropout(x + self.wpe(positions), self.config.dropout, self.training)
        kvs = []
        for i, block in enumerate(self.h):
            is_last = i == len(self.h) - 1
            x, kv = block(x, past, i, reader if is_last else None)
            kvs.append(kv)
        return self.ln_f(x), kvs

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores (..., V) for the next token: the head is the token embedding itself."""
        return hidden @ self.wte.weight.t()
