"""`bitdistill serve` and `bitdistill chat`: transformers' server and chat around the native decoder, spoken to over HTTP."""

import io
import json
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from huggingface_hub.utils import httpx

from hf_bitdistill import pack
from hf_bitdistill.cli import serve
from hf_bitdistill.cli.main import main
from students import make_student


for package in ("fastapi", "openai", "uvicorn", "rich"):
    pytest.importorskip(package, reason="needs the extra `serving`")

pytestmark = pytest.mark.usefixtures("native_decoder")

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "serve.py"
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
LONG = 400


def save_student(folder, tokenizer, template=TEMPLATE):
    packed = pack(make_student(vocab_size=384, max_position_embeddings=1024), table_bits=32)
    packed.generation_config.eos_token_id = None  # so that all answers are of full length
    packed.save_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def packed(tmp_path, tiny_tokenizer):
    return save_student(tmp_path / "packed", tiny_tokenizer)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Served:
    """A server in a process of its own, and what `generate` says to the same."""

    def __init__(self, folder, log):
        from transformers import AutoTokenizer

        from optimum.bitnet import BitNetModelForCausalLM

        self.folder, self.port, self.log = folder, free_port(), log
        command = [sys.executable, "-m", "hf_bitdistill.cli.main", "serve", str(folder), "--host", "127.0.0.1"]
        with open(log, "wb") as output:
            self.process = subprocess.Popen([*command, "--port", str(self.port)], stdout=output, stderr=output)
        self.model = BitNetModelForCausalLM.from_pretrained(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        # Of a random model's bytes many are no text: it may say what is ASCII.
        texts = ((number, self.tokenizer.decode([number])) for number in range(len(self.tokenizer)))
        self.bias = {number: -1000.0 for number, text in texts if not text.isascii()}
        self.url = f"http://127.0.0.1:{self.port}"
        self._wait()

    def _wait(self):
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                return httpx.get(f"{self.url}/health").raise_for_status()
            except httpx.ConnectError:
                time.sleep(0.1)
        self.process.kill()
        raise AssertionError(self.log.read_text())

    def body(self, prompt, tokens, **options):
        messages = [{"role": "user", "content": prompt}]
        return {
            "model": str(self.folder),
            "messages": messages,
            "max_tokens": tokens,
            "logit_bias": self.bias,
            **options,
        }

    def ask(self, prompt, tokens=12, **options):
        answer = httpx.post(f"{self.url}/v1/chat/completions", json=self.body(prompt, tokens, **options), timeout=60)
        assert answer.status_code == 200, self.log.read_text()
        return answer.json()["choices"][0]

    def stream(self, prompt, tokens=12, **options):
        body = self.body(prompt, tokens, stream=True, **options)
        with httpx.stream("POST", f"{self.url}/v1/chat/completions", json=body, timeout=60) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    chunk = json.loads(line.removeprefix("data: "))
                    assert "error" not in chunk, chunk
                    yield chunk["choices"][0]

    def expected(self, prompt, tokens=12, **options):
        messages = [{"role": "user", "content": prompt}]
        inputs = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        bias = {(number,): value for number, value in self.bias.items()}
        output = self.model.generate(**inputs, max_new_tokens=tokens, do_sample=False, sequence_bias=bias, **options)
        return self.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.fixture(scope="module")
def served(tmp_path_factory, _tiny_backend):
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("served")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(_tiny_backend), eos_token="</s>")
    server = Served(save_student(folder / "packed", tokenizer), folder / "log")
    yield server
    server.process.kill()
    server.process.wait()


def text_of(chunks):
    return "".join(chunk["delta"].get("content", "") for chunk in chunks)


def test_an_answer(served):
    choice = served.ask("a dull story")
    assert choice["message"]["content"] == served.expected("a dull story") != ""
    assert choice["finish_reason"] == "length"
    models = httpx.get(f"{served.url}/v1/models")
    if (
        models.status_code == 200
    ):  # (before 5.24 transformers lists what is in the Hub's cache, and fails where there is none)
        assert [model["id"] for model in models.json()["data"]] == [str(served.folder)]


