"""Results of the native decoder around whole models, of files and memory, and of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from .charts import Bars, Lines
from .shown import Shown, load, machine
from .whole_models import TPS, machine_of


def students() -> list[tuple[str, dict, dict]]:
    """Of SmolLM2's students on SST-2: their name, the native decoder, and the model in float32 in transformers."""
    names = {
        "ternary": "SmolLM2-135M, all ternary",
        "kept": "SmolLM2-135M, three projections kept in float32",
    }
    return [(label, *load(f"benchmark_smollm2_sst2_{name}.json")["measurements"]) for name, label in names.items()]


def kept() -> Shown:
    rows, labels, values = [], [], {"native decoder": [], "full precision, float32 in transformers": []}
    for label, native, float32 in students():
        for name, each in zip(values, (native, float32), strict=True):
            values[name].append(each["decode_tokens_per_second"])
            rows.append(
                [
                    f"{label}: {name}",
                    f"{each['decode_tokens_per_second']:,.0f}",
                    f"{each['prefill_tokens_per_second']:,.0f}",
                    f"{each['file_bytes'] / 1e6:.1f} MB",
                    f"{(each['peak_rss_bytes'] - each['base_rss_bytes']) / 1e6:.0f} MB",
                ]
            )
        labels.append(label)
    return Shown(
        ["", "decode", "prompt of 128", "file", "more memory"],
        rows,
        ["benchmark_smollm2_sst2_ternary.json", "benchmark_smollm2_sst2_kept.json"],
        f"{machine(load('benchmark_smollm2_sst2_kept.json')['environment'])}; 8-bit head, 128 new tokens",
        Bars(f"{TPS}, decoding", labels, values, shown="{:,.0f}"),
        "Tokens a second of two students and of the model in full precision",
    )


def generate() -> Shown:
    file = "generate.json"
    ways = {
        "decoder": "the decoder alone",
        "forward": "forward of the class",
        "greedy": "greedy generate",
        "sampling": "sampling",
    }
    values = {way: [row for row in load(file)["rows"] if row["way"] == way] for way in ways}
    return Shown(
        ["milliseconds a token (more than the decoder alone)", "1 thread", "2 threads"],
        [
            [ways[way], *(f"{row['milliseconds_per_token']:.1f} ({100 * row['overhead']:+.0f} %)" for row in rows)]
            for way, rows in values.items()
        ],
        [file],
        f"{machine(load(file)['machine'])}; 0.6B, 8-bit head, 128 tokens, medians of 5 rounds; sampling with temperature 0.7, top-k 50, top-p 0.9",
        Bars(
            "milliseconds a token, lower is better", list(ways.values()),
            {f"{t} thread{'s' if t > 1 else ''}": [rows[t - 1]["milliseconds_per_token"] for rows in values.values()] for t in (1, 2)},
        ),
        "Milliseconds a token of generate beside the bare decoder",
    )  # fmt: skip


def modules() -> Shown:
    rows, labels, values = [], [], {"float32": [], "bfloat16": []}
    files = ("modules_smollm2.json", "modules_0.6b.json")
    for file in files:
        for threads in (1, 2):
            found = {row["model"]: row for row in load(file)["rows"] if row["threads"] == threads}
            cells = []
            for other in values:
                times = found[other]
                values[other].append(times["packed_int8_head_over_this_decode"])
                cells.append(
                    f"{times['packed_int8_head_over_this_decode']:.1f} / {times['packed_int8_head_over_this_prefill']:.1f}"
                )
            labels.append(f"{load(file)['model']}, {threads} thread{'s' if threads > 1 else ''}")
            rows.append([labels[-1], *cells])
    return Shown(
        ["times as fast, decode / prompt of 512", "as float32", "as bfloat16"],
        rows,
        files,
        f"{machine(load(files[0])['machine'])}; embedding and head in 8 bits; a slow hour of the machine, so read the ratios",
        Bars("times as fast in decoding", labels, {f"as {name}": each for name, each in values.items()}),
        "Speed-up of packed layers in transformers against float32 and bfloat16",
    )


