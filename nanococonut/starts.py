"""The initial weights of a model."""

import math

import torch
from torch import nn

# Of "lookup"; with C = 128, the initial logits have a standard deviation of about 1 (ours).
EMBEDDING_SCALE = 0.3
LOOKUP_STD = 0.08  # of the other weights of "lookup" (ours)
FASTEST, SLOWEST = 2.0, 0.5  # radians per token of the positions' waves (ours)


@torch.no_grad()
def correlate_embeddings(model: nn.Module, groups: list[list[int]]) -> None:
    """Makes the embeddings of each group of ids similar: half of their variance is shared.

    The tokens of a group contain the same name. Otherwise, a model from scratch first has to learn
    that "lempus." and " Every lempus is a " are about one concept. A token in two groups, as
    "7 pens. ", shares less with each.
    """
    wte = model.wte.weight
    for ids in groups:
        shared = torch.randn(wte.size(1)) * wte[ids].std()
        wte[ids] = (wte[ids] + shared) / math.sqrt(2)


@torch.no_grad()
def initialize(model: nn.Module) -> None:
    """Draws the weights as GPT-2's: Normal(0, init_std), and biases of 0.

    In residual projections the standard deviation is divided by sqrt(2 n_layer).
    """
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            p.zero_()
        elif p.dim() == 2:
            std = model.config.init_std
            if "c_proj" in name:
                std /= math.sqrt(2 * len(model.h))
            p.normal_(0.0, std)
    if model.config.init == "lookup":
        initialize_for_lookup(model)


def initialize_for_lookup(model: nn.Module) -> None:
    """Makes a head of the first block read the position before, and all others similar positions.

    That is how an induction head [Olsson et al. 2022, arXiv 2209.11895] looks a fact up. In "Every
    lempus is a rempus." the first block copies the subject to the object, which stands behind it.
    For "lempus" in a chain, a later block finds the object with that copy. A model of one block has
    the first half alone.
    """
    # Differs from the paper: ours, for small models from scratch. docs/results.md has the evidence.
    C = model.config.n_embd
    # Positions are sinusoids with periods from 3 to 12 tokens: sines, then cosines.
    n_waves = (C + 1) // 2
    radians = FASTEST * (SLOWEST / FASTEST) ** (torch.arange(n_waves) / n_waves)  # per token
    angle = torch.arange(model.config.block_size)[:, None] * radians  # (T, C / 2)
    waves = torch.cat([angle.sin(), angle.cos()], dim=1)[:, :C]  # (T, C)
    model.wpe.weight.copy_(waves * EMBEDDING_SCALE * math.sqrt(2))
    for block in model.h:
        query, key, value = block.attn.c_attn.weight.split(C)
        key.copy_(query)
        block.attn.c_proj.weight.copy_(0.5 * value.t())
    # In the first head of the first block a query is turned back by one position, so it meets that
    # position's key. (With an odd C the last sine has no cosine, and is turned in part.)
    query, key, _ = model.h[0].attn.c_attn.weight.split(C)
    D = C // model.config.n_head
    turned = key @ one_position_back(radians)[:C, :C]
    query[:D].copy_(turned[:D])
    # Hidden states start with the norm of embeddings, so that a thought has the scale of a word's
    # embedding.
    model.wte.weight.normal_(0.0, EMBEDDING_SCALE)
    model.ln_f.weight.fill_(EMBEDDING_SCALE)


def one_position_back(radians: torch.Tensor) -> torch.Tensor:
    """The matrix that turns the waves (sines, cosines) of a position into those of the one before.

    >>> radians = torch.tensor([2.0, 0.5])
    >>> at_6, at_7 = (torch.cat([(p * radians).sin(), (p * radians).cos()]) for p in (6, 7))
    >>> torch.allclose(one_position_back(radians) @ at_7, at_6, atol=1e-6)
    True
    """
    # sin(a - r) = sin a cos r - cos a sin r, and cos(a - r) = cos a cos r + sin a sin r.
    cos, sin = radians.cos().diag(), radians.sin().diag()
    return torch.cat([torch.cat([cos, -sin], dim=1), torch.cat([sin, cos], dim=1)])
