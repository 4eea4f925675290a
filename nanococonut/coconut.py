"""The latent loop, twice. Read this second, after model.py; curriculum.py comes next.

Coconut feeds the last hidden state back as the next input embedding [Hao24 3]:

    x_{t+1} = h_t                       in a thought        (h_t after the final layer norm)
    x_{t+1} = wte(token_{t+1})          in words

`forward_reference` is that definition and nothing else. `forward` gives the same numbers from three phases, because
one batch has one number of thoughts K and so is three rectangles:

    prompt (B, P) right-padded         thoughts (B, K, C)         suffix (B, S) right-padded
    [ question ... <bot> | pads ]      [ ~ 1 ... ~ K ]            [ <eot> rest answer <eos> | pads ]
    prefill: one causal pass           think: K one-token passes  decode: one pass, the only logits

Positions run on without a gap: thought k stands at len + k, suffix token j at len + K + j.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nanococonut.config import UserError
from nanococonut.curriculum import Batch, pad
from nanococonut.model import GPT, Segment, hide_after, lend

Cache = list[list[Segment]]  # per layer: the prompt's segment, then what came after it, if anything


class Output(NamedTuple):
    """loss: mean over supervised tokens; logits (B, S, V) on the suffix; thoughts (B, K, C)."""

    loss: Tensor
    logits: Tensor
    thoughts: Tensor


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over the targets that are not -100, in float32 at least. logits (B, S, V), targets (B, S)."""
    logits = logits.float() if logits.dtype == torch.bfloat16 else logits
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def forward_reference(model: GPT, batch: Batch) -> Output:
    """The paper's definition: each row alone, K + 1 full passes, no cache, no padding. Slow, and the yardstick."""
    logits, thoughts = [], []
    for prompt, length, suffix in zip(batch.prompt, batch.prompt_len, batch.suffix, strict=True):
        x = model.wte(prompt[:length])[None]  # (1, T, C)
        for _ in range(batch.n_thoughts):
            hidden, _ = model(x, torch.arange(x.size(1), device=x.device))
            x = torch.cat([x, hidden[:, -1:]], dim=1)  # the last hidden state is the next input
        thoughts.append(x[:, length:])  # (1, K, C)
        x = torch.cat([x, model.wte(suffix)[None]], dim=1)
        hidden, _ = model(x, torch.arange(x.size(1), device=x.device))
        logits.append(model.logits(hidden[:, -len(suffix) :]))  # (1, S, V)
    logits = torch.cat(logits)
    return Output(cross_entropy(logits, batch.targets), logits, torch.cat(thoughts))


def prefill(model: GPT, prompt: Tensor, prompt_len: Tensor) -> tuple[Tensor, Cache]:
    """The hidden state (B, 1, C) at each prompt's last token, and the prompt's keys and values.

    Pads stand on the right, so the causal pass needs no mask: no real token sees one. Who reads the cache later
    must not see them either; that is the bias of the prompt's segment.
    """
    positions = torch.arange(prompt.size(1), device=prompt.device)
    hidden, segments = model(model.wte(prompt), positions, reader=prompt_len - 1)
    bias = hide_after(prompt_len - 1, prompt.size(1))  # (B, 1, 1, P)
    return hidden, [[lend(k, v, bias)] for k, v, *_ in segments]