def test_a_stream(served):
    chunks = list(served.stream("a warm film"))
    assert text_of(chunks) == served.expected("a warm film") and len(chunks) > 4
    assert chunks[-1]["finish_reason"] == "length"


def test_a_stop_string(served):
    whole = served.expected("a dull story", 24)
    stop = whole[len(whole) // 2 :][:2]
    expected = served.expected("a dull story", 24, stop_strings=[stop], tokenizer=served.tokenizer)
    assert len(expected) < len(whole) and stop in expected
    choice = served.ask("a dull story", 24, stop=stop)
    assert (choice["message"]["content"], choice["finish_reason"]) == (expected, "stop")
    assert text_of(served.stream("a dull story", 24, stop=[stop])) == expected


def test_two_clients_at_once(served):
    """Both get their own text, and a short answer does not wait for a long one."""
    first = served.stream("my neighbour bakes bread", LONG)
    long = [next(first), next(first)]
    came = []

    def ask():
        came.append(served.ask("a warm film")["message"]["content"])
        came.append(time.monotonic())

    other = threading.Thread(target=ask)
    other.start()
    long += first
    ended = time.monotonic()
    other.join()
    assert came[0] == served.expected("a warm film")
    assert text_of(long) == served.expected("my neighbour bakes bread", LONG)
    assert came[1] < ended


def test_a_prompt_that_is_too_long(served):
    body = served.body("a dull story " * 400, 8)
    answer = httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 400 and "1024 positions" in answer.json()["error"]["message"]


def test_the_example(served, monkeypatch, capsys):
    assert len(EXAMPLE.read_text().splitlines()) <= 60
    arguments = [str(served.folder), "a dull story", "--url", f"{served.url}/v1", "--max_tokens", "5"]
    monkeypatch.setattr(sys, "argv", ["serve.py", *arguments])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert capsys.readouterr().out.strip()


def run_line(capsys, *argv):
    status = main([str(argument) for argument in argv])
    return status, [line for line in capsys.readouterr().err.splitlines() if line.startswith("bitdistill")]


def test_a_port_that_is_taken(served, capsys):
    status, (line,) = run_line(capsys, "serve", served.folder, "--host", "127.0.0.1", "--port", served.port)
    assert status == 1 and f"cannot listen on 127.0.0.1 port {served.port}: Address already in use; choose" in line


def test_ctrl_c(served):  # the last one that needs the server
    served.process.send_signal(signal.SIGINT)
    assert served.process.wait(timeout=60) == 0
    log = served.log.read_text()
    assert log.endswith("bitdistill serve: stopped\n")
    assert "Traceback" not in log.rpartition("Shutting down")[2]


@pytest.mark.parametrize("command", ["serve", "chat"])
def test_what_is_refused_is_one_line(command, packed, tmp_path, capsys, monkeypatch):
    port = ["--port", free_port()] if command == "serve" else []
    status, (line,) = run_line(capsys, command, tmp_path / "nowhere", *port)
    assert status == 1 and "there is no model folder" in line
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    status, (line,) = run_line(capsys, command, tmp_path / "model.gguf", *port)
    assert status == 1 and f"bitdistill import gguf {tmp_path}/model.gguf FOLDER" in line
    monkeypatch.setattr(serve, "find_spec", lambda name: None if name in ("fastapi", "uvicorn") else object())
    status, (line,) = run_line(capsys, command, packed)
    assert status == 1
    assert f"bitdistill {command} needs fastapi, uvicorn: pip install 'hf-bitdistill[serving]'" in line


def test_chat(packed, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("a dull story\n"))  # and then its end
    assert main(["chat", str(packed), "max_new_tokens=4", "do_sample=False", "--user", "me"]) == 0
    said = capsys.readouterr().out
    assert f"<{packed}>:" in said.replace("\n", "") and "4 tokens in" in said


def test_chat_without_a_template(tmp_path, tiny_tokenizer, capsys):
    folder = save_student(tmp_path / "packed", tiny_tokenizer, template=None)
    status, (line,) = run_line(capsys, "chat", folder)
    assert status == 1 and "has no chat template" in line
