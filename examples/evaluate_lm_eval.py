"""Scores of a packed student in EleutherAI's lm_eval: on packed layers in transformers, and on the native decoder.

    pip install lm-eval
    bitdistill exec -- python examples/evaluate_lm_eval.py packed/ arc_easy,piqa --limit 100

`exec` registers the student in transformers and the model `bitnet` in lm_eval. The same on lm_eval's own command line, one at a time:

    bitdistill exec -- lm_eval --model hf --model_args pretrained=packed/ --tasks arc_easy,piqa
    bitdistill exec -- lm_eval --model bitnet --model_args pretrained=packed/ --tasks arc_easy,piqa
"""

import argparse

import lm_eval
from lm_eval.tasks import TaskManager


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", help="a packed student")
parser.add_argument("tasks", help="names, with commas")
parser.add_argument("--tasks_folder", help="tasks of your own, instead of those of lm_eval")
parser.add_argument("--limit", type=int, help="examples of a task")
options = parser.parse_args()

tasks = TaskManager(include_path=options.tasks_folder, include_defaults=options.tasks_folder is None)
for name in ("hf", "bitnet"):
    found = lm_eval.simple_evaluate(
        model=name,
        model_args={"pretrained": options.model, "device": "cpu"},
        tasks=options.tasks.split(","),
        task_manager=tasks,
        limit=options.limit,
        batch_size=8,
    )
    for task, scores in found["results"].items():
        for metric, score in scores.items():
            if isinstance(score, float) and "stderr" not in metric:
                print(f"{name} {task} {metric.removesuffix(',none')} {score:.4f}")
