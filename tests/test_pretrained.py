"""From a weight file at an address to a trained run, without the internet: the address is on this machine."""

import hashlib
import http.server
import io
import threading
from pathlib import Path

import pytest
import tiktoken
import torch

import prepare
import sample
import train
from nanococonut import answers, config, curriculum, data, evaluate, pretrained, tokenizer
from nanococonut.config import UserError
from nanococonut.model import GPT, GPTConfig
from nanococonut.settings import CHOICES, PRESETS, TrainConfig

N_VOCAB, N_HEAD = 259, 12  # bytes, "<<", " a", and the end of text


def made_up_encoding():
    """What tokenizer.gpt2 returns, with a vocabulary of bytes and two pieces more."""
    ranks = {bytes([i]): i for i in range(256)} | {b"<<": 256, b" a": 257}
    special = {"<eos>": 258, "<bot>": 259, "<eot>": 260, "<pause>": 261}
    return tiktoken.Encoding("gpt2", pat_str=r"<<| a|[\s\S]", mergeable_ranks=ranks, special_tokens=special)


@pytest.fixture
def released():
    """A tiny GPT-2 as the released files hold it: (in, out) projections, masks, the prefix; and the model itself."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(N_VOCAB, block_size=1024, n_layer=2, n_head=N_HEAD, n_embd=24, dropout=0.0))
    state = {}
    for name, tensor in model.state_dict().items():
        state[f"transformer.{name}"] = tensor.t().contiguous() if name.endswith(pretrained.TRANSPOSED) else tensor
    state["transformer.h.0.attn.bias"] = torch.ones(1, 1, 8, 8).tril()
    state["lm_head.weight"] = state["transformer.wte.weight"]
    file = io.BytesIO()
    torch.save(state, file)
    return model, file.getvalue()


@pytest.fixture
def task(workspace, monkeypatch):
    monkeypatch.setattr(tokenizer, "gpt2", made_up_encoding)
    words = ["--train=30", "--valid=5", "--test=5", "--n_nodes=8", "--min_hops=2", "--max_hops=3", "--tokenizer=gpt2"]
    prepare.main(config.parse(prepare.PrepareConfig, words))
    return workspace


@pytest.fixture
def served(released, monkeypatch):
    """serve(content, claimed length, status): --init_from=gpt2 then finds this content on a server of our own."""
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
        monkeypatch.setattr(pretrained, "ADDRESS", f"http://127.0.0.1:{server.server_port}/gpt2.bin")
        monkeypatch.setattr(pretrained, "SHA256", sha256)

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def trained(*words):
    train.main(config.parse(TrainConfig, ["smoke", *words], PRESETS, CHOICES))


def test_downloaded_once_resized_trained_and_asked(task, served, released, capsys):
    model, content = released
    served(content, sha256=hashlib.sha256(content).hexdigest())
    trained("--init_from=gpt2", "--name=run", "--stage_steps=1", "--lr=0")
    state = torch.load("runs/run/ckpt.pt", weights_only=True)
    assert state["model_config"]["n_head"] == N_HEAD and state["model_config"]["block_size"] == 1024
    for name, weight in model.state_dict().items():  # nothing was learned at --lr=0
        assert torch.equal(state["model"][name][: len(weight)], weight), name
    new = state["model"]["wte.weight"][N_VOCAB:]
    assert len(new) == 3 and all(torch.equal(row, model.wte.weight[256]) for row in new), "they start as <<"
    served(b"gone", status=404)
    trained("--init_from=gpt2", "--name=again", "--stage_steps=1")  # from data/pretrained
    evaluate.main(evaluate.EvaluateConfig("again"))
    sample.main(sample.SampleConfig("again"))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (dict(status=404), "404"),
        (dict(sha256="0" * 64), "invalid hash value"),
        (dict(length=10**7), "is not a weight file|IncompleteRead|cannot fetch"),
        (dict(content=b"<html>"), "is not a weight file"),
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


def test_mistakes(task, released, monkeypatch):
    with pytest.raises(
        UserError,
        match=r"nowhere is not a weight file \(FileNotFoundError\); expected gpt2, a run or a file",
    ):
        trained("--init_from=nowhere")
    Path("other.bin").write_bytes(b"x")
    with pytest.raises(UserError, match=r"other\.bin is not a weight file"):
        trained("--init_from=other.bin")
    torch.save({"weight": torch.zeros(2)}, "linear.pt")
    with pytest.raises(UserError, match=r"linear\.pt does not hold GPT-2's weights"):
        trained("--init_from=linear.pt")
    Path("weights.bin").write_bytes(released[1])
    prepare.main(prepare.PrepareConfig(name="words", train=30, valid=5, test=5, n_nodes=8, min_hops=2, max_hops=3))
    monkeypatch.setattr(pretrained, "fetch", lambda *a: pytest.fail("asks the network, although the data do not fit"))
    for weights in ("weights.bin", "gpt2"):
        with pytest.raises(UserError, match=r"needs data in GPT-2's tokens; prepare it with --tokenizer=gpt2"):
            trained(f"--init_from={weights}", "--task=words")
    trained("--init_from=weights.bin", "--name=a", "--stage_steps=1")
    with pytest.raises(UserError, match="has another vocabulary than data/words"):
        trained("--init_from=a", "--task=words")
    assert data.Dataset("words").encoding.name == "words"


def test_the_extra_stage_of_gsm8k_is_in_the_run(task, capsys):
    trained("--name=run", "--c_thought=2", "--stage_steps=1,1,1,1", "--extra_stage=true")
    assert "    3      1         4       0            all" in capsys.readouterr().out
    assert answers.Run("run").plan[:3] == (4, 0, curriculum.ALL)
