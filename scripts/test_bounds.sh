#!/usr/bin/env bash
# The quick part of the suite at the ends of what pyproject.toml allows, in an environment of its own:
#
#     scripts/test_bounds.sh floors    every direct dependency at its lower bound
#     scripts/test_bounds.sh newest    everything at its newest; a warning that our code causes is an error
#
# UV_TORCH_BACKEND=cpu takes torch without CUDA, where PyTorch's own index can be reached. Without it, on Linux with x86-64, each environment is
# 6 GB larger: the package index has no other build, and that one does not start without the CUDA libraries.
set -euo pipefail
cd "$(dirname "$0")/.."

kind=${1:?floors or newest}
case $kind in
floors) resolution=lowest-direct options=() ;;
newest) resolution=highest options=(-o "filterwarnings=error:::hf_bitdistill") ;;
*) echo "floors or newest, not $kind" >&2 && exit 2 ;;
esac

environment=.venv-$kind
"${PYTHON:-python3}" -m venv --clear "$environment"
"$environment/bin/python" -m pip install --quiet uv
"$environment/bin/uv" pip install --quiet --python "$environment/bin/python" --resolution "$resolution" -e '.[test]'
"$environment/bin/uv" pip list --python "$environment/bin/python" | grep -Ei '^(torch|transformers|accelerate|datasets|peft|trl|numpy|optimum) '
if [[ $kind == floors ]]; then
  # A bound that another package raises is never tried: then it is not known to be true.
  "$environment/bin/uv" pip install --quiet --python "$environment/bin/python" packaging tomli
  "$environment/bin/python" scripts/check_floors.py
fi
# (Among them test_compat.py and test_private_names.py, what is private in the libraries, and test_architectures.py, every architecture.)
exec "$environment/bin/python" -m pytest -q -p no:cacheprovider -n "${WORKERS:-2}" --dist loadfile "${options[@]}" \
  tests/test_*.py tests/architectures tests/files tests/modules tests/options tests/modeling tests/quantization tests/nn tests/ops tests/autoload tests/adapters tests/data tests/training \
  tests/evaluation tests/export/test_transformers_checkpoint.py tests/gguf_format tests/verify tests/cli/test_door.py tests/optimum
