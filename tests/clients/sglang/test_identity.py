"""Engines have the same identity only if they compute the same KV."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvdepot.connector.config import ConnectorConfig
from kvdepot.connector.identity import CacheIdentity
from kvdepot.connector.model_weights import EngineProcess
from kvdepot.sglang.identity import cache_identity, of_pool

LATER = time.time() + 1e6


def identity(
    arguments: Any = None,
    *,
    version: str = "0.5.23",
    unique_id: str = "a",
    ours: dict[str, Any] | None = None,
    **storage: Any,
) -> CacheIdentity:
    """Return the identity of an engine with these arguments, settings of ours, and fields of the storage config."""
    return cache_identity(
        ConnectorConfig(**(ours or {})),
        SimpleNamespace(**{"model_name": "served", "is_mla_model": False, **storage}),
        arguments,
        sglang_version=version,
        engine=EngineProcess(unique_id, LATER),
    )


def server_args(folder: Path, **changed: Any) -> SimpleNamespace:
    """Return SGLang's arguments for a model in a folder."""
    return SimpleNamespace(**{"model_path": str(folder), "dtype": "auto", "kv_cache_dtype": "auto", **changed})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The folder of a model."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    return tmp_path


def test_engines_with_equal_arguments_and_weights_share(model: Path) -> None:
    assert identity(server_args(model)) == identity(server_args(model), unique_id="b")


@pytest.mark.parametrize(
    "changed",
    [
        {"dtype": "float16"},
        {"kv_cache_dtype": "fp8_e5m2"},
        {"quantization": "fp8"},
        {"json_model_override_args": '{"rope_theta": 1}'},
        {"context_length": 4096},
        {"speculative_algorithm": "EAGLE"},
        {"mm_process_config": {"image": {"max_pixels": 1}}},
    ],
    ids=str,
)
def test_an_argument_that_changes_kv_is_part_of_the_name(model: Path, changed: dict[str, Any]) -> None:
    assert identity(server_args(model, **changed)).model_name != identity(server_args(model)).model_name


def test_other_arguments_do_not_matter(model: Path) -> None:
    assert identity(server_args(model, port=1, mem_fraction_static=0.5)) == identity(server_args(model, port=2))


def test_the_attention_backend_counts_where_the_cache_is_quantized(model: Path) -> None:
    one, two = (server_args(model, attention_backend=backend) for backend in ("fa3", "triton"))
    assert identity(one) == identity(two)
    one.kv_cache_dtype = two.kv_cache_dtype = "fp8_e4m3"
    assert identity(one).model_name != identity(two).model_name


def test_version_and_kind_of_cache_are_part_of_the_name(model: Path) -> None:
    names = [
        identity(server_args(model)),
        identity(server_args(model), version="0.6"),
        identity(server_args(model), is_mla_model=True),
    ]
    assert len({each.model_name for each in names}) == 3


def test_other_weights_have_another_revision(model: Path) -> None:
    before = identity(server_args(model))
    (model / "model.safetensors").write_bytes(b"trained")
    after = identity(server_args(model))
    assert before.model_name == after.model_name
    assert before.model_revision != after.model_revision


@pytest.mark.parametrize("form", ["text", "named", "object", "mapping"])
def test_an_adapter_that_was_trained_again_under_its_path_has_another_revision(
    model: Path, tmp_path: Path, form: str
) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    path = str(adapter)
    given = {
        "text": path,
        "named": f"name={path}",
        "object": SimpleNamespace(lora_name="name", lora_path=path),
        "mapping": {"lora_name": "name", "lora_path": path},
    }[form]
    (adapter / "adapter_model.safetensors").write_bytes(b"one")
    before = identity(server_args(model, lora_paths=[given]))
    (adapter / "adapter_model.safetensors").write_bytes(b"two")
    assert identity(server_args(model, lora_paths=[given])).model_revision != before.model_revision


def test_a_draft_model_is_part_of_the_revision(model: Path, tmp_path: Path) -> None:
    draft = tmp_path / "draft"
    draft.mkdir()
    (draft / "model.safetensors").write_bytes(b"draft")
    with_draft = identity(server_args(model, speculative_draft_model_path=str(draft)))
    assert with_draft.model_revision.startswith(f"{identity(server_args(model)).model_revision}+")


def test_weights_that_are_not_known_are_shared_with_no_other_engine(caplog: pytest.LogCaptureFixture) -> None:
    assert identity(unique_id="a").model_revision != identity(unique_id="b").model_revision
    assert "kvdepot.model_revision can name the revision" in caplog.text


def test_a_name_and_a_revision_of_the_user_replace_their_own_texts_only(model: Path) -> None:
    ours = {"model_name": "mine", "model_revision": "7"}
    named = identity(server_args(model), ours=ours)
    assert named.model_revision == "7"
    assert named.model_name.startswith("mine sglang-")
    assert named.model_name.partition(" ")[2] == identity(server_args(model)).model_name.partition(" ")[2]


def test_dummy_weights_are_named_by_their_seed() -> None:
    revisions = [identity(SimpleNamespace(model_path="x", load_format="dummy", random_seed=seed)) for seed in (1, 1, 2)]
    assert revisions[0] == revisions[1] != revisions[2]


def test_a_pools_format_and_shard_are_part_of_its_name() -> None:
    whole = identity(ours={"model_revision": "1"})
    assert of_pool(whole, "", None) == whole
    names = {of_pool(whole, shard, tag).model_name for shard in ("", "rank 0/2") for tag in (None, "mxfp8")}
    assert len(names) == 4


def test_the_longest_names_fit_into_the_contract(model: Path) -> None:
    long = identity(server_args(model), ours={"model_name": "m" * 2_000, "model_revision": "r" * 2_000})
    assert len(of_pool(long, "rank 999/1024 cp 15/16", "envelope").model_name.encode()) <= 512
    assert len(long.model_revision.encode()) <= 256
