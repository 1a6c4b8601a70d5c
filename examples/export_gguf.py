"""A packed student in llama.cpp: one file, and a text from it.

    python examples/export_gguf.py packed/ student.gguf --prompt "Once upon a time"

Without llama-cpp-python (`pip install llama-cpp-python`) the file is written and not tried. The same file serves `llama-server -m student.gguf`, and Ollama
by a Modelfile of one line, `FROM ./student.gguf`.
"""

from __future__ import annotations

import argparse
import importlib.util

from hf_bitdistill.export import UnsupportedExportError, export_gguf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", help="folder or Hub id of a packed student")
    parser.add_argument("output", help="file to write, .gguf")
    parser.add_argument("--type", default="tq2_0", help="of ternary matrices: tq2_0, tq1_0, q2_0 or f16")
    parser.add_argument("--prompt", default="Once upon a time")
    options = parser.parse_args()
    try:
        result = export_gguf(options.student, options.output, options.type)
    except UnsupportedExportError as error:
        raise SystemExit(str(error)) from None
    # Which types the tensors have, and what llama.cpp will compute in another way.
    print(result.text())

    if importlib.util.find_spec("llama_cpp") is None:
        print("llama-cpp-python is not installed: the file was not tried.")
        return
    from llama_cpp import Llama

    model = Llama(str(result.path), verbose=False)
    answer = model.create_completion(options.prompt, max_tokens=32, temperature=0.0)
    print(options.prompt + answer["choices"][0]["text"])


if __name__ == "__main__":
    main()
