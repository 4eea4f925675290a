"""GPT-2 in one file. Read this first, then coconut.py.

A decoder of n_layer pre-norm blocks (attention, then MLP) over C channels, with learned positions and an output head
tied to the token embedding. Two things differ from a GPT-2 that only reads words, and both exist for the latent loop:
it takes *embeddings*, because a thought has no token id, and its attention can look at keys and values from several
*segments* (prompt, thoughts, suffix) without copying them into one tensor:

    att = softmax(Q K^T / sqrt(D)) V        Q, K, V of shape (B, H, T, D)

Source: GPT-2 as released by OpenAI, whose parameter names are kept (wte, wpe, h.0.attn.c_attn, ..., ln_f).
Letters: B batch, T positions, C channels, H heads, D = C / H head size, V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EMBEDDING_SCALE = 0.3  # of init="lookup"; with C = 128 channels the first logits then have a deviation of about 1


@dataclass(frozen=True)
class GPTConfig:
    """Sizes of the model; the defaults are GPT-2's smallest."""

    vocab_size: int = 50257
    block_size: int = 1024
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.1
    init: str = "gpt2"  # "gpt2", or "lookup": the start from which a small model learns to look an edge up (see GPT)
    init_std: float = 0.02  # GPT-2's


class Segment(NamedTuple):
    """Keys and values of neighbouring positions, and what is added to their scores (None: nothing)."""

    k: Tensor  # (B, H, T, D)
    v: Tensor  # (B, H, T, D)
    bias: Tensor | None = None  # broadcasts to (B, H, queries, T); 0 to see a key, -inf to hide it
    notes: tuple[list | None, list | None] = (None, None)  # of a segment that is lent: what readers note on k, on v


def lend(k: Tensor, v: Tensor, bias: Tensor) -> Segment:
    """A segment that many passes will read, as every thought reads the prompt.

    The gradient of k is a sum over its readers. Autograd would write a tensor as large as k for each of them and add
    these up; here each reader leaves a note of two thin factors, and the sum is one matrix product.
    """
    notes = ([], [])
    return Segment(Lend.apply(k, notes[0]), Lend.apply(v, notes[1]), bias, notes)


class Lend(torch.autograd.Function):
    """w as it is. Autograd calls backward once all its readers have left their notes."""

    @staticmethod
    def forward(ctx, w, notes):
        ctx.notes = notes
        ctx.set_materialize_grads(False)  # what comes back from the readers is None, not zeros
        return w.view_as(w)

    @staticmethod
    def backward(ctx, _):
        wide, narrow = zip(*ctx.notes, strict=True)  # (B, H, queries, T) and (B, H, queries, D) each
        ctx.notes.clear()  # a note holds a tensor, whose history holds this: nobody else would ever break that circle
        return torch.cat(wide, dim=2).mT @ torch.cat(narrow, dim=2), None  # (B, H, T, D)


class Read(torch.autograd.Function):
    """x @ w, or x @ w^T; of a w that is lent, backward leaves a note in place of the gradient."""

    @staticmethod
    def forward(ctx, x, w, notes, transposed):
        ctx.save_for_backward(x, w)
        ctx.notes, ctx.transposed = notes, transposed
        return x @ (w.mT if transposed else w)

    @staticmethod
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        note = (grad, x) if ctx.transposed else (x, grad)
        if ctx.notes is not None:
            ctx.notes.append(note)
        return grad @ (w if ctx.transposed else w.mT), note[0].mT @ note[1] if ctx.notes is None else None, None, None


def attend(q: Tensor, segments: list[Segment], dropout: float = 0.0) -> tuple[Tensor, Tensor]:
    """Values (B, H, T, D) and the attention map (B, H, T, all keys): the written-out softmax(QK^T / sqrt(D))V.

    The scores of all segments are joined before the softmax, the keys and values never are: a prompt's cache is read
    by every thought and copied by none.
    """
    scores = []
    for k, _, bias, (notes, _) in segments:
        s = Read.apply(q, k, notes, True) / math.sqrt(q.size(-1))  # (B, H, T, keys of this segment)
        scores.append(s if bias is None else s + bias)
    att = torch.cat(scores, dim=-1).softmax(dim=-1)  # (B, H, T, all keys)
    parts = F.dropout(att, dropout).to(q.dtype).split([segment.k.size(-2) for segment in segments], dim=-1)
    return sum(Read.apply(part, s.v, s.notes[1], False) for part, s in zip(parts, segments, strict=True)), att


