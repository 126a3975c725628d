"""`cotenant estimate` as a person meets it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from cotenant import catalogue, sources
from cotenant.cli.estimate import main

TINY: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}


@pytest.fixture
def config(tmp_path: Path) -> str:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(TINY))
    return str(file)


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    status = main([*arguments, "-o", "json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert status == (2 if found["refusal"] else 0)
    return found


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    return said.err


def test_the_json_form_is_as_promised(capsys: pytest.CaptureFixture[str], config: str) -> None:
    found = answer(capsys, "--config", config, "--gpu", "H100-80GB", "--share", "10%")

    assert set(found) == {"perGPU", "kvCacheTokens", "contextThatFits", "share", "refusal"}
    assert set(found["perGPU"]) == {
        "weights", "activation", "cudaGraphs", "nonTorch", "kvBytesPerToken", "kvCache", "peak",
    }  # fmt: skip
    for figure in (*found["perGPU"].values(), found["kvCacheTokens"]):
        assert set(figure) == {"value", "low", "high", "source"}
        assert figure["low"] <= figure["value"] <= figure["high"]
        assert figure["source"]
    assert found["perGPU"]["weights"]["value"] == pytest.approx(1_235_814_400 * 2, rel=0.005)
    assert found["perGPU"]["kvBytesPerToken"]["value"] == 32_768
    assert found["contextThatFits"] == 8192
    assert found["refusal"] is None
    assert set(found["share"]["perProduct"]) == {gpu.name for gpu in catalogue.gpus()}


def test_the_share_counts_as_vllm_counts_it(capsys: pytest.CaptureFixture[str], config: str) -> None:
    memory = 80 << 30
    found = answer(capsys, "--config", config, "--memory", str(memory), "--share", "25%")
    parts = found["perGPU"]

    assert parts["kvCache"]["value"] < memory // 4 - parts["weights"]["value"] - parts["activation"]["value"]
    assert parts["peak"]["value"] > memory // 4


def test_a_share_that_is_too_small_is_an_answer(capsys: pytest.CaptureFixture[str], config: str) -> None:
    refusal = answer(capsys, "--config", config, "--share", "2Gi")["refusal"]

    assert refusal["reason"] == "WeightsTooLarge"
    assert "2Gi cannot hold the weights" in refusal["message"]
    assert answer(capsys, "--config", config, "--share", f"{refusal['needs']}")["refusal"] is None


def test_a_card_that_is_too_small_is_an_answer(capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, "meta-llama/Llama-3.3-70B-Instruct", "--offline", "--gpu", "H100-80GB")

    assert found["refusal"]["reason"] == "LargerThanGPU"
    assert found["share"]["perProduct"]["H100-80GB"] is None
    assert found["share"]["perProduct"]["B200-180GB"]["utilization"].startswith("0.8")


def test_the_automatic_share_serves_on_each_card_it_names(capsys: pytest.CaptureFixture[str], config: str) -> None:
    found = answer(capsys, "--config", config)
    for name, fitting in found["share"]["perProduct"].items():
        assert fitting["bytes"] >= found["share"]["auto"] * 0.9999, name


def test_the_engine_block_counts(capsys: pytest.CaptureFixture[str], config: str, tmp_path: Path) -> None:
    block = tmp_path / "engine.yaml"
    block.write_text("kvCacheDtype: fp8\nquantization: fp8\nmaxModelLen: 4096\ncudaGraphs: {enabled: false}\n")

    plain = answer(capsys, "--config", config, "--share", "10Gi")["perGPU"]
    asked = answer(capsys, "--config", config, "--share", "10Gi", "--engine", str(block))["perGPU"]

    assert asked["kvBytesPerToken"]["value"] * 2 == plain["kvBytesPerToken"]["value"]
    assert asked["weights"]["value"] < plain["weights"]["value"]
    assert asked["cudaGraphs"]["value"] == 0


def test_the_longest_context_is_found(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    block = tmp_path / "engine.yaml"
    block.write_text("maxModelLen: auto\n")

    found = answer(capsys, "Qwen/Qwen3-8B", "--offline", "--share", "17Gi", "--engine", str(block))

    assert 0 < found["contextThatFits"] < 40_960
    assert found["refusal"] is None


def test_more_gpus_share_the_weights(capsys: pytest.CaptureFixture[str], config: str) -> None:
    alone = answer(capsys, "--config", config)["perGPU"]["weights"]["value"]
    together = answer(capsys, "--config", config, "--tp", "2")["perGPU"]["weights"]["value"]

    assert together == pytest.approx(alone / 2, rel=0.01)


def test_a_table_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mistralai/Mistral-Small-3.2-24B-Instruct-2506", "--offline", "--share", "48Gi"]) == 2
    told = capsys.readouterr().out

    assert "weights" in told
    assert "H200-141GB" in told
    assert re.search(
        r"refused \(ContextTooLong\): 48Gi holds the weights and [0-9,]+ tokens; 131,072 need 6[0-9.]+Gi", told
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give a MODEL or --config FILE"),
        (["a/b", "--config", "x"], "give a MODEL or --config FILE"),
        (["nobody/nothing", "--offline"], "not in the catalogue: give its share as a number"),
        (["not a name", "--offline"], "names no repository"),
        (["pvc://claim/x"], "can only be read inside the cluster"),
        (["--config", "/nowhere/config.json"], "No such file"),
        (["Qwen/Qwen3-8B", "--gpu", "H7"], "known are"),
        (["Qwen/Qwen3-8B", "--memory", "lots"], "--memory"),
        (["Qwen/Qwen3-8B", "--memory", "5"], "256Mi or more"),
        (["Qwen/Qwen3-8B", "--share", "30%"], "say which with --gpu or --memory"),
        (["Qwen/Qwen3-8B", "--share", "much"], "--share"),
        (["Qwen/Qwen3-8B", "--tp", "0"], "--tp 0"),
        (["Qwen/Qwen3-8B", "--engine", "/nowhere"], "cannot be read"),
    ],
)
def test_what_cannot_be_answered_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert says in refused(capsys, *arguments)


@pytest.mark.parametrize(
    ("block", "says"),
    [
        ("maxModelLen: [1]", "maxModelLen"),
        ("maxModelLength: 1", 'no field "maxModelLength"'),
        ("- a", "fields of an engine block"),
        ("a: [", "not YAML"),
        ("extraArgs: [--gpu-memory-utilization=1]", "write share"),
        ("extraArgs: [lost]", "without a flag before it"),
    ],
)
def test_a_wrong_engine_block_names_its_field(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, block: str, says: str
) -> None:
    file = tmp_path / "engine.yaml"
    file.write_text(block)

    assert says in refused(capsys, "Qwen/Qwen3-8B", "--offline", "--engine", str(file))


@pytest.mark.parametrize("text", ["", "[]", "{}", "nonsense", '{"hidden_size": "x"}', '{"hidden_size": 1e400}'])
def test_a_wrong_config_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(text)

    assert str(file) in refused(capsys, "--config", str(file))


# ------------------------------------------------------------------------------------------------------------- the hub
@pytest.fixture
def hub() -> Iterator[str]:
    """A mirror of the hub with one public and one gated repository."""
    files = {
        "/open/tiny/resolve/main/config.json": json.dumps(TINY).encode(),
        "/open/tiny/resolve/main/model.safetensors.index.json": b'{"metadata": {"total_size": 2471645608}, "weight_map": {}}',
    }

    class Mirror(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            gated = self.path.startswith("/gated/")
            found = files.get(self.path.replace("/gated/", "/open/"))
            if gated and self.headers.get("Authorization") != "Bearer secret":
                self.send_response(401)
                self.send_header("X-Error-Code", "GatedRepo")
                found = b""
            elif found is None:
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound" if "/open/tiny/" in self.path else "RepoNotFound")
                found = b""
            else:
                self.send_response(200)
                self.send_header("ETag", f'"{len(found)}"')
                self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("Content-Length", str(len(found)))
            self.end_headers()
            if body:
                self.wfile.write(found)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_config_comes_from_a_mirror_of_the_hub_and_then_from_its_cache(hub: str, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    read = sources.model_config("hf://open/tiny", endpoint=hub, cache_dir=cache)
    again = sources.model_config("hf://open/tiny", endpoint="http://127.0.0.1:9", cache_dir=cache, timeout=1)

    assert read.checkpoint_bytes == 2_471_645_608
    assert read.source == "hf://open/tiny"
    assert again == read


def test_a_gated_model_needs_its_token(hub: str, tmp_path: Path) -> None:
    with pytest.raises(sources.SourceError, match="wants a token"):
        sources.model_config("gated/tiny", endpoint=hub, cache_dir=str(tmp_path))
    assert sources.model_config("gated/tiny", endpoint=hub, cache_dir=str(tmp_path), token="secret").hidden == 2048


def test_what_the_hub_does_not_have_is_said(hub: str, tmp_path: Path) -> None:
    with pytest.raises(sources.SourceError, match="no such repository"):
        sources.model_config("open/nothing", endpoint=hub, cache_dir=str(tmp_path))


def test_without_a_hub_the_catalogue_answers(tmp_path: Path) -> None:
    found = sources.model_config("Qwen/Qwen3-8B", endpoint="http://127.0.0.1:9", cache_dir=str(tmp_path), timeout=1)

    assert found.source == "Cotenant's catalogue (Qwen/Qwen3-8B)"


def test_weights_beside_a_config_are_counted_by_their_headers(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    header = json.dumps({"a": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}, "__metadata__": {}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))

    assert sources.read_file(str(tmp_path)).checkpoint_bytes == 8


def test_weights_whose_header_is_broken_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 64)

    assert sources.read_file(str(tmp_path)).checkpoint_bytes is None


# ------------------------------------------------------------------------------------------------------- the catalogue
def test_the_catalogue_holds_sixty_models_and_says_where_from() -> None:
    entries = catalogue.models()

    assert len(entries) >= 60
    for name, entry in entries.items():
        assert (
            {"source", "counted_by", "parameters", "config"}
            <= set(entry)
            <= {"source", "notChecked", "counted_by", "parameters", "config"}
        ), name
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", name)
        assert catalogue.find(name.upper()) is not None
    assert catalogue.find("nobody/nothing") is None
    assert sum(not entry["source"].startswith(catalogue.FROM_MEMORY) for entry in entries.values()) >= 60
    unchecked = catalogue.find("bigcode/starcoder2-7b")
    assert unchecked is not None
    assert catalogue.FROM_MEMORY in unchecked.source


def test_cards_have_names_products_and_believable_memory() -> None:
    cards = catalogue.gpus()

    assert len({gpu.name for gpu in cards}) == len({gpu.product for gpu in cards}) == len(cards)
    for gpu in cards:
        advertised = int(re.sub(r".*-([0-9]+)GB", r"\1", gpu.name))
        assert 0.88 < gpu.usable / (advertised * 10**9) < 1.08, gpu.name
        assert gpu.source
