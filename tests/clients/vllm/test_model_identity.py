"""Engines share KV exactly if all facts of their model in vLLM are the same."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import kvdepot
from kvdepot.vllm import weights
from kvdepot.vllm.model_identity import model_identity
from kvdepot.vllm.weights import EngineProcess, process_start
from tests.fakes.vllm import vllm_config

LONG_ROPE = {"rope_type": "longrope", "original_max_position_embeddings": 4096}


class Kind(Enum):
    ONE = 1
    TWO = 2


DEFAULTS: dict[str, Any] = {
    "engine_id": "engine",
    "engine_start": math.inf,  # all files are older
    "vllm_version": "0.32.0",
    "weights_name": "",
    "environment": {},
}


def name_of(**facts: Any) -> str:
    """Return the identity; facts that are not in `DEFAULTS` are changes of vLLM's configuration."""
    changes = {name: fact for name, fact in facts.items() if name not in DEFAULTS}
    others = {name: facts.get(name, default) for name, default in DEFAULTS.items()}
    engine = EngineProcess(others.pop("engine_id"), others.pop("engine_start"))
    return model_identity(vllm_config(**changes), engine=engine, **others)


@pytest.mark.parametrize(
    "change",
    [
        {"model_config__model": "org/other"},
        {"model_config__revision": "v2"},
        {"model_config__dtype": "torch.float16"},
        {"model_config__quantization": "fp8"},
        {"model_config__quantization_config": SimpleNamespace(linear=Kind.ONE)},
        {"model_config__disable_sliding_window": True},
        {"model_config__model_impl": "transformers"},
        {"model_config__a_setting_of_a_later_vllm": 1},
        {"model_config__hf_config__rope_theta": 1.0},
        {"model_config__hf_text_config": {"rope_theta": 1.0}},
        {"model_config__multimodal_config": SimpleNamespace(mm_encoder_attn_dtype="fp8")},
        {"cache_config__cache_dtype": "fp8"},
        {"cache_config__kv_cache_dtype_skip_layers": ["0"]},
        {"cache_config__prefix_caching_hash_algo": "xxhash"},
        {"load_config__load_format": "dummy"},
        {"load_config__model_loader_extra_config": {"scales": "/scales"}},
        {"speculative_config": SimpleNamespace(method="eagle", model="draft")},
        {"parallel_config__pipeline_parallel_size": 2},
        {"attention_config": SimpleNamespace(indexer_kv_dtype="fp8")},
        {"vllm_version": "0.33.0"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_changes_kv_makes_another_model(change: dict[str, Any]) -> None:
    assert name_of(**change) != name_of()


@pytest.mark.parametrize(
    "change",
    [
        {"model_config__max_model_len": 8192},
        {"model_config__seed": 7},
        {"model_config__served_model_name": "mine"},
        {"model_config__tokenizer": "/other"},
        {"model_config__hf_config__transformers_version": "6.0"},
        {"model_config__multimodal_config": SimpleNamespace(limit_per_prompt={"image": 4})},
        {"cache_config__gpu_memory_utilization": 0.5},
        {"cache_config__num_gpu_blocks": 9},
        {"cache_config__block_size": 32},
        {"load_config__use_tqdm_on_load": False},
        {"speculative_config": SimpleNamespace(method="ngram", model="ngram")},
        {"attention_config": SimpleNamespace(backend=Kind.ONE)},
        {"engine_id": "other"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_engines_that_compute_the_same_kv_share_it(change: dict[str, Any]) -> None:
    kept = {"model_config__max_model_len": 4096, "model_config__multimodal_config": SimpleNamespace()}
    assert name_of(**{**kept, **change}) == name_of(**kept)


@pytest.mark.parametrize(
    ("rope", "depends"),
    [
        ({"rope_parameters": LONG_ROPE}, True),
        ({"rope_scaling": {"type": "longrope"}}, True),
        ({"text_config": {"rope_parameters": {"full": LONG_ROPE, "sliding": {"rope_type": "default"}}}}, True),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2}}, True),
        ({"rope_parameters": {"rope_type": "of a later vLLM"}}, True),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2}}, False),
        ({"rope_parameters": {"rope_type": "default"}}, False),
    ],
)
def test_longest_context_counts_where_rotary_embeddings_may_be_chosen_by_it(
    rope: dict[str, Any], depends: bool
) -> None:
    short, long = (
        name_of(
            model_config__max_model_len=length,
            **{f"model_config__hf_config__{key}": value for key, value in rope.items()},
        )
        for length in (4096, 32768)
    )
    assert (short != long) is depends


def test_length_that_vllm_fits_to_the_memory_is_not_the_one_that_the_model_was_made_with() -> None:
    rope = {"model_config__hf_config__rope_parameters": LONG_ROPE}
    fitted = name_of(**rope, model_config__max_model_len=4000, model_config__original_max_model_len=-1)
    short = name_of(**rope, model_config__max_model_len=4000, model_config__original_max_model_len=4000)
    assert fitted != short
    assert fitted == name_of(**rope, model_config__max_model_len=3000, model_config__original_max_model_len=-1)


def test_packing_of_quantized_kv_is_the_backends_own() -> None:
    fp8 = {"cache_config__cache_dtype": "fp8"}
    one, two = (name_of(**fp8, attention_config=SimpleNamespace(backend=kind)) for kind in Kind)
    assert one != two


