"""A checkpoint as it is published: whole, and without what belongs to this machine alone."""

import json

from hf_bitdistill.files.training_checkpoints import MANIFEST, damage, write_manifest
from hf_bitdistill.training.published_checkpoint import checkpoint_files


def test_what_a_checkpoint_tells_of_this_machine(tmp_path):
    folder = tmp_path / "run" / "checkpoint-3"
    (folder / "other").mkdir(parents=True)
    best = str(tmp_path / "run" / "checkpoint-2")
    contents = {
        "config.json": {"_name_or_path": str(tmp_path / "base"), "model_type": "llama"},
        "tokenizer_config.json": {"tokenizer_file": str(tmp_path / "t.json"), "chat_template": "/tmp/data/x"},
        "other/adapter_config.json": {"base_model_name_or_path": str(tmp_path / "base")},
        "trainer_state.json": {"global_step": 3, "best_model_checkpoint": best, "log_history": [{"loss": 2.5}]},
        "tokenizer.json": {"model": {"vocab": {str(tmp_path): 0}}},
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "optimizer.pt").write_bytes(b"state")
    (folder / "training_args.bin").write_bytes(b"mine")
    write_manifest(folder)
    files = checkpoint_files(folder, "last")
    assert set(files) == {f"last/{name}" for name in (*contents, "optimizer.pt", MANIFEST)}
    download = tmp_path / "download"
    for name, content in files.items():
        (download / name).parent.mkdir(parents=True, exist_ok=True)
        (download / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    assert damage(download / "last") is None
    found = {name: json.loads((download / "last" / name).read_text()) for name in contents}
    assert found == {
        "config.json": {"_name_or_path": "base", "model_type": "llama"},
        "tokenizer_config.json": {"tokenizer_file": "t.json", "chat_template": "/tmp/data/x"},
        "other/adapter_config.json": {"base_model_name_or_path": "base"},
        "trainer_state.json": {
            "global_step": 3,
            "best_model_checkpoint": "checkpoint-2",
            "log_history": [{"loss": 2.5}],
        },
        "tokenizer.json": contents["tokenizer.json"],
    }
