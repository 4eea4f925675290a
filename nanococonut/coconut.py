"""The latent loop, twice. Read this second, after model.py; curriculum.py comes next.

Coconut feeds the last hidden state back as the next input embedding [Hao24 3]:

    x_{t+1} = wte(token_{t+1})          in words
    x_{t+1} = h_t                       in a thought        (h_t after the final layer norm)

Thoughts `~` follow a token <bot>, begin of thought. In the paper's layout <eot> and the rest in
words come after them. In the layout "in_place" the rest follows at once, and each state before it
is asked for its next word (see curriculum.py).
`forward_reference` is the definition. `forward` takes three phases for the same, because one batch
has one number of thoughts K and so is three rectangles:

    prompt (B, P) right-padded         thoughts (B, K, C)         suffix (B, S) right-padded
    [ question ... <bot> | pads ]      [ ~ 1 ... ~ K ]            [ rest answer <eos> | pads ]
    prefill: one causal pass           think: K one-token passes  one pass, and its logits

Positions run on without a gap: thought k (1 to K) stands at position prompt_len + k - 1, and suffix
token j (from 0) at prompt_len + K + j. Where several questions share their facts, which are then
read once, the prompt holds the facts alone, and a fourth rectangle follows it:

    question (B, N) left-padded        [ pads | Is Tom a lempus or rempus? <bot> ]
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nanococonut.model import GPT, KV, Past

NOTHING = -100  # where there is nothing to predict: F.cross_entropy ignores it


class Batch(NamedTuple):
    """The rectangles above. There is no token for a thought, so thoughts are counted only."""

    prompt: Tensor  # (G, P) int64; G = B, or fewer where questions share their facts
    prompt_len: Tensor  # (G,) int64
    suffix: Tensor  # (B, S) int64
    targets: Tensor  # (B, S) int64: the id to predict at each suffix position, -100 where none is
    n_thoughts: int  # K; with pause: of pauses
    question: Tensor | None = None  # (B, N) int64, left-padded: what follows a shared prompt
    question_len: Tensor | None = None  # (B,) int64
    next_words: Tensor | None = None  # (B, K + 1) int64: the id to predict after 0 to K thoughts
    n_read: int | None = None  # the suffix follows n_read thoughts, as in an earlier stage; None: K
    pause: int | None = None  # the id that is read in place of each thought; None: the thoughts

    def before_thoughts(self, row: int) -> Tensor:
        """The ids of one row that stand before its thoughts, without pads."""
        group = row // (len(self.suffix) // len(self.prompt))
        ids = self.prompt[group, : self.prompt_len[group]]
        if self.question is None:
            return ids
        return torch.cat([ids, self.question[row, -self.question_len[row] :]])

    def n_supervised(self) -> tuple[int, int]:
        """How many targets the suffix has, and how many next words."""
        n_next = 0
        if self.next_words is not None:
            n_next = int((self.next_words != NOTHING).sum())
        return int((self.targets != NOTHING).sum()), n_next


class Output(NamedTuple):
    """What a forward pass gives."""

    loss: Tensor  # mean over the suffix's targets
    logits: Tensor  # (B, S, V), at each suffix token
    thoughts: Tensor  # (B, K, C)
    next_loss: Tensor  # mean over the next words; 0 where there are none


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over the targets (B, S) that are not -100; logits (B, S, V), bfloat16 as float32."""
    if logits.dtype == torch.bfloat16:
        logits = logits.float()
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def outcome(model: GPT, batch: Batch, states: Tensor, logits: Tensor) -> Output:
    """The losses of a batch.

    states  (B, K + 1, C): the hidden states at the prompt's end and at each thought, which are
            thoughts 1 to K and one more. Each is asked for the next word of the chain: the loss of
            every stage up to this one, in one pass
    logits  (B, S, V): at the suffix
    """
    next_loss = states.new_zeros(())
    if batch.next_words is not None:
        next_loss = cross_entropy(model.logits(states), batch.next_words)
    thoughts = states[:, :-1] if batch.pause is None else states[:, :0]
    return Output(cross_entropy(logits, batch.targets), logits, thoughts, next_loss)


