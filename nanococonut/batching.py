"""Lists of token ids -> the rectangles of a coconut.Batch."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from nanococonut.coconut import NOTHING, Batch


class Arranged(NamedTuple):
    """Questions about the same facts, as a stage makes them."""

    context: list[int]  # the facts, read once; empty: each question has its own
    pairs: list[tuple[list[int], list[int]]]  # of each question what stands before the thoughts, and after them
    taught: list[list[list[int]]]  # of each question [k]: the tokens that thought k + 1 is taught


def n_taught(groups: list[Arranged], n_thoughts: int) -> int:
    """Thoughts that are taught something."""
    n = 0
    for group in groups:
        for levels in group.taught:
            n += sum(1 for level in levels[:n_thoughts] if level)
    return n


def collate(groups: list[Arranged], n_thoughts: int, fill: int) -> Batch:
    """A Batch of groups, all with a context or none, padded with the id `fill`."""
    befores, afters, levels = [], [], []
    for group in groups:
        befores += [before for before, _ in group.pairs]
        afters += [after for _, after in group.pairs]
        for taught in group.taught:
            missing = n_thoughts - len(taught[:n_thoughts])
            levels += [*taught[:n_thoughts], *[[]] * missing]
    prompts, question, question_len = befores, None, None
    if groups[0].context:
        prompts = [group.context for group in groups]
        question = pad(befores, fill, left=True)
        question_len = torch.tensor([len(ids) for ids in befores])
    frontier = None
    if any(levels):
        frontier = pad(levels, NOTHING).unflatten(0, (len(befores), n_thoughts))  # (B, K, F)
    return Batch(
        prompt=pad(prompts, fill),
        prompt_len=torch.tensor([len(ids) for ids in prompts]),
        suffix=pad([ids[:-1] for ids in afters], fill),
        targets=pad([ids[1:] for ids in afters], NOTHING),
        n_thoughts=n_thoughts,
        question=question,
        question_len=question_len,
        frontier=frontier,
    )


def pad(rows: list[list[int]], value: int, left: bool = False) -> Tensor:
    """Rows of ids as one int64 tensor (B, longest), padded on the right or on the left."""
    rows = [torch.tensor(row, dtype=torch.int64) for row in rows]
    side = "left" if left else "right"
    return pad_sequence(rows, batch_first=True, padding_value=value, padding_side=side)