def kernels() -> Shown:
    file = "kernels.json"
    rows, values = [], {}
    shapes = None
    for run in load(file)["runs"]:
        name = f"{run['threads']} thread{'s' if run['threads'] > 1 else ''}"
        ternary = [each for each in run["gemm"] if each["weight"] == "ternary"]
        shapes = [f"{each['rows']} x {each['cols']}" for each in ternary]
        # (The file's shares of the peak are too high: the loop that measured the peak was slow.)
        values[name] = [each["times_faster_than_float32"] for each in ternary]
        rows += [
            [f"{shape}, {name}", f"{each['times_faster_than_float32']:.1f}", f"{each['times_faster_than_bfloat16']:.1f}"]
            for shape, each in zip(shapes, ternary, strict=True)
        ]  # fmt: skip
    values_of = load(file)
    return Shown(
        ["512 tokens", "times as fast as torch in float32", "as bfloat16"],
        rows,
        [file],
        f"{machine({'cpu': values_of['cpu'], 'threads': 2, 'date': values_of['date']})}; ternary weights, one scale a matrix",
        Bars("times as fast as torch in float32", shapes, values),
        "Speed-up of products of 512 tokens against torch in float32, by shape of the matrix",
    )


# ---- What changed it -------------------------------------------------------------------------------------------------


_COMPARED = {
    "decode": "decode",
    "decode at depth": "decode at a depth",
    "prompt": "prompt",
    "together at depth": "8 tokens together at a depth",
}


def _compared(files: Mapping[str, str], date: str, why: str, measure: str = "speed after / before") -> Shown:
    values: dict[str, list[float]] = {}
    for file, name in files.items():
        results = load(file)["results"]
        for threads in sorted({row["threads"] for row in results}):
            series = f"{name}, {threads} thread{'s' if threads > 1 else ''}"
            by_what = {row["what"]: row["ratio"] for row in results if row["threads"] == threads}
            values[series] = [by_what[what] for what in _COMPARED]
    any_file = load(next(iter(files)))
    return Shown(
        [measure, *_COMPARED.values()],
        [[name, *(f"{value:.2f}" for value in each)] for name, each in values.items()],
        list(files),
        f"{machine({'cpu': any_file['cpu'], 'threads': max(row['threads'] for row in any_file['results']), 'date': date})}; {why}",
        Bars(measure, list(_COMPARED.values()), values, shown="{:.2f}"),
        f"{measure[0].upper()}{measure[1:]}, by what is computed",
    )


def registers() -> Shown:
    files = {"compare_speed_avx512.json": "AVX-512", "compare_speed_avx2.json": "AVX2"}
    return _compared(files, "2026-11-28", "shape of 0.6B, 8-bit head, two builds in turns")


def one_order() -> Shown:
    files = {"compare_invariance_avx512.json": "AVX-512", "compare_invariance_avx2.json": "AVX2"}
    return _compared(files, "2026-11-27", "shape of 0.6B, 8-bit head, medians of CPU time, beside other work")


def long_context() -> Shown:
    file = "long_context.json"
    values = load(file)
    labels = {"before": "before the cache was read once", "16 bits": "kv_bits=16", "8 bits": "kv_bits=8"}
    rows = {row["system"]: row for row in values["results"]}
    return Shown(
        ["0.6B at a depth of 8192", "decode", "prompt of 8192", "cache"],
        [
            [label, f"{rows[name]['decode_tps']:.1f}", f"{rows[name]['prefill_tps']:.0f}", f"{rows[name]['cache_bytes'] / 1e6:.0f} MB"]
            for name, label in labels.items()
        ],
        [file],
        f"{machine({'cpu': values['cpu'], 'threads': values['threads'][0], 'date': values['date']})}; medians of one run",
        Bars(f"{TPS}, decoding at a depth of 8192", list(labels.values()), {"decode": [rows[name]["decode_tps"] for name in labels]}),
        "Tokens a second at a depth of 8192",
    )  # fmt: skip


def kv_bits() -> Shown:
    file = "kv_bits_smollm2.json"
    values = load(file)
    rows = {bits: values["results"][bits] for bits in ("32", "16", "8")}
    return Shown(
        ["keys and values", "perplexity", "above 32 bits"],
        [
            [f"kv_bits={bits}", f"{row['perplexity']:.3f}", f"{100 * row['above_most_bits']:+.3f} %"]
            for bits, row in rows.items()
        ],
        [file],
        f"{values['model']}; {values['blocks']} blocks of {values['length']:,} tokens of {values['text']}, {values['date']}",
    )


# ---- Files and memory -----------------------------------------------------------------------------------------------