def forward_reference(model: GPT, batch: Batch) -> Output:
    """The paper's definition: each row alone, K + 1 full passes, no cache. Slow.

    A suffix keeps its pads: they stand behind everything, so no token sees them.
    """
    n_read = batch.n_thoughts if batch.n_read is None else batch.n_read
    logits, states = [], []
    for row, suffix in enumerate(batch.suffix):
        ids = batch.before_thoughts(row)
        x = model.wte(ids)[None]  # (1, T, C)
        hidden, _ = model(x)
        for _ in range(batch.n_thoughts):
            thought = hidden[:, -1:]  # the last hidden state is the next input
            if batch.pause is not None:
                thought = model.wte.weight[batch.pause][None, None]
            x = torch.cat([x, thought], dim=1)
            hidden, _ = model(x)
        states.append(hidden[:, len(ids) - 1 :])  # (1, K + 1, C)
        x = torch.cat([x[:, : len(ids) + n_read], model.wte(suffix)[None]], dim=1)
        hidden, _ = model(x)
        logits.append(model.logits(hidden[:, -len(suffix) :]))  # (1, S, V)
    return outcome(model, batch, torch.cat(states), torch.cat(logits))


class Cache(NamedTuple):
    """Keys and values: of the prompt, which never change, and in the tail of all that follows."""

    prompt: list[KV]  # per layer (G, H, P, D)
    tail: list[KV]  # per layer (B, H, R, D): R slots for all that follows, filled from the left
    length: Tensor  # (B,) int64: tokens of each prompt, without its pads
    n_pads: Tensor  # (B,) int64: first slots of the tail that are pads, left of a question
    n_filled: Tensor  # (1,) int64: filled slots; a tensor: one compiled pass serves every thought


def prefill(model: GPT, prompt: Tensor, length: Tensor) -> tuple[Tensor, list[KV]]:
    """The hidden state (B, 1, C) at each prompt's last token, and the prompt's keys and values.

    Pads stand on the right, so the causal pass needs no mask: no real token sees one.
    """
    hidden, prompt_kv = model(prompt, only=length - 1)
    # Contiguous, or every thought would copy them again.
    return hidden, [KV(k.contiguous(), v.contiguous()) for k, v in prompt_kv]


