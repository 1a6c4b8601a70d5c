"""A packed student in llama.cpp: one file, and a text from it. Or a file for bitnet.cpp, which has one scale a matrix.

    python examples/export_gguf.py packed/ student.gguf --prompt "Once upon a time"
    python examples/export_gguf.py packed/ student-i2_s.gguf --i2_s

Without llama-cpp-python (`pip install llama-cpp-python`) the file is written and not tried. The same file serves `llama-server -m student.gguf`, and Ollama
by a Modelfile of one line, `FROM ./student.gguf`.
"""

from __future__ import annotations

import argparse
import importlib.util

from hf_bitdistill.export import ExportedFile, UnsupportedExportError, export_gguf, export_i2_s


def export(options: argparse.Namespace) -> ExportedFile:
    if options.i2_s:
        return export_i2_s(options.student, options.output)
    return export_gguf(options.student, options.output, options.type)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", help="folder or Hub id of a packed student")
    parser.add_argument("output", help="file to write, .gguf")
    parser.add_argument("--type", default="tq2_0", help="of ternary matrices: tq2_0, tq1_0, q2_0 or f16")
    parser.add_argument(
        "--i2_s", action="store_true", help="for bitnet.cpp: a student with weight_granularity='tensor'"
    )
    parser.add_argument("--prompt", default="Once upon a time")
    options = parser.parse_args()
    try:
        result = export(options)
    except UnsupportedExportError as error:
        raise SystemExit(str(error)) from None
    # Which types the tensors have, and what the other program will compute in another way.
    print(result.text())

    if options.i2_s:
        print("llama.cpp does not read I2_S: bitnet.cpp's run_inference.py -m FILE does.")
        return
    if importlib.util.find_spec("llama_cpp") is None:
        print("llama-cpp-python is not installed: the file was not tried.")
        return
    from llama_cpp import Llama

    model = Llama(str(result.path), verbose=False)
    answer = model.create_completion(options.prompt, max_tokens=32, temperature=0.0)
    print(options.prompt + answer["choices"][0]["text"])


if __name__ == "__main__":
    main()
