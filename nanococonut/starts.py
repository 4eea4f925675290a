"""The initial weights of a model."""

import math

import torch
from torch import nn

# Of "lookup"; with C = 128, the initial logits have a standard deviation of about 1 (ours).
EMBEDDING_SCALE = 0.3
LOOKUP_STD = 0.08  # of the other weights of "lookup" (ours)


@torch.no_grad()
def correlate_embeddings(model: nn.Module, groups: list[list[int]]) -> None:
    """Makes the embeddings of each group of ids similar: half of their variance is shared.

    The tokens of a group contain the same name. Otherwise, a model from scratch first has to learn
    that "lempus." and " Every lempus is a " are about one concept.
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
    """Makes each position attend to similar ones and copy what is there.

    Looking a fact up takes such steps. From GPT-2's initialization, a small model needs minutes to
    learn the first one.
    """
    # Differs from the paper: ours, for small models from scratch. docs/results.md has the evidence.
    C = model.config.n_embd
    for block in model.h:
        query, key, value = block.attn.c_attn.weight.split(C)
        key.copy_(query)
        block.attn.c_proj.weight.copy_(0.5 * value.t())
    # Positions are sinusoids with periods from 6 to 60 tokens: neighbours look alike, distant ones
    # do not.
    position = torch.arange(model.config.block_size)[:, None]
    angle = position * 10.0 ** (-torch.arange(0, C, 2) / C)  # (T, C / 2)
    waves = torch.cat([angle.sin(), angle.cos()], dim=1)[:, :C]  # (T, C)
    model.wpe.weight.copy_(waves * EMBEDDING_SCALE * math.sqrt(2))
    # Hidden states start with the norm of embeddings, so that a thought has the scale of a word's
    # embedding.
    model.wte.weight.normal_(0.0, EMBEDDING_SCALE)
    model.ln_f.weight.fill_(EMBEDDING_SCALE)
