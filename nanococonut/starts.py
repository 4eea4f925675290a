"""Where training starts: the first weights of a model."""

import math

import torch
from torch import nn

EMBEDDING_SCALE = 0.3  # of "lookup"; with C = 128 the first logits then have a deviation of about 1 (ours)


@torch.no_grad()
def liken(model: nn.Module, groups: list[list[int]]) -> None:
    """Gives the embeddings of each group of ids half of their variance in common: pieces that say one name are alike.

    A model from scratch otherwise has to find out first that "lempus." and " Every lempus is a " speak of one thing.
    """
    wte = model.wte.weight
    for ids in groups:
        shared = torch.randn(wte.size(1)) * wte[ids].std()
        wte[ids] = (wte[ids] + shared) / math.sqrt(2)


@torch.no_grad()
def initialize(model: nn.Module) -> None:
    """Draws the weights: Normal(0, init_std), projections into the residual stream / sqrt(2 n_layer), biases 0."""
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            p.zero_()
        elif p.dim() == 2:
            narrower = math.sqrt(2 * len(model.h)) if "c_proj" in name else 1.0
            p.normal_(0.0, model.config.init_std / narrower)
    if model.config.init != "lookup":
        return
    # "Look for what is like yourself, and copy what is there": looking a fact up is made of such steps, and from
    # GPT-2's start a small model takes minutes to find the first one.
    # Differs from the paper: ours, for small models from scratch. RESULTS.md has the evidence.
    C = model.config.n_embd
    for block in model.h:
        query, key, value = block.attn.c_attn.weight.split(C)
        key.copy_(query)
        block.attn.c_proj.weight.copy_(0.5 * value.t())
    # Positions are sinusoids with periods from 6 to 60 tokens: neighbours look alike, distant ones do not.
    position = torch.arange(model.config.block_size)[:, None]
    angle = position * 10.0 ** (-torch.arange(0, C, 2) / C)  # (T, C / 2)
    waves = torch.cat([angle.sin(), angle.cos()], dim=1)  # (T, C)
    model.wpe.weight.copy_(waves * EMBEDDING_SCALE * math.sqrt(2))
    # A hidden state starts as long as an embedding, so that a thought comes in on the scale of a word.
    model.wte.weight.normal_(0.0, EMBEDDING_SCALE)
    model.ln_f.weight.fill_(EMBEDDING_SCALE)
