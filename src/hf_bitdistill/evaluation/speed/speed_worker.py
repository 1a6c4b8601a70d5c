"""Measures one system in this process: `python -m hf_bitdistill.evaluation.speed.speed_worker '{...}'` prints a JSON object."""

from __future__ import annotations

import json
import sys
import time
from abc import ABC, abstractmethod
from dataclasses import asdict
from pathlib import Path

import torch

from ...modeling.cache_name import CACHE_NAME
from .systems import Measurement, System


class Runner(ABC):
    """A loaded model that continues token ids.

    Attributes:
        bytes_per_token: of the packed weights and tables that a decoded token reads, if the embedding is the head too.
            0 where it is not known.
    """

    backend: str
    bytes_per_token: int = 0
    vocab_size: int
    file_bytes: int
    threads: int
    max_tokens: int

    @abstractmethod
    def prefill(self, tokens: list[int]) -> int:
        """Forget everything, read a prompt, return the next token."""

    @abstractmethod
    def step(self, token: int) -> int:
        """Read one more token, return the next."""


class _ModelRunner(Runner):
    """Anything with the interface of a causal LM of transformers."""

    def __init__(self, system: System):
        if system.threads is not None:
            torch.set_num_threads(system.threads)
        if system.kind == "native":
            from optimum.bitnet import BitNetModelForCausalLM

            self.model = BitNetModelForCausalLM.from_pretrained(
                system.model,
                export=True,
                head_bits=system.head_bits,
                kv_bits=system.kv_bits,
                num_threads=system.threads,
            )
            self.backend = self.model.backend
            if self.model.decoder is not None:
                self.bytes_per_token = self.model.decoder.bytes_per_token
        else:
            from transformers import AutoModelForCausalLM

            import hf_bitdistill  # noqa: F401 (registers the packed layers)

            self.model = AutoModelForCausalLM.from_pretrained(system.model, dtype=system.dtype).eval()
            self.backend = f"transformers, {str(self.model.dtype).removeprefix('torch.')}"
        self.threads = torch.get_num_threads()
        self.vocab_size = self.model.config.vocab_size
        # Some architectures have no such limit.
        self.max_tokens = getattr(self.model.config, "max_position_embeddings", None) or sys.maxsize
        self.file_bytes = _weight_bytes(system.model)
        self.cache = None

    @torch.inference_mode()
    def _next(self, tokens: list[int]) -> int:
        output = self.model(torch.tensor([tokens]), use_cache=True, logits_to_keep=1, **{CACHE_NAME: self.cache})
        self.cache = output[CACHE_NAME]
        return int(output.logits[0, -1].argmax())

    def prefill(self, tokens: list[int]) -> int:
        self.cache = None
        return self._next(tokens)

    def step(self, token: int) -> int:
        return self._next([token])


class _LlamaCppRunner(Runner):
    """A GGUF file in llama.cpp, through `llama_cpp`."""

    def __init__(self, system: System):
        try:
            from llama_cpp import Llama
        except ImportError as error:
            raise ImportError(f"--gguf needs llama-cpp-python, which cannot be imported: {error}") from None
        threads = system.threads or torch.get_num_threads()
        self.model = Llama(
            system.model,
            n_ctx=system.prompt_tokens + system.new_tokens + 8,
            n_threads=threads,
            n_threads_batch=threads,
            verbose=False,
        )
        self.backend = "llama.cpp"
        self.threads = threads
        self.vocab_size = self.model.n_vocab()
        self.max_tokens = self.model.n_ctx()
        self.file_bytes = Path(system.model).stat().st_size

    def prefill(self, tokens: list[int]) -> int:
        self.model.reset()
        return self.step_all(tokens)

    def step(self, token: int) -> int:
        return self.step_all([token])

    def step_all(self, tokens: list[int]) -> int:
        self.model.eval(tokens)
        return self.model.sample(temp=0.0)


def _weight_bytes(model: str) -> int:
    from ...files.weight_files import size_of_weights

    return size_of_weights(model, local_files_only=True)


def _resident_bytes(peak: bool) -> int:
    """Resident memory of this process, now or at its largest; 0 where the system does not say."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        import resource

        scale = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
    name = "VmHWM:" if peak else "VmRSS:"
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(name)), 0)


def load_runner(system: System) -> Runner:
    """Load a system in this process."""
    return _LlamaCppRunner(system) if system.kind == "llama.cpp" else _ModelRunner(system)


def run(system: System) -> Measurement:
    """Measure a system in this process.

    Raises:
        ValueError: prompt and continuation do not fit into the model.
    """
    import transformers  # noqa: F401 (importing is not loading)

    base = _resident_bytes(peak=False)
    start = time.perf_counter()
    runner = load_runner(system)
    load_seconds = time.perf_counter() - start
    if system.prompt_tokens + system.new_tokens > runner.max_tokens:
        raise ValueError(
            f"{system.prompt_tokens} + {system.new_tokens} tokens are more than the model's {runner.max_tokens}: give "
            "--prompt_tokens and --new_tokens"
        )
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(0, runner.vocab_size, (system.prompt_tokens,), generator=generator).tolist()
    runner.step(runner.prefill(prompt))  # caches, threads and pages are set up
    firsts, steps = [], []
    for _ in range(system.repeats):
        start = time.perf_counter()
        token = runner.prefill(prompt)
        firsts.append(time.perf_counter() - start)
        start = time.perf_counter()
        for _ in range(system.new_tokens):
            token = runner.step(token)
        steps.append(time.perf_counter() - start)
    return Measurement(
        kind=system.kind,
        model=system.model,
        backend=runner.backend,
        prompt_tokens=system.prompt_tokens,
        new_tokens=system.new_tokens,
        threads=runner.threads,
        load_seconds=load_seconds,
        prefill_tokens_per_second=system.prompt_tokens / min(firsts),
        decode_tokens_per_second=system.new_tokens / min(steps),
        time_to_first_token=min(firsts),
        file_bytes=runner.file_bytes,
        base_rss_bytes=base,
        peak_rss_bytes=_resident_bytes(peak=True),
    )


if __name__ == "__main__":
    print(json.dumps(asdict(run(System(**json.loads(sys.argv[1]))))))
