"""`alignment plan`: what it prints for the shipped recipes, for models that are not here yet, and how it fails."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import tiny
from typer.testing import CliRunner

import alignment.cli.main
from alignment.cli.plan import parse_memory, stage_of
from alignment.config.sections import ModelConfig
from alignment.errors import ConfigError, UserError
from alignment.memory.shapes import KNOWN, ShapeFinder, UnknownShape, sized
from alignment.registry import Registry

ROOT = Path(__file__).resolve().parents[4]
PUBLISHED = {  # parameters, by the models' cards
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen3-8B-Base": 8_190_735_360,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.1-70B": 70_553_706_496,
    "meta-llama/Llama-3.1-405B": 405_853_388_800,
}


@pytest.fixture(autouse=True)
def away(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGNMENT_REGISTRY", str(tmp_path / "registry"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def run(*arguments):
    return CliRunner().invoke(alignment.cli.main.app, ["plan", *map(str, arguments)])


def plan(*arguments):
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def recipe(stage, size):
    return ROOT / "configs" / stage / f"{size}.yaml"


@pytest.mark.parametrize("name", KNOWN)
def test_known_shapes_have_the_published_number_of_parameters(name, tmp_path):
    shape = ShapeFinder(Registry(tmp_path)).find("model.name", name)
    assert sized(shape, ModelConfig(name=name)).parameters == PUBLISHED[name]


RECIPES = [(stage, size, 1) for stage in ("sft", "reward", "ppo") for size in ("0.5b", "8b")]
RECIPES += [(stage, "70b", 4) for stage in ("sft", "reward", "ppo")]


@pytest.mark.parametrize(("stage", "size", "nodes"), RECIPES)
def test_a_recipe_runs_where_its_header_says(stage, size, nodes):
    """The launch file that the header names is the one that the plan chooses, and the run fits."""
    cluster = ("--gpus", 8, "--memory", "80GB", "--nodes", nodes, "--host-memory", "200GB")
    found = plan(recipe(stage, size), *cluster)
    header = recipe(stage, size).read_text()
    named = set(re.findall(r"--config_file (configs/accelerate/\S+\.yaml)", header))
    assert named == {f"configs/accelerate/{found['runs'][0]['chosen']}.yaml"}
    assert named.pop() in found["launch"]
    assert found["launch"].endswith(f"-m {stage} {recipe(stage, size)}")
    assert f"--num_processes {8 * nodes} " in found["launch"] and f"--num_processes {8 * nodes} " in header
    if nodes > 1:
        assert f"{nodes} nodes of 8 GPUs of 80 GB" in header and f"--num_machines {nodes} " in header
    else:
        assert size == "0.5b" or re.search(r"8 GPUs of 80 GB on a node of\s(# )?200 GB", header)


def test_a_nodes_memory_is_a_limit_where_it_is_given():
    """Under ZeRO-1 one process reads 8.19e9 weights in float32 and sends them to the others' GPUs, under ZeRO-3 each
    reads a tensor at a time, and under FSDP2 each reads all."""
    found = plan(recipe("sft", "8b"), "--gpus", 8, "--memory", "80GB")["runs"][0]
    assert found["chosen"] == "zero1"
    assert found["strategies"]["zero1"]["node_memory"] == pytest.approx(32.76, abs=0.1)
    assert found["strategies"]["fsdp2"]["node_memory"] == pytest.approx(8 * 32.76, abs=0.1)
    assert found["strategies"]["zero3"]["node_memory"] == pytest.approx(8 * 4 * 151936 * 4096 / 1e9, abs=0.1)
    limited = plan(recipe("sft", "8b"), "--gpus", 8, "--memory", "80GB", "--host-memory", "30GB")
    assert limited["runs"][0]["chosen"] == "zero3"
    assert "at most 30 GB of a node's memory" in limited["notes"][-1]
    with pytest.raises(UserError, match="--host-memory much: expected a size such as"):
        parse_memory("much", "--host-memory")


def test_the_8b_sft_plan_by_hand():
    """8.19e9 weights: 16.4 GB of bfloat16, 98.3 GB of optimizer over 8 GPUs; float32 under DDP is four times 32.8."""
    found = plan(recipe("sft", "8b"), "--gpus", 8, "--memory", "80GB")["runs"][0]["strategies"]
    assert found["zero1"]["weights"] == pytest.approx(16.38, abs=0.005)
    assert found["zero1"]["optimizer"] == pytest.approx(98.3 / 8, abs=0.005)
    assert found["zero2"]["gradients"] == pytest.approx(16.38 / 8, abs=0.01)
    assert found["zero3"]["weights"] == pytest.approx(16.38 / 8, abs=0.01)
    assert found["ddp"]["peak"] > 4 * 32.76 and not found["ddp"]["fits"]
    assert [found[name]["fits"] for name in ("zero1", "zero2", "zero3", "zero3-offload")] == [True] * 4
    # 8192 tokens: the inputs of 36 layers of 4096 in bfloat16 are 2.4 GB, and one layer is kept whole.
    assert 2.4 < found["zero2"]["activations"] < 6


def test_the_8b_ppo_plan_has_every_mode_and_critic_and_shared_takes_least():
    found = plan(recipe("ppo", "8b"), "--gpus", 8, "--memory", "80GB")
    runs = {each["run"]: each["strategies"]["zero2"]["peak"] for each in found["runs"]}
    kinds = [("separate, full", "separate"), ("separate, full", "adapter"), ("separate, full", "trunk")]
    kinds += [("shared, lora", critic) for critic in ("separate", "adapter", "trunk")]
    assert set(runs) == {f"{held}, critic {critic}" for held, critic in kinds}
    assert found["runs"][0]["run"] == "separate, full, critic trunk"  # as the recipe has it
    assert runs["shared, lora, critic trunk"] < 0.7 * runs["separate, full, critic trunk"]
    assert runs["separate, full, critic separate"] > 0.92 * 80  # which is why the recipe has another


def test_a_text_plan_names_the_parts_and_the_launch_line():
    result = run(recipe("ppo", "8b"), "--gpus", 8)
    assert result.exit_code == 0
    for word in ("weights", "gradients", "optimizer", "activations", "cache", "logits", "zero3-offload", "sampling"):
        assert word in result.stdout
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("launch: ")]
    assert line.startswith("launch: accelerate launch --config_file configs/accelerate/")
    assert "8b-sft is in no registry yet" in result.stdout


def test_one_gpu_is_launched_without_a_launcher_and_nodes_with_all_they_need():
    one = plan(recipe("sft", "0.5b"), "--gpus", 1, "--memory", "24GB")
    assert one["launch"] == f"python -m sft {recipe('sft', '0.5b')}"
    assert set(one["runs"][0]["strategies"]) == {"single", "zero3-offload"}
    two = plan(recipe("sft", "8b"), "data.max_length=512", "--gpus", 8, "--nodes", 2)
    assert two["gpus"] == 16
    for part in ("--num_machines 2", "--num_processes 16", "--deepspeed_multinode_launcher standard"):
        assert part in two["launch"]
    assert two["launch"].endswith(" data.max_length=512")


def test_what_does_not_fit_says_what_would():
    changes = ("model.value=separate", "model.offload=false")
    found = plan(recipe("ppo", "8b"), "--gpus", 2, "--memory", "40GB", *changes)
    assert found["launch"] is None
    notes = "\n".join(found["notes"])
    assert re.search(r"zero3 fits on \d+ GPUs", notes)
    assert "nothing fits" in run(recipe("ppo", "8b"), "--gpus", 2, "--memory", "40GB", *changes).stdout


def test_a_longer_context_and_a_larger_batch_take_more():
    def peak(*overrides):
        return plan(recipe("sft", "8b"), *overrides)["runs"][0]["strategies"]["zero2"]["peak"]

    assert peak("data.max_length=8192") > peak() < peak("training.per_device_train_batch_size=4")
    assert peak("training.gradient_checkpointing=false") > 2 * peak()
    assert peak("model.method=lora") < peak()


# --- finding shapes --------------------------------------------------------------------------------------------------


def write(path, **sections):
    values = {"name": "x", "data": {"train": "x"}, "registry": {"name": "x"}, **sections}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))
    return path


def test_a_model_that_cannot_be_read_is_refused_with_what_to_pass(tmp_path):
    config = write(tmp_path / "sft" / "a.yaml", model={"name": "somebody/unknown"})
    result = run(config)
    assert result.exit_code == 2
    assert result.output.startswith("error: model.name=somebody/unknown")
    assert "--model-config FILE" in result.output
    assert "Traceback" not in result.output


def test_its_config_file_or_a_known_name_can_be_passed(tmp_path):
    config = write(tmp_path / "sft" / "a.yaml", model={"name": "somebody/unknown"})
    policy = tiny.make_policy(tiny.make_tokenizer())
    policy.save_pretrained(tmp_path / "saved")
    for given in (tmp_path / "saved" / "config.json", tmp_path / "saved"):
        found = plan(config, "--model-config", given)
        assert "somebody/unknown" in found["notes"][0]
        size = 16 * sum(p.numel() for p in policy.parameters())
        assert found["runs"][0]["strategies"]["zero1"]["peak"] >= size / 1e9
    known = plan(config, "--model-config", "meta-llama/Llama-3.1-8B")
    assert known["runs"][0]["strategies"]["zero2"]["weights"] == pytest.approx(16.06, abs=0.005)
    assert run(config, "--model-config", "nowhere").exit_code == 2


def test_a_config_file_that_is_not_needed_is_looked_at_all_the_same():
    found = plan(recipe("sft", "8b"), "--model-config", "meta-llama/Llama-3.1-8B")
    assert any("not needed" in note for note in found["notes"])
    result = run(recipe("sft", "8b"), "--model-config", "nowhere.json")
    assert result.exit_code == 2 and "--model-config nowhere.json: no config.json there" in result.output


def test_json_is_alone_on_stdout_where_a_library_greets():
    """As transformers does with this variable, which is usual on clusters, when it is imported."""
    command = [sys.executable, "-m", "alignment.cli.main", "plan", str(recipe("sft", "8b")), "--json"]
    environment = {**os.environ, "WANDB_MODE": "offline", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=True)
    assert json.loads(done.stdout)["stage"] == "sft"


def test_a_registry_reference_is_read_from_its_version(tmp_path):
    tokenizer = tiny.make_tokenizer()
    folder = tiny.write(tmp_path / "m", tiny.make_policy(tokenizer), tokenizer)
    Registry().publish("desk-sft", folder, stage="sft", role="policy")
    config = write(tmp_path / "reward" / "a.yaml", model={"name": "desk-sft@v1"})
    found = plan(config)
    assert found["stage"] == "reward"
    assert not any("registry" in note for note in found["notes"])


def test_files_of_others_beside_the_recipes_are_passed_over(tmp_path):
    config = write(tmp_path / "reward" / "b.yaml", model={"name": "a"})
    write(tmp_path / "sft" / "b.yaml", model={"name": "meta-llama/Llama-3.1-8B"}, registry={"name": "a"})
    (tmp_path / "sft" / "a.yaml").write_text("- not: [a config")
    assert "its shape is that of meta-llama/Llama-3.1-8B" in plan(config)["notes"][0]


def test_recipes_that_start_from_each_other_end(tmp_path):
    write(tmp_path / "sft" / "a.yaml", model={"name": "b"}, registry={"name": "a"})
    config = write(tmp_path / "sft" / "b.yaml", model={"name": "a"}, registry={"name": "b"})
    with pytest.raises(UnknownShape, match=r"model\.name=a"):
        ShapeFinder(Registry(), config.parent.parent).find("model.name", "a")


def test_a_mixture_of_experts_is_refused(tmp_path):
    shape = {"model_type": "mixtral", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
             "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 32}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(shape))
    config = write(tmp_path / "sft" / "a.yaml", model={"name": str(tmp_path)})
    result = run(config)
    assert result.exit_code == 2
    assert "mixtral" in result.output


# --- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"), [("80GB", 80e9), ("40GiB", 40 * 2**30), ("141 gb", 141e9), ("24", 24e9), ("1.5TB", 1.5e12)]
)
def test_memory_is_read(text, size):
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "eighty", "-1GB", "0GB", "80XB"])
def test_other_sizes_are_refused(text):
    with pytest.raises(UserError, match="--memory"):
        parse_memory(text)


@pytest.mark.parametrize(
    ("path", "values", "stage"),
    [
        ("x/a.yaml", {"model": {"policy": "p"}}, "ppo"),
        ("x/a.yaml", {"ppo": {}}, "ppo"),
        ("sft/a.yaml", {"reward": {}, "model": {"name": "m"}}, "reward"),
        ("reward/a.yaml", {"model": {"name": "m"}}, "reward"),
        ("sft/a.yaml", {"model": {"name": "m"}}, "sft"),
    ],
)
def test_the_stage_is_told_by_sections_then_by_folder(path, values, stage):
    assert stage_of(Path(path), values, None) == stage


def test_a_stage_that_cannot_be_told_is_asked_for():
    with pytest.raises(ConfigError, match="--stage"):
        stage_of(Path("x/a.yaml"), {"model": {"name": "m"}}, None)
    assert stage_of(Path("x/a.yaml"), {}, "reward") == "reward"
    with pytest.raises(ConfigError, match="dpo"):
        stage_of(Path("x/a.yaml"), {}, "dpo")


def test_vllm_takes_its_share_of_the_gpu_and_the_cache_of_transformers_is_not_there():
    config = recipe("ppo", "8b")
    plain, colocated, server = (
        plan(config, *more)["runs"][0]["strategies"]["zero3"]
        for more in (
            ("rollout.vllm=null",),
            (),
            ("rollout.vllm={server_base_url: 'http://a:1'}",),
        )
    )
    assert server["peak"] <= plain["peak"] and server["cache"] == 0
    assert (colocated["moment"], colocated["cache"]) == ("sampling", 0.5 * 80)
    assert server["peak"] <= colocated["peak"] < server["peak"] + 0.5 * 80  # it sleeps in training


def test_the_share_of_vllm_holds_its_weights_and_some_rows():
    """By hand: 8.19e9 weights in bfloat16 are 16.4 GB, and 2,048 tokens of 36 layers of 8 heads of 128 are 0.302 GB."""
    (note,) = [note for note in plan(recipe("ppo", "8b"))["notes"] if note.startswith("cache: vLLM")]
    assert note == (
        "cache: vLLM holds 40.0 GB of each GPU while it samples: weights 16.4, and 64 of 64 rows at a time at 0.3 each"
    )
    small = "rollout.vllm.gpu_memory_utilization=0.25"  # 20 GB, and 0.5 of a pass
    assert any("weights 16.4, and 10 of 64 rows" in note for note in plan(recipe("ppo", "8b"), small)["notes"])
    found = plan(recipe("ppo", "8b"), "rollout.vllm.gpu_memory_utilization=0.2")
    assert found["launch"] is None and not any(each["fits"] for each in found["runs"][0]["strategies"].values())
    assert any(
        "vLLM does not fit in its 16.0 GB of each GPU: its weights there are 16.4 GB" in note for note in found["notes"]
    )
    halved = plan(recipe("ppo", "8b"), "rollout.vllm.gpu_memory_utilization=0.2", "rollout.vllm.tensor_parallel_size=2")
    assert any("weights 8.2, and 48 of 128 rows at a time at 0.15 each" in note for note in halved["notes"])


def test_how_much_of_the_hosts_memory_loading_takes_is_said():
    text = run(recipe("sft", "8b"), "--gpus", "4", "--memory", "80GB").stdout
    (line,) = [each for each in text.splitlines() if "loading: GB of a node's memory" in each]
    sizes = {name: int(size.replace(",", "")) for name, size in re.findall(r"(\S+) ([\d,]+)(?:,|$)", line)}
    whole = 4 * PUBLISHED["Qwen/Qwen3-8B-Base"] / 1e9
    assert sizes["ddp"] == sizes["zero2"] == round(whole)
    assert sizes["fsdp2"] == round(4 * whole) and sizes["zero3"] == round(4 * 4 * 151936 * 4096 / 1e9)