def sizes() -> Shown:
    file = "checkpoint_sizes.json"
    values = load(file)
    columns = {"16": "tables in 16 bits", "8": "in 8 bits", "4": "in 4 bits"}
    rows, drawn = [], {"bfloat16": [], **{name: [] for name in columns.values()}}
    for model, each in values["sizes"].items():
        packed = {bits: each["packed"][bits] for bits in columns}
        rows.append(
            [
                model,
                f"{each['bfloat16_bytes'] / 1e6:.0f} MB",
                *(f"{one['bytes']['total'] / 1e6:.0f} MB ({one['ratio']:.1f})" for one in packed.values()),
            ]
        )
        drawn["bfloat16"].append(each["bfloat16_bytes"] / 1e6)
        for bits, name in columns.items():
            drawn[name].append(packed[bits]["bytes"]["total"] / 1e6)
    return Shown(
        ["packed (times smaller)", "bfloat16", *columns.values()],
        rows,
        [file],
        f"{values['environment']['date']}; ternary weights in 1.6 bits",
        Bars("MB on disk", list(values["sizes"]), drawn, shown="{:.0f}"),
        "Size on disk of packed models by the bits of embedding and head",
    )


def tables() -> Shown:
    """What tables of 8 and 4 bits cost."""
    rows, labels, values = [], [], {"8 bits": [], "4 bits": []}
    models = {
        "quickstart": "quickstart's student, vocabulary 2,048",
        "smollm2_warm_start": "SmolLM2-135M after a warm start",
    }
    files = []
    for name, label in models.items():
        found = {bits: load(f"head_bits_{name}_{bits}.json") for bits in (16, 8, 4)}
        files += [f"head_bits_{name}_{bits}.json" for bits in (16, 8, 4)]
        rows.append([label, *(f"{each['nll_per_token']:.4f}" for each in found.values())])
        labels.append(label)
        for bits in (8, 4):
            values[f"{bits} bits"].append(100 * (found[bits]["perplexity"] / found[16]["perplexity"] - 1))
    return Shown(
        ["nats a token", "head in 16 bits", "8 bits", "4 bits"],
        rows,
        files,
        "2026-11-23 and 24, an Intel Xeon",
        Bars("% more perplexity than with 16 bits", labels, values, shown="{:+.1f}"),
        "Perplexity that tables of 8 and of 4 bits add",
    )


def head() -> Shown:
    file = "head.json"
    values = load(file)
    labels = {"whole": "8 bits, every row whole", "parts": "8 bits in two parts", "bits4": "4 bits"}
    times = values["milliseconds_per_token"]
    return Shown(
        ["milliseconds a token", "1 thread", "2 threads"],
        [[label, *(f"{times[f'{t} threads'][name]['median']:.2f}" for t in (1, 2))] for name, label in labels.items()],
        [file],
        f"{machine(values['machine'])}; {values['model']}; {values['different_tokens']} of {values['tokens']:,} greedy tokens differ, "
        f"{100 * values['rows_read']['mean']:.1f} % of the rows read whole; medians",
        Bars(
            "milliseconds a token, lower is better", list(labels.values()),
            {f"{t} thread{'s' if t > 1 else ''}": [times[f"{t} threads"][name]["median"] for name in labels] for t in (1, 2)}, shown="{:.2f}",
        ),
        "Milliseconds a token by how the output head is kept",
    )  # fmt: skip


def head_rows() -> Shown:
    file = "head_rows.json"
    values = load(file)
    names = {"k=1": "greedy", "k=50": "top-k, k = 50", "p=0.9": "top-p, p = 0.9"}
    return Shown(
        ["needed of the second part, %", "of the rows", "of the panels of 16 rows"],
        [[label, *(f"{100 * values['rows_needed'][name][of]:.1f}" for of in ("rows", "panels"))] for name, label in names.items()],
        [file],
        f"{machine(values['machine'])}; {values['model']}; where WikiText goes on as it is, temperature 1",
    )  # fmt: skip


