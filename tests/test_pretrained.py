"""From a weight file at an address, which is on this machine, to a trained run."""

import hashlib
import http.server
import io
import json
import re
import textwrap
import threading
from pathlib import Path

import pytest
import tiktoken
import torch

import prepare
import sample
import train
from nanococonut import cli, curriculum, data, evaluate, pretrained, runs, tokenizer
from nanococonut.cli import UserError
from nanococonut.config import CHOICES, PRESETS, TrainConfig
from nanococonut.model import GPT, GPTConfig

FAQ = Path(__file__).parents[1] / "docs/faq.md"
N_VOCAB = 259  # bytes, "<<", " a", and the end of text
N_HEAD = 2  # of 64 channels each


def made_up_encoding():
    """What tokenizer.gpt2 returns, with a vocabulary of bytes and two pieces more."""
    ranks = {bytes([i]): i for i in range(256)} | {b"<<": 256, b" a": 257}
    special = {"<eos>": 258, "<bot>": 259, "<eot>": 260, "<pause>": 261}
    return tiktoken.Encoding(
        "gpt2", pat_str=r"<<| a|[\s\S]", mergeable_ranks=ranks, special_tokens=special
    )


@pytest.fixture
def released():
    """A tiny GPT-2 as the released files hold it, and the model itself.

    They have (in, out) projections, masks, and a prefix.
    """
    torch.manual_seed(0)
    model = GPT(
        GPTConfig(
            N_VOCAB, block_size=1024, n_layer=2, n_head=N_HEAD, n_embd=64 * N_HEAD, dropout=0.0
        )
    )
    state = {}
    for name, tensor in model.state_dict().items():
        if name.endswith(pretrained.TRANSPOSED):
            tensor = tensor.t().contiguous()
        state[f"transformer.{name}"] = tensor
    state["transformer.h.0.attn.bias"] = torch.ones(1, 1, 8, 8).tril()
    state["lm_head.weight"] = state["transformer.wte.weight"]
    file = io.BytesIO()
    torch.save(state, file)
    return model, file.getvalue()


@pytest.fixture
def task(workspace, monkeypatch):
    monkeypatch.setattr(tokenizer, "gpt2", made_up_encoding)
    words = ["--train=30", "--valid=5", "--test=5", "--tokenizer=gpt2"]
    words += ["--n_nodes=8", "--min_hops=2", "--max_hops=3"]
    prepare.main(cli.parse(prepare.PrepareConfig, words))
    return workspace


@pytest.fixture
def served(released, monkeypatch):
    """serve(content, claimed length, status).

    --init_from=gpt2 then finds this content on a server of our own.
    """
    servers = []

    def serve(content, length=None, status=200, sha256=None):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status)
                self.send_header("Content-Length", str(length or len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        address = f"http://127.0.0.1:{server.server_port}/gpt2.bin"
        monkeypatch.setattr(pretrained, "ADDRESS", address)
        monkeypatch.setattr(pretrained, "SHA256", sha256)

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def trained(*words):
    train.main(cli.parse(TrainConfig, ["smoke", *words], PRESETS, CHOICES))


def test_downloaded_once_resized_trained_and_asked(task, served, released, capsys):
    model, content = released
    served(content, sha256=hashlib.sha256(content).hexdigest())
    trained("--init_from=gpt2", "--name=run", "--stage_steps=1", "--lr=0")
    state = torch.load("runs/run/ckpt.pt", weights_only=True)
    assert state["model_config"]["n_head"] == N_HEAD and state["model_config"]["block_size"] == 1024
    for name, weight in model.state_dict().items():  # nothing was learned at --lr=0
        assert torch.equal(state["model"][name][: len(weight)], weight), name
    new = state["model"]["wte.weight"][N_VOCAB:]
    as_mark = [torch.equal(row, model.wte.weight[256]) for row in new]
    assert as_mark == [True] * 3, "they start as <<"
    served(b"gone", status=404)
    trained("--init_from=gpt2", "--name=again", "--stage_steps=1")  # from data/pretrained
    evaluate.main(evaluate.EvaluateConfig("again"))
    sample.main(sample.SampleConfig("again"))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (dict(status=404), "404"),
        (dict(sha256="0" * 64), "invalid hash value"),
        (dict(length=10**7), "IncompleteRead|cannot fetch"),
        (dict(content=b"<html>", sha256="0" * 64), "invalid hash value"),
    ],
)
def test_a_download_that_fails_leaves_nothing(task, served, released, answer, message):
    served(**({"content": released[1][:2000] if "length" in answer else released[1]} | answer))
    with pytest.raises((UserError, FileNotFoundError), match=message):
        trained("--init_from=gpt2")
    assert not list(Path("data").glob("pretrained/*")) and not Path("runs").exists()