def step(model: GPT, x: Tensor, positions: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
    """Hidden states (B, T, C) of inputs x (B, T, C) at positions (B, T), and the cache with them in it."""
    hidden, segments = model(x, positions, past=cache)
    return hidden, [grow(past, new) for past, new in zip(cache, segments, strict=True)]


def grow(past: list[Segment], new: Segment) -> list[Segment]:
    """The prompt's segment as it is, and one segment of all that follows."""
    prompt, *rest = past
    if rest:
        new = Segment(torch.cat([rest[0].k, new.k], dim=2), torch.cat([rest[0].v, new.v], dim=2))
    return [prompt, new]


def think(model: GPT, hidden: Tensor, start: Tensor, cache: Cache, n_thoughts: int) -> tuple[Tensor, Cache]:
    """Thoughts (B, K, C) and the cache with them in it: each is the hidden state before it, (B, 1, C), fed back.

    start (B,) is the position of the first thought.
    """
    thoughts = []
    for k in range(n_thoughts):
        thoughts.append(hidden)
        hidden, cache = step(model, hidden, (start + k)[:, None], cache)
    empty = hidden.new_zeros(len(hidden), 0, hidden.size(-1))
    return torch.cat([empty, *thoughts], dim=1), cache


def decode(model: GPT, suffix: Tensor, start: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
    """Logits (B, S, V) at each suffix token, the first of which stands at position start (B,)."""
    positions = start[:, None] + torch.arange(suffix.size(1), device=suffix.device)  # (B, S)
    hidden, cache = step(model, model.wte(suffix), positions, cache)
    return model.logits(hidden), cache


def forward(model: GPT, batch: Batch) -> Output:
    """The numbers of forward_reference from one prefill, K one-token passes and one decode."""
    hidden, cache = prefill(model, batch.prompt, batch.prompt_len)
    thoughts, cache = think(model, hidden, batch.prompt_len, cache, batch.n_thoughts)
    logits, _ = decode(model, batch.suffix, batch.prompt_len + batch.n_thoughts, cache)
    return Output(cross_entropy(logits, batch.targets), logits, thoughts)


@torch.no_grad()
def generate(model: GPT, prompt, prompt_len, n_thoughts, eot, eos, max_new_tokens, change=None) -> list[list[int]]:
    """Greedy continuations, one list of ids per row, without the eos that ends them: batched and cached.

    prompt (B, P) int64 right-padded, prompt_len (B,). eot: the id fed after the thoughts, or None, and then with
    n_thoughts = 0 this is a plain language model. change: thoughts (B, K, C) -> what is fed in their place.
    """
    hidden, asked = prefill(model, prompt, prompt_len)
    thoughts, cache = think(model, hidden, prompt_len, asked, n_thoughts)
    if change and n_thoughts:
        positions = prompt_len[:, None] + torch.arange(n_thoughts, device=prompt.device)  # (B, K)
        _, cache = step(model, change(thoughts), positions, asked)
    position = prompt_len + n_thoughts
    if eot is None:
        assert n_thoughts == 0, f"{n_thoughts} thoughts need an <eot> to end them"
        logits = model.logits(hidden)  # (B, 1, V)
    else:
        logits, cache = decode(model, torch.full_like(prompt[:, :1], eot), position, cache)
        position = position + 1
    tokens = []
    done = torch.zeros(len(prompt), dtype=torch.bool, device=prompt.device)
    for _ in range(max_new_tokens):
        token = logits[:, -1].argmax(dim=-1)  # (B,)
        tokens.append(token)
        done |= token == eos
        if done.all() or len(tokens) == max_new_tokens:
            break
        logits, cache = decode(model, token[:, None], position, cache)
        position = position + 1
    rows = torch.stack(tokens, dim=1).tolist() if tokens else [[] for _ in prompt]
    return [row[: row.index(eos)] if eos in row else row for row in rows]


def answer(model: GPT, prompts, n_thoughts, eot, eos, max_new_tokens, batch_size=250, change=None) -> list[list[int]]:
    """What the model writes after each prompt (list[int]) and its thoughts, in the order given: generate() in batches.

    Raises UserError where the model has too few positions.
    """
    need = max(map(len, prompts)) + n_thoughts + (eot is not None) + max_new_tokens
    if need > model.config.block_size:
        raise UserError(
            f"{need} tokens exceed the model's {model.config.block_size} positions; train with --block_size={need}"
        )
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # rows of like length together: little padding
    answers, training, device = {}, model.training, model.wte.weight.device
    model.eval()
    for start in range(0, len(prompts), batch_size):
        chosen = order[start : start + batch_size]
        lengths = torch.tensor([len(prompts[i]) for i in chosen], device=device)
        prompt = pad([prompts[i] for i in chosen], eos).to(device)
        written = generate(model, prompt, lengths, n_thoughts, eot, eos, max_new_tokens, change)
        answers |= zip(chosen, written, strict=True)
    model.train(training)
    return [answers[i] for i in range(len(prompts))]
