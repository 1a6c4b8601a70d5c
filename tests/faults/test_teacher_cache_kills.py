"""A teacher's cache whose writing is killed at its file operations: the next call ends with the same files."""

import torch
from killing import number_of_operations, run_and_kill
from transformers import AutoModelForCausalLM

from hf_bitdistill.training import cache_teacher_logits
from hf_bitdistill.training.teacher.cache.cache_files import read_info


def test_killed_and_called_again(tiny_llama_config, tiny_tokenizer, tmp_path):
    torch.manual_seed(0)
    teacher = AutoModelForCausalLM.from_config(tiny_llama_config)
    rows = [{"input_ids": [3 + n, 9, 5 * n + 4], "labels": [-100, 9, 5 * n + 4]} for n in range(5)]

    def write(folder):
        cache_teacher_logits(teacher, rows, folder, tiny_tokenizer, k=3, shard_examples=2, progress=False)

    write(tmp_path / "whole")
    watched = tmp_path / "watched"
    watched.mkdir()
    operations = number_of_operations(lambda: write(watched / "counted"), watched)
    assert operations > 6
    for at in range(1, operations + 1, 2):
        folder = watched / f"killed-{at}"
        assert run_and_kill(lambda folder=folder: write(folder), watched, at_operation=at).killed
        kept = {file.name: file.stat().st_mtime_ns for file in folder.glob("teacher-*")} if folder.is_dir() else {}
        assert not folder.is_dir() or not (folder / "teacher_cache.json").is_file() or not read_info(folder).complete
        write(folder)
        assert {name: (folder / name).stat().st_mtime_ns for name in kept} == kept
        for file in (tmp_path / "whole").iterdir():
            assert (folder / file.name).read_bytes() == file.read_bytes(), file.name
        assert len(list(folder.iterdir())) == len(list((tmp_path / "whole").iterdir()))
