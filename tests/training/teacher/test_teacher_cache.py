"""Distillation from a cache of the teacher's most likely tokens, against the live teacher."""

import pickle
import shutil

import pytest
import torch
from test_trainer import batch_of, gradients
from transformers import DataCollatorForSeq2Seq, DataCollatorWithFlattening

from hf_bitdistill.files.tensor_headers import CheckpointError
from hf_bitdistill.training import DistillationConfig, TeacherCache, cache_teacher_logits
from hf_bitdistill.training.teacher.cache.cache_files import read_info
from hf_bitdistill.training.teacher.cache.tail import TEMPERATURES, tail_at, tail_error, tail_masses


OFF = {"attention_loss_weight": 0}


@pytest.fixture
def make_cache(tmp_path, tiny_tokenizer):
    def make(teacher, rows, name="cache", **options):
        cache_teacher_logits(teacher, rows, tmp_path / name, tiny_tokenizer, progress=False, **options)
        return str(tmp_path / name)

    return make


def labelled_logits(model, rows):
    """Logits at the labelled positions of each row, one after the other."""
    found = []
    for row in rows:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0]
        found += [logits[place] for place, label in enumerate(row["labels"][1:]) if label != -100]
    return torch.stack(found)


@pytest.mark.parametrize(("dtype", "digits"), [("float16", 11), ("bfloat16", 8)])
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
def test_all_tokens_are_the_live_teacher_but_for_rounding(
    dtype, digits, divergence, make_model, make_trainer, make_cache, lm_rows
):
    student, teacher = make_model(0).eval(), make_model(1)
    cache = make_cache(teacher, lm_rows, k=384, dtype=dtype)
    options = {**OFF, "logits_divergence": divergence, "ce_loss_weight": 0, "logits_loss_weight": 1.0}
    live, cached = (
        make_trainer(student, teacher, lm_rows, **options),
        make_trainer(student, None, lm_rows, teacher_cache=cache, **options),
    )
    assert cached.teacher is None and cached.teacher_cache.info.k == 384
    losses = [trainer.compute_loss(student, batch_of(trainer, lm_rows[:5])) for trainer in (live, cached)]
    # Log-probabilities are rounded by a 2 ** -digits of their size at most. The forward KL moves by no more than that times the range of
    # the log-ratios (times tau ** 2 / tau), the others by less.
    s, t = (labelled_logits(model, lm_rows[:5]).log_softmax(-1) for model in (student, teacher))
    error = float(t.abs().max()) * 2.0**-digits
    spread = float((t / 5 - s / 5).amax() - (t / 5 - s / 5).amin()) + 2 * error / 5
    assert abs(losses[0] - losses[1]) <= 5 * error * spread
    assert losses[1] > 100 * abs(losses[0] - losses[1])
    wanted, actual = (gradients(loss, student) for loss in losses)
    for name, gradient in wanted.items():
        torch.testing.assert_close(
            actual[name], gradient, rtol=0, atol=40 * 2.0**-digits * float(gradient.abs().max()), msg=name
        )


@pytest.mark.parametrize("temperature", [1.0, 3.0, 5.0])
def test_few_tokens_within_the_bound(temperature, make_model, make_trainer, make_cache, lm_rows):
    """What is lost is what the tails differ by within, and the error of the tail's mass: neither more nor less."""
    student, teacher = make_model(0).eval(), make_model(1)
    with torch.no_grad():
        teacher.lm_head.weight.mul_(20)  # as sharp as a trained one
    k, rows = 12, lm_rows[:5]
    cache = make_cache(teacher, lm_rows, k=k)
    options = {**OFF, "temperature": temperature, "ce_loss_weight": 0, "logits_loss_weight": 1.0}
    live = make_trainer(student, teacher, lm_rows, **options)
    cached = make_trainer(student, None, lm_rows, teacher_cache=cache, **options)
    losses = [trainer.compute_loss(student, batch_of(trainer, rows)) for trainer in (live, cached)]
    s, t = labelled_logits(student, rows).double(), labelled_logits(teacher, rows).double().log_softmax(-1)
    ids = t.topk(k).indices
    log_p, log_t = (s / temperature).log_softmax(-1), (t / temperature).log_softmax(-1)
    rest = torch.ones_like(t, dtype=torch.bool).scatter(-1, ids, False)
    lost = 0.0
    for p, q, others in zip(log_p, log_t, rest, strict=True):
        mass = q[others].exp().sum()
        lost += temperature**2 * (
            q[others].exp() @ (q[others] - p[others]) - mass * (mass / p[others].exp().sum()).log()
        )
    lost = lost / len(t)
    error = (
        tail_error(tail_masses(t, ids).double(), 384 - k, temperature) + float(t.abs().max()) * 2.0**-11 / temperature
    )
    spread = (log_t - log_p).amax(-1) - (log_t - log_p).amin(-1)
    bound = (temperature**2 * error * (spread + 2 * error)).mean()
    assert lost > 0 and abs(losses[0] - losses[1] - lost) <= bound + 1e-5
    if temperature in TEMPERATURES:
        assert bound < 0.05 * losses[0]


