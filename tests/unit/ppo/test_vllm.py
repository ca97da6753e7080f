"""PPO's rollouts by vLLM: TRL's real VLLMGeneration around a stand-in for vLLM itself."""

from __future__ import annotations

import http.server
import json
import threading
from pathlib import Path

import peft
import pytest
import torch
from helpers import vllm_standin
from safetensors.torch import load_file

from alignment.generation import vllm as vllm_engine
from alignment.generation import vllm_server
from alignment.generation.sampling import GenerationError
from alignment.generation.vllm import policy_weights
from alignment.generation.vllm_server import FileTransfer, Server, find_server
from ppo import sampler_gap

LORA = {"lora": {"r": 4}, "dora": {"r": 4, "use_dora": True}, "rslora": {"r": 4, "use_rslora": True}}


@pytest.fixture
def standin(monkeypatch):
    vllm_standin.install(monkeypatch)
    return vllm_standin.LLM


@pytest.fixture
def vllm_loop(models, make_loop, stage_config, tmp_path):
    """The loop with rollouts by vLLM; its policy is in a folder, which vLLM reads."""

    def build(**rollout):
        policy = models.policy.model
        policy.save_pretrained(tmp_path / "policy")
        policy.name_or_path = str(tmp_path / "policy")
        return make_loop(models, stage_config(rollout={"vllm": {}, **rollout}))

    return build


def same(one, other):
    theirs = dict(other.named_parameters())
    return all(torch.equal(parameter, theirs[name]) for name, parameter in one.named_parameters())


def test_each_rollout_is_by_the_weights_of_its_time(standin, vllm_loop):
    loop = vllm_loop(temperature=0.7)
    policy, before = loop.models.policy.model, []
    loop.iterate(range(8))
    (llm,) = standin.made
    assert not same(policy, llm.model)  # an update came after
    before.append({name: p.clone() for name, p in policy.named_parameters()})
    loop.iterate(range(8))
    assert llm.syncs == 2
    theirs = dict(llm.model.named_parameters())
    assert all(torch.equal(value, theirs[name]) for name, value in before[0].items())
    assert llm.max_model_len == 20


def test_what_it_sampled_from_comes_back_with_the_tokens(standin, vllm_loop):
    loop = vllm_loop(temperature=0.7)
    tasks = _tasks(loop)
    rollout = loop.collector.collect(tasks, 0, 0)
    assert rollout.sampled_logprobs is not None
    mask = rollout.response_mask
    torch.testing.assert_close(rollout.sampled_logprobs[mask], rollout.old_logprobs[mask], atol=2e-5, rtol=0)


def test_an_engine_that_is_off_is_corrected(standin, vllm_loop, monkeypatch):
    """Weights other than 1 change the update; those of an exact engine are 1 and change nothing."""
    monkeypatch.setattr(standin, "noise", 0.5)
    monkeypatch.setattr(sampler_gap, "check", lambda *_: None)  # which would not let an engine pass that is so far off
    loop = vllm_loop()
    rollout = loop.collector.collect(_tasks(loop), 0, 0)
    mask = rollout.response_mask
    assert (rollout.sampled_logprobs - rollout.old_logprobs)[mask].abs().mean() > 0.1
    targets = loop.target_builder.build(rollout, loop.target_builder.rewards(rollout))
    before = {name: p.clone() for name, p in loop.models.policy.model.named_parameters()}
    loop.updater.update(0, rollout, targets)
    corrected = {name: p.clone() for name, p in loop.models.policy.model.named_parameters()}
    assert any(not torch.equal(before[name], corrected[name]) for name in before)
    ratios = (rollout.old_logprobs - rollout.sampled_logprobs).exp().clamp(max=2.0)[mask]
    assert ratios.min() < 0.9 < 1.1 < ratios.max()


def test_a_server_gets_the_weights_before_each_rollout_too(standin, vllm_loop, tmp_path, monkeypatch):
    address, asked = "http://node7:8000", []

    def by_nccl(url):
        asked.append(url)
        return Server(url, by_nccl=True, on_cpu=False, dtype=torch.bfloat16)

    monkeypatch.setattr(vllm_engine, "find_server", by_nccl)
    loop = vllm_loop(vllm={"server_base_url": address})
    assert asked == [address]
    (client,) = vllm_standin.VLLMClient.made
    client.llm = vllm_standin.LLM(str(tmp_path / "policy"), max_model_len=20)
    assert client.base_url == address and client.group_port > 1023
    for _ in range(2):
        before = {name: p.clone() for name, p in loop.models.policy.model.named_parameters()}
        loop.iterate(range(8))
        theirs = dict(client.llm.model.named_parameters())
        assert all(torch.equal(value, theirs[name]) for name, value in before.items())
    assert client.llm.syncs == 2


