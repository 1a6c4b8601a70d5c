"""What `import hf_bitdistill` costs beside the parts of transformers that it registers with."""

import json
import subprocess
import sys


PROGRAM = """
import json, sys, time
import transformers.modeling_utils, transformers.quantizers.auto, transformers.conversion_mapping, transformers.core_model_loading
before, started = set(sys.modules), time.process_time()
import hf_bitdistill
seconds = time.process_time() - started
print(json.dumps([seconds, sorted({name.partition(".")[0] for name in set(sys.modules) - before})]))
"""


def test_the_import_brings_nothing_heavy():
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300, check=True)
    seconds, packages = json.loads(result.stdout.splitlines()[-1])
    # 0.1 seconds are usual, at most 0.2 are allowed; a busy machine takes longer.
    assert seconds < 0.6
    heavy = {"accelerate", "datasets", "evaluate", "matplotlib", "optimum", "pandas", "peft", "sklearn"}
    assert "hf_bitdistill" in packages and not heavy & set(packages)