def test_mass_of_the_tail():
    """Exact at the kept temperatures; between them too large, and by no more than the bound."""
    generator = torch.Generator().manual_seed(0)
    log_probs = (6 * torch.randn(50, 300, generator=generator).double()).log_softmax(-1)
    ids = log_probs.topk(8).indices
    masses = tail_masses(log_probs, ids).double()
    for temperature in (0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0, 30.0):
        true = (log_probs / temperature).scatter(-1, ids, float("-inf")).logsumexp(-1)
        excess = tail_at(masses, 292, temperature) - true
        if temperature in TEMPERATURES:
            torch.testing.assert_close(excess, torch.zeros_like(excess), atol=1e-5, rtol=0)
        assert (excess >= -1e-5).all()
        assert (excess <= tail_error(masses, 292, temperature) + 1e-5).all()
    with pytest.raises(ValueError, match=r"temperature 0.4 is below 0.5"):
        tail_at(masses, 292, 0.4)


@pytest.mark.parametrize(
    "options",
    [
        {"per_device_train_batch_size": 3, "train_sampling_strategy": "group_by_length"},
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "dataloader_num_workers": 1},
        {"per_device_train_batch_size": 4, "bf16": True},
    ],
)
def test_training_is_that_with_the_teacher(options, make_model, make_trainer, make_cache, lm_rows):
    """Shuffled, padded, accumulated; the evaluation too."""
    teacher = make_model(1)
    cache = make_cache(teacher, lm_rows, k=384, batch_size=3, shard_examples=3)
    logs = []
    for source in ({"teacher": teacher}, {"teacher": None, "teacher_cache": cache}):
        trainer = make_trainer(
            make_model(0), source.pop("teacher"), lm_rows, max_steps=3, logging_steps=1, **OFF, **options, **source
        )
        trainer.train()
        metrics = trainer.evaluate(lm_rows[:4])
        logs.append([*(e for e in trainer.state.log_history if "loss_logits" in e), metrics])
    assert len(logs[0]) == 4
    for live, cached in zip(*logs, strict=True):
        for key in ("loss", "loss_ce", "loss_logits", "eval_loss", "eval_loss_logits"):
            if key in live:
                assert cached[key] == pytest.approx(live[key], rel=2e-2 if "bf16" in options else 2e-3), key


def test_layouts_find_the_same_examples(make_model, make_trainer, make_cache, lm_rows, tiny_tokenizer):
    student = make_model(0).eval()
    cache = make_cache(make_model(1), lm_rows, k=5)
    trainer = make_trainer(student, None, lm_rows, teacher_cache=cache, **OFF)
    rows = [dict(row) for row in lm_rows[:4]]
    expected = trainer.compute_loss(student, batch_of(trainer, rows))
    tiny_tokenizer.padding_side = "left"
    left = DataCollatorForSeq2Seq(tiny_tokenizer)([dict(row) for row in rows])
    packed = DataCollatorWithFlattening(return_tensors="pt")([dict(row) for row in rows])
    assert packed["input_ids"].shape[0] == 1 and left["attention_mask"][1, 0] == 0
    for batch in (left, packed):
        torch.testing.assert_close(trainer.compute_loss(student, dict(batch)), expected, rtol=1e-5, atol=1e-5)
    # The order of the rows is the batch's.
    torch.testing.assert_close(
        trainer.compute_loss(student, batch_of(trainer, rows[::-1])), expected, rtol=1e-5, atol=1e-5
    )


def test_classifier(make_model, make_trainer, make_cache, class_rows):
    student, teacher = make_model(0, classes=3).eval(), make_model(1, classes=3)
    cache = make_cache(teacher, class_rows)
    trainers = [
        make_trainer(student, teacher, class_rows, **OFF),
        make_trainer(student, None, class_rows, teacher_cache=cache, **OFF),
    ]
    losses = [trainer.compute_loss(student, batch_of(trainer, class_rows[2:6])) for trainer in trainers]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match=r"2 labels and the teacher of .* 3"):
        make_trainer(make_model(0, classes=2), None, class_rows, teacher_cache=cache, **OFF)


