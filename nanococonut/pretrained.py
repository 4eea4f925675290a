"""Weights of other code bases: GPT-2 as released, the paper's code, nanoGPT, and safetensors.

Names differ in prefixes, and GPT-2's released files store projections as (in, out).

This is no command: give such a file to `python train.py gpt2 --init_from=FILE`, to sample.py or to
nanococonut.evaluate.
"""

import json
import re
import zipfile
from dataclasses import asdict
from pathlib import Path

import torch

from nanococonut import tokenizer
from nanococonut.config import PRESETS, TrainConfig
from nanococonut.files import fetch
from nanococonut.model import GPT, GPTConfig

ADDRESS = "https://huggingface.co/openai-community/gpt2/resolve/main/pytorch_model.bin"
SHA256 = "7c5d3f4b8b76583b422fcb9189ad6c89d5d97a094541ce8932dce3ecabde1421"
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
COCONUT = "base_causallm."  # before each name in a checkpoint of the paper's code [ref coconut.py]
PREFIXES = re.compile(rf"^(_orig_mod\.|module\.|transformer\.|{re.escape(COCONUT)})+")
# The head, masks, a copy.
NOT_NEEDED = re.compile(r"^lm_head\.weight$|\.attn\.(masked_)?bias$|^embedding\.weight$")
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def released() -> Path:
    """The file of GPT-2's released weights, fetched on first use. Raises UserError."""
    path = Path("data/pretrained/gpt2.bin")
    return path if path.exists() else fetch(ADDRESS, path, "init_from", SHA256)


def read(path: Path) -> dict:
    """What a file of torch.save or in the safetensors format holds. Raises many types.

    No code from the file is run.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if zipfile.is_zipfile(path):  # all but very old files
        # torch.load does not look at their checksums.
        with zipfile.ZipFile(path) as file:
            assert not file.testzip(), "it is damaged: wrong checksum"
    return torch.load(path, map_location="cpu", weights_only=True)


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file that holds a length, as much JSON, and then the numbers."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    tensors = {}
    for name, entry in json.loads(content[8:start]).items():
        if name == "__metadata__" or entry["dtype"] not in DTYPES:  # the masks have other types
            continue
        begin, end = entry["data_offsets"]
        numbers = bytearray(content[start + begin : start + end])
        flat = torch.frombuffer(numbers, dtype=DTYPES[entry["dtype"]])
        tensors[name] = flat.view(entry["shape"])
    return tensors


def from_state_dict(state: dict, n_head: int = 0) -> GPT:
    """A GPT with the weights of a GPT-2, in their dtype, without dropout.

    Tensor shapes give its sizes. Where no biases are, as in nanoGPT, they are 0.
    n_head  0: nanoGPT's, else heads of 64 channels, as in GPT-2
    """
    named = {PREFIXES.sub("", name): tensor for name, tensor in state.get("model", state).items()}
    weights = {name: tensor for name, tensor in named.items() if not NOT_NEEDED.search(name)}
    vocab_size, n_embd = weights["wte.weight"].shape
    block_size = len(weights["wpe.weight"])
    n_layer = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("h."))
    if len(weights["h.0.attn.c_attn.weight"]) == n_embd:  # (in, out)
        for name in weights:
            if name.endswith(TRANSPOSED):
                weights[name] = weights[name].t()
    n_head = n_head or state.get("model_args", {}).get("n_head") or n_embd // 64
    model = GPT(GPTConfig(vocab_size, block_size, n_layer, n_head, n_embd, dropout=0.0))
    if not any(name.endswith("bias") for name in weights):
        for name, p in model.state_dict().items():
            if name.endswith("bias"):
                weights[name] = torch.zeros_like(p)
    model.to(weights["wte.weight"].dtype).load_state_dict(weights)
    return model


def as_run(state: dict) -> dict:
    """Weights of others as a checkpoint of ours.

    It has GPT-2's tokens, and the method and the last stage of preset gpt2.
    """
    model = from_state_dict(state).float()
    wte = with_new_tokens(model.wte.weight.detach())
    method = "coconut" if any(COCONUT in name for name in state) else "cot"
    c = TrainConfig(**PRESETS["gpt2"], preset="gpt2", method=method)
    return {
        "model": model.state_dict() | {"wte.weight": wte},
        "model_config": asdict(model.config) | {"vocab_size": len(wte)},
        "config": asdict(c) | {"stage_steps": c.schedule},
        "data": {
            "task": c.task,
            "tokenizer": "gpt2",
            "vocabulary": [],
            "sha256": {},
            "max_new_tokens": 128,
        },
        "stage": len(c.schedule) - 1,
    }


def with_new_tokens(wte: torch.Tensor) -> torch.Tensor:
    """The embeddings (V, C) of GPT-2's tokens and ours; those of ours are added if they lack.

    GPT-2's own vocabulary may be padded. New tokens start as "<<" [ref run.py].
    """
    encoding = tokenizer.gpt2()
    if len(wte) == encoding.n_vocab:
        return wte
    n_new = len(tokenizer.SPECIAL) - 1  # all but <eos>, which GPT-2 has
    n_known = encoding.n_vocab - n_new
    assert len(wte) >= n_known, "its vocabulary is smaller than GPT-2's"
    first = wte[encoding.encode_single_token(b"<<")]
    return torch.cat([wte[:n_known], first.expand(n_new, -1)])


if __name__ == "__main__":
    print(__doc__)
