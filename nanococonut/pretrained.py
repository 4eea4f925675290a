"""Pretrained weights to start from: GPT-2's released ones, or a file in the same format."""

import re
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from nanococonut.config import UserError
from nanococonut.data import Dataset, fetch
from nanococonut.model import GPT, GPTConfig

ADDRESS = "https://huggingface.co/openai-community/gpt2/resolve/main/pytorch_model.bin"
SHA256 = "7c5d3f4b8b76583b422fcb9189ad6c89d5d97a094541ce8932dce3ecabde1421"
# A released file stores these as (in, out). It may have masks and a prefix. Its output head is the token embedding.
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def from_state_dict(state: dict[str, Tensor], n_head: int) -> GPT:
    """A GPT with the weights of a released GPT-2, in their dtype, without dropout. Tensor shapes give its sizes."""
    weights = {}
    for name, tensor in state.items():
        if not re.search(r"^lm_head\.weight$|\.attn\.(masked_)?bias$", name):
            weights[name.removeprefix("transformer.")] = tensor.t() if name.endswith(TRANSPOSED) else tensor
    (vocab_size, n_embd), block_size = weights["wte.weight"].shape, len(weights["wpe.weight"])
    n_layer = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("h."))
    model = GPT(GPTConfig(vocab_size, block_size, n_layer, n_head, n_embd, dropout=0.0))
    model.to(weights["wte.weight"].dtype).load_state_dict(weights)
    return model


def start(name: str, n_head: int, dropout: float, dataset: Dataset) -> GPT:
    """A GPT with the weights that --init_from names, the dataset's vocabulary, and n_head heads. Raises UserError."""
    if dataset.meta["tokenizer"] != "gpt2":
        raise UserError(f"--init_from={name} needs data in GPT-2's tokens; prepare it with --tokenizer=gpt2")
    path = Path("data/pretrained/gpt2.bin" if name == "gpt2" else name)
    fresh = name == "gpt2" and not path.exists()
    if fresh:
        fetch(ADDRESS, path, "init_from", SHA256)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)  # runs no code from the file
    except Exception as error:  # torch.load raises many types for a truncated, foreign or malicious file
        if fresh:
            path.unlink()
        wanted = f"{type(error).__name__}); expected gpt2, a run or a file"
        raise UserError(f"--init_from: {path} is not a weight file ({wanted}") from None
    try:
        source = from_state_dict(state, 12 if name == "gpt2" else n_head).float()
    except (KeyError, ValueError, RuntimeError, AttributeError, AssertionError, TypeError) as error:
        raise UserError(f"{name} does not hold GPT-2's weights ({type(error).__name__}: {str(error)[:80]})") from None
    n_vocab, wte = dataset.encoding.n_vocab, source.wte.weight.detach()
    # New tokens start from the embedding of "<<" [ref run.py].
    new = wte[dataset.encoding.encode_single_token(b"<<")].expand(n_vocab - len(wte), -1)
    model = GPT(replace(source.config, vocab_size=n_vocab, dropout=dropout))
    model.load_state_dict(source.state_dict() | {"wte.weight": torch.cat([wte, new])})
    return model