def speculation() -> Shown:
    file = "speculation.json"
    values = load(file)
    rows = values["rows"]
    labels = {"none": "without", "lookup 10, heuristic": "up to 10, adaptive"}
    names = [labels.get(row["way"], row["way"].removeprefix("lookup ")) for row in rows]
    return Shown(
        ["guesses", TPS, "against without", "tokens a pass", "guesses that were right"],
        [
            [
                name, f"{row['tokens_per_second']:.0f}", f"{row['against_none']:.2f}", f"{row['tokens_per_read']:.2f}",
                "" if row["accepted"] is None else f"{100 * row['accepted']:.0f} %",
            ]
            for name, row in zip(names, rows, strict=True)
        ],
        [file],
        f"{machine(values['machine'])}; {values['settings']['name']}, {values['settings']['count']} articles of CNN/DailyMail, "
        f"up to {values['settings']['new_tokens']} tokens each, {values['settings']['head_bits']}-bit head",
        Bars(TPS, names, {"greedy": [row["tokens_per_second"] for row in rows]}),
        "Tokens a second by the number of guesses",
    )  # fmt: skip


def verification() -> Shown:
    file = "speculation.json"
    values = load(file)
    counts = [count for count in values["verification"] if int(count) in (1, 2, 4, 6, 8, 9)]
    return Shown(
        ["tokens read together", *counts],
        [["time, of one token's", *(f"{values['verification'][count]:.2f}" for count in counts)]],
        [file],
        f"{machine(values['machine'])}; {values['settings']['name']}, all logits wanted",
    )


def loading() -> Shown:
    shapes = {
        "0.6B, 8-bit head": ("loading.json", "0.6B"),
        "a mixture with 4,656 tensors": ("loading.json", "mixture"),
        "30B-A3B, 18,624 tensors": ("loading_30b.json", "30B-A3B"),
    }
    ways = {
        "checkpoint, 1.6 bits": {"weight_bits": 1.6, "loaded_from": "checkpoint"},
        "checkpoint, 2 bits": {"weight_bits": 2.0, "loaded_from": "checkpoint"},
        "native file": {"weight_bits": 1.6, "loaded_from": "native file"},
    }
    rows, seconds = [], {}
    for label, (file, shape) in shapes.items():
        found = {
            way: next((row for row in load(file) if row.items() >= {"shape": shape, **which}.items()), None)
            for way, which in ways.items()
        }
        rows.append([label, *(f"{row['seconds']:.2f}" if row else "not run" for row in found.values())])
        if all(found.values()):
            seconds[label] = [row["seconds"] for row in found.values()]
    return Shown(
        ["seconds until the first token is possible", *ways],
        rows,
        ["loading.json", "loading_30b.json"],
        f"{machine_of(load('loading.json')[0])} (30B-A3B: {load('loading_30b.json')[0]['date'][:10]}); without imports, files in the page cache",
        Bars(
            "seconds, lower is better", list(seconds),
            {way: [values[index] for values in seconds.values()] for index, way in enumerate(ways)}, shown="{:.2f}",
        ),
        "Seconds to load from the checkpoint and from the native file",
    )  # fmt: skip


def dense() -> Shown:
    file = "dense.json"
    values = load(file)
    tokens = (1, 2, 4, 8, 64, 512)

    def speedups(place: str, count: int) -> list[float]:
        return [
            each["speedup"]
            for each in values["products"]
            if each["place"] == place and each["tokens"] == count and each["threads"] == 2
        ]

    rows = [["1, weights from memory", *_range(speedups("memory", 1))]]
    rows += [[f"{count}, weights from the cache", *_range(speedups("cache", count))] for count in tokens]
    return Shown(
        ["tokens", "least", "median", "greatest"],
        rows,
        [file],
        f"{machine(values)}; time with 2 bits / time with 1.6 bits, over the shapes of two models",
        Lines("tokens at once, weights from the cache", "times as fast as with 2 bits", {"1.6 bits, median of the shapes": (tokens, [median(speedups("cache", count)) for count in tokens])}, {"2 bits": 1.0}, log_x=True, ticks=tokens),
        "Speed of products with 1.6 bits a weight against 2 bits",
    )  # fmt: skip


def dense_models() -> Shown:
    files = {f"compare_dense_{shape}.json": shape for shape in ("0.6B", "2B4T")}
    date = load("compare_dense_0.6B.json")["date"]
    return _compared(files, date, "8-bit head, both in turns", "speed with 1.6 bits / with 2 bits")


def _range(values: Sequence[float]) -> list[str]:
    return [f"{min(values):.2f}", f"{median(values):.2f}", f"{max(values):.2f}"]


# ---- Training, other programs ---------------------------------------------------------------------------------------


