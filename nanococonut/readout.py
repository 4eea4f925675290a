"""What hidden states say: words, nodes of a graph and numbers, through the output head."""

import functools

import numpy as np
import torch
import torch.nn.functional as F

from nanococonut import batching, coconut, prosqa, runs, tokenizer


@torch.no_grad()
def words(run: runs.Run, thoughts: torch.Tensor, n_words: int = 4) -> list[list[tuple[str, float]]]:
    """The most probable pieces of text at each thought (K, C), with their probabilities."""
    top = run.model.logits(thoughts).softmax(-1).topk(n_words)
    found = []
    for ids, shares in zip(top.indices.tolist(), top.values.tolist(), strict=True):
        texts = [run.encoding.decode([i]) for i in ids]
        texts = [" ".join(text.split()) or repr(text) for text in texts]
        found.append(list(zip(texts, shares, strict=True)))
    return found


@torch.no_grad()
def node_probabilities(run: runs.Run, row: dict, thoughts: torch.Tensor) -> np.ndarray:
    """(nodes, K): the probability that the output head gives each node at thoughts (K, C)."""
    shares = run.model.logits(thoughts).softmax(-1).cpu()
    nodes = []
    for name in row["idx_to_symbol"]:
        ids = tokenizer.node_tokens(run.encoding, name)
        nodes.append(shares[:, ids].sum(dim=1))
    return torch.stack(nodes).numpy()


@functools.cache
def number_tokens(run: runs.Run) -> dict[str, list[int]]:
    """A number -> the ids of the tokens that say it, as "10", "<<10" and "10>>\\n" do."""
    ids_of = {}
    for i in range(run.encoding.n_vocab):
        number = run.encoding.decode([i]).strip("<>\n# ")
        ids_of.setdefault(number, []).append(i)
    return ids_of


@torch.no_grad()
def number_probabilities(run: runs.Run, numbers: list[str], thoughts: torch.Tensor) -> np.ndarray:
    """(numbers, K): the probability that the output head gives each at thoughts (K, C).

    nan for a number that is no token.
    """
    shares = run.model.logits(thoughts).softmax(-1).cpu().numpy()
    ids_of = number_tokens(run)
    found = np.full((len(numbers), len(shares)), np.nan)
    for i, number in enumerate(numbers):
        if number in ids_of:
            found[i] = shares[:, ids_of[number]].sum(axis=1)
    return found


@torch.no_grad()
def continuation_probabilities(
    run: runs.Run, examples, names: list[list[str]], n_thoughts: int
) -> list[np.ndarray]:
    """The probability that a chain goes on at each of some nodes if <eot> follows k thoughts.

    For the paper's layout [Hao24 5]. names are those of the nodes of each example.
    Returns (its names, n_thoughts + 1) for each example.
    """
    pairs = []
    for example, its_names in zip(examples, names, strict=True):
        prompt = runs.before_thoughts(example, run.plan, run.special)
        for name in its_names:
            subject = run.encoding.encode_ordinary(prosqa.subject(name))
            pairs.append((prompt, [run.special["eot"], *subject]))
    found = [likely(run, pairs[at : at + 512], n_thoughts) for at in range(0, len(pairs), 512)]
    ends = np.cumsum([len(its_names) for its_names in names])
    return np.split(np.concatenate(found), ends[:-1])


def likely(run: runs.Run, pairs, n_thoughts: int) -> np.ndarray:
    """(pairs, n_thoughts + 1): the probability of the ids after 0, 1, ... thoughts.

    A pair is the ids before the thoughts, and <eot> with the ids after them.
    """
    batch = batching.collate(pairs, n_thoughts=0, pad_id=0)
    prompt, length, suffix, targets = (x.to(run.machine.device) for x in batch[:4])
    found = []
    with run.machine.autocast():
        hidden, prompt_kv = coconut.prefill(run.model, prompt, length)
        cache = coconut.open_cache(prompt_kv, length, n_slots=n_thoughts + 1 + suffix.size(1))
        for _ in range(n_thoughts + 1):
            said, _ = coconut.feed(run.model, suffix, cache)  # the cache itself does not change
            logits = run.model.logits(said).float()
            each = F.cross_entropy(logits.mT, targets, reduction="none")  # (rows, S); 0 at pads
            found.append(each.sum(dim=1).neg().exp().cpu())
            hidden, cache = coconut.feed(run.model, hidden, cache)
    return torch.stack(found, dim=1).double().numpy()
