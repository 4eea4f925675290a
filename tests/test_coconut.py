"""The latent loop: the paper's numbers, one definition against another, and what must not leak."""

import gc

import numpy as np
import pytest
import torch

from nanococonut import coconut, compiling, pretrained
from nanococonut.batching import collate, pad, some_prompts
from nanococonut.coconut import Batch
from nanococonut.model import GPT, KV, GPTConfig

FORWARDS = {"fast": coconut.forward, "reference": coconut.forward_reference}


@pytest.mark.parametrize("name", FORWARDS)
def test_numbers_of_the_papers_code(name, reference, meta, released, released_batch):
    out = FORWARDS[name](released, released_batch)
    assert abs(out.loss.item() - float(reference["loss"])) < 1e-6
    for i in range(meta["rows"]):
        expected = reference[f"logits.{i}"]
        np.testing.assert_allclose(
            out.logits[i, : len(expected)].detach().numpy(), expected, atol=1e-6, rtol=0
        )
    out.loss.backward()
    n_checked, params = 0, dict(released.named_parameters())
    for key, expected in reference.items():
        if key.startswith("grad."):
            n = key.removeprefix("grad.transformer.").removeprefix("grad.")
            grad = params[n].grad
            if n.endswith(pretrained.TRANSPOSED):
                grad = grad.t()
            actual = grad.numpy() if expected.ndim else grad.norm().item()
            np.testing.assert_allclose(actual, expected, atol=1e-6, rtol=1e-6)
            n_checked += 1
    assert n_checked == len(list(released.parameters()))


def test_greedy_tokens_of_the_papers_code(reference, meta, released, released_batch):
    b = released_batch
    rows, _ = coconut.generate(
        released, b.prompt, b.prompt_len, b.n_thoughts, meta["eot"], meta["eos"], 12
    )
    assert rows == [reference[f"greedy.{i}"].tolist() for i in range(meta["rows"])]


SIZES = dict(
    vocab_size=40, block_size=128, n_layer=3, n_head=2, n_embd=16, dropout=0.0, init_std=0.3
)


def small_model(seed=0) -> GPT:
    torch.manual_seed(seed)
    return GPT(GPTConfig(**SIZES)).double()


def random_batch(n_thoughts=2, lengths=(7, 3, 5), suffix=(4, 6, 1), seed=0) -> Batch:
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(0, 38, n).tolist() for n in lengths]
    suffixes = [rng.integers(0, 38, n + 1).tolist() for n in suffix]
    return Batch(
        pad(prompts, 39),
        torch.tensor(lengths),
        pad([s[:-1] for s in suffixes], 39),
        pad([s[1:] for s in suffixes], -100),
        n_thoughts,
    )


