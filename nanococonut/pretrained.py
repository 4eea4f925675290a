"""GPT-2's released weights into model.GPT.

The released files keep the weight of a projection as (in, out), transposed to torch's Linear, and may carry the causal
masks as buffers and a `transformer.` before each name. The output head is the token embedding.
"""

import re

from torch import Tensor

from nanococonut.model import GPT, GPTConfig

TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def from_state_dict(state: dict[str, Tensor], n_head: int) -> GPT:
    """A GPT with the weights of a released GPT-2, in their dtype, dropout 0; its sizes are read off the tensors."""
    state = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    state = {n: t for n, t in state.items() if n != "lm_head.weight" and not re.search(r"\.attn\.(masked_)?bias$", n)}
    state = {name: tensor.t() if name.endswith(TRANSPOSED) else tensor for name, tensor in state.items()}
    (vocab_size, n_embd), block_size = state["wte.weight"].shape, len(state["wpe.weight"])
    n_layer = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("h."))
    model = GPT(GPTConfig(vocab_size, block_size, n_layer, n_head, n_embd, dropout=0.0))
    model.to(state["wte.weight"].dtype)
    model.load_state_dict({name: tensor.contiguous() for name, tensor in state.items()})
    return model
