"""Where models and hidden states lie changes nothing but memory."""

import copy
import weakref
from pathlib import Path

import pytest
import torch
from test_warm_start import BATCHES, make_student
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from architectures import random_tokens, tiny_model
from hf_bitdistill import BitNetConfig, SurgeryError, apply_bitnet, calibrate_sub_norm, find_massive_projections
from hf_bitdistill.files import disk_room
from hf_bitdistill.training.warm_start import (
    WarmStartConfig,
    fit_whole,
    hidden_states,
    layers_on,
    residents,
    warm_start,
)
from hf_bitdistill.training.warm_start.decoder_layers import CallRecorder, LayerCall
from hf_bitdistill.training.warm_start.hidden_states import HiddenStates, hidden_states_folder
from hf_bitdistill.training.warm_start.residents import Residents


CPU = torch.device("cpu")
CONFIG = WarmStartConfig(window_layers=2, window_stride=1, steps_per_window=4, rank=4)


@pytest.fixture
def elsewhere(monkeypatch):
    """The CPU counts as another device than the one that computes (which is the CPU too): what is brought there is a copy."""
    monkeypatch.setattr(residents, "lies_on", lambda tensor, device: False)


@pytest.mark.parametrize("folder", [True, False])
def test_a_slot_gives_what_was_written(tmp_path, folder):
    states = HiddenStates(tmp_path if folder else None)
    first, second = states.slot(), states.slot()
    values = [
        torch.randn(2, 3, 4),
        torch.randn(2, 3, 4, dtype=torch.bfloat16),
        torch.randn(5, 7, 8),
        torch.zeros(0, 3),
    ]
    for value in values:
        first.write(value)
        second.write(value.mT)
        assert torch.equal(first.read(), value) and first.read().dtype == value.dtype
        assert torch.equal(second.read(), value.mT)
    states.close()
    assert list(tmp_path.iterdir()) == []


def test_where_hidden_states_go(tmp_path, monkeypatch):
    monkeypatch.setattr(hidden_states, "free_memory", lambda device: 1000)
    assert hidden_states_folder("auto", tmp_path, 500, 500) is None
    assert hidden_states_folder("auto", tmp_path, 501, 501) == tmp_path
    assert hidden_states_folder("auto", None, 501, 501) is None
    assert hidden_states_folder("memory", tmp_path, 501, 501) is None
    assert hidden_states_folder("disk", tmp_path, 1, 1) == tmp_path
    with pytest.raises(ValueError, match="needs a folder"):
        hidden_states_folder("disk", None, 1, 1)
    with pytest.raises(ValueError, match="'tape' is not supported"):
        hidden_states_folder("tape", None, 1, 1)
    monkeypatch.setattr(disk_room.shutil, "disk_usage", lambda folder: type("", (), {"free": 10_000}))
    with pytest.raises(
        OSError, match=r"10 kB of free space and about 11 kB will be needed \(the hidden states of the warm"
    ):
        hidden_states_folder("auto", tmp_path, 501, 11_000)
    teacher, student = make_student()
    needed = 3 * sum(batch["input_ids"].numel() for batch in BATCHES) * 48 * 4
    with pytest.raises(OSError, match=f"about {disk_room.size_text(needed)} will be needed"):
        warm_start(student, teacher, BATCHES, CONFIG, hidden_states="disk", scratch=tmp_path)


def test_a_full_disk_is_named(tmp_path):
    states = HiddenStates(tmp_path)
    states._file.close()
    states._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
    with pytest.raises(OSError, match=f"cannot keep the hidden states of the warm start in {tmp_path}: No space left"):
        states.slot().write(torch.ones(10))
    states.close()


