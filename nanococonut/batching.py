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


def levels_of(groups: list[Arranged], n_thoughts: int) -> list[list[int]]:
    """What each thought of each question is taught, n_thoughts a question; empty: nothing."""
    levels = []
    for group in groups:
        for taught in group.taught:
            levels += [taught[k] if k < len(taught) else [] for k in range(n_thoughts)]
    return levels


def n_taught(groups: list[Arranged], n_thoughts: int) -> int:
    """Thoughts that are taught something."""
    return len([level for level in levels_of(groups, n_thoughts) if level])


def collate(groups: list[Arranged], n_thoughts: int, fill: int) -> Batch:
    """A Batch of groups, all with a context or none, padded with the id `fill`."""
    pairs = [pair for group in groups for pair in group.pairs]
    befores, afters = [before for before, _ in pairs], [after for _, after in pairs]
    levels = levels_of(groups, n_thoughts)
    prompts, question, question_len, frontier = befores, None, None, None
    if groups[0].context:
        prompts = [group.context for group in groups]
        question, question_len = pad(befores, fill, left=True), lengths(befores)
    if any(levels):
        frontier = pad(levels, NOTHING).unflatten(0, (len(befores), n_thoughts))  # (B, K, F)
    suffix, targets = pad([ids[:-1] for ids in afters], fill), pad([ids[1:] for ids in afters], NOTHING)
    return Batch(pad(prompts, fill), lengths(prompts), suffix, targets, n_thoughts, question, question_len, frontier)


def lengths(rows: list[list[int]]) -> Tensor:
    """(B,) int64."""
    return torch.tensor([len(row) for row in rows])


def pad(rows: list[list[int]], value: int, left: bool = False) -> Tensor:
    """Rows of ids as one int64 tensor (B, longest), padded on the right or on the left."""
    rows = [torch.tensor(row, dtype=torch.int64) for row in rows]
    return pad_sequence(rows, batch_first=True, padding_value=value, padding_side="left" if left else "right")
