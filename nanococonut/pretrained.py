"""Weights of other code bases: GPT-2 as released, checkpoints of the paper's code and of nanoGPT, and safetensors.

Names differ in prefixes, and GPT-2's released files store projections as (in, out). This is no command: give such a
file to `python train.py gpt2 --init_from=FILE`, to sample.py or to nanococonut.evaluate.
"""

import json
import re
import zipfile
from dataclasses import asdict
from pathlib import Path

import torch

from nanococonut import tokenizer
from nanococonut.data import fetch
from nanococonut.model import GPT, GPTConfig
from nanococonut.settings import PRESETS, TrainConfig

ADDRESS = "https://huggingface.co/openai-community/gpt2/resolve/main/pytorch_model.bin"
SHA256 = "7c5d3f4b8b76583b422fcb9189ad6c89d5d97a094541ce8932dce3ecabde1421"
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
COCONUT = "base_causallm."  # before each name in a checkpoint of the paper's code [ref coconut.py]
PREFIXES = re.compile(rf"^(_orig_mod\.|module\.|transformer\.|{re.escape(COCONUT)})+")
NOT_NEEDED = re.compile(r"^lm_head\.weight$|\.attn\.(masked_)?bias$|^embedding\.weight$")  # the head, masks, a copy
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def released() -> Path:
    """The file of GPT-2's released weights, fetched on first use. Raises UserError."""
    path = Path("data/pretrained/gpt2.bin")
    return path if path.exists() else fetch(ADDRESS, path, "init_from", SHA256)


def read(path: Path) -> dict:
    """What a file of torch.save or in the safetensors format holds; no code from it is run. Raises many types."""
    if path.suffix != ".safetensors":
        if zipfile.is_zipfile(path):  # all but very old files; torch.load does not look at their checksums
            with zipfile.ZipFile(path) as file:
                assert not file.testzip(), "it is damaged: wrong checksum"
        return torch.load(path, map_location="cpu", weights_only=True)
    content, found = path.read_bytes(), {}
    start = 8 + int.from_bytes(content[:8], "little")  # a length, as much JSON, and then the numbers
    for name, about in json.loads(content[8:start]).items():
        if name != "__metadata__" and about["dtype"] in DTYPES:  # the masks have other types
            begin, end = about["data_offsets"]
            numbers = bytearray(content[start + begin : start + end])
            found[name] = torch.frombuffer(numbers, dtype=DTYPES[about["dtype"]]).view(about["shape"])
    return found


def from_state_dict(state: dict, n_head: int = 0) -> GPT:
    """A GPT with the weights of a GPT-2, in their dtype, without dropout. Tensor shapes give its sizes.

    n_head: 0 means nanoGPT's, else heads of 64 channels, as in GPT-2. Where no biases are, as in nanoGPT, they are 0.
    """
    named = {PREFIXES.sub("", name): tensor for name, tensor in state.get("model", state).items()}
    weights = {name: tensor for name, tensor in named.items() if not NOT_NEEDED.search(name)}
    (vocab_size, n_embd), block_size = weights["wte.weight"].shape, len(weights["wpe.weight"])
    n_layer = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("h."))
    if len(weights["h.0.attn.c_attn.weight"]) == n_embd:  # (in, out)
        weights = {name: x.t() if name.endswith(TRANSPOSED) else x for name, x in weights.items()}
    n_head = n_head or state.get("model_args", {}).get("n_head") or n_embd // 64
    model = GPT(GPTConfig(vocab_size, block_size, n_layer, n_head, n_embd, dropout=0.0))
    if not any(name.endswith("bias") for name in weights):
        weights |= {name: torch.zeros_like(p) for name, p in model.state_dict().items() if name.endswith("bias")}
    model.to(weights["wte.weight"].dtype).load_state_dict(weights)
    return model


def as_run(state: dict) -> dict:
    """Weights of others as a checkpoint of ours: tokens of GPT-2, and the method and last stage of preset gpt2."""
    model, encoding = from_state_dict(state).float(), tokenizer.gpt2()
    wte, n_new = model.wte.weight.detach(), len(tokenizer.SPECIAL) - 1  # all but <eos>, which GPT-2 has
    if len(wte) != encoding.n_vocab:  # GPT-2's own vocabulary, perhaps padded: new tokens start as "<<" [ref run.py]
        known = wte[: encoding.n_vocab - n_new]
        assert len(known) == encoding.n_vocab - n_new, "its vocabulary is smaller than GPT-2's"
        wte = torch.cat([known, wte[encoding.encode_single_token(b"<<")].expand(n_new, -1)])
    method = "coconut" if any(COCONUT in name for name in state) else "cot"
    c = TrainConfig(**PRESETS["gpt2"], preset="gpt2", method=method)
    data = dict(task=c.task, tokenizer="gpt2", vocabulary=[], sha256={}, max_new_tokens=128)
    about = dict(config=asdict(c) | {"stage_steps": c.schedule}, data=data, stage=len(c.schedule) - 1)
    about["model_config"] = asdict(model.config) | {"vocab_size": len(wte)}
    return about | {"model": model.state_dict() | {"wte.weight": wte}}


if __name__ == "__main__":
    print(__doc__)