@pytest.mark.parametrize("inputs,stride", [("student", 1), ("student", 2), ("teacher", 1)])
def test_the_result_is_the_same_bit_for_bit(tmp_path, monkeypatch, inputs, stride):
    config = WarmStartConfig(**{**vars(CONFIG), "window_inputs": inputs, "window_stride": stride})
    batches = [*BATCHES[:3], _padded(3), _padded(4)]
    teacher, student = make_student(layers=4)
    expected = warm_start(copy.deepcopy(student), teacher, batches, config)
    reference = copy.deepcopy(student)
    warm_start(reference, teacher, batches, config, hidden_states="memory")

    monkeypatch.setattr(residents, "lies_on", lambda tensor, device: False)
    homes = {
        name: p.data_ptr() for model in (teacher, student) for name, p in model.named_parameters(prefix=str(id(model)))
    }
    objects = list(map(id, student.parameters()))
    before = copy.deepcopy(teacher.state_dict())
    # Killed in its third window (or before the second one's end), and goes on.
    checkpoint = tmp_path / "kept" / "warm_start.pt"

    def stop(done, *_):
        if done == 4 + 2:
            raise KeyboardInterrupt

    options = {"hidden_states": "disk", "checkpoint": checkpoint}
    with pytest.raises(KeyboardInterrupt):
        warm_start(student, teacher, batches, config, on_step=stop, **options)
    said = []
    report = warm_start(student, teacher, batches, config, say=said.append, **options)
    assert said == [f"warm start: passes 5 batches through {stride} finished layers again"]
    assert [path.name for path in checkpoint.parent.iterdir()] == ["warm_start.pt"]
    for name, value in student.state_dict().items():
        assert torch.equal(value, reference.state_dict()[name]), name
    assert [w.error_after for w in report.windows] == [w.error_after for w in expected.windows]
    assert [w.losses for w in report.windows] == [w.losses for w in expected.windows]
    # All is where it was.
    assert homes == {n: p.data_ptr() for m in (teacher, student) for n, p in m.named_parameters(prefix=str(id(m)))}
    assert objects == list(map(id, student.parameters()))
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def _padded(rows):
    mask = (torch.arange(20) < 20 - torch.arange(rows)[:, None]).long()
    return {"input_ids": random_tokens(rows, 20, seed=rows), "attention_mask": mask}


def test_layers_come_and_go(elsewhere):
    teacher, _ = make_student(layers=3)
    place = Residents(teacher, CPU, changes=True)
    layers, homes = teacher.model.layers, {name: p.data_ptr() for name, p in teacher.named_parameters()}

    def moved():
        return {name.split(".")[2] for name, p in teacher.named_parameters() if p.data_ptr() != homes[name]}

    place.only(layers[:2])
    assert moved() == {"0", "1"}
    with torch.no_grad():
        layers[0].mlp.up_proj.weight.fill_(3)
    place.only([layers[1]])
    assert moved() == {"1"} and (layers[0].mlp.up_proj.weight == 3).all()
    with place.whole():
        expected = copy.deepcopy(teacher)(BATCHES[0]["input_ids"]).logits
        with torch.no_grad():
            assert torch.equal(teacher(BATCHES[0]["input_ids"]).logits, expected)
        assert moved() == {"2", "weight"}  # the last layer that was called, and what is no layer
    assert moved() == set()


def test_calibration_of_a_model_that_lies_elsewhere(elsewhere):
    results = []
    for context in (lambda model: torch.no_grad(), lambda model: layers_on(model, CPU)):
        teacher, student = tiny_model("qwen3"), apply_bitnet(tiny_model("qwen3"), BitNetConfig(sub_norm="all"))
        homes = [p.data_ptr() for p in student.parameters()]
        with context(student):
            calibrate_sub_norm(student, BATCHES[:2])
        assert homes == [p.data_ptr() for p in student.parameters()]
        with context(teacher):
            found = find_massive_projections(teacher, BATCHES[:2], ratio=1.5)
        results.append((student.state_dict(), found))
    assert results[0][1] == results[1][1] and results[0][1]
    assert all(torch.equal(value, results[1][0][name]) for name, value in results[0][0].items())


def test_what_fits_a_device(monkeypatch):
    teacher = tiny_model("llama", num_hidden_layers=4)
    assert fit_whole(teacher, 2, CPU)
    weights = 2 * sum(p.numel() for layer in teacher.model.layers[:1] for p in layer.parameters())
    needed = 2 * disk_room.parameter_bytes(teacher) + 30 * weights
    for free, fits in ((needed / 0.7 + 2, True), (needed / 0.7 - 2, False)):
        monkeypatch.setattr(residents, "free_memory", lambda device, free=free: free)
        assert fit_whole(teacher, 2, torch.device("cuda")) is fits


