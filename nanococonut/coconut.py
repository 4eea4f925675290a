"""The latent loop, twice. Read this second, after model.py; curriculum.py comes next.

Coconut feeds the last hidden state back as the next input embedding [Hao24 3]:

    x_{t+1} = wte(token_{t+1})          in words
    x_{t+1} = h_t                       in a thought        (h_t after the final layer norm)

`forward_reference` is that definition and nothing else. `forward` takes three phases for the same,
because one batch has one number of thoughts K and so is three rectangles:

    prompt (B, P) right-padded         thoughts (B, K, C)         suffix (B, S) right-padded
    [ question ... <bot> | pads ]      [ ~ 1 ... ~ K ]            [ <eot> rest answer <eos> | pads ]
    prefill: one causal pass           think: K one-token passes  one pass, the only logits

Positions run on without a gap: thought k stands at length + k, suffix token j at length + K + j.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nanococonut.model import GPT, KV, Past

NOTHING = -100  # where there is nothing to predict


class Batch(NamedTuple):
    """Right-padded rows with one number of thoughts, for which there is no token.

    Several questions may share a prompt, which then holds their facts: G prompts, B / G questions
    each, one after the other. Otherwise G = B and the prompt ends with the question.
    """

    prompt: Tensor  # (G, P) int64
    prompt_len: Tensor  # (G,) int64
    suffix: Tensor  # (B, S) int64
    targets: Tensor  # (B, S) int64: the id to predict at each suffix position, -100 where none is
    n_thoughts: int
    question: Tensor | None = None  # (B, N) int64, left-padded: what follows a shared prompt
    question_len: Tensor | None = None  # (B,) int64
    frontier: Tensor | None = None  # (B, K, F) int64: tokens that each thought is taught, or -100


class Output(NamedTuple):
    """What a forward pass gives."""

    loss: Tensor  # mean over the supervised tokens
    logits: Tensor  # (B, S, V), at each suffix token
    thoughts: Tensor  # (B, K, C)
    taught: Tensor  # the loss that teaches the thoughts, a mean over them; 0 where there is none


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over the targets (B, S) that are not -100, in float32 at least; logits (B, S, V)."""
    if logits.dtype == torch.bfloat16:
        logits = logits.float()
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def teaching_loss(logits: Tensor, frontier: Tensor | None) -> Tensor:
    """Cross-entropy between thoughts' logits (B, K, V) and the uniform distribution over frontiers.

    The mean over the thoughts that have a frontier (B, K, F).
    """
    # Differs from the paper: thoughts are taught, as in Coconut-BFS [Zhu25] but each at its depth.
    if frontier is None:
        return logits.new_zeros(())
    is_node = frontier != NOTHING  # (B, K, F)
    has_nodes = is_node.any(dim=-1)  # (B, K)
    of_nodes = logits.float().log_softmax(dim=-1).gather(-1, frontier.clamp(min=0))  # (B, K, F)
    each = -(of_nodes * is_node).sum(dim=-1) / is_node.sum(dim=-1).clamp(min=1)  # (B, K)
    return each.sum() / has_nodes.sum().clamp(min=1)