@pytest.mark.parametrize("n_thoughts", range(7))
def test_forward_is_forward_reference(n_thoughts):
    batch, grads, outs = random_batch(n_thoughts), [], []
    for forward in FORWARDS.values():
        model = small_model()
        out = forward(model, batch)
        out.loss.backward()
        outs.append(out)
        grads.append({name: p.grad for name, p in model.named_parameters()})
    fast, slow = outs
    assert abs(fast.loss - slow.loss) < 1e-12
    torch.testing.assert_close(fast.thoughts, slow.thoughts)
    real = batch.targets != -100
    torch.testing.assert_close(fast.logits[real], slow.logits[real])
    assert fast.thoughts.shape == (3, n_thoughts, 16)
    for name in grads[0]:
        torch.testing.assert_close(
            grads[0][name], grads[1][name], msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize("forward", FORWARDS.values())
def test_a_changed_token_changes_nothing_before_it(forward):
    model, batch = small_model(), random_batch()
    before = forward(model, batch).logits.detach()
    suffix = batch.suffix.clone()
    suffix[0, 2] = (suffix[0, 2] + 1) % 38
    after = forward(model, batch._replace(suffix=suffix)).logits.detach()
    torch.testing.assert_close(after[0, :2], before[0, :2])
    assert not torch.allclose(after[0, 2], before[0, 2])
    torch.testing.assert_close(after[1:], before[1:])
    prompt = batch.prompt.clone()
    prompt[0, 0] = (prompt[0, 0] + 1) % 38
    changed = forward(model, batch._replace(prompt=prompt))
    assert not torch.allclose(changed.thoughts[0, 0], forward(model, batch).thoughts[0, 0])


def test_padding_and_batch_mates_change_nothing():
    model, batch = small_model(), random_batch()
    together = coconut.forward(model, batch)
    for i in range(3):
        length, n = int(batch.prompt_len[i]), int((batch.targets[i] != -100).sum())
        alone = Batch(
            batch.prompt[i : i + 1, :length],
            batch.prompt_len[i : i + 1],
            batch.suffix[i : i + 1, :n],
            batch.targets[i : i + 1, :n],
            2,
        )
        torch.testing.assert_close(coconut.forward(model, alone).logits[0], together.logits[i, :n])
        torch.testing.assert_close(coconut.forward(model, alone).thoughts[0], together.thoughts[i])
    wider = torch.cat([batch.prompt, torch.full((3, 9), 11)], dim=1)
    torch.testing.assert_close(
        coconut.forward(model, batch._replace(prompt=wider)).logits, together.logits
    )
    rows, thoughts = coconut.generate(model, batch.prompt, batch.prompt_len, 2, 38, 39, 8)
    for i in range(3):
        length = batch.prompt_len[i : i + 1]
        prompt = batch.prompt[i : i + 1, : int(length)]
        alone, its_thoughts = coconut.generate(model, prompt, length, 2, 38, 39, 8)
        assert alone == [rows[i]]
        torch.testing.assert_close(its_thoughts[0], thoughts[i])


def test_gradient_reaches_the_prompt_through_the_thoughts():
    model, batch = small_model(), random_batch(n_thoughts=3)
    hidden, prompt_kv = coconut.prefill(model, batch.prompt, batch.prompt_len)
    hidden = hidden.detach().requires_grad_()
    frozen = [KV(k.detach(), v.detach()) for k, v in prompt_kv]
    cache = coconut.open_cache(frozen, batch.prompt_len, n_slots=3)
    _, cache = coconut.think(model, hidden, cache, 3)
    said, _ = coconut.feed(model, batch.suffix, coconut.make_room(cache, batch.suffix.size(1)))
    coconut.cross_entropy(model.logits(said), batch.targets).backward()
    # The first thought is the prompt's last hidden state.
    assert (hidden.grad.abs().amax(dim=(1, 2)) > 1e-6).all()


def test_no_thoughts_and_no_markers_is_a_plain_language_model():
    model = small_model()
    ids = torch.randint(0, 38, (1, 12))
    hidden, _ = model(model.wte(ids), torch.arange(12))
    logits = model.logits(hidden)
    batch = Batch(ids[:, :5], torch.tensor([5]), ids[:, 5:11], ids[:, 6:], 0)
    torch.testing.assert_close(coconut.forward(model, batch).logits, logits[:, 5:11])
    (row,), thoughts = coconut.generate(model, ids[:, :6], torch.tensor([6]), 0, None, 39, 4)
    assert thoughts.shape == (1, 0, 16)
    text = ids[:, :6]
    for token in row:
        hidden, _ = model(model.wte(text), torch.arange(text.size(1)))
        assert token == model.logits(hidden)[0, -1].argmax()
        text = torch.cat([text, torch.tensor([[token]])], dim=1)
    assert len(row) == 4


def test_generate_stops_at_eos_row_by_row_and_eos_may_be_first():
    model, batch = small_model(), random_batch()
    asked = model, batch.prompt, batch.prompt_len
    free, _ = coconut.generate(*asked, 1, 38, eos=-1, max_new_tokens=6)
    assert [len(row) for row in free] == [6, 6, 6]
    eos = free[0][0]
    stopped, _ = coconut.generate(*asked, 1, 38, eos=eos, max_new_tokens=6)
    assert stopped[0] == []
    assert stopped == [row[: row.index(eos)] if eos in row else row for row in free]


def test_the_prompts_cache_is_shared_and_never_copied():
    model, batch = small_model(), random_batch()
    hidden, prompt_kv = coconut.prefill(model, batch.prompt, batch.prompt_len)
    cache = coconut.open_cache(prompt_kv, batch.prompt_len, n_slots=5)
    _, after = coconut.think(model, hidden, cache, 3)
    assert after.prompt is cache.prompt
    assert after.n_filled.tolist() == [3]
    for tail, before in zip(after.tail, cache.tail, strict=True):
        assert not before.k.any(), "the cache of before is as it was: others may go on from there"
        assert tail.k[:, :, :3].all() and not tail.k[:, :, 3:].any()


def test_changed_thoughts_change_what_follows_and_unchanged_ones_nothing():
    model, batch = small_model(), random_batch(n_thoughts=3)

    def written(change):
        return coconut.generate(model, batch.prompt, batch.prompt_len, 3, 1, 39, 12, change)

    plain, thoughts = written(None)
    torch.testing.assert_close(thoughts, coconut.forward(model, batch).thoughts)
    same, its_thoughts = written(lambda thoughts: thoughts)
    assert same == plain
    torch.testing.assert_close(its_thoughts, thoughts)
    other, _ = written(lambda thoughts: -9 * thoughts)
    assert other != plain
    seen = []
    written(lambda thoughts: seen.append(thoughts) or thoughts)
    torch.testing.assert_close(seen[0], thoughts)


def loss_and_gradients(model, batch):
    model.zero_grad()
    out = coconut.forward(model, batch)
    out.loss.backward()
    return out.loss.item(), {name: p.grad.clone() for name, p in model.named_parameters()}


def shared_batch(n_thoughts=3) -> tuple[Batch, Batch]:
    """Two prompts with three questions each, of unequal lengths.

    And the six questions, each behind its own prompt.
    """
    rng = np.random.default_rng(1)
    contexts = [rng.integers(0, 38, n).tolist() for n in (9, 5)]
    questions = [rng.integers(0, 38, n).tolist() for n in (4, 2, 3, 1, 4, 4)]
    suffixes = [rng.integers(0, 38, n + 1).tolist() for n in (3, 1, 4, 2, 2, 5)]
    words = torch.tensor(rng.integers(0, 38, (6, n_thoughts + 1)))
    words[4] = -100  # a question whose thoughts are asked for nothing
    pairs = [(question, suffix) for question, suffix in zip(questions, suffixes, strict=True)]
    own = [([*contexts[i // 3], *question], suffix) for i, (question, suffix) in enumerate(pairs)]
    together, apart = collate(pairs, n_thoughts, 39, contexts), collate(own, n_thoughts, 39)
    more = dict(next_words=words, n_read=n_thoughts // 2)
    return together._replace(**more), apart._replace(**more)


@pytest.mark.parametrize("n_thoughts", [0, 1, 3])
def test_questions_about_one_prompt_are_the_questions_alone(n_thoughts):
    together, apart = shared_batch(n_thoughts)
    assert together.prompt.shape == (2, 9)
    assert together.question.shape == (6, 4) and apart.question is None
    outs, grads = [], []
    ways = [(coconut.forward, together), (coconut.forward_reference, together)]
    for forward, batch in [*ways, (coconut.forward, apart)]:
        model = small_model()
        out = forward(model, batch)
        (out.loss + out.next_loss).backward()
        outs.append(out)
        grads.append([p.grad for p in model.parameters()])
    real = together.targets != -100
    for out, grad in zip(outs[1:], grads[1:], strict=True):
        assert abs(out.loss - outs[0].loss) < 1e-12
        assert abs(out.next_loss - outs[0].next_loss) < 1e-12
        torch.testing.assert_close(out.logits[real], outs[0].logits[real])
        torch.testing.assert_close(out.thoughts, outs[0].thoughts)
        torch.testing.assert_close(grad, grads[0])


@pytest.mark.parametrize("pause", [None, 37])
@pytest.mark.parametrize("n_read", range(4))
def test_one_pass_over_all_stages_equals_the_stages_one_by_one(n_read, pause):
    """The next word after 0, 1, 2, 3 thoughts and a rest behind some of them.

    Each from a pass of its own.
    """
    words = torch.tensor([[5, 6, 7, 8], [9, -100, 3, 4], [-100, 1, 2, -100]])
    batch = random_batch(3)._replace(next_words=words, n_read=n_read, pause=pause)
    model = small_model()
    out = coconut.forward(model, batch)
    (out.loss + out.next_loss).backward()
    together = [p.grad for p in model.parameters()]

    model, by_stage = small_model(), []
    for k in range(4):
        # Stage k alone: k thoughts, then one word to predict, for which the last thought itself
        # is asked.
        alone = random_batch(k)._replace(next_words=torch.full((3, k + 1), -100), pause=pause)
        alone.next_words[:, k] = words[:, k]
        loss = coconut.forward_reference(model, alone).next_loss
        by_stage.append(loss * (words[:, k] != -100).sum())
    next_loss = sum(by_stage) / (words != -100).sum()
    rest = coconut.forward_reference(model, random_batch(n_read)._replace(pause=pause)).loss
    (rest + next_loss).backward()
    assert abs(out.loss - rest) < 1e-12 and abs(out.next_loss - next_loss) < 1e-12
    assert next_loss > 0.1
    torch.testing.assert_close(together, [p.grad for p in model.parameters()])


@pytest.mark.parametrize("n_read", [0, 2, 3])
@pytest.mark.parametrize("pause", [None, 37])
def test_the_pass_over_all_stages_equals_its_definition(n_read, pause):
    words = torch.tensor([[5, 6, 7, 8], [9, -100, 3, 4], [-100, 1, 2, -100]])
    batch = random_batch(3)._replace(next_words=words, n_read=n_read, pause=pause)
    outs, grads = [], []
    for forward in FORWARDS.values():
        model = small_model()
        out = forward(model, batch)
        (out.loss + out.next_loss).backward()
        outs.append(out)
        grads.append([p.grad for p in model.parameters()])
    assert abs(outs[0].loss - outs[1].loss) < 1e-12
    assert abs(outs[0].next_loss - outs[1].next_loss) < 1e-12
    torch.testing.assert_close(*grads)
    assert outs[0].thoughts.shape == (3, 0 if pause else 3, 16)


def test_in_place_the_last_thought_says_the_first_word():
    model, batch = small_model(), random_batch(2)
    asked = model, batch.prompt, batch.prompt_len
    ((first, *_), *_), thoughts = coconut.generate(*asked, 2, None, 39, 4)
    hidden, prompt_kv = coconut.prefill(model, batch.prompt, batch.prompt_len)
    states, _ = coconut.think(model, hidden, coconut.open_cache(prompt_kv, batch.prompt_len, 2), 2)
    assert states.shape == (3, 3, 16) and first == model.logits(states[0, 2]).argmax()
    torch.testing.assert_close(states[:, :2], coconut.forward(model, batch).thoughts)
    torch.testing.assert_close(states[:, :2], thoughts)
    pauses, _ = coconut.generate(*asked, 2, None, 39, 4, pause=37)
    length = int(batch.prompt_len[0])
    read = torch.cat([batch.prompt[:1, :length], torch.tensor([[37, 37]])], dim=1)
    tokens, _ = coconut.generate(model, read, torch.tensor([length + 2]), 0, None, 39, 4)
    assert pauses[:1] == tokens, "as ordinary tokens"


def test_a_part_of_a_batch_is_some_prompts_and_their_questions():
    together, _ = shared_batch(2)
    second = some_prompts(together, slice(1, 2))
    assert torch.equal(second.prompt, together.prompt[1:]) and second.n_thoughts == 2
    assert torch.equal(second.question, together.question[3:])
    assert torch.equal(second.next_words, together.next_words[3:])
    halves = [some_prompts(together, slice(rank, None, 2)) for rank in (0, 1)]  # two processes
    assert torch.equal(halves[0].suffix, together.suffix[:3])
    assert torch.equal(halves[1].suffix, together.suffix[3:])
    counts = zip(*(half.n_supervised() for half in halves), strict=True)
    assert together.n_supervised() == tuple(map(sum, counts))
    five = "5 of 6 questions have next words after 0, 1 and 2 thoughts"
    assert together.n_supervised() == (17, 15), five


CASES = [  # thoughts, prompt lengths, suffix lengths; all prompts fit into one bucket of 64
    (2, (7, 3, 5), (4, 6, 1)),
    (0, (9, 2, 31), (3, 3, 2)),
    (1, (4, 4, 4), (8, 1, 1)),
    (3, (5, 1, 2), (2, 2, 2)),
    (4, (64, 3, 1), (1, 5, 7)),
    (5, (2, 2, 9), (6, 6, 6)),
    (6, (11, 8, 5), (2, 4, 8)),
]


def compiled_equals_reference(phases, n_thoughts, lengths, suffix):
    compiled, definition = small_model(), small_model()
    batch = random_batch(n_thoughts, lengths, suffix)
    out = compiling.forward(compiled, batch, phases)
    expected = coconut.forward_reference(definition, batch)
    out.loss.backward()
    expected.loss.backward()
    assert out.loss.item() == pytest.approx(expected.loss.item(), abs=1e-9)
    assert out.logits.shape == expected.logits.shape
    real = batch.targets != -100
    torch.testing.assert_close(out.logits[real], expected.logits[real])
    torch.testing.assert_close(out.thoughts, expected.thoughts)
    for (name, p), other in zip(compiled.named_parameters(), definition.parameters(), strict=True):
        torch.testing.assert_close(
            p.grad, other.grad, atol=1e-9, rtol=1e-7, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.fixture
def graphs():
    """How many graphs have been compiled since the test began."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    return lambda: torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.filterwarnings("ignore")  # of torch.compile's own parts
def test_one_graph_serves_every_thought_of_every_number_of_thoughts(graphs):
    # The whole graph, forward and backward, without machine code.
    phases = compiling.compiled(backend="aot_eager")
    compiled_equals_reference(phases, *CASES[0])
    assert graphs() == 3, "prefill, a thought, the suffix"
    with torch.compiler.set_stance("fail_on_recompile"):
        for case in CASES[1:]:
            compiled_equals_reference(phases, *case)
    compiled_equals_reference(phases, 2, (70, 3, 5), (4, 6, 1))
    assert graphs() == 6, "another prompt bucket has three of its own"
    compiled_equals_reference(phases, 2, (7, 3, 5), (12, 6, 1))
    assert graphs() == 7, "another suffix shape has one"
    compiled_equals_reference(phases, 5, (7, 3, 5), (12, 6, 1))
    assert graphs() == 7
    together, _ = shared_batch()
    model = small_model()
    out = compiling.forward(model, together, phases)
    expected = coconut.forward_reference(model, together)
    assert abs(out.loss - expected.loss) < 1e-9
    assert abs(out.next_loss - expected.next_loss) < 1e-9
    shared = "prompts that are shared: the facts, the questions, a thought, the suffix"
    assert graphs() == 11, shared


@pytest.mark.filterwarnings("ignore")  # of torch.compile's own parts
def test_the_compiled_loop_equals_the_definition(graphs):
    phases = compiling.compiled()
    compiled_equals_reference(phases, *CASES[0])
    compiled_equals_reference(phases, *CASES[6])
    assert graphs() == 3


def test_a_training_step_leaves_nothing_in_memory():
    model, batch, alive = small_model(), random_batch(n_thoughts=3), []
    for _ in range(4):
        loss_and_gradients(model, batch)
        gc.collect()
        alive.append(sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects()))
    assert alive == alive[:1] * 4
