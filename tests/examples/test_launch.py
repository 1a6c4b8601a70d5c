"""The launchers' files: parsed by who reads them, and run on this CPU with two and four processes."""

import json
import os
import re
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType, is_deepspeed_available
from torch.distributed.run import get_args_parser

from hf_bitdistill.options.parsing import parse
from hf_bitdistill.recipe import RecipeSettings, run_recipe
from tiny_recipe import flags, make_csv, make_model, own_settings


LAUNCH = Path(__file__).resolve().parents[2] / "examples" / "launch"
TESTS = Path(__file__).resolve().parents[1]
CONFIGS = {"fsdp2.yaml": DistributedType.FSDP, "zero3.yaml": DistributedType.DEEPSPEED}
SCRIPTS = ("two_nodes.sh", "slurm.sh")


@pytest.mark.parametrize("name", CONFIGS)
def test_configuration(name):
    config = load_config_from_file(str(LAUNCH / name))
    assert (config.distributed_type, config.num_processes, config.num_machines) == (CONFIGS[name], 8, 1)
    parser = launch_command_parser()
    args = parser.parse_args(["--config_file", str(LAUNCH / name), "-m", "hf_bitdistill", "run"])
    # What the file says is known to the launcher by that name, and taken.
    given = config.fsdp_config or config.deepspeed_config
    assert given and all(hasattr(args, key) for key in given)
    args, *_ = _validate_launch_command(args)
    assert {key: getattr(args, key) for key in given} == given
    assert args.use_fsdp == (name == "fsdp2.yaml") and args.use_deepspeed == (name == "zero3.yaml")


@pytest.mark.parametrize("name", SCRIPTS)
def test_script(name):
    subprocess.run(["bash", "-n", str(LAUNCH / name)], check=True)
    assert os.stat(LAUNCH / name).st_mode & stat.S_IXUSR
    text = (LAUNCH / name).read_text()
    (command,) = re.findall(r"torchrun (?:\\\n.*?)+?run \"\$@\"", text)
    words = re.sub(r"\"?\$(\{[^}]*\}|\w+)\"?", "2", command.replace("\\\n", " ")).split()[1:]
    args = get_args_parser().parse_args([word.strip('"') for word in words])
    assert (args.module, args.training_script, args.training_script_args[0]) == (True, "hf_bitdistill", "run")
    assert args.rdzv_backend == "c10d"
    options = re.findall(r"^#SBATCH (\S+)$", text, re.M)
    assert all(re.fullmatch(r"--[a-z-]+(=\S+)?", option) for option in options) and bool(options) == (
        name == "slurm.sh"
    )


def test_commands():
    """Every command that the page and the files show is one that the recipe and the launchers accept."""
    texts = [(LAUNCH / name).read_text() for name in ("README.md", *CONFIGS, *SCRIPTS)]
    commands = [line.strip("# ") for text in texts for line in text.splitlines() if "--model MODEL" in line]
    assert len(commands) == 9
    for command in commands:
        words = shlex.split(command)
        options = words[words.index("--model") :]
        (settings,) = parse([RecipeSettings], options, "run", "")
        assert (settings.model, settings.dataset) == ("MODEL", "DATASET")
        if "hf_bitdistill" in words:
            assert words[words.index("hf_bitdistill") - 1 :][:3] == ["-m", "hf_bitdistill", "run"]
        if words[0] == "accelerate":
            assert (LAUNCH / words[words.index("--config_file") + 1]).is_file()
        if words[0] == "torchrun":
            assert get_args_parser().parse_args(words[1:]).nproc_per_node == "8"


# ---- Run ----


@pytest.fixture
def given(tmp_path, tiny_llama_config, tiny_tokenizer):
    """Options of a tiny run, as a command line."""
    model = make_model(tmp_path / "model", tiny_llama_config, tiny_tokenizer)
    more = {
        "teacher_examples": 96,
        "teacher_learning_rates": [3e-3],
        "check_teacher": False,
        "keep_only_better": False,
    }
    return own_settings(model, make_csv(tmp_path / "opinions.csv"), tmp_path / "out", **more)


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    """With this Python's torchrun first, and with programs of a cluster that know one machine."""
    programs = tmp_path / "programs"
    programs.mkdir(exist_ok=True)
    for name, text in {
        "torchrun": f'#!/bin/sh\nexec "{sys.executable}" -m torch.distributed.run "$@"\n',
        "scontrol": "#!/bin/sh\necho localhost\n",
        "srun": '#!/bin/sh\nfor node in $(seq "$SLURM_JOB_NUM_NODES"); do "$@" & all="$all $!"; done\nfor each in $all; do wait "$each" || exit 1; done\n',
    }.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    path = os.pathsep.join([str(programs), os.environ["PATH"]])
    modules = os.pathsep.join([str(TESTS / "distributed"), str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PATH": path, "PYTHONPATH": modules, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **more}


def launch(commands: list[list[str]], env: dict[str, str]) -> str:
    """Run side by side; what all of them printed."""
    running = [
        subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for command in commands
    ]
    try:
        outputs = [each.communicate(timeout=500)[0] for each in running]
    finally:
        for each in running:
            each.kill()
    assert [each.returncode for each in running] == [0] * len(running), "\n".join(text[-4000:] for text in outputs)
    return "".join(outputs)


@pytest.mark.slow
@pytest.mark.timeout(700)
@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("name", [*CONFIGS, *SCRIPTS])
def test_run_on_this_cpu(name, count, given, tmp_path):
    options = flags(**given)
    env = environment(tmp_path)
    if name in CONFIGS:
        if name == "zero3.yaml" and not is_deepspeed_available():
            pytest.skip("needs deepspeed")
        script = str(TESTS / "distributed" / "launch_run.py")
        config = ["--config_file", str(LAUNCH / name), "--num_processes", str(count), "--main_process_port", "0"]
        commands = [[sys.executable, "-m", "accelerate.commands.launch", *config, script, "run", *options]]
    elif name == "two_nodes.sh":
        env |= {"HEAD": "localhost", "GPUS": str(count // 2), "PORT": str(29500 + os.getpid() % 1000)}
        commands = [["bash", str(LAUNCH / name), *options]] * 2
    else:
        env |= {"SLURM_JOB_NODELIST": "node[0-1]", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": str(os.getpid())}
        commands = [["bash", str(LAUNCH / name), *options]]
        env["GPUS"] = str(count // 2)
    text = launch(commands, env)
    assert text.count("packed student:") == 1, text
    machine = json.loads((tmp_path / "out" / "result.json").read_text())["machine"]
    engine = {"fsdp2.yaml": "fsdp", "zero3.yaml": "deepspeed"}.get(name, "ddp")
    assert (machine["processes"], machine["engine"]) == (count, engine)
    # What was trained is found by one process, which has nothing left to do but the probe.
    before = {file.parent.name for file in (tmp_path / "out" / "stages").glob("*/result.json")}
    found = {row["name"]: row["score"] for row in json.loads((tmp_path / "out" / "result.json").read_text())["table"]}
    again = run_recipe(RecipeSettings(**given))
    after = {file.parent.name for file in (tmp_path / "out" / "stages").glob("*/result.json")}
    assert {row.name: row.score for row in again.table} == found
    assert [name.partition("-")[0] for name in after - before] == ["probe"]