def test_what_does_not_fit_is_refused(
    make_model, make_trainer, make_cache, lm_rows, class_rows, tiny_tokenizer, tmp_path
):
    student, teacher = make_model(0).eval(), make_model(1)
    cache = make_cache(teacher, lm_rows[:6], k=4)

    def trainer(model=student, taught=None, **options):
        return make_trainer(model, taught, lm_rows, **{"teacher_cache": cache, **OFF, **options})

    batch = batch_of(trainer(), lm_rows[:6])
    assert "teacher_ids" in batch
    with pytest.raises(
        ValueError, match=r"row 1, 7 label\(s\), it begins with the tokens \[.*is not in the teacher's cache"
    ):
        batch_of(trainer(), [lm_rows[0], lm_rows[7]])
    moved = {**lm_rows[0], "labels": [-100] * 5 + lm_rows[0]["input_ids"][5:]}
    with pytest.raises(ValueError, match="not in the teacher's cache"):
        batch_of(trainer(), [moved])
    with pytest.raises(ValueError, match="attention_loss_weight, hidden_loss_weight need a live teacher"):
        trainer(attention_loss_weight=1, hidden_loss_weight=1)
    with pytest.raises(ValueError, match="nothing would read it"):
        trainer(logits_loss_weight=0)
    with pytest.raises(ValueError, match="teacher_model was given too"):
        trainer(taught=teacher)
    with pytest.raises(ValueError, match="teacher_model_name_or_path is set too"):
        DistillationConfig(str(tmp_path), use_cpu=True, teacher_cache=cache, teacher_model_name_or_path="x", **OFF)
    with pytest.raises(ValueError, match=r"temperature 0.2 is below"):
        trainer(temperature=0.2)
    with pytest.raises(ValueError, match=r"320 columns and .* is of 384: write it with vocab_size=320"):
        trainer(make_model(0, vocab_size=320))
    with pytest.raises(ValueError, match=r"sequence_classification head and the teacher of .* a causal_lm head"):
        make_trainer(make_model(0, classes=3), None, class_rows, teacher_cache=cache, **OFF)
    other = type(tiny_tokenizer)(
        tokenizer_object=tiny_tokenizer.backend_tokenizer, pad_token="<pad>", bos_token="</s>"
    )
    with pytest.raises(ValueError, match="tokenizer is not the one of the teacher"):
        trainer(processing_class=other)
    with pytest.raises(FileNotFoundError, match="no teacher's cache"):
        trainer(teacher_cache=str(tmp_path / "nothing"))
    shard = next((tmp_path / "cache").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match=f"{shard.name} is damaged"):
        TeacherCache(cache)
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"{shard.name} is missing"):
        TeacherCache(cache)


def test_wider_student_reads_the_columns_of_the_cache(make_model, make_trainer, make_cache, lm_rows):
    """Surplus columns are padding rows of the embedding, with a live teacher as with a cache."""
    student, teacher = make_model(0, vocab_size=400).eval(), make_model(1)
    cache = make_cache(teacher, lm_rows, k=384)
    trainers = [
        make_trainer(student, teacher, lm_rows, **OFF),
        make_trainer(student, None, lm_rows, teacher_cache=cache, **OFF),
    ]
    losses = [trainer.compute_loss(student, batch_of(trainer, lm_rows[:4])) for trainer in trainers]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=1e-4)


def test_goes_on_where_it_stopped(make_model, make_cache, lm_rows, tmp_path, monkeypatch):
    teacher = make_model(1)
    calls = []
    teacher.register_forward_hook(lambda *args: calls.append(1))
    options = {"k": 4, "batch_size": 2, "shard_examples": 2}
    whole = make_cache(teacher, lm_rows, "whole", **options)
    assert len(calls) == 4
    folder = tmp_path / "stopped"
    real = DataCollatorForSeq2Seq.__call__

    def stops(self, rows, *args, **kwargs):
        if any(row["input_ids"] == lm_rows[5]["input_ids"] for row in rows):
            raise KeyboardInterrupt
        return real(self, rows, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(DataCollatorForSeq2Seq, "__call__", stops)
        with pytest.raises(KeyboardInterrupt):
            make_cache(teacher, lm_rows, "stopped", **options)
    assert len(list(folder.glob("*.safetensors"))) == 2
    with pytest.raises(ValueError, match="is not complete"):
        TeacherCache(folder)
    calls.clear()
    make_cache(teacher, lm_rows, "stopped", **options)
    assert len(calls) == 2 and read_info(folder).complete
    for file in folder.iterdir():
        assert file.read_bytes() == (tmp_path / "whole" / file.name).read_bytes()
    calls.clear()
    make_cache(teacher, lm_rows, "stopped", **options)
    assert not calls
    for match, change in {
        r"another k \(4, now 5\)": {"k": 5},
        "another dtype": {"dtype": "bfloat16"},
    }.items():
        with pytest.raises(ValueError, match=match):
            make_cache(teacher, lm_rows, "whole", **{**options, **change})
    with pytest.raises(ValueError, match="another teacher_digest"):
        make_cache(make_model(2), lm_rows, "whole", **options)
    with pytest.raises(ValueError, match="of other examples than rows 2 to 3"):
        make_cache(teacher, [*lm_rows[:2], lm_rows[3], lm_rows[4], *lm_rows[4:]], "whole", **options)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match="holds something else"):
        make_cache(teacher, lm_rows, "mine", **options)
    # The cache moves with its folder, and a data loader's workers get it.
    shutil.move(whole, tmp_path / "moved")
    cache = pickle.loads(pickle.dumps(TeacherCache(tmp_path / "moved")))
    assert cache.info.positions == sum(sum(label != -100 for label in row["labels"][1:]) for row in lm_rows)


def test_teacher_that_is_not_finite(make_model, make_cache, lm_rows):
    teacher = make_model(1)
    teacher.lm_head.weight.data[3] = float("nan")
    with pytest.raises(FloatingPointError, match=r"not finite .* in an example that begins with \["):
        make_cache(teacher, lm_rows)
