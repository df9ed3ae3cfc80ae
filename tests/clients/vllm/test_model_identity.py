"""Engines have the same model's name exactly if all facts of their model in vLLM are the same, but for its weights."""

from __future__ import annotations

import os
import subprocess
import sys
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import kvdepot
from kvdepot.vllm.model_identity import model_identity
from tests.fakes.vllm import vllm_config

LONG_ROPE = {"rope_type": "longrope", "original_max_position_embeddings": 4096}


class Kind(Enum):
    ONE = 1
    TWO = 2


DEFAULTS: dict[str, Any] = {
    "vllm_version": "0.32.0",
    "configured_name": "",
    "environment": {},
}


def name_of(**facts: Any) -> str:
    """Return the identity; facts that are not in `DEFAULTS` are changes of vLLM's configuration."""
    changes = {name: fact for name, fact in facts.items() if name not in DEFAULTS}
    others = {name: facts.get(name, default) for name, default in DEFAULTS.items()}
    return model_identity(vllm_config(**changes), **others)


@pytest.mark.parametrize(
    "change",
    [
        {"model_config__model": "org/other"},
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
        {"model_config__revision": "v2"},  # a fact of the weights
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


def test_configured_name_takes_the_place_of_the_path_and_of_nothing_else() -> None:
    name = name_of(model_config__model="/models/a", configured_name="mine")
    assert name.startswith("mine#")
    assert name == name_of(model_config__model="/models/b", configured_name="mine")
    assert name != name_of(model_config__model="/models/a", configured_name="mine", model_config__dtype="torch.float16")
    assert name != name_of(model_config__model="/models/a", configured_name="yours")


def test_snapshot_of_the_hub_has_the_name_of_its_model() -> None:
    name = name_of(model_config__model="/cache/models--org--model/snapshots/c1")
    assert name.startswith("org/model#")
    assert name == name_of(model_config__model="/elsewhere/models--org--model/snapshots/c2")