def _tasks(loop):
    from ppo.prompts import make_tasks

    return make_tasks(loop.prompts, range(8), 1)


def test_it_sleeps_while_the_policy_is_trained(standin, vllm_loop, monkeypatch):
    real = vllm_engine.VLLMEngine  # it does not ask vLLM on a CPU to sleep
    monkeypatch.setattr(vllm_engine, "VLLMEngine", lambda *a, **o: real(*a, **{**o, "enable_sleep_mode": True}))
    loop = vllm_loop()
    (llm,) = standin.made
    awake, update = [], loop.updater.update

    def watched(*arguments):
        awake.append(set(llm.awake))
        return update(*arguments)

    monkeypatch.setattr(loop.updater, "update", watched)
    for _ in range(2):
        loop.iterate(range(8))  # this checks the gap of each rollout
    assert awake == [set(), set()] and llm.syncs == 2


def test_a_colocated_engine_on_a_cpu_is_asked_for_no_sleep(standin, vllm_loop):
    loop = vllm_loop()
    assert loop.config.rollout.vllm.sleeps
    assert standin.made[0].options["enable_sleep_mode"] is False


def test_tied_weights_go_under_each_name_only_where_they_must(models):
    policy = models.policy.model
    policy.lm_head.weight = policy.get_input_embeddings().weight
    once, twice = dict(policy_weights(policy)), dict(policy_weights(policy, every_name=True))
    assert once.keys() == dict(policy.named_parameters()).keys()
    assert twice.keys() - once.keys() == {"lm_head.weight"}
    assert torch.equal(twice["lm_head.weight"], policy.get_input_embeddings().weight)


@pytest.mark.parametrize("kind", LORA)
def test_an_adapter_is_merged_into_what_is_sent_and_nowhere_else(kind, models):
    torch.manual_seed(0)
    config = peft.LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False, **LORA[kind])
    model = peft.get_peft_model(models.policy.model, config)
    model.add_adapter("other", config)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    sent = {name: tensor.clone() for name, tensor in policy_weights(model)}
    after = dict(model.named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())  # to the bit
    model.delete_adapter("other")
    merged = dict(model.merge_and_unload().named_parameters())  # PEFT's own way, which changes the model
    assert sent.keys() == merged.keys()
    for name, value in merged.items():
        torch.testing.assert_close(sent[name], value, atol=1e-6, rtol=0)
    assert any(not torch.equal(sent[name], before.get(f"base_model.model.{name}", value)) for name in sent)


@pytest.mark.parametrize(
    ("training", "vllm", "expected"),
    [({}, {}, "float32"), ({"bf16": True}, {}, "bfloat16"), ({}, {"dtype": "float16"}, "float16")],
)
def test_it_computes_in_what_the_policy_is_trained_in(stage_config, training, vllm, expected, standin, vllm_loop):
    """Left to itself vLLM serves a folder in float32 in bfloat16."""
    rollout = {"vllm": vllm}
    assert stage_config(training=training, rollout=rollout).sampled_in == expected
    if not training:
        vllm_loop(vllm=vllm)
        assert standin.made[0].options["dtype"] == expected


@pytest.mark.parametrize(
    ("method", "error", "said"),
    [
        ("load_weights", AssertionError(), "did not take the policy's weights: AssertionError; see"),
        ("load_weights", KeyError("lm_head.weight"), "did not take the policy's weights: KeyError: 'lm_head.weight'"),
        (
            "generate",
            RuntimeError("engine is dead\nTraceback"),
            "failed while it sampled: RuntimeError: engine is dead$",
        ),
    ],
)
def test_what_breaks_inside_of_vllm_is_one_line(standin, vllm_loop, monkeypatch, method, error, said):
    def broken(*_, **__):
        raise error

    loop = vllm_loop()
    monkeypatch.setattr(standin, method, broken)
    with pytest.raises(GenerationError, match=said) as caught:
        loop.iterate(range(8))
    assert "\n" not in str(caught.value)


def test_without_vllm_it_is_refused_with_the_way_out(vllm_loop):
    with pytest.raises(GenerationError, match=r"rlhf-alignment-suite\[vllm\]"):
        vllm_loop()