def test_a_file_and_a_run_to_start_from(task, released):
    Path("weights.bin").write_bytes(released[1])
    trained("--init_from=weights.bin", "--name=a", "--stage_steps=1", "--method=cot")
    Path("weights.pt").write_bytes(released[1])  # a name like that of our own checkpoints
    trained("--init_from=weights.pt", "--name=c", "--stage_steps=1", "--method=cot")
    trained("--init_from=a", "--name=b", "--stage_steps=0,0,1", "--lr=0", "--dropout=0.1")
    a, b = (torch.load(f"runs/{name}", weights_only=True) for name in ("a/best.pt", "b/ckpt.pt"))
    assert all(torch.equal(a["model"][name], weight) for name, weight in b["model"].items())
    assert b["model_config"]["dropout"] == 0.1 and b["stage"] == 2


def save_safetensors(state, path):
    """As the safetensors library writes them: a length, JSON, and the numbers."""
    header, content = {"__metadata__": {"format": "pt"}}, b""
    kinds = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    kinds[torch.bool] = "BOOL"
    for name, tensor in state.items():
        numbers = bytes(tensor.contiguous().flatten().view(torch.uint8).tolist())
        offsets = [len(content), len(content) + len(numbers)]
        header[name] = dict(dtype=kinds[tensor.dtype], shape=list(tensor.shape))
        header[name]["data_offsets"] = offsets
        content += numbers
    text = json.dumps(header).encode()
    Path(path).write_bytes(len(text).to_bytes(8, "little") + text + content)