def open_cache(prompt_kv: list[KV], length: Tensor, n_slots: int, n_pads=None) -> Cache:
    """The cache of prompts and an empty tail of n_slots; length (G,), n_pads (B,)."""
    k = prompt_kv[0].k
    G, H, _, D = k.shape
    if n_pads is None:
        n_pads = torch.zeros_like(length)
    B = len(n_pads)
    length = length.repeat_interleave(B // G)

    def empty() -> Tensor:
        # Later tails have a gradient. If the first had none, torch.compile would need two graphs.
        return k.new_zeros(B, H, n_slots, D, requires_grad=k.requires_grad)

    n_filled = torch.zeros(1, dtype=torch.int64, device=length.device)
    return Cache(prompt_kv, [KV(empty(), empty()) for _ in prompt_kv], length, n_pads, n_filled)


def make_room(cache: Cache, n: int) -> Cache:
    """The cache with n more slots. Thoughts do without them: each copies the whole tail."""
    tail = [KV(F.pad(k, (0, 0, 0, n)), F.pad(v, (0, 0, 0, n))) for k, v in cache.tail]
    return cache._replace(tail=tail)


def feed(model: GPT, x: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
    """Hidden states (B, T, C) of the next T inputs, and the cache with them in it.

    x holds token ids (B, T) or embeddings (B, T, C). A thought is T = 1 input whose input is
    the hidden state before it. Shapes depend on B, T, P and R alone, not on how many thoughts there
    were: so torch.compile makes one graph for every thought.
    """
    P, R, T = cache.prompt[0].k.size(2), cache.tail[0].k.size(2), x.size(1)
    B, device = len(cache.length), cache.length.device
    slots = cache.n_filled + torch.arange(T, device=device)  # (T,)
    positions = (cache.length - cache.n_pads)[:, None] + slots  # (B, T)
    # A pad's position means nothing and may lie outside wpe: clamped, it can be looked up.
    positions = positions.clamp(0, model.config.block_size - 1)
    # An input sees the prompt without its pads, and the tail up to itself: the rest is to come.
    in_prompt = torch.arange(P, device=device) < cache.length[:, None]  # (B, P)
    all_slots = torch.arange(R, device=device)
    in_tail = all_slots <= slots[:, None]  # (T, R)
    in_tail = in_tail & (all_slots >= cache.n_pads[:, None, None])  # (B, T, R)
    in_prompt = in_prompt[:, None].expand(B, T, P)
    visible = torch.cat([in_prompt, in_tail], dim=-1)  # (B, T, P + R)
    layers = zip(cache.prompt, cache.tail, strict=True)
    pasts = [Past(prompt, tail, slots, visible[:, None]) for prompt, tail in layers]
    hidden, tail = model(x, positions, pasts)
    # Not _replace: torch 2.6 cannot compile it, and 2.11 makes an empty tuple of it.
    return hidden, Cache(cache.prompt, tail, cache.length, cache.n_pads, cache.n_filled + T)


def think(model: GPT, hidden: Tensor, cache: Cache, n_thoughts: int, pause=None, feed=feed):
    """Hidden states (B, K + 1, C) at the prompt's end and at each thought, and the Cache.

    hidden (B, 1, C) is the first of them. Thought k is the state before it, fed back.
    """
    states = [hidden]
    for _ in range(n_thoughts):
        # The last hidden state is the next input; or always the same pause, as a comparison.
        x = hidden if pause is None else torch.full_like(cache.length[:, None], pause)
        hidden, cache = feed(model, x, cache)
        states.append(hidden)
    return torch.cat(states, dim=1), cache


def rewind(cache: Cache, n: int) -> Cache:
    """The cache without its last n inputs. What follows is written over them."""
    return Cache(cache.prompt, cache.tail, cache.length, cache.n_pads, cache.n_filled - n)


def forward(model: GPT, batch: Batch, prefill=prefill, feed=feed, n_slots: int = 0) -> Output:
    """The numbers of forward_reference from one prefill, K steps of one token and one of S tokens.

    prefill, feed  the functions above, or the same compiled, see compiling.py
    n_slots        slots for thoughts; 0: as many as there are thoughts
    """
    n_slots = n_slots or batch.n_thoughts
    hidden, prompt_kv = prefill(model, batch.prompt, batch.prompt_len)
    if batch.question is None:
        cache = open_cache(prompt_kv, batch.prompt_len, n_slots)
    else:  # several questions on top of each prompt
        N = batch.question.size(1)
        cache = open_cache(prompt_kv, batch.prompt_len, N + n_slots, N - batch.question_len)
        hidden, cache = feed(model, batch.question, cache)
        hidden = hidden[:, -1:].contiguous()  # in memory like all later ones: one graph for all
    states, cache = think(model, hidden, cache, batch.n_thoughts, batch.pause, feed)
    if batch.n_read is not None:
        cache = rewind(cache, batch.n_thoughts - batch.n_read)
    hidden, _ = feed(model, batch.suffix, make_room(cache, batch.suffix.size(1)))
    return outcome(model, batch, states, model.logits(hidden))


def reason(model: GPT, prompt: Tensor, length: Tensor, n_thoughts: int, change=None, pause=None):
    """Hidden states (B, K + 1, C) at the end of each prompt and at each thought, and the Cache.

    change: thoughts (B, K, C) -> what is fed in their place.
    """
    hidden, prompt_kv = prefill(model, prompt, length)
    before = open_cache(prompt_kv, length, n_slots=n_thoughts)
    states, cache = think(model, hidden, before, n_thoughts, pause)
    if change and n_thoughts and pause is None:
        # A cache is never changed in place: go back to before the thoughts, and feed others.
        after, cache = feed(model, change(states[:, :-1]), before)
        states = torch.cat([hidden, after], dim=1)
    return states, cache


@torch.no_grad()
def generate(
    model: GPT, prompt, length, n_thoughts, eot, eos, max_new_tokens, change=None, pause=None
):
    """Greedy continuations and the thoughts (B, K, C) that were had before them.

    A continuation is a list of ids, without the eos that ends it.

    prompt  (B, P) int64 right-padded; length (B,)
    eot     the id fed after the thoughts; None: the last thought itself predicts the first word
    change  thoughts (B, K, C) -> what is fed in their place
    pause   the id that is read in place of each thought
    """
    states, cache = reason(model, prompt, length, n_thoughts, change, pause)
    thoughts, hidden = states[:, :-1], states[:, -1:]
    cache = make_room(cache, 1 + max_new_tokens)
    if eot is not None:
        hidden, cache = feed(model, torch.full_like(prompt[:, :1], eot), cache)
    tokens = []
    done = torch.zeros(len(prompt), dtype=torch.bool, device=prompt.device)
    while len(tokens) < max_new_tokens:
        token = model.logits(hidden)[:, -1:].argmax(dim=-1)  # (B, 1)
        tokens.append(token)
        done |= token[:, 0] == eos
        if done.all() or len(tokens) == max_new_tokens:
            break
        hidden, cache = feed(model, token, cache)
    rows = torch.cat(tokens, dim=1).tolist() if tokens else [[] for _ in prompt]
    return [row[: row.index(eos)] if eos in row else row for row in rows], thoughts
