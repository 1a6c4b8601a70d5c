"""What an effort means: every number of the recipe, in one table, each with the measurement that it comes from, if there is one.

What no measurement stands beside is a convention: chosen beforehand, and compared with nothing else. A comment says what it rests on.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, cast

from ..config import BitNetConfig, SubNormPlacement, WeightGranularity


def _from(default: Any, text: str, *files: str) -> Any:
    """A field with what it is, and the files below `benchmarks/results` that its value comes from (none: a convention)."""
    return field(default=default, metadata={"help": text, "measured": files})


_SST2 = "accuracy/smollm2_sst2_1m_long.json"
_MNLI = "accuracy/smollm2_mnli_1m.json"
_TREC = "recipe/unseen_trec.json"


@dataclass(frozen=True)
class Effort:
    """The numbers of one effort. What each is stands in its field's `help`, which is also that of its option in `RecipeSettings`."""

    teacher_examples: int = _from(
        6400, "Examples that the teacher is fine-tuned on, at most, if it is not given.", _SST2, _MNLI
    )
    # (Three passes are usual in fine-tuning; it stops sooner where the loss on held-out rows rises.)
    teacher_epochs: float = _from(3.0, "How often it reads the data, at most.")
    # (5e-5 is SmolLM2's; at it a far smaller model learned little.)
    teacher_learning_rates: tuple[float, ...] = _from(
        (5e-5, 2e-4),
        "Learning rates of the teacher's fine-tuning; of several, held-out training rows choose after a short run of each (sweep_share). "
        "Adapters (lora) have four times as much.",
        _SST2,
        _MNLI,
        _TREC,
    )
    batch_size: int = _from(16, "Examples a step of every training on them, of all processes together.", _SST2, _MNLI)
    window_steps: int = _from(400, "Steps a window of the warm start; 0: no warm start.", _SST2)
    # (192 steps were compared with 400, for window_steps; more were not. Each doubling takes twice as long as what it doubles.)
    extra_doublings: int = _from(0, "How often window_steps may be doubled, while that closes the gap.")
    window_tokens: int = _from(
        1200,
        "Tokens a step of the warm start; with the mean length of an example it decides its batch, up to 32.",
        _SST2,
        _MNLI,
    )
    window_stride: int = _from(4, "Layers by which the window moves on.", _SST2, _MNLI)
    window_learning_rate: float = _from(2e-2, "Learning rate of the warm start.", _SST2, _MNLI)
    window_start: str = _from("least_squares", "Codes to begin with: absmean or least_squares.", _SST2, _MNLI)
    loss_unit: str = _from("token", "Unit of the warm start's error: median or token.", _MNLI)
    warm_start_tokens: int = _from(
        393_216,
        "Tokens that the warm start reads, some of them more than once; twice the steps read twice as many.",
        _SST2,
        _MNLI,
    )
    weight_granularity: str = _from("row", "What shares a weight scale: tensor, row or group.", _SST2, _MNLI)
    sub_norm: str = _from(
        "output",
        "Where SubLNs are put: output, all or none. Exported to GGUF can be: output with Llama's layers and tied embeddings; none with "
        "Llama, Mistral, Qwen2 and Qwen3.",
        _SST2,
        _MNLI,
    )
    calibrate_sub_norm: bool = _from(True, "SubLN start values from activations.", _SST2, _MNLI)
    keep_massive_ratio: float = _from(
        20.0,
        "Keep projections in full precision whose largest output is so many times the median. 0: none.",
        _SST2,
        "hidden_states_smollm2.json",
    )
    corpus_tokens: int = _from(1_000_000, "Tokens of continual pre-training.", _SST2, _MNLI)
    pretrain_batch_size: int = _from(
        16, "Blocks of plain text a step of continual pre-training, of all processes together.", _SST2
    )
    pretrain_learning_rate: float = _from(1e-3, "Learning rate of continual pre-training.", _SST2)
    pretrain_logits_loss_weight: float = _from(
        1.0, "Weight of the teacher's distributions in it.", _SST2, "accuracy/stories260k_choices.json"
    )
    dead_zone_leak: float = _from(
        1.0, "Share with which weights of code 0 take part in it at first.", _SST2, "accuracy/stories260k_choices.json"
    )
    block_size: int = _from(256, "Tokens of a block of plain text.", _SST2)
    distill_examples: int = _from(6400, "Examples of a round of distillation, at most; 0: none.", _SST2, _MNLI)
    # (As the teacher's. On rows that few, more passes were not tried.)
    distill_epochs: float = _from(3.0, "How often it reads the data, at most.")
    # (The measured rows are those of one round; what a second one buys was not measured.)
    distill_rounds: int = _from(1, "Rounds of distillation at most, on other examples each, while they close the gap.")
    distill_learning_rates: tuple[float, ...] = _from(
        (2e-4, 5e-5),
        "Learning rates of the distillation; of several, held-out training rows choose after a short run of each (sweep_share).",
        _SST2,
        _MNLI,
    )
    # (Long enough that the losses of the rates differ in `recipe/smollm2_mnli_standard.json` and `recipe/unseen_*.json`; other shares were not
    # compared, nor whether a whole training would have ranked them alike.)
    sweep_share: float = _from(0.15, "Share of the steps that each of several learning rates is tried for.")
    sweep_extensions: int = _from(
        2,
        "How many rates beyond its own, each four times the highest or a quarter of the lowest, are tried while the best one is at the edge. "
        "Of rates that are given none.",
        _TREC,
    )
    logits_loss_weight: float = _from(1.0, "Weight of the logits loss.", _SST2, _MNLI)
    attention_loss_weight: float = _from(100.0, "Weight of the attention relation loss.", _SST2, _MNLI)
    hidden_loss_weight: float = _from(10.0, "Weight of the hidden state loss.", _SST2, _MNLI)
    temperature: float = _from(5.0, "Temperature of the logits loss.", _SST2, _MNLI)
    keep_only_better: bool = _from(
        True, "Go back behind a distillation that makes the student worse on held-out training rows.", _SST2
    )
    # (By arithmetic: 512 rows tell an accuracy to about two points, one standard error; the 256 of `quick` to three.)
    held_out_rows: int = _from(512, "Training rows that are taken away for all choices.")
    eval_rows: int = _from(
        2000, "Rows of the evaluation split, at most; 0: all (of answers that are written, 200).", _MNLI
    )
    compare_learning_rate: float = _from(5e-4, "Learning rate of BitNet-SFT (--compare).", _SST2, _MNLI)
    table_bits: int = _from(
        16, "Bits of embedding and output head in the packed student: 16, 8 or 4.", "checkpoint_sizes.json"
    )


