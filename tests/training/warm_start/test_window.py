"""A window on its own: which layers it has on the device, what it leaves behind, and how it ends."""

import copy

import pytest
import torch
from test_warm_start import BATCHES, make_student

from hf_bitdistill.nn import BitLinear
from hf_bitdistill.training.warm_start import WarmStartConfig, residents
from hf_bitdistill.training.warm_start.hidden_states import HiddenStates
from hf_bitdistill.training.warm_start.propagation import Propagation
from hf_bitdistill.training.warm_start.relaxation import RelaxedBitLinear
from hf_bitdistill.training.warm_start.residents import Residents
from hf_bitdistill.training.warm_start.stand_ins import StandIns
from hf_bitdistill.training.warm_start.window import Window
from hf_bitdistill.training.warm_start.window_batches import read_batches


CONFIG = WarmStartConfig(window_layers=2, window_stride=1, steps_per_window=3, rank=4)


class Parts:
    """What a run gives its windows."""

    def __init__(self, layers=3, of_student=True):
        self.teacher, self.student = make_student(layers=layers)
        self.student.requires_grad_(False).eval()
        device, autocast = torch.device("cpu"), torch.autocast("cpu", torch.bfloat16, enabled=False)
        self.places = Residents(self.student, device, changes=True), Residents(self.teacher, device, changes=False)
        models = (self.student, self.places[0]), (self.teacher, self.places[1])
        self.batches = read_batches(BATCHES[:2], *models, HiddenStates(), autocast, progress=False)
        self.generator = torch.Generator().manual_seed(0)
        self.stand_ins = StandIns(self.student.model.layers, CONFIG, self.generator, recompute=False)
        self.propagation = Propagation(self.batches, *self.places, of_student, autocast)

    def window(self, first, last):
        return Window(first, last, self.propagation, self.stand_ins, CONFIG, self.generator)

    def remember_homes(self):
        """Parameters stay the objects that they are, wherever their values lie."""
        self.homes = {
            name: [
                (int(key.split(".")[2]), p, p.data_ptr())
                for key, p in model.model.layers.named_parameters("model.layers")
            ]
            for name, model in (("student", self.student), ("teacher", self.teacher))
        }

    def layers_away(self):
        """By model, the layers whose weights are not where they were loaded."""
        return {
            name: sorted({layer for layer, parameter, home in homes if parameter.data_ptr() != home})
            for name, homes in self.homes.items()
        }


@pytest.fixture
def parts(monkeypatch):
    """The CPU counts as another device than the one that computes."""
    monkeypatch.setattr(residents, "lies_on", lambda tensor, device: False)
    parts = Parts()
    parts.remember_homes()
    return parts


def test_a_window_has_its_layers_and_gives_them_back(parts, monkeypatch):
    seen, through = [], Propagation._through

    def passed(self, *args):
        seen.append(("targets", parts.layers_away()))
        through(self, *args)

    monkeypatch.setattr(Propagation, "_through", passed)
    frozen = copy.deepcopy(parts.student.model.layers[0].state_dict())

    def on_step(tokens, loss):
        away = {key.split(".")[2] for key in stand_ins_in(parts.student)}
        seen.append(("step", away, tokens))
        assert parts.layers_away() == {"student": [1, 2], "teacher": []} and loss > 0

    report = parts.window(1, 3).fit(on_step)
    targets = ("targets", {"student": [], "teacher": [1, 2]})
    step = ("step", {"1", "2"}, BATCHES[0]["input_ids"].numel())
    assert seen == [targets] * 2 + [step] * 3
    assert (report.first_layer, report.last_layer, len(report.losses)) == (1, 2, 3)
    assert parts.layers_away() == {"student": [], "teacher": []}
    assert not stand_ins_in(parts.student)
    assert all(torch.equal(value, frozen[key]) for key, value in parts.student.model.layers[0].state_dict().items())


def stand_ins_in(student):
    return [name for name, module in student.named_modules() if isinstance(module, RelaxedBitLinear)]


def test_a_window_that_fails_leaves_the_student_whole(parts):
    classes = {name: type(module) for name, module in parts.student.named_modules()}

    def fail(tokens, loss):
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        parts.window(0, 2).fit(fail)
    assert parts.layers_away() == {"student": [], "teacher": []}
    assert {name: type(module) for name, module in parts.student.named_modules()} == classes
    assert not any(parameter.requires_grad for parameter in parts.student.parameters())


def test_what_stays_in_a_window_goes_on(parts):
    parts.window(0, 2).fit(lambda tokens, loss: None)
    kept = parts.stand_ins.state()
    parts.stand_ins.leave(1)
    parts.propagation.advance(0, 1)
    assert {index for index, _ in parts.stand_ins.state()} == {1}
    with parts.stand_ins.put_in(1, 3) as stand_ins:
        assert len(stand_ins) == 2 * len(kept) // 2
        found = parts.stand_ins.state()
        for key in kept.keys() & found.keys():
            assert all(torch.equal(value, kept[key][name]) for name, value in found[key].items())
            assert found[key]["update_out"].abs().max() > 0
        assert found[2, "mlp.up_proj"]["update_out"].abs().max() == 0


def test_what_was_left_is_folded_already(parts):
    """A window folds what it has trained, so that leaving a layer changes nothing of it."""
    parts.window(0, 2).fit(lambda tokens, loss: None)
    weights = {name: m.weight.clone() for name, m in parts.student.named_modules() if isinstance(m, BitLinear)}
    for stand_in in list(parts.stand_ins._found.values()):
        stand_in.fold()
    for name, weight in weights.items():
        assert torch.equal(parts.student.get_submodule(name).weight, weight), name


def test_inputs_of_the_next_window_are_the_targets_of_the_last():
    for of_student in (True, False):
        parts = Parts(of_student=of_student)
        hidden = [batch.teacher.read().clone() for batch in parts.batches.own]
        parts.propagation.set_targets(0, 2)
        targets = [batch.target.read().clone() for batch in parts.batches.own]
        assert not any(map(torch.equal, hidden, targets))
        parts.propagation.advance(0, 2)
        assert all(
            torch.equal(batch.teacher.read(), target) for batch, target in zip(parts.batches.own, targets, strict=True)
        )
        same = [torch.equal(batch.student.read(), batch.teacher.read()) for batch in parts.batches.own]
        assert same == [not of_student] * len(targets)
        assert parts.propagation.seconds > 0