@pytest.mark.parametrize(
    ("rollout", "said"),
    [
        ({"vllm": {"server_base_url": "node7:8000/"}}, "use http://node7:8000"),
        ({"vllm": {"server_base_url": "http://"}}, "expected http://HOST:PORT"),
        (
            {"vllm": {"server_base_url": "http://node7:8000", "tensor_parallel_size": 2}},
            "tensor_parallel_size is for a colocated vLLM",
        ),
        (
            {"vllm": {"server_base_url": "http://node7:8000", "gpu_memory_utilization": 0.4}},
            "gpu_memory_utilization is for a colocated vLLM",
        ),
    ],
)
def test_keys_that_do_nothing_are_refused(stage_config, rollout, said):
    with pytest.raises(ValueError, match=said):
        stage_config(rollout=rollout)


def test_a_mapping_says_that_vllm_samples(stage_config):
    assert stage_config().rollout.vllm is None
    assert stage_config(rollout={"vllm": None}).rollout.vllm is None  # as a recipe's is taken out on a command line
    assert stage_config(rollout={"vllm": {}}).rollout.vllm.mode == "colocate"
    with pytest.raises(ValueError, match="engine"):
        stage_config(rollout={"engine": "vllm"})


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/", " "])
def test_an_address_is_that_of_the_server_however_it_ends(stage_config, end):
    vllm = {"server_base_url": f"http://node7:8000{end}"}
    config = stage_config(rollout={"vllm": vllm})
    assert config.rollout.vllm.server_base_url == "http://node7:8000"
    assert config.sampled_in == "bfloat16"  # which a server takes by its own choice


INFO = {
    "model_config": {"logprobs_mode": "processed_logprobs", "dtype": "torch.float32"},
    "device_config": {"device": "cpu"},
    "weight_transfer_config": None,
}
"""What `vllm serve` says of itself, as far as it is read."""


@pytest.fixture
def server():
    """An HTTP server that answers by path with a status, and an object by path; its address, both, and what it read."""
    answers: dict = {"/health": 200, "/server_info": 200, "/collective_rpc": 200}
    bodies: dict = {"/server_info": {"vllm_config": json.loads(json.dumps(INFO))}, "/collective_rpc": {}}
    read: list = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path = self.path.partition("?")[0]
            self.send_response(answers.get(path, 404))
            self.end_headers()
            self.wfile.write(json.dumps(bodies.get(path, {})).encode())

        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert request["method"] == "reload_weights"
            files = sorted(Path(request["kwargs"]["weights_path"]).glob("*.safetensors"))
            assert all(file.stat().st_mode & 0o777 == file.parent.stat().st_mode & 0o666 for file in files)
            read.append((request["kwargs"]["weights_path"], [load_file(file) for file in files]))
            self.do_GET()

        def log_message(self, *given):
            pass

    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{made.server_port}", answers, bodies, read
    made.shutdown()
    made.server_close()


def test_a_server_says_how_it_takes_weights(server, monkeypatch):
    assert find_server(server[0], 0) == Server(server[0], by_nccl=False, on_cpu=True, dtype=torch.float32)
    about = server[2]["/server_info"]["vllm_config"]
    about["weight_transfer_config"] = {"backend": "nccl"}
    with pytest.raises(GenerationError, match="by nccl, and this run has no GPU; start it without --weight-transfer"):
        find_server(server[0], 0)
    monkeypatch.setattr(vllm_server.processes, "on_cpu", lambda: False)
    assert find_server(server[0], 0).by_nccl
    about["weight_transfer_config"] = {"backend": "ipc"}
    with pytest.raises(GenerationError, match="by ipc, and this run sends by nccl; start it without"):
        find_server(server[0], 0)


LOAD = FileTransfer._load


def _and_load(llm, read, *given):
    LOAD(*given)
    for weights in read[-1][1]:
        llm.load_weights(weights.items())