def test_workers_of_a_pipeline_that_is_cut_elsewhere_have_other_layers() -> None:
    one, two = {"VLLM_PP_LAYER_PARTITION": "10,12,10"}, {"VLLM_PP_LAYER_PARTITION": "8,12,12"}
    pipeline = {"parallel_config__pipeline_parallel_size": 3}
    assert name_of(environment=one, **pipeline) != name_of(environment=two, **pipeline)
    assert name_of(environment=one) == name_of(environment=two)


def test_name_is_the_same_in_every_process_and_the_depot_takes_it() -> None:
    assert name_of().startswith("org/model#")
    assert len(name_of(model_config__model="x" * 2000).encode()) <= 512
    script = (
        "from tests.clients.vllm.test_model_identity import *\n"
        "print(name_of(model_config__quantization_config=SimpleNamespace(linear=Kind.ONE, names={'a', 'b', 'c'})))"
    )
    paths = os.pathsep.join((str(Path(kvdepot.__file__).parents[1]), str(Path(__file__).parents[3])))
    names = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONPATH": paths, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(names) == 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    return tmp_path


def test_weights_that_were_replaced_under_the_same_path_are_another_model(folder: Path) -> None:
    name = name_of(model_config__model=str(folder))
    assert name == name_of(model_config__model=str(folder))
    (folder / "README.md").write_text("of no effect")
    (folder / "checkpoint-1").mkdir()
    assert name == name_of(model_config__model=str(folder))
    stat = (folder / "model.safetensors").stat()
    (folder / "model.safetensors").write_bytes(b"\1" + bytes(999))
    os.utime(folder / "model.safetensors", ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as a copying tool does
    assert name != name_of(model_config__model=str(folder))


def test_large_weights_are_distinguished_by_time_and_by_samples(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "MAX_READ_BYTES", 100)
    path = folder / "model.safetensors"
    path.write_bytes(bytes(1 << 20))
    os.utime(path, (1, 1))
    names = [name_of(model_config__model=str(folder))]
    os.utime(path, (1, 2))
    names.append(name_of(model_config__model=str(folder)))
    path.write_bytes(b"\1" * (1 << 20))
    os.utime(path, (1, 1))
    names.append(name_of(model_config__model=str(folder)))
    assert len(set(names)) == 3
    path.write_bytes(bytes(1 << 20))
    os.utime(path, (1, 1))
    assert name_of(model_config__model=str(folder)) == names[0]


def test_snapshot_of_the_hub_is_named_by_its_content_wherever_it_is(tmp_path: Path) -> None:
    def snapshot(root: Path, commit: str, blob: str) -> str:
        repository = root / "models--org--model"
        snapshot = repository / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (repository / "blobs").mkdir(exist_ok=True)
        (repository / "blobs" / blob).write_bytes(b"weights")  # new, but the hub's files never change
        (snapshot / "model.safetensors").symlink_to(f"../../blobs/{blob}")
        return name_of(model_config__model=str(snapshot))

    name = snapshot(tmp_path / "a", "c1", "b1")
    assert name.startswith("org/model#")
    assert name == snapshot(tmp_path / "b", "c2", "b1") != snapshot(tmp_path / "c", "c1", "b2")


def test_weights_of_an_object_store_are_named_by_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")  # pulled while the engine started
    names = [
        name_of(model_config__model=folder, model_config__model_weights=source, engine_id=engine, engine_start=0.0)
        for folder, source, engine in (
            (str(tmp_path), "s3://models/a", "one"),
            ("/elsewhere", "s3://models/a", "two"),
            (str(tmp_path), "s3://models/b", "one"),
        )
    ]
    assert names[0].startswith("s3://models/a#")
    assert names[0] == names[1] != names[2]


def test_engine_whose_files_changed_while_it_started_shares_with_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"new")
    unchanged = {"model_config__model": str(tmp_path)}
    changed = {**unchanged, "engine_start": time.time() - 60}
    assert name_of(**changed, engine_id="a") != name_of(**changed, engine_id="b")
    assert name_of(**changed, engine_id="a") == name_of(**changed, engine_id="a")  # of the engine's other ranks
    assert "changed while the engine started (model.safetensors)" in caplog.text
    assert name_of(**unchanged, engine_id="a") == name_of(**unchanged, engine_id="b")


def test_process_start_time_is_that_of_the_process() -> None:
    assert time.time() - 3600 < process_start() < time.time()
    script = "import time; from kvdepot.vllm.weights import process_start; print(time.time() - process_start())"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert -0.1 < float(ended.stdout) < 60


def test_files_that_can_not_be_read_are_no_ground_to_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def denied(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", denied)
    unreadable = {"model_config__model": str(tmp_path)}
    assert name_of(**unreadable, engine_id="a") != name_of(**unreadable, engine_id="b")
    assert "can't be read, so this engine shares no KV" in caplog.text


def test_name_of_the_weights_takes_the_place_of_their_files_and_of_nothing_else(folder: Path, tmp_path: Path) -> None:
    name = name_of(model_config__model=str(folder), weights_name="mine")
    assert name.startswith("mine#")
    assert name == name_of(model_config__model=str(tmp_path / "copy"), weights_name="mine")
    assert name != name_of(model_config__model=str(folder), weights_name="mine", model_config__dtype="torch.float16")
    assert name != name_of(model_config__model=str(folder), weights_name="yours")