class _Live(TorchDispatchMode):
    """Counts the bytes of all tensors that are made while it is on, and of those that are alive at once."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        result = function(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                if id(storage) not in given and id(storage) not in self._known:
                    self._add(storage)
        return result

    def _add(self, storage):
        key, size = id(storage), storage.nbytes()

        def gone(_):
            self.now -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def _peak(layers: int, folder: Path, batches: int = 1, where: str = "disk", **options) -> int:
    """Bytes that a warm start has on the device that computes at once: weights that it brings there, stand-ins, what Adam keeps, gradients,
    activations."""
    shape = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 64, "num_hidden_layers": layers}
    teacher = tiny_model("llama", **shape)
    student = apply_bitnet(tiny_model("llama", **shape))
    config = WarmStartConfig(**{"steps_per_window": 1, "rank": 4, **options})
    with _Live() as live:
        rows = [{"input_ids": torch.arange(8)[None] + number} for number in range(batches)]
        warm_start(student, teacher, rows, config, hidden_states=where, scratch=folder)
    return live.peak


def test_memory_of_the_device_grows_with_the_window_and_not_with_the_depth(elsewhere, tmp_path):
    window = {"window_layers": 2, "window_stride": 2}
    shallow, deep = (_peak(layers, tmp_path, **window) for layers in (4, 24))
    assert deep < 1.02 * shallow
    wide = _peak(4, tmp_path, window_layers=4, window_stride=4)
    assert wide > 1.7 * shallow


def test_memory_of_hidden_states_does_not_grow_with_the_text(tmp_path):
    window = {"window_layers": 2, "window_stride": 2}
    few, many = (_peak(2, tmp_path, batches, **window) for batches in (2, 22))
    # What is left of a batch: its number of tokens, its calls.
    assert many - few < 20 * 500
    in_memory = _peak(2, tmp_path, 22, "memory", **window)
    assert in_memory - many > 0.9 * 20 * 3 * 8 * 64 * 4


def test_what_belongs_to_one_batch_is_brought_to_the_device():
    """Masks of padding wait on the CPU."""
    told = {"attention_mask": torch.ones(1), "position_embeddings": (torch.ones(2), torch.ones(3)), "cache": None}
    seen = []
    call = LayerCall((torch.ones(4),), told, is_away=True)
    call(lambda hidden, *args, **kwargs: seen.append((args, kwargs)) or hidden, torch.ones(1, device="meta"))
    args, kwargs = seen[0]
    assert args[0].device.type == kwargs["attention_mask"].device.type == "meta" and kwargs["cache"] is None
    assert [part.device.type for part in kwargs["position_embeddings"]] == ["meta", "meta"]


def test_weights_are_computed_again_instead_of_kept(tmp_path, monkeypatch):
    """At the same place of the models: what the backward pass would need of the softened weights is several times their size."""
    window = {"window_layers": 2, "window_stride": 2}
    kept = _peak(6, tmp_path, **window)
    monkeypatch.setattr(residents, "lies_on", lambda tensor, device: False)
    assert _peak(6, tmp_path, **window) < 0.75 * kept


def test_a_layer_without_part_in_the_calls_is_passed_by():
    teacher = tiny_model(
        "gemma3_text", num_hidden_layers=3, layer_types=["sliding_attention", "full_attention", "sliding_attention"]
    )
    counts = []
    teacher.model.layers[2].register_forward_hook(lambda *_: counts.append(1))
    recorder = CallRecorder(teacher)
    layers = list(teacher.model.layers)
    with torch.no_grad():
        for number, batch in enumerate((BATCHES[0], BATCHES[1], {"input_ids": random_tokens(2, 40)}, _padded(3)), 1):
            first, calls = recorder.record(batch)
            assert sum(counts) == 1  # the first batch's
            expected = []
            with teacher.model.layers[2].register_forward_hook(lambda _, args, output, e=expected: e.append(output)):
                teacher.model(**batch)
            counts.pop()
            hidden = first
            for call, layer in zip(calls, layers, strict=True):
                hidden = call(layer, hidden)
            counts.pop()
            assert torch.equal(hidden, expected[0]), number
    assert list(teacher.model.layers) == layers


class _Chained(LlamaModel):
    """What a layer is told depends on what the one before it computed."""

    factor = 1.0

    def forward(self, input_ids=None, **kwargs):
        hidden = self.embed_tokens(input_ids)
        rotary = self.rotary_emb(hidden, torch.arange(hidden.shape[1])[None])
        for layer in self.layers:
            told = tuple(part * (1 + hidden.mean()) for part in rotary)
            hidden = layer(hidden * self.factor, attention_mask=None, position_embeddings=told)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden))


def test_a_model_whose_calls_depend_on_its_layers():
    """Every batch passes through the layers of such a model."""
    teacher, _ = make_student()
    teacher.model.__class__ = _Chained
    recorder, counts = CallRecorder(teacher), []
    for number in range(2):
        with teacher.model.layers[1].register_forward_hook(lambda *_: counts.append(1)):
            first, calls = recorder.record(BATCHES[number])
        assert len(counts) == number + 1
        with torch.no_grad():
            hidden = first
            for call, layer in zip(calls, teacher.model.layers, strict=True):
                hidden = call(layer, hidden)
            expected = teacher.model(BATCHES[number]["input_ids"]).last_hidden_state
        assert torch.equal(teacher.model.norm(hidden), expected)


def test_a_model_that_computes_between_its_layers_is_refused(monkeypatch):
    teacher, student = make_student()
    teacher.model.__class__ = _Chained
    monkeypatch.setattr(_Chained, "factor", 2.0)
    with pytest.raises(SurgeryError, match="changes the hidden states between its layers, before layer 1"):
        warm_start(student, teacher, BATCHES[:2], CONFIG)
