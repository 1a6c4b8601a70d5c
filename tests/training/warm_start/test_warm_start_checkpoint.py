"""An interrupted warm start goes on behind its last window and ends where an uninterrupted one ends."""

import pytest
import torch
from test_warm_start import BATCHES, make_student

from hf_bitdistill.training.warm_start import WarmStartConfig, warm_start


CONFIG = WarmStartConfig(window_layers=2, window_stride=1, steps_per_window=4, rank=4, start="least_squares")


class Killed(Exception):
    pass


@pytest.mark.parametrize("inputs", ["student", "teacher"])
def test_killed_in_every_window(tmp_path, inputs):
    config = WarmStartConfig(**{**vars(CONFIG), "window_inputs": inputs})
    teacher, student = make_student(layers=4, weight_granularity="row")
    seen = []
    reference = warm_start(student, teacher, BATCHES[:6], config, on_step=lambda *step: seen.append(step))
    assert [done for done, _, _ in seen] == list(range(1, 13)) and {total for _, total, _ in seen} == {12}
    expected = {name: value.clone() for name, value in student.state_dict().items()}

    file = tmp_path / "deep" / "warm_start.pt"
    for last in (6, 10, 99):
        teacher, student = make_student(layers=4, weight_granularity="row")

        told = []

        def stop(done, total, loss, last=last, told=told):
            told.append(done)
            if done == last:
                raise Killed

        try:
            report = warm_start(student, teacher, BATCHES[:6], config, on_step=stop, checkpoint=file)
        except Killed:
            assert file.is_file() and last < 99
        # Tells at once where it goes on.
        assert told[0] == {6: 1, 10: 4, 99: 8}[last]
    assert all(torch.equal(value, expected[name]) for name, value in student.state_dict().items())
    assert [w.error_after for w in report.windows] == [w.error_after for w in reference.windows]
    assert report.trained_tokens == reference.trained_tokens

    with pytest.raises(ValueError, match="other options"):
        warm_start(student, teacher, BATCHES[:6], WarmStartConfig(steps_per_window=2), checkpoint=file)


def test_a_checkpoint_of_another_warm_start_is_refused(tmp_path):
    """Of the same shapes and as much text."""
    file = tmp_path / "warm_start.pt"
    teacher, student = make_student(layers=4, weight_granularity="row")
    warm_start(student, teacher, BATCHES[:2], CONFIG, checkpoint=file)
    other, of_other = make_student(layers=4, weight_granularity="row")
    with torch.no_grad():
        other.lm_head.weight.mul_(2)
    before = {name: value.clone() for name, value in of_other.state_dict().items()}
    with pytest.raises(ValueError, match="of another model"):
        warm_start(of_other, other, BATCHES[:2], CONFIG, checkpoint=file)
    assert all(torch.equal(value, before[name]) for name, value in of_other.state_dict().items())
    text = [{**batch, "input_ids": batch["input_ids"].flip(1)} for batch in BATCHES[:2]]
    with pytest.raises(ValueError, match="other text"):
        warm_start(of_other, teacher, text, CONFIG, checkpoint=file)
    _, otherwise = make_student(layers=4, weight_granularity="row", sub_norm_eps=1e-5)
    with pytest.raises(ValueError, match="other options"):
        warm_start(otherwise, teacher, BATCHES[:2], CONFIG, checkpoint=file)