def test_a_server_without_nccl_reads_the_weights_from_files(server, standin, vllm_loop, tmp_path, monkeypatch):
    url, _, _, read = server
    loop = vllm_loop(vllm={"server_base_url": url, "dtype": "float32"})
    (client,) = vllm_standin.VLLMClient.made
    client.llm = vllm_standin.LLM(str(tmp_path / "policy"), max_model_len=20)
    monkeypatch.setattr(FileTransfer, "_load", lambda *given: _and_load(client.llm, read, *given))
    for _ in range(2):
        before = {name: p.clone() for name, p in loop.models.policy.model.named_parameters()}
        loop.iterate(range(8))
        ((_, (weights,)),) = read[-1:]
        assert all(torch.equal(value, weights[name]) for name, value in before.items())
        assert weights.keys() == before.keys()
    (first, _), (second, _) = read
    assert first != second  # NFS remembers what was in a folder
    assert Path(first).is_absolute() and Path(first).parent.parent == loop.config.run_dir.resolve()
    assert not Path(first).parent.exists()
    assert client.llm.syncs == 2


def test_files_have_a_bounded_size_and_the_type_of_the_server(server, tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_server, "SHARD_BYTES", 1000)
    weights = {f"w{index}": torch.randn(10, 20) for index in range(6)} | {"steps": torch.arange(3)}
    FileTransfer(Server(server[0], False, False, torch.bfloat16), tmp_path / "sent").send(weights.items())
    ((_, files),) = server[3]
    assert [len(file) for file in files] == [3, 3, 1]  # 400 bytes each in bfloat16
    sent = {name: tensor for file in files for name, tensor in file.items()}
    assert sent.keys() == weights.keys() and sent["steps"].dtype == torch.int64
    assert all(torch.equal(sent[name], weights[name].bfloat16()) for name in weights if name != "steps")


def test_a_server_that_does_not_see_the_folder_is_named_with_the_way_out(server, tmp_path):
    server[1]["/collective_rpc"] = 500
    server[2]["/collective_rpc"] = {"error": {"message": "Worker failed with\nerror 'Repo id must be'"}}
    transfer = FileTransfer(Server(server[0], False, False, torch.float32), tmp_path / "sent")
    with pytest.raises(GenerationError, match=r"from .*000001: Worker failed with error 'Repo id must be'; does it"):
        transfer.send([("w", torch.zeros(2))])
    assert not (tmp_path / "sent").exists()


def test_a_disk_that_cannot_be_written_is_one_line_and_every_weight_is_gathered_yet(server, tmp_path):
    (tmp_path / "file").write_text("")
    given = []

    def weights():  # on other ranks this goes on
        for name in "abc":
            given.append(name)
            yield name, torch.zeros(2)

    transfer = FileTransfer(Server(server[0], False, False, torch.float32), tmp_path / "file" / "sent")
    with pytest.raises(GenerationError, match=r"000001: the policy's weights for vLLM cannot be written: .*directory"):
        transfer.send(weights())
    assert given == list("abc") and not server[3]


def test_a_server_of_another_type_is_refused(server, standin, vllm_loop):
    with pytest.raises(GenerationError, match=r"computes in float32, and rollout\.vllm\.dtype means bfloat16; set"):
        vllm_loop(vllm={"server_base_url": server[0]})


def test_a_proxy_that_stands_between_is_named(server, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # where nothing listens
    with pytest.raises(GenerationError, match=r"no vLLM server .* through the proxy 127\.0\.0\.1:9 of http_proxy"):
        find_server(server[0], 0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    find_server(server[0], 0)


def test_a_server_that_takes_no_weights_is_refused_with_how_to_start_it(server):
    server[1]["/server_info"] = 404
    with pytest.raises(GenerationError, match="start it with VLLM_SERVER_DEV_MODE=1"):
        find_server(server[0], 0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"logprobs_mode": "raw_logprobs"}, "gives raw_logprobs.* start it with --logprobs-mode processed_logprobs"),
        ({"dtype": "torch.nonsense"}, "is not that of a vLLM that this version knows; constraints-vllm.txt has one"),
    ],
)
def test_a_server_that_was_started_otherwise_is_refused(server, change, said):
    server[2]["/server_info"]["vllm_config"]["model_config"] |= change
    with pytest.raises(GenerationError, match=said):
        find_server(server[0], 0)


def test_a_server_that_is_no_vllm_is_not_waited_for(server):
    with pytest.raises(GenerationError, match="has no /health"):
        find_server(f"{server[0]}/other", 60)


def test_a_server_that_does_not_come_up_is_named(server):
    server[1]["/health"] = 503
    with pytest.raises(GenerationError, match=r"no vLLM server answers there after 0 s \(it is not ready\)"):
        find_server(server[0], 0)
    with pytest.raises(GenerationError, match=r"http://127.0.0.1:9: no vLLM server answers .*ConnectError"):
        find_server("http://127.0.0.1:9", 0)
