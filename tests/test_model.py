"""GPT-2: two attentions that agree, names, sizes, starts."""

import math

import pytest
import torch

from nanococonut.model import GPT, GPTConfig, Segment, attend, hide_after

SIZES = dict(vocab_size=40, block_size=32, n_layer=2, n_head=2, n_embd=16, dropout=0.0)


def test_flash_and_written_out_attention_agree_and_the_map_is_causal():
    torch.manual_seed(0)
    model = GPT(GPTConfig(**SIZES, init_std=0.3)).double()
    x, positions, maps = torch.randn(3, 9, 16, dtype=torch.float64), torch.arange(9), []
    flash, _ = model(x, positions)
    written_out, _ = model(x, positions, maps=maps)
    torch.testing.assert_close(flash, written_out)
    assert [m.shape for m in maps] == [(3, 2, 9, 9)] * 2
    for m in maps:
        torch.testing.assert_close(m.sum(-1), torch.ones(3, 2, 9, dtype=torch.float64))
        assert (m.triu(1) == 0).all()


def test_attention_is_the_formula_and_segments_join():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 7, 8, dtype=torch.float64)
    bias = torch.full((7, 7), -torch.inf).triu(1)
    expected = torch.softmax(q @ k.mT / math.sqrt(8) + bias, -1) @ v
    whole, att = attend(q, [Segment(k, v, bias)])
    torch.testing.assert_close(whole, expected)
    parts = [Segment(k[:, :, :3], v[:, :, :3], bias[:, :3]), Segment(k[:, :, 3:], v[:, :, 3:], bias[:, 3:])]
    joined, joined_att = attend(q, parts)
    torch.testing.assert_close(joined, expected)
    torch.testing.assert_close(joined_att, att)


def test_a_reader_gets_what_all_would_have_got():
    torch.manual_seed(0)
    model, ends = GPT(GPTConfig(**SIZES, init_std=0.3)).double(), torch.tensor([8, 2, 0])
    x = torch.randn(3, 9, 16, dtype=torch.float64)
    every, segments = model(x, torch.arange(9))
    one, same = model(x, torch.arange(9), reader=ends)
    torch.testing.assert_close(one[:, 0], every[torch.arange(3), ends])
    for a, b in zip(segments, same, strict=True):
        torch.testing.assert_close(a.k, b.k)
        torch.testing.assert_close(a.v, b.v)
    assert hide_after(ends, 4).squeeze().tolist() == [
        [0, 0, 0, 0],
        [0, 0, 0, -math.inf],
        [0, -math.inf, -math.inf, -math.inf],
    ]


def test_names_and_number_of_parameters_are_gpt2s():
    with torch.device("meta"):
        model = GPT(GPTConfig())
    assert sum(p.numel() for p in model.parameters()) == 124_439_808
    names = {n for n, _ in model.named_parameters()}
    assert {"wte.weight", "wpe.weight", "h.0.attn.c_attn.weight", "h.11.mlp.c_proj.bias", "ln_f.weight"} <= names


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
    assert not torch.equal(model(x, torch.arange(5))[0], model(x, torch.arange(5))[0])
    model.eval()
    assert torch.equal(model(x, torch.arange(5))[0], model(x, torch.arange(5))[0])


def test_the_lookup_start():
    torch.manual_seed(0)
    model = GPT(GPTConfig(**{**SIZES, "n_embd": 128, "init": "lookup", "init_std": 0.08}))
    for block in model.h:
        q, k, v = block.attn.c_attn.weight.split(128)
        assert torch.equal(q, k)
        assert torch.equal(block.attn.c_proj.weight, 0.5 * v.t())
    hidden, _ = model(model.wte(torch.arange(9))[None], torch.arange(9))
    assert hidden.norm(dim=-1).mean().item() == pytest.approx(model.wte.weight.norm(dim=-1).mean().item(), rel=0.1)
    near, far = model.wpe.weight[10] @ model.wpe.weight[11], model.wpe.weight[10] @ model.wpe.weight[20]
    assert near > 3 * far.abs(), "neighbouring positions look alike, distant ones do not"