EFFORTS: dict[str, Effort] = {
    # Measured as a whole, once: `recipe/smollm2_sst2_quick.json`. Its single numbers are conventions: about a sixth of the standard warm start, a
    # quarter of its distillation, one learning rate each.
    "quick": Effort(
        teacher_examples=2400,
        teacher_learning_rates=(5e-5,),
        window_steps=64,
        warm_start_tokens=65_536,
        corpus_tokens=200_000,
        distill_examples=1600,
        distill_learning_rates=(2e-4,),
        held_out_rows=256,
        eval_rows=500,
    ),
    "standard": Effort(),
    "thorough": Effort(
        teacher_examples=19_200,
        window_steps=800,
        extra_doublings=1,
        warm_start_tokens=786_432,
        corpus_tokens=4_000_000,
        distill_examples=19_200,
        distill_rounds=3,
        distill_learning_rates=(4e-4, 2e-4, 5e-5),
        held_out_rows=1024,
        eval_rows=0,
    ),
}
"""`quick`: for a first look. `standard`: the best rows of `benchmarks/README.md`, measured as a whole in `recipe/smollm2_sst2_standard.json`,
`recipe/smollm2_mnli_standard.json` and `recipe/unseen_*.json`. `thorough`: up to four times the warm start and three times the examples
(`accuracy/smollm2_sst2_task.json`, with the shorter warm start); not measured as a whole, and its rounds, rates and doubling are conventions."""


def paper(effort: Effort, classes: bool) -> Effort:
    """BitNet Distillation as published (arXiv 2510.13998): SubLNs at one, a scale a tensor, continual pre-training on the next token alone,
    and its loss coefficients, which differ for classes and written answers. It is made for ten billion tokens of pre-training: after one
    million it ends where no recipe does (`accuracy/smollm2_sst2_1m_long.json`)."""
    return dataclasses.replace(
        effort,
        window_steps=0,
        extra_doublings=0,
        distill_rounds=1,
        weight_granularity="tensor",
        calibrate_sub_norm=False,
        keep_massive_ratio=0.0,
        pretrain_logits_loss_weight=0.0,
        dead_zone_leak=0.0,
        distill_learning_rates=(5e-5,),
        logits_loss_weight=10.0 if classes else 1.0,
        attention_loss_weight=1e5 if classes else 1e3,
        hidden_loss_weight=0.0,
        keep_only_better=False,
    )


def bitnet_config(effort: Effort) -> BitNetConfig:
    """Of the student that an effort makes."""
    granularity, sub_norm = (
        cast("WeightGranularity", effort.weight_granularity),
        cast("SubNormPlacement", effort.sub_norm),
    )
    return BitNetConfig(sub_norm=sub_norm, weight_granularity=granularity)


# How often a budget may go on with the warm start, and with the distillation, while there is time. (A convention: time ends it sooner.)
_LEFT_OVER = 4
_SCALED = ("teacher_examples", "window_steps", "warm_start_tokens", "corpus_tokens", "distill_examples")


def scaled(effort: Effort, factor: float) -> Effort:
    """An effort of about `factor` times the time: the same proportions; no sweep where there is little, and what is left over goes where the
    gap still closes."""
    values = {name: max(1, round(getattr(effort, name) * factor)) for name in _SCALED if getattr(effort, name)}
    if effort.window_steps:
        values |= {"extra_doublings": _LEFT_OVER, "distill_rounds": _LEFT_OVER}
    if factor < 0.5:
        values |= {name: getattr(effort, name)[:1] for name in ("teacher_learning_rates", "distill_learning_rates")}
    return dataclasses.replace(effort, **values)


def measurements(effort: Effort) -> dict[str, tuple[str, ...]]:
    """The files below `benchmarks/results` that each number comes from."""
    return {field.name: field.metadata["measured"] for field in dataclasses.fields(effort)}
