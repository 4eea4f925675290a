"""GPT-2 in one file. Read this first, then coconut.py.

A decoder of n_layer blocks over C channels: attention, then an MLP, each behind a norm and added
to what came in. Positions are learned, and the output head is the token embedding itself.

    attention = softmax(Q K^T / sqrt(D)) V          Q, K, V of shape (B, H, T, D)

The latent loop needs two things more: the model takes embeddings as well as token ids, because a
thought has no id, and new positions are read on top of a cache of keys and values. Two others save
work and may be skipped at first: `only` one position of the last layer, and `group`ed prompts.

Source: GPT-2 as released by OpenAI, whose parameter names are kept (wte, h.0.attn.c_attn, ln_f).
Letters: B batch, T positions, C channels, H heads, D = C / H head size, V vocabulary, P prompt,
R slots of the cache's tail, G prompts (G = B, or fewer where B / G neighbouring rows share one).
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
        new = KV(self.k.clone(), self.v.clone())  # torch 2.11 fails to compile index_copy
        new.k[:, :, slots], new.v[:, :, slots] = k, v
        return new


class Past(NamedTuple):
    """What one layer's new positions look at: the prompt, which stays, and a tail, which fills up.

    The tail holds what follows the prompt, thoughts and suffix, and is filled from the left.
    """

    prompt: KV  # (G, H, P, D)
    tail: KV  # (B, H, R, D)
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
    x = x.unflatten(0, (len(k), -1))  # (G, B / G, H, T, n)
    return x.transpose(1, 2).flatten(2, 3)  # (G, H, B / G * T, n)


def ungroup(x: Tensor, q: Tensor) -> Tensor:
    """The reverse of group: (G, H, B / G * T, n) -> (B, H, T, n), where q is (B, H, T, D)."""
    if len(x) == len(q):
        return x
    x = x.unflatten(2, (-1, q.size(2)))  # (G, H, B / G, T, n)
    return x.transpose(1, 2).flatten(0, 1)  # (B, H, T, n)


def pick(x: Tensor, index: Tensor) -> Tensor:
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
        qkv = self.c_attn(x).unflatten(-1, (3, self.n_head, -1))  # (B, T, 3, H, D)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return q, k, v

    def forward(self, x: Tensor, past: Past | None, only: Tensor | None) -> tuple[Tensor, KV]:
        """What attention adds to x (B, T, C), and keys and values. See GPT.forward."""
        q, k, v = self.heads(x)
        dropout = self.dropout if self.training else 0.0
        if past is None:  # a whole sequence: each position sees itself and what lies before
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)
            kv = KV(k, v)
        else:  # new positions on top of a cache
            kv = past.tail.write(past.slots, k, v)
            y = attend(q, past.prompt, kv, past.visible, dropout)
        y = y.transpose(1, 2).flatten(2)  # (B, H, T, D) -> (B, T, C)
        if only is not None:
            y = pick(y, only)  # (B, 1, C)
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

    def forward(self, x, past=None, only=None) -> tuple[Tensor, KV]:
        """x (B, T, C) one block further, or (B, 1, C) at only, and the keys and values."""
        y, kv = self.attn(self.ln_1(x), past, only)
        if only is not None:
            x = pick(x, only)  # (B, 1, C)
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

    def forward(self, x, positions=None, pasts=None, only=None) -> tuple[Tensor, list[KV]]:
        """Hidden states (B, T, C) after the final norm, and each layer's keys and values.

        x          token ids (B, T) or embeddings (B, T, C)
        positions  (T,) or (B, T): where they stand in the sequence; default: from 0 on
        pasts      for each layer what x is read on top of; without it x is a whole sequence. What
                   comes back are the keys and values of x, or each past's tail with x in it
        only       (B,): the one position of each row whose hidden state is wanted, and (B, 1, C)
                   comes back: the last layer makes keys and values everywhere, but no more than
                   that at the other positions
        """
        if x.dim() == 2:
            x = self.wte(x)  # (B, T, C)
        if positions is None:
            positions = torch.arange(x.size(1), device=x.device)
        x = F.dropout(x + self.wpe(positions), self.config.dropout, self.training)
        kvs = []
        for i, block in enumerate(self.h):
            is_last = i == len(self.h) - 1
            x, kv = block(x, pasts[i] if pasts else None, only if is_last else None)
            kvs.append(kv)
        return self.ln_f(x), kvs

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores (..., V) for the next token: the head is the token embedding itself."""
        return hidden @ self.wte.weight.t()