def forward_reference(model: GPT, batch: Batch) -> Output:
    """The paper's definition: each row alone, K + 1 full passes, no cache, no padding. Slow."""
    logits, thoughts = [], []
    n_sharing = len(batch.suffix) // len(batch.prompt)
    for row, suffix in enumerate(batch.suffix):
        ids = batch.prompt[row // n_sharing, : batch.prompt_len[row // n_sharing]]
        if batch.question is not None:
            ids = torch.cat([ids, batch.question[row, -batch.question_len[row] :]])
        x = model.wte(ids)[None]  # (1, T, C)
        for _ in range(batch.n_thoughts):
            hidden, _ = model(x)
            x = torch.cat([x, hidden[:, -1:]], dim=1)  # the last hidden state is the next input
        thoughts.append(x[:, len(ids) :])  # (1, K, C)
        x = torch.cat([x, model.wte(suffix)[None]], dim=1)
        hidden, _ = model(x)
        logits.append(model.logits(hidden[:, -len(suffix) :]))  # (1, S, V)
    logits, thoughts = torch.cat(logits), torch.cat(thoughts)
    taught = teaching_loss(model.logits(thoughts), batch.frontier)
    return Output(cross_entropy(logits, batch.targets), logits, thoughts, taught)


class Cache(NamedTuple):
    """Keys and values: of the prompt, which never change, and in the tail of all that follows."""

    prompt: list[KV]  # per layer (G, H, P, D)
    tail: list[KV]  # per layer (B, H, R, D): R slots for thoughts and suffix, filled from the left
    length: Tensor  # (B,) int64: tokens of each prompt, without its pads
    n_pads: Tensor  # (B,) int64: first slots of the tail that are pads, left of a question
    n_filled: Tensor  # (1,) int64: filled slots; a tensor, so that one graph serves every thought


def prefill(model: GPT, prompt: Tensor, length: Tensor) -> tuple[Tensor, list[KV]]:
    """The hidden state (B, 1, C) at each prompt's last token, and the prompt's keys and values.

    Pads stand on the right, so the causal pass needs no mask: no real token sees one.
    """
    hidden, prompt_kv = model(prompt, reader=length - 1)
    return hidden, [
        KV(k.contiguous(), v.contiguous()) for k, v in prompt_kv
    ]  # or every thought copies them again


def open_cache(prompt_kv: list[KV], length: Tensor, room: int, n_pads=None) -> Cache:
    """The cache behind prompts with as many slots as there is room; length (G,), n_pads (B,)."""
    k = prompt_kv[0].k
    G, H, _, D = k.shape
    if n_pads is None:
        n_pads = torch.zeros_like(length)
    B = len(n_pads)
    length = length.repeat_interleave(B // G)

    def empty() -> Tensor:
        # Later tails have a gradient. If the first had none, torch.compile would need two graphs.
        return k.new_zeros(B, H, room, D, requires_grad=k.requires_grad)

    n_filled = torch.zeros(1, dtype=torch.int64, device=length.device)
    return Cache(prompt_kv, [KV(empty(), empty()) for _ in prompt_kv], length, n_pads, n_filled)


def make_room(cache: Cache, n: int) -> Cache:
    """The cache with n more slots. Every thought copies the tail, so it is short until here."""
    tail = [KV(F.pad(k, (0, 0, 0, n)), F.pad(v, (0, 0, 0, n))) for k, v in cache.tail]
    return cache._replace(tail=tail)


def step(model: GPT, x: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
    """Hidden states (B, T, C) of the next T inputs, and the cache with them in it.

    x holds token ids (B, T) or embeddings (B, T, C). A thought is a step with T = 1 whose input is
    the hidden state before it. Shapes depend on B, T, P and R alone, not on how many thoughts there
    were: so torch.compile makes one graph for every thought.
    """
    P, R, T = cache.prompt[0].k.size(2), cache.tail[0].k.size(2), x.size(1)
    B, device = len(cache.length), cache.length.device
    slots = cache.n_filled + torch.arange(T, device=device)  # (T,)
    positions = (cache.length - cache.n_pads)[:, None] + slots  # (B, T)
    positions = positions.clamp(0, model.config.block_size - 1)  # of pads, which may stand beyond
    # An input sees the prompt without its pads, and the tail up to itself: the rest is to come.
    in_prompt = torch.arange(P, device=device) < cache.length[:, None]  # (B, P)
    slot = torch.arange(R, device=device)
    in_tail = (slot <= slots[:, None]) & (slot >= cache.n_pads[:, None, None])  # (B, T, R)
    in_prompt = in_prompt[:, None].expand(B, T, P)
    visible = torch.cat([in_prompt, in_tail], dim=-1)  # (B, T, P + R)
    past = Past(cache.prompt, cache.tail, slots, visible[:, None])
    hidden, tail = model(x, positions, past)
    return hidden, cache._replace(tail=tail, n_filled=cache.n_filled + T)


class Phases(NamedTuple):
    """The functions that do the work: as they stand above, or compiled, see compiling.py."""

    prefill: Callable = prefill
    step: Callable = step


EAGER = Phases()


def think(
    model: GPT, hidden: Tensor, cache: Cache, n_thoughts: int, step=step
) -> tuple[Tensor, Cache]:
    """Thoughts (B, K, C), each the hidden state (B, 1, C) before it, and the cache with them."""
    thoughts = []
    for _ in range(n_thoughts):
        thoughts.append(hidden)
        hidden, cache = step(model, hidden, cache)  # the last hidden state is the next input
    empty = hidden.new_zeros(
        len(hidden), 0, hidden.size(-1)
    )  # torch.cat needs something where K = 0
    return torch.cat([empty, *thoughts], dim=1), cache


def forward(model: GPT, batch: Batch, phases: Phases = EAGER, room: int = 0) -> Output:
    """The numbers of forward_reference from one prefill, K steps of one token and one of S tokens.

    room is the number of slots for thoughts; 0: as many as there are thoughts.
    """
    room = room or batch.n_thoughts
    hidden, prompt_kv = phases.prefill(model, batch.prompt, batch.prompt_len)
    if batch.question is None:
        cache = open_cache(prompt_kv, batch.prompt_len, room)
    else:  # several questions on top of each prompt
        N = batch.question.size(1)
        cache = open_cache(prompt_kv, batch.prompt_len, N + room, N - batch.question_len)
        hidden, cache = phases.step(model, batch.question, cache)
        hidden = hidden[:, -1:].contiguous()  # in memory like all later ones: one graph for all
    thoughts, cache = think(model, hidden, cache, batch.n_thoughts, phases.step)
    hidden, _ = phases.step(model, batch.suffix, make_room(cache, batch.suffix.size(1)))
    logits = model.logits(hidden)
    taught = teaching_loss(model.logits(thoughts), batch.frontier)
    return Output(cross_entropy(logits, batch.targets), logits, thoughts, taught)


@torch.no_grad()
def generate(
    model: GPT, prompt, length, n_thoughts, eot, eos, max_new_tokens, change=None
) -> list[list[int]]:
    """Greedy continuations, one list of ids per row, without the eos that ends them.

    prompt  (B, P) int64 right-padded; length (B,)
    eot     the id fed after the thoughts; None, with n_thoughts = 0: a plain language model
    change  thoughts (B, K, C) -> what is fed in their place
    """
    assert eot is not None or n_thoughts == 0, f"{n_thoughts} thoughts need an <eot> to end them"
    hidden, prompt_kv = prefill(model, prompt, length)
    asked = open_cache(prompt_kv, length, room=n_thoughts)
    thoughts, cache = think(model, hidden, asked, n_thoughts)
    if change and n_thoughts:
        _, cache = step(model, change(thoughts), asked)
    cache = make_room(cache, 1 + max_new_tokens)
    if eot is not None:
        hidden, cache = step(model, torch.full_like(prompt[:, :1], eot), cache)
    tokens = []
    done = torch.zeros(len(prompt), dtype=torch.bool, device=prompt.device)
    while len(tokens) < max_new_tokens:
        token = model.logits(hidden)[:, -1:].argmax(dim=-1)  # (B, 1)
        tokens.append(token)
        done |= token[:, 0] == eos
        if done.all() or len(tokens) == max_new_tokens:
            break
        hidden, cache = step(model, token, cache)
    rows = torch.cat(tokens, dim=1).tolist() if tokens else [[] for _ in prompt]
    return [row[: row.index(eos)] if eos in row else row for row in rows]
