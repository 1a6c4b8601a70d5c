"""Results of `benchmarks/accuracy`, and of warm starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from .charts import Bars, Lines
from .shown import (
    Shown,
    accuracy_machine,
    load,
    machine,
    nats,
    scores,
    spread,
    standard_error,
)


SST2, MNLI, TASK = "smollm2_sst2_1m_long", "smollm2_mnli_1m", "smollm2_sst2_task"
_NATS = "nats a token, lower is better"
_EACH_ROW = "Accuracy of each row of the table"


# Of an arm's name and the scores of its seeds.
OfScores = Callable[[str, Sequence[float]], Any]


def _arms(
    name: str,
    arms: Mapping[str, str],
    columns: Mapping[str, OfScores],
    error: OfScores,
    start: float,
    conditions: str,
    alternative: str,
    metric: str = "accuracy",
) -> Shown:
    """Scores of the arms of one experiment: a table with a row an arm, and a bar for each.

    Args:
        name: of the experiment.
        arms: name in its record -> what it is called here.
        columns: heading -> what stands under it. The first heading is that of the bars, too.
        error: of an arm's bar; `None`: it has none.
        start: of the bars.
        conditions: under which it was measured.
        alternative: says what the picture shows.
    """
    values = {arm: scores(name, arm, metric) for arm in arms}
    return Shown(
        ["", *columns],
        [[label, *(cell(arm, values[arm]) for cell in columns.values())] for arm, label in arms.items()],
        [f"accuracy/{name}.json"],
        conditions,
        Bars(
            next(iter(columns)),
            list(arms.values()),
            {"mean": [mean(each) for each in values.values()]},
            {"mean": [error(arm, each) for arm, each in values.items()]},
            start=start,
        ),
        alternative,
    )


def _nats(
    name: str,
    values: Mapping[str, Sequence[float]],
    conditions: str,
    alternative: str,
    columns: Sequence[str] = ("0.25 M tokens", "1 M tokens"),
    shown: str = "{:.2f}",
    start: float = 1.2,
) -> Shown:
    """Nats a token of the rows of one experiment, after each of the budgets that `columns` name."""
    return Shown(
        [_NATS, *columns],
        [[label, *(f"{value:.3f}" for value in each)] for label, each in values.items()],
        [f"accuracy/{name}.json"],
        conditions,
        Bars(
            _NATS,
            list(values),
            {column: [each[index] for each in values.values()] for index, column in enumerate(columns)},
            shown=shown,
            start=start,
        ),
        alternative,
    )


def _first(_: str, values: Sequence[float]) -> str:
    return f"{values[0]:.1f}"


def _standard_error(name: str) -> OfScores:
    return lambda arm, values: standard_error(name, arm)


def _deviation(_: str, values: Sequence[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None


# ---- SmolLM2 on tasks -----------------------------------------------------------------------------------------------


def _task(name: str, arms: Mapping[str, str], start: float, title: str) -> Shown:
    error = _standard_error(name)
    columns = {
        f"{title}, %": lambda arm, values: f"{mean(values):.1f}",
        "each seed": lambda arm, values: ", ".join(f"{one:.1f}" for one in values) if len(values) > 1 else "",
        "standard error": lambda arm, values: f"{error(arm, values):.1f}",
    }
    conditions = f"{accuracy_machine(name, arms)}; machine and date of each row are in the file"
    return _arms(name, arms, columns, error, start, conditions, f"{title} of each row of the table")


def sst2() -> Shown:
    arms = {
        "fp_sft": "FP-SFT, full precision: the teacher",
        "fp_sft_again": "FP-SFT, once more on the same examples",
        "teacher_warm_start_kept_longer_alone": "warm start of the teacher, 400 steps, no fine-tuning",
        "teacher_warm_start_kept_longer": "the same, then BitDistill",
        "teacher_warm_start_kept_longer_slow": "the same at a quarter of the learning rate (seed 1)",
        "teacher_warm_start_kept_hidden": "warm start of 192 steps, BitDistill, hidden states",
        "teacher_warm_start_kept": "warm start of 192 steps, BitDistill",
        "teacher_warm_start_kept_others": "the same, no labels, other examples",
        "teacher_warm_start": "the same, all 210 projections ternary",
        "teacher_warm_start_kept_alone": "warm start of 192 steps, no fine-tuning",
        "warm_start_bitdistill": "1 M tokens of plain text, all levers, BitDistill",
        "warm_start_alone": "0.4 M tokens of plain text, warm start, labels",
        "bitdistill": "1 M tokens of plain text, the paper's recipe",
        "bitnet_sft": "BitNet-SFT, no recipe",
    }
    return _task(SST2, arms, 70, "accuracy on SST-2")


def mnli() -> Shown:
    arms = {
        "fp_sft": "FP-SFT, full precision: the teacher",
        "fp_sft_again": "FP-SFT, once more on the same examples",
        "fp_sft_third": "FP-SFT, twice more",
        "teacher_again_warm_start_kept_longer": "student of FP-SFT of two times, BitDistill",
        "teacher_again_warm_start_kept_longer_alone": "its warm start alone",
        "teacher_warm_start_kept_longer": "student of FP-SFT, 300 steps, BitDistill",
        "teacher_warm_start_kept_longer_alone": "300 steps, warm start alone",
        "teacher_warm_start_kept_hidden": "192 steps, BitDistill, hidden states",
        "teacher_warm_start_kept": "192 steps, BitDistill",
        "teacher_warm_start_kept_alone": "192 steps, warm start alone",
        "warm_start_bitdistill": "1 M tokens of plain text, all levers, BitDistill",
        "bitdistill": "1 M tokens of plain text, the paper's recipe",
        "bitnet_sft": "BitNet-SFT, no recipe",
    }
    return _task(MNLI, arms, 30, "accuracy on MNLI")


def examples() -> Shown:
    """From 2,400 to 19,200 examples of SST-2, seed 0."""
    counts = (2400, 6400, 19200)
    files = ("smollm2_sst2_1m", SST2, TASK)
    arms = {
        "FP-SFT, full precision": ("fp_sft", "fp_sft", "fp_sft"),
        "warm start, BitDistill": ("teacher_warm_start_kept", "teacher_warm_start_kept", "teacher_warm_start_kept"),
        "1 M tokens, all levers": ("warm_start_bitdistill", "warm_start_bitdistill", None),
        "BitNet-SFT": ("bitnet_sft", "bitnet_sft", None),
    }
    rows, curves = [], {}
    for label, each in arms.items():
        values = [scores(file, arm)[0] if arm else None for file, arm in zip(files, each, strict=True)]
        rows.append([label, *(None if value is None else f"{value:.1f}" for value in values)])
        there = [(count, value) for count, value in zip(counts, values, strict=True) if value is not None]
        curves[label] = ([count for count, _ in there], [value for _, value in there])
    return Shown(
        ["accuracy on SST-2, %", *(f"{count:,} examples" for count in counts)],
        rows,
        [f"accuracy/{file}.json" for file in files],
        f"{accuracy_machine(TASK)}, seed 0; standard error 0.9 to 1.6 points",
        Lines("examples of the task", "accuracy on SST-2, %", curves, log_x=True, ticks=counts),
        "Accuracy against the number of examples: the teacher and its student rise together",
    )


def plain_text() -> Shown:
    name = "smollm2_sst2_1m"
    arms = {
        "fp_sft": "FP-SFT, full precision",
        "teacher_warm_start_kept": "no plain text, warm start of FP-SFT, two down_proj kept",
        "teacher_warm_start_unbounded": "the same, those two ternary without SubLN",
        "warm_start_bitdistill": "1 M tokens, all levers, BitDistill",
        "warm_start_bitdistill_512": "the same with 512 tokens a step",
        "teacher_warm_start": "no plain text, warm start of FP-SFT, all ternary",
        "warm_start_only": "0.4 M tokens, warm start alone, labels",
        "warm_start_kept": "the same, two down_proj kept",
        "bitnet_sft": "BitNet-SFT, no recipe",
        "bitdistill": "1 M tokens, the paper's recipe",
    }
    text = {
        row["arm"]: row["perplexity"]["validation"]["nll_per_token"]
        for row in load(f"accuracy/{name}.json")["rows"]
        if row["perplexity"]
    }
    text["fp_sft"] = text["full precision"]  # (the model that it was fine-tuned from)
    columns = {
        "accuracy on SST-2, %": _first,
        "nats a token of plain text, before fine-tuning": lambda arm, values: f"{text[arm]:.2f}",
    }
    return _arms(name, arms, columns, _standard_error(name), 50, accuracy_machine(name), _EACH_ROW)


def without_text() -> Shown:
    name = "smollm2_sst2_cpu"
    arms = {
        "fp_sft": "FP-SFT, full precision",
        "warm_start_hidden": "warm start, BitDistill, hidden states",
        "warm_start_bitdistill": "warm start, BitDistill",
        "long_warm_start_bitdistill": "the same, four times the text",
        "warm_start_only": "warm start, then labels only",
        "bitnet_sft": "BitNet-SFT, no recipe",
        "bitdistill": "BitDistill without pre-training",
    }
    error = _standard_error(name)
    columns = {"accuracy on SST-2, %": _first, "standard error": lambda arm, values: f"{error(arm, values):.1f}"}
    return _arms(name, arms, columns, error, 50, accuracy_machine(name), _EACH_ROW)


# ---- The small models -----------------------------------------------------------------------------------------------


def ablations() -> Shown:
    name = "docstrings"
    arms = {
        "fp_sft": "FP-SFT, full precision: the teacher",
        "all_together": "all levers, BitDistill",
        "without_attention": "BitDistill without the attention loss",
        "teacher_distributions": "teacher's distributions in pre-training",
        "without_sub_norm": "BitDistill without SubLN",
        "warm_start_bitdistill": "warm start and BitDistill",
        "bitdistill": "BitDistill",
        "without_logits": "BitDistill without the logits loss",
        "attention_first_layer": "relations of the first layer",
        "attention_middle_layer": "relations of the middle layer",
        "scaled_dot": "relations as in the equation",
        "labels_only": "labels only",
        "without_pretraining": "BitDistill without pre-training",
        "bitnet_sft": "BitNet-SFT, no recipe",
        "warm_start_only": "warm start, then labels only",
    }
    columns = {"token accuracy, %": lambda arm, values: spread(values)}
    conditions = f"{accuracy_machine(name)}; mean and standard deviation of three seeds"
    alternative = "Token accuracy of each row of the table"
    return _arms(name, arms, columns, _deviation, 36, conditions, alternative, "token_accuracy")


def levers() -> Shown:
    name, budgets = "stories260k_lm", (250_000, 1_000_000)
    arms = {
        "plain": "plain recipe",
        "calibrated": "calibrated SubLN",
        "calibrated_distilled": "base: the same, teacher's distributions",
        "dead_zone_leak": "base, leak 0.3",
        "dead_zone_leak_whole": "base, leak 1",
        "quantization_warmup": "base, quantised over a fifth of the steps",
        "quantization_warmup_half": "base, over half of the steps",
        "warmup_and_leak": "base, over a fifth, leak 1",
        "hidden": "base, hidden states",
        "falling_hidden": "base, hidden states that fall",
        "sooner_hidden": "base, that fall over half of the steps",
        "scale_per_row": "base, a scale per row",
        "scale_per_group": "base, a scale per 64 columns",
        "warm_start": "warm start, next token",
        "warm_start_distilled": "warm start, teacher's distributions",
        "warm_start_leak": "the same, leak 1",
        "all_together": "the same, a scale per row: all together",
        "all_together_hidden": "all together, hidden states",
        "all_together_falling_hidden": "all together, that fall over half",
    }
    values = {label: [mean(nats(name, arm, budget)) for budget in budgets] for arm, label in arms.items()}
    full = nats(name, "full precision", None)[0]
    conditions = f"{accuracy_machine(name)}; mean of two seeds, full precision {full:.3f}"
    return _nats(name, values, conditions, "Nats a token of each lever after 0.25 and after 1 million tokens")


def left_off() -> Shown:
    name, budget = "stories260k_choices", 250_000
    arms = {
        "base": "base",
        "linear": "learning rate falls linearly",
        "no_weight_decay": "no weight decay",
        "weight_decay": "weight decay 0.1",
        "weight_decay_half": "weight decay 0.1 in the first half",
        "scale_gradient": "scales learned too, one a matrix",
        "row_scale_gradient": "scales learned too, one a row",
        "weak_relations": "attention relations, coefficient 20",
        "relations": "attention relations, coefficient 200",
        "least_squares": "start from the nearest codes",
        "weak_hidden": "hidden states, coefficient 0.3",
        "hidden": "hidden states, coefficient 1",
        "strong_hidden": "hidden states, coefficient 3",
        "hidden_10": "hidden states, coefficient 10",
        "hidden_30": "hidden states, coefficient 30",
    }
    values = {label: [mean(nats(name, arm, budget))] for arm, label in arms.items()}
    conditions = f"{accuracy_machine(name)}; mean of two seeds"
    return _nats(name, values, conditions, "Nats a token of each choice", ["0.25 M tokens"], "{:.3f}", 2.1)


def tokens() -> Shown:
    name, budgets = "stories260k_tokens", (1_000_000, 5_000_000, 20_000_000)
    arms = {"plain": "plain recipe", "all_together": "all levers together"}
    values = {label: [nats(name, arm, budget)[0] for budget in budgets] for arm, label in arms.items()}
    millions = [budget / 1e6 for budget in budgets]
    full = nats(name, "full precision", None)[0]
    return Shown(
        [_NATS, *(f"{million:g} M tokens" for million in millions)],
        [[label, *(f"{value:.3f}" for value in each)] for label, each in values.items()],
        [f"accuracy/{name}.json"],
        f"{accuracy_machine(name)}; one seed, full precision {full:.3f}",
        Lines(
            "million tokens", _NATS, {label: (millions, each) for label, each in values.items()},
            {"full precision": full}, log_x=True, ticks=millions,
        ),
        "Nats a token against the tokens of training: both recipes near full precision, the gap between them closes",
    )  # fmt: skip


def batch() -> Shown:
    name, budgets = "stories260k_batch", (250_000, 1_000_000)
    arms = {
        "plain_16": "plain recipe, 16 blocks a step",
        "plain_4": "plain recipe, 4 blocks",
        "all_16": "all levers, 16 blocks",
        "all_8": "all levers, 8 blocks",
        "all_4": "all levers, 4 blocks",
        "all_16_distributions": "all levers, 16 blocks, distributions alone",
        "all_4_distributions": "all levers, 4 blocks, distributions alone",
        "all_16_distributions_3": "all levers, 16 blocks, distributions three times",
    }
    values = {label: [nats(name, arm, budget)[0] for budget in budgets] for arm, label in arms.items()}
    return _nats(name, values, f"{accuracy_machine(name)}; one seed", "Nats a token of each row of the table")


def rates() -> Shown:
    name, budgets = "stories260k_rates", (250_000, 1_000_000)
    values = {}
    for arm, label in (("plain", "plain recipe"), ("all_together", "all levers")):
        for rate in ("1e-3", "3e-3", "6e-3", "12e-3"):
            shown = "1.2e-2" if rate == "12e-3" else rate
            values[f"{label}, {shown}"] = [nats(name, f"{arm}_{rate}", budget)[0] for budget in budgets]
    return _nats(name, values, f"{accuracy_machine(name)}; one seed", "Nats a token of each row of the table")


def small_model() -> Shown:
    name = "stories260k_sst2"
    arms = {
        "fp_sft": "FP-SFT, full precision",
        "bitnet_sft": "BitNet-SFT, no recipe",
        "warm_start_only": "warm start and labels only",
        "warm_start_bitdistill": "warm start and BitDistill",
        "bitdistill": "BitDistill",
        "bitdistill_weak": "BitDistill, weaker distillation terms",
        "all_together": "all levers and BitDistill",
    }
    columns = {"accuracy on SST-2, %": lambda arm, values: spread(values, 1)}
    conditions = f"{accuracy_machine(name)}; mean and standard deviation of two seeds"
    return _arms(name, arms, columns, _deviation, 50, conditions, _EACH_ROW)


# ---- Starts ---------------------------------------------------------------------------------------------------------


def first_token() -> Shown:
    file = "hidden_states_smollm2.json"
    layers = load(file)["layers"]
    names = {
        "full_precision": "full precision",
        "warm_start_kept": "ternary, two projections kept",
        "warm_start": "ternary after a warm start",
        "after_1m_tokens": "ternary after 1 M tokens",
    }
    curves = {
        label: (list(range(len(layers[name]["first_token"]))), layers[name]["first_token"])
        for name, label in names.items()
    }
    return Shown(
        ["norm of the first token's hidden state", "behind layer 12", "of other tokens there"],
        [
            [label, f"{layers[name]['first_token'][12]:,.0f}", f"{layers[name]['other_tokens'][12]:,.0f}"]
            for name, label in names.items()
        ],
        [file],
        f"{machine(load(file)['machine'])}; median over 8 blocks of 256 tokens",
        Lines("layer", "norm of the first token's hidden state", curves, log_y=True),
        "The first token's norm by layer: full precision and the student with kept projections are 200 times above the others",
    )


def warm_start() -> Shown:
    file = "warm_start_smollm2_cpu.json"
    values = {name: each["nll_per_token"] for name, each in load(file)["results"].items()}
    labels = {
        "full precision": "full precision",
        "warm start": "warm start, 12 thousand tokens",
        "SubLN at one": "SubLN at one",
        "SubLN calibrated": "SubLN calibrated",
        "SubLN calibrated, least squares": "the same, nearest codes",
    }
    rows = {label: [values[name]] for name, label in labels.items()}
    return Shown(
        ["before any training as a whole", _NATS],
        [[label, f"{each[0]:.2f}"] for label, each in rows.items()],
        [file],
        machine(load(file)["machine"]),
        Bars(_NATS, list(rows), {"nats": [each[0] for each in rows.values()]}, shown="{:.2f}"),
        "Nats a token of SmolLM2 as a student, by how it was started",
    )


def sub_norm() -> Shown:
    file = "sub_norm_stories260K.json"
    values = load(file)
    rows = [row for row in values["rows"] if row["sub_norm"]]
    labels = [
        {"none": "no SubLN", "output": "output projections", "all": "all projections"}[row["sub_norm"]]
        + (f", {row['start']}" if row["start"] else "")
        for row in rows
    ]
    columns = {"full_precision": "not quantised", "ternary": "ternary", "ternary_trained": "after 100 steps"}
    return Shown(
        [f"SubLNs, and their start ({_NATS})", *columns.values()],
        [[label, *(f"{row[column]:.3f}" for column in columns)] for label, row in zip(labels, rows, strict=True)],
        [file],
        f"{machine({**values['machine'], 'date': values['date']})}; source model {values['rows'][0]['full_precision']:.3f}",
        Bars(_NATS, labels, {name: [row[column] for row in rows] for column, name in columns.items()}, shown="{:.2f}"),
        "Nats a token by where SubLNs are and how they start",
    )