def training() -> Shown:
    file = "training_smollm2.json"
    values = load(file)
    speeds = {name: each["tokens_per_second"] for name, each in values["settings"].items()}
    return Shown(
        ["each row adds to the one before", TPS],
        [[name, f"{speed:.0f}"] for name, speed in speeds.items()],
        [file],
        f"{machine(values['machine'])}; SmolLM2-135M-Instruct with a teacher of its size, steps of 8 blocks of 256 tokens, median of two",
        Bars(f"{TPS} of training", list(speeds), {TPS: list(speeds.values())}, shown="{:.0f}"),
        "Tokens a second of training, each setting added to those before",
    )


def same_answers() -> Shown:
    models = {
        "quickstart": "quickstart's student, trained",
        "smollm2_sst2": "SmolLM2, trained on SST-2",
        "smollm2": "SmolLM2, made ternary without training",
    }
    files = [f"check_decoder_{name}.json" for name in models]
    rows, drawn = [], {"native decoder": [], "torch's two attentions": []}
    for file, label in zip(files, models.values(), strict=True):
        each = load(file)
        theirs = each["torch_eager_against_sdpa"]
        rows.append(
            [
                label,
                f"{each['positions_with_equal_argmax']} of {each['positions']}",
                f"{each['equal_continuations']} of {each['prompts']}",
                f"{theirs['equal_continuations']} of {each['prompts']}",
                f"{each['median_logit_difference']:.1e}",
            ]
        )
        drawn["native decoder"].append(each["equal_continuations"])
        drawn["torch's two attentions"].append(theirs["equal_continuations"])
    return Shown(
        [
            "native decoder against torch",
            "equal likeliest tokens",
            f"equal greedy texts of {load(files[0])['new_tokens']} tokens",
            "torch's eager against its sdpa",
            "median difference of logits",
        ],
        rows,
        files,
        f"{machine(load(files[0])['environment'])}; SST-2: {machine(load(files[1])['environment'])}",
        Bars("of 20 greedy texts equal to torch's to the end", list(models.values()), drawn, shown="{:.0f}"),
        "Greedy texts that equal torch's to the end",
    )


def llama_cpp() -> Shown:
    models = {
        "gguf_quickstart_tq2_0": ("quickstart", "TQ2_0, Q2_0"),
        "gguf_quickstart_tq1_0": ("quickstart", "TQ1_0, Q2_0"),
        "gguf_quickstart_f16": ("quickstart", "F16"),
        "gguf_smollm2_sst2_quick_tq2_0": ("SmolLM2-135M on SST-2, effort quick", "Q2_0"),
    }
    rows, labels, values = [], [], []
    for name, (student, kind) in models.items():
        each = load(f"interop/{name}.json")
        change = 100 * (each["perplexity_llama_cpp"] / each["perplexity"] - 1)
        shares = (f"{100 * each[name]:.1f} %" for name in ("agreement", "free_agreement"))
        rows.append([student, kind, *shares, f"{change:+.2f} %"])
        labels.append(f"{student}, {kind}")
        values.append(100 * each["agreement"])
    return Shown(
        ["student", "type", "agreement", "free agreement", "perplexity on WikiText-2"],
        rows,
        [f"interop/{name}.json" for name in models],
        f"{machine(load('interop/gguf_quickstart_f16.json')['environment'])}; llama-cpp-python 0.3.36",
        Bars("% of positions where llama.cpp chooses the same token", labels, {"agreement": values}, start=80),
        "Share of positions at which llama.cpp chooses our token",
    )


def other_programs() -> Shown:
    """One trained student in our decoder, in llama.cpp and in transformers alone, in one run."""
    file = "interop/speed_smollm2_mnli.json"
    values = load(file)
    names = {
        "native": "hf-bitdistill, 8-bit embedding and head",
        "llama.cpp": "llama.cpp, `export gguf --no_q2_0`",
        "transformers": "transformers alone, `export transformers` (floats)",
    }
    rows = []
    found = {each["kind"]: each for each in values["measurements"]}
    for kind, name in names.items():
        decode, prompt = (f"{found[kind][f'{what}_tokens_per_second']:,.0f}" for what in ("decode", "prefill"))
        rows.append([name, decode, prompt, f"{found[kind]['file_bytes'] / 1e6:.0f} MB"])
    return Shown(
        ["SmolLM2-135M on MNLI", "decode, tokens a second", "prompt of 128", "file"],
        rows,
        [file],
        f"{machine(values['environment'])}; llama-cpp-python 0.3.36",
    )