class CausalSelfAttention(nn.Module):
    """Multi-head attention; c_attn holds the maps to queries, keys and values, one below the other."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        assert config.n_embd % config.n_head == 0, (config.n_embd, config.n_head)
        self.n_head, self.dropout = config.n_head, config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.n_head, -1)).transpose(1, 2)  # (B, T, C) -> (B, H, T, D)

    def forward(self, x, past=(), reader=None, maps=None):
        """Output (B, T, C) or, where only position reader[b] of each row is read, (B, 1, C); and the new Segment.

        No past and no reader: every position of x sees itself and what lies before, through the flash kernel.
        `maps`, a list, makes every case take the written-out path and receives the attention map.
        """
        _, T, C = x.shape
        if reader is None:
            q, k, v = (self.heads(part) for part in self.c_attn(x).split(C, dim=-1))  # (B, H, T, D) each
            bias = torch.full((T, T), -math.inf, device=x.device).triu(1) if T > 1 else None  # later keys are hidden
        else:  # keys and values everywhere, one query a row
            weight, b = self.c_attn.weight, self.c_attn.bias
            q = self.heads(F.linear(rows_at(x, reader), weight[:C], b[:C]))  # (B, H, 1, D)
            k, v = (self.heads(part) for part in F.linear(x, weight[C:], b[C:]).split(C, dim=-1))  # (B, H, T, D) each
            bias = hide_after(reader, T)  # (B, 1, 1, T)
        if not past and reader is None and maps is None:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=self.dropout * self.training)
        else:
            y, att = attend(q, [*past, Segment(k, v, bias)], self.dropout * self.training)
            if maps is not None:
                maps.append(att)
        return y.transpose(1, 2).flatten(2), Segment(k.contiguous(), v.contiguous())  # (B, H, T, D) -> (B, T, C)


def rows_at(x: Tensor, index: Tensor) -> Tensor:
    """x (B, T, C) at one position of each row, index (B,) -> (B, 1, C)."""
    return x[torch.arange(len(x), device=x.device), index].unsqueeze(1)


def hide_after(last: Tensor, n: int) -> Tensor:
    """Bias (B, 1, 1, n) that hides the keys after position last[b] of row b: the padding of a prompt."""
    hidden = torch.arange(n, device=last.device) > last[:, None]  # (B, n)
    return torch.zeros(hidden.shape, device=last.device).masked_fill(hidden, -math.inf)[:, None, None, :]


class MLP(nn.Module):
    """C -> 4C -> C with GPT-2's tanh form of GELU."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.dropout = config.dropout
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.c_proj(F.gelu(self.c_fc(x), approximate="tanh")), self.dropout, self.training)


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x, past=(), reader=None, maps=None):
        y, segment = self.attn(self.ln_1(x), past, reader, maps)
        x = x if reader is None else rows_at(x, reader)
        return self.after(x.flatten(0, 1), y.flatten(0, 1)).view_as(x), segment

    def after(self, x, y):
        """What each position does by itself once attention has brought y (tokens, C) to x (tokens, C)."""
        x = x + F.dropout(self.attn.c_proj(y), self.attn.dropout, self.training)
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """Embeddings in, hidden states out; `logits` turns hidden states into scores over the vocabulary.

    init="lookup" changes only where training starts: at "look for what is like yourself, and copy what is there".
    Looking an edge up is made of such steps, and from GPT-2's start a small model takes minutes to find the first one.
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.initialize()

    @torch.no_grad()
    def initialize(self) -> None:
        """GPT-2's: normal(0, init_std), projections into the residual stream divided by sqrt(2 n_layer), biases 0."""
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                p.zero_()
            elif p.dim() == 2:
                p.normal_(0.0, self.config.init_std / (math.sqrt(2 * len(self.h)) if "c_proj" in name else 1.0))
        if self.config.init == "lookup":
            # Differs from the paper: ours, for small models from scratch. RESULTS.md has the evidence.
            C = self.config.n_embd
            for block in self.h:
                block.attn.c_attn.weight[C : 2 * C] = block.attn.c_attn.weight[:C]  # keys start equal to queries,
                block.attn.c_proj.weight.copy_(0.5 * block.attn.c_attn.weight[2 * C :].t())  # out = values backwards
            # positions start as sinusoids with periods from 6 to 60 tokens: neighbours look alike, others do not,
            angle = torch.arange(self.config.block_size)[:, None] * 10.0 ** (-torch.arange(0, C, 2) / C)  # (T, C / 2)
            self.wpe.weight.copy_(torch.cat([angle.sin(), angle.cos()], dim=1) * EMBEDDING_SCALE * math.sqrt(2))
            # and a hidden state starts as long as an embedding, so that a thought comes in on the scale of a word.
            self.wte.weight.normal_(0.0, EMBEDDING_SCALE)
            self.ln_f.weight.fill_(EMBEDDING_SCALE)

    def forward(self, x, positions, past=None, reader=None, maps=None):
        """Hidden states (B, T, C) after the final norm, and one Segment per layer for whoever reads these positions.

        x          (B, T, C) embeddings: `wte(ids)` for words, the previous hidden state for a thought
        positions  (T,) or (B, T): where they stand in the sequence
        past       per layer the segments that every position of x may look at, before its own
        reader     (B,): only the hidden state at this position of each row is wanted, (B, 1, C) comes back. The last
                   layer then computes keys and values alone for the others: nobody would read more.
        maps       a list that receives each layer's attention map
        """
        x = F.dropout(x + self.wpe(positions), self.config.dropout, self.training)  # (B, T, C)
        segments = []
        for i, block in enumerate(self.h):
            last = i == len(self.h) - 1
            x, segment = block(x, past[i] if past else (), reader if last else None, maps)
            segments.append(segment)
        return self.ln_f(x), segments

    def compile_blocks(self) -> None:
        """Compiles each block's `after`: only the number of tokens changes, so a few graphs serve all stages."""
        for block in self.h:
            block.after = torch.compile(block.after, dynamic=True)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores (..., V) for the next token: the head is the token embedding itself."""
        return hidden @ self.wte.weight.t()
