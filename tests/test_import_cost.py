"""What `import hf_bitdistill` costs beside the parts of transformers that it registers with, and what it does not import."""

import json
import subprocess
import sys


# CPU seconds of the import, the least of three: twice in forks, in which nothing of ours was imported, and once here.
PROGRAM = """
import json, os, sys, time
import transformers.modeling_utils, transformers.quantizers.auto, transformers.conversion_mapping, transformers.core_model_loading
before = set(sys.modules)

def seconds():
    started = time.process_time()
    import hf_bitdistill
    return time.process_time() - started

def seconds_in_a_fork():
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.write(writing, json.dumps(seconds()).encode())
        os._exit(0)
    os.wait()
    return json.loads(os.read(reading, 100))

least = min([seconds_in_a_fork() for _ in range(2 if hasattr(os, "fork") else 0)] + [seconds()])
brought = {name.partition(".")[0] for name in set(sys.modules) - before}
import hf_bitdistill.data, hf_bitdistill.evaluation, hf_bitdistill.evaluation.evaluator
print(json.dumps([least, sorted(brought), sorted({"evaluate", "nltk", "rouge_score", "sklearn"} & set(sys.modules))]))
"""


def test_the_import_brings_nothing_heavy():
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300, check=True)
    seconds, packages, metrics = json.loads(result.stdout.splitlines()[-1])
    assert seconds <= 0.2
    heavy = {"accelerate", "datasets", "evaluate", "matplotlib", "optimum", "pandas", "peft", "sklearn"}
    assert "hf_bitdistill" in packages and not heavy & set(packages)
    # Metrics are imported when they are asked for.
    assert metrics == []
