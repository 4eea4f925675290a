"""GPT-2: two attentions that agree, names, sizes, starts."""

import math

import pytest
import torch
import torch.nn.functional as F

from nanococonut.model import GPT, KV, GPTConfig, attend

SIZES = dict(vocab_size=40, block_size=32, n_layer=2, n_head=2, n_embd=16, dropout=0.0)


def random_model() -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(**SIZES, init_std=0.3)).double()


def test_ids_and_their_embeddings_give_the_same():
    model, ids = random_model(), torch.randint(40, (3, 9))
    torch.testing.assert_close(model(ids)[0], model(model.wte(ids))[0])
    changed = ids.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 40
    torch.testing.assert_close(model(changed)[0][:, :5], model(ids)[0][:, :5])
    assert not torch.allclose(model(changed)[0][:, 5:], model(ids)[0][:, 5:])


def test_attention_over_a_cache_is_the_formula():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 7, 8, dtype=torch.float64)
    visible = torch.ones(7, 7, dtype=torch.bool).tril()
    expected = torch.softmax((q @ k.mT / math.sqrt(8)).masked_fill(~visible, -math.inf), dim=-1) @ v
    for n in (0, 3, 7):  # however the keys are cut into prompt and tail
        prompt, tail = KV(k[:, :, :n], v[:, :, :n]), KV(k[:, :, n:], v[:, :, n:])
        torch.testing.assert_close(attend(q, prompt, tail, visible), expected)
    torch.testing.assert_close(F.scaled_dot_product_attention(q, k, v, is_causal=True), expected)


def test_queries_that_share_a_prompt_see_what_copies_of_it_would_show_them():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 6, 4, 3, 8, dtype=torch.float64)
    prompt = KV(*torch.randn(2, 2, 4, 5, 8, dtype=torch.float64))  # two prompts, three rows each
    visible = torch.ones(3, 8, dtype=torch.bool).tril(5)
    copies = KV(*(x.repeat_interleave(3, dim=0) for x in prompt))
    torch.testing.assert_close(
        attend(q, prompt, KV(k, v), visible), attend(q, copies, KV(k, v), visible)
    )


def test_a_written_tail_is_a_copy():
    kv = KV(torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 4, 2))
    new = kv.write(torch.tensor([1, 2]), torch.ones(1, 1, 2, 2), torch.full((1, 1, 2, 2), 2.0))
    assert new.k[0, 0, :, 0].tolist() == [0, 1, 1, 0] and new.v[0, 0, :, 0].tolist() == [0, 2, 2, 0]
    assert not kv.k.any() and not kv.v.any()


def test_a_reader_gets_what_all_would_have_got():
    model, ends = random_model(), torch.tensor([8, 2, 0])
    ids = torch.randint(40, (3, 9))
    every, kvs = model(ids)
    one, same = model(ids, only=ends)
    torch.testing.assert_close(one[:, 0], every[torch.arange(3), ends])
    for a, b in zip(kvs, same, strict=True):
        torch.testing.assert_close(a.k, b.k)
        torch.testing.assert_close(a.v, b.v)


def test_names_and_number_of_parameters_are_gpt2s():
    with torch.device("meta"):
        model = GPT(GPTConfig())
    assert sum(p.numel() for p in model.parameters()) == 124_439_808
    names = {n for n, _ in model.named_parameters()}
    assert {
        "wte.weight",
        "wpe.weight",
        "h.0.attn.c_attn.weight",
        "h.11.mlp.c_proj.bias",
        "ln_f.weight",
    } <= names


def test_gpt2s_start():
    torch.manual_seed(0)
    model = GPT(GPTConfig(**{**SIZES, "n_embd": 128}))
    assert model.wte.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.h[0].mlp.c_proj.weight.std().item() == pytest.approx(0.02 / 2, rel=0.05)
    assert not model.h[0].attn.c_attn.bias.any()


def test_dropout_acts_in_training_alone():
    torch.manual_seed(0)
    model = GPT(GPTConfig(**{**SIZES, "dropout": 0.5}))
    x = torch.randn(2, 5, 16)
    assert not torch.equal(model(x)[0], model(x)[0])
    model.eval()
    assert torch.equal(model(x)[0], model(x)[0])


def test_the_lookup_start():
    torch.manual_seed(0)
    model = GPT(GPTConfig(**{**SIZES, "n_embd": 128, "init": "lookup", "init_std": 0.08}))
    for i, block in enumerate(model.h):
        q, k, v = block.attn.c_attn.weight.split(128)
        assert torch.equal(q, k) == (i > 0)
        assert torch.equal(block.attn.c_proj.weight, 0.5 * v.t())
    hidden, _ = model(torch.arange(9)[None])
    assert hidden.norm(dim=-1).mean().item() == pytest.approx(
        model.wte.weight.norm(dim=-1).mean().item(), rel=0.1
    )


@pytest.mark.parametrize(("n_head", "n_embd"), [(1, 128), (1, 101), (2, 128), (4, 128)])
@torch.no_grad()
def test_with_the_lookup_start_one_head_reads_most_of_the_token_before(n_head, n_embd):
    torch.manual_seed(0)
    sizes = dict(vocab_size=40, block_size=40, n_layer=2, n_head=n_head, n_embd=n_embd)
    model = GPT(GPTConfig(**sizes, dropout=0.0, init="lookup", init_std=0.08))
    x = model.wte(torch.randperm(40)) + model.wpe.weight
    for i, block in enumerate(model.h):
        q, k, _ = block.attn.heads(block.ln_1(x[None]))
        scores = (q @ k.mT)[0] / q.size(-1) ** 0.5  # (H, T, T)
        attention = scores.masked_fill(torch.ones(40, 40).triu(1).bool(), -torch.inf).softmax(-1)
        for head, its in enumerate(attention):
            share = [its.diagonal(-n).mean().item() for n in range(39)]  # n positions back
            expected = 1 if (i, head) == (0, 0) else 0
            assert max(range(39), key=share.__getitem__) == expected, (i, head)