def written_by(author: str, model: GPT, path: str) -> None:
    """The model's weights in a file as an author's code writes it."""
    ours = model.state_dict()
    theirs = {
        name: x.t().contiguous() if name.endswith(pretrained.TRANSPOSED) else x
        for name, x in ours.items()
    }
    if author == "nanogpt":  # (out, in), and in a checkpoint with other things
        state = {f"_orig_mod.transformer.{name}": x for name, x in ours.items()}
        state["_orig_mod.lm_head.weight"] = ours["wte.weight"]
        more = {"model_args": {"n_layer": 2}, "iter_num": 3, "config": {"device": "cuda"}}
        torch.save({"model": state} | more, path)
    elif author == "coconut":  # the paper's code
        state = {f"base_causallm.transformer.{name}": x for name, x in theirs.items()}
        for name in ("base_causallm.lm_head.weight", "embedding.weight"):
            state[name] = ours["wte.weight"]
        state["base_causallm.transformer.h.0.attn.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.bool)
        torch.save(state, path)
    else:  # Hugging Face
        save_safetensors(theirs | {"h.0.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool)}, path)


@pytest.mark.parametrize(
    ("author", "file"),
    [("nanogpt", "ckpt.pt"), ("coconut", "checkpoint_33"), ("safetensors", "model.safetensors")],
)
def test_checkpoints_of_others_are_taken_by_init_from_and_evaluate(task, capsys, author, file):
    torch.manual_seed(1)
    # padded; three tokens more; GPT-2's own
    n_vocab = {"nanogpt": 264, "coconut": 262, "safetensors": N_VOCAB}[author]
    model = GPT(
        GPTConfig(
            n_vocab, block_size=1024, n_layer=2, n_head=N_HEAD, n_embd=64 * N_HEAD, dropout=0.0
        )
    )
    written_by(author, model, file)
    trained(f"--init_from={file}", "--name=run", "--stage_steps=1", "--max_stage=0", "--lr=0")
    for loaded in (runs.Run("run"), runs.Run(file)):
        assert loaded.model.config.n_head == N_HEAD
        for name, weight in model.state_dict().items():
            mine = loaded.model.state_dict()[name]
            if name == "wte.weight" and author != "coconut":
                assert torch.equal(mine[259:], weight[256].expand(3, -1)), "new tokens start as <<"
                mine, weight = mine[:259], weight[:259]
            assert torch.equal(mine, weight), name
    assert loaded.config["method"] == ("coconut" if author == "coconut" else "cot")
    assert loaded.plan.n_thoughts == (6 if author == "coconut" else 0)
    Path("data/prosqa").rename("data/prosqa-gpt2")  # the data that preset gpt2 trains on
    for options in ({}, {"data": "data/prosqa-gpt2/test.json"}):
        capsys.readouterr()
        evaluate.main(evaluate.EvaluateConfig(file, **options))
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["n"] == 5


def test_a_nanogpt_without_biases_has_zeros(task):
    torch.manual_seed(1)
    model = GPT(
        GPTConfig(
            N_VOCAB, block_size=1024, n_layer=1, n_head=N_HEAD, n_embd=64 * N_HEAD, dropout=0.0
        )
    )
    weights = {name: x for name, x in model.state_dict().items() if not name.endswith("bias")}
    found = pretrained.from_state_dict({"model": weights}).state_dict()
    for name, weight in found.items():
        assert torch.equal(weight, weights.get(name, torch.zeros_like(weight))), name
    with_heads = {"model": weights, "model_args": {"n_head": 4}}
    assert pretrained.from_state_dict(with_heads).config.n_head == 4
    torch.save({"model": weights | {"wte.weight": weights["wte.weight"][:200]}}, "small.pt")
    with pytest.raises(UserError, match="its vocabulary is smaller than GPT-2's"):
        runs.Run("small.pt")
    del weights["h.0.attn.c_attn.weight"]
    with pytest.raises(KeyError):
        pretrained.from_state_dict({"model": weights})


def test_a_run_leaves_in_gpt2s_layout(task, released):
    """By the lines of docs/faq.md."""
    trained("--name=run", "--stage_steps=1", "--max_stage=0", "--n_embd=128", "--n_head=2")
    faq, code = FAQ.read_text(encoding="utf-8"), r"^  ```python\n(.+?)^  ```"
    (lines,) = re.findall(code, faq, re.MULTILINE | re.DOTALL)
    exec(textwrap.dedent(lines).replace("NAME", "run"), {})
    state = torch.load("gpt2.pt", weights_only=True)
    theirs = torch.load(io.BytesIO(released[1]), weights_only=True)
    assert set(state) == set(theirs) - {"transformer.h.0.attn.bias"}
    assert state["transformer.h.0.attn.c_attn.weight"].shape == (128, 3 * 128)
    back, mine = pretrained.from_state_dict(state), runs.Run("run").model
    assert all(
        torch.equal(mine.state_dict()[name], weight) for name, weight in back.state_dict().items()
    )


def test_mistakes(task, released, monkeypatch):
    with pytest.raises(
        UserError,
        match="--init_from=nowhere not found; expected lookup, gpt2, a run or a file",
    ):
        trained("--init_from=nowhere")
    Path("other.bin").write_bytes(b"x")
    with pytest.raises(UserError, match=r"other\.bin holds neither a run nor GPT-2's weights"):
        trained("--init_from=other.bin")
    torch.save({"weight": torch.zeros(2)}, "linear.pt")
    with pytest.raises(
        UserError, match=r"linear\.pt holds neither a run nor GPT-2's weights \(KeyError"
    ):
        trained("--init_from=linear.pt")
    Path("weights.bin").write_bytes(released[1])
    prepare.main(
        prepare.PrepareConfig(
            name="words", train=30, valid=5, test=5, n_nodes=8, min_hops=2, max_hops=3
        )
    )
    monkeypatch.setattr(
        pretrained,
        "fetch",
        lambda *a: pytest.fail("asks the network, although the data do not fit"),
    )
    with pytest.raises(
        UserError, match="needs data in GPT-2's tokens; prepare it with --tokenizer=gpt2"
    ):
        trained("--init_from=gpt2", "--task=words")
    advice = "prepare it again with --vocabulary_of="
    other = f"weights.bin has another vocabulary than data/words; {advice}"
    with pytest.raises(UserError, match=other):
        trained("--init_from=weights.bin", "--task=words")
    trained("--init_from=weights.bin", "--name=a", "--stage_steps=1")
    with pytest.raises(UserError, match="has another vocabulary than data/words"):
        trained("--init_from=a", "--task=words")
    assert data.Dataset("words").encoding.name == "words"


def test_the_extra_stage_of_gsm8k_is_in_the_run(task, capsys):
    trained(
        "--name=run",
        "--c_thought=2",
        "--stage_steps=1,1,1,1",
        "--extra_stage=true",
        "--layout=paper",
    )
    assert "    3      1         4       0            all" in capsys.readouterr().out
    assert runs.Run("run").plan[:3] == (4, 0, curriculum.ALL)
