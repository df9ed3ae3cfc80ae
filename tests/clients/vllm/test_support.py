"""Engines that the connector supports, and the groups of their KV caches."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import kvdepot
from kvdepot.connector.cache_groups import CacheGroup
from kvdepot.vllm.groups import cache_groups
from kvdepot.vllm.model_identity import cache_identity, state_settings
from kvdepot.vllm.support import Unsupported, block_hash_seed, check_engine, warn_of_hashes
from tests.fakes.vllm import FullAttentionSpec, Group, KvCacheConfig, vllm_config

FULL = KvCacheConfig(8, [Group(["layer"])])


@dataclass(frozen=True)
class SlidingWindowSpec(FullAttentionSpec):
    sliding_window: int = 128
    extra_retained_tokens: int = 0


@dataclass(frozen=True)
class SlidingWindowMLASpec(SlidingWindowSpec):
    pass


@dataclass(frozen=True)
class ChunkedLocalAttentionSpec(FullAttentionSpec):
    attention_chunk_size: int = 64


MIXED = SimpleNamespace(block_size=4, kv_cache_specs={"a": FullAttentionSpec(), "b": SlidingWindowSpec()})


UNIFORM = SimpleNamespace(
    block_size=4, kv_cache_specs={"a": FullAttentionSpec(num_kv_heads=4), "b": FullAttentionSpec(num_kv_heads=6)}
)


@dataclass(frozen=True)
class MambaSpec:
    block_size: int = 16
    shapes: tuple[tuple[int, ...], ...] = ((3, 4), (2, 8, 8))
    dtypes: tuple[str, ...] = ("torch.bfloat16", "torch.float32")
    mamba_type: str = "GDN_ATTN"
    mamba_cache_mode: str = "align"
    num_speculative_blocks: int = 0
    tokens_per_state: int = -1


STATES = Group(["b"], MambaSpec())


@dataclass(frozen=True)
class CrossAttentionSpec(FullAttentionSpec):
    pass


@dataclass(frozen=True)
class NewSpec(FullAttentionSpec):
    pass


@pytest.mark.parametrize(
    ("changes", "groups", "message"),
    [
        (
            {},
            [Group(["a"]), Group(["b"], MambaSpec(mamba_cache_mode="all"))],
            "group 1 of the KV cache holds states, and mamba_cache_mode is 'all': only with 'align'",
        ),
        (
            {},
            [Group(["a"]), Group(["b"], MambaSpec(num_speculative_blocks=2))],
            "the model holds states, and those of speculative decoding",
        ),
        ({"speculative_config": "ngram"}, [Group(["a"]), STATES], "the model holds states, and those of speculative"),
        ({"cache_config__use_replayssm": True}, [STATES], "use_replayssm is set: a block of its cache is no whole"),
        ({}, [Group(["a"], SlidingWindowMLASpec())], "group 0 of the KV cache is a SlidingWindowMLASpec"),
        ({}, [Group(["a", "b"], MIXED)], "group 0 .* keep different parts of a prefix"),
        ({}, [Group(["a"], FullAttentionSpec(tokens_per_state=4))], "4 tokens in one state"),
        ({}, [Group(["a"], enable_kv_transfer=False)], "not meant to be moved"),
        ({}, [Group(["a"], host_resident=True)], "not meant to be moved"),
        (
            {},
            [Group(["a"], CrossAttentionSpec())],
            "CrossAttentionSpec: cross attention keeps KV of the encoder's input",
        ),
        ({}, [Group(["a"], NewSpec())], "is a NewSpec: the connector does not know this kind"),
        ({}, [], "no KV cache"),
        (
            {"parallel_config__decode_context_parallel_size": 2},
            FULL.kv_cache_groups,
            "decode_context_parallel_size is 2",
        ),
        (
            {"parallel_config__prefill_context_parallel_size": 4},
            FULL.kv_cache_groups,
            "prefill_context_parallel_size is 4: each worker computes",
        ),
        ({"kv_transfer_config__kv_load_failure_policy": "fail"}, [Group(["a"])], 'set it to "recompute"'),
        ({"cache_config__calculate_kv_scales": True}, [Group(["a"])], "calculate_kv_scales"),
    ],
)
def test_engines_that_would_get_wrong_kv_do_not_start(
    changes: dict[str, Any], groups: list[Group], message: str
) -> None:
    with pytest.raises(Unsupported, match=message):
        check_engine(vllm_config(**changes), KvCacheConfig(8, groups))


@dataclass(frozen=True)
class MLAAttentionSpec(FullAttentionSpec):
    num_kv_heads: int = 1


@pytest.mark.parametrize(
    ("size", "spec", "message"),
    [
        (3, FullAttentionSpec(), "head_shards is 4, and must be a multiple of 3, the tensor-parallel size"),
        (8, FullAttentionSpec(num_kv_heads=1), "head_shards is 4, but 8 workers share 6 KV heads"),
        (
            2,
            FullAttentionSpec(num_kv_heads=3),
            "group 0 of the KV cache has 6 KV heads, which can't be split into equal",
        ),
        (1, MLAAttentionSpec(), "engines of all sizes share latents without this setting"),
        (1, FullAttentionSpec(num_kv_heads=4, num_head_slots=2), "a layout of the attention backend's own"),
        (1, MambaSpec(), "group 0 of the KV cache is a MambaSpec, which has no KV heads"),
        (1, UNIFORM, "group 0 of the KV cache has 6 KV heads"),
    ],
)
def test_engine_whose_heads_can_not_be_split_into_shards_does_not_start(size: int, spec: Any, message: str) -> None:
    config = vllm_config(parallel_config__tensor_parallel_size=size, model_config__get_total_num_kv_heads=lambda: 6)
    groups = KvCacheConfig(8, [Group(["a"], spec)])
    with pytest.raises(Unsupported, match=message):
        check_engine(config, groups, 4)
    if not isinstance(spec, MambaSpec):
        check_engine(config, groups)  # without the setting it starts


@pytest.mark.parametrize(("size", "num_heads"), [(1, 4), (2, 2), (4, 1), (1, 8), (4, 2)])
def test_engine_whose_heads_can_be_split_into_shards_starts(size: int, num_heads: int) -> None:
    config = vllm_config(
        parallel_config__tensor_parallel_size=size, model_config__get_total_num_kv_heads=lambda: size * num_heads
    )
    for spec in (FullAttentionSpec, SlidingWindowSpec, ChunkedLocalAttentionSpec):
        check_engine(config, KvCacheConfig(8, [Group(["a"], spec(num_kv_heads=num_heads))]), 4)


def test_layer_with_fewer_heads_than_workers_is_found_among_others() -> None:
    layers = SimpleNamespace(per_layer_overrides=[{}, {"total_num_kv_heads": 2}, {"head_size": 4}])
    config = vllm_config(
        parallel_config__tensor_parallel_size=4,
        model_config__get_total_num_kv_heads=lambda: 8,
        model_config__model_arch_config=layers,
    )
    with pytest.raises(Unsupported, match="head_shards is 8, but 4 workers share 2 KV heads"):
        check_engine(config, FULL, 8)


@pytest.mark.parametrize(
    ("algorithm", "environment", "is_warned"),
    [
        ("xxhash", {}, True),
        ("xxhash_cbor", {}, True),
        ("xxhash", {"PYTHONHASHSEED": "0"}, False),
        ("sha256", {}, False),
        ("sha256_cbor", {}, False),
    ],
)
def test_engine_whose_hashes_no_other_process_computes_warns_with_both_remedies(
    algorithm: str, environment: dict[str, str], is_warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_hashes(vllm_config(cache_config__prefix_caching_hash_algo=algorithm), environment)
    assert len(caplog.records) == is_warned
    if is_warned:
        assert all(text in caplog.text for text in (algorithm, "use sha256", "set PYTHONHASHSEED", "shares no KV"))


def test_seed_of_hashes_is_named_exactly_if_other_processes_can_have_it() -> None:
    def seed(algorithm: str, block_size: int = 16, **environment: str) -> str:
        config = vllm_config(cache_config__prefix_caching_hash_algo=algorithm)
        return block_hash_seed(config, environment, block_size)

    assert seed("xxhash") == ""
    named = [
        seed("sha256"),
        seed("sha256", 32),
        seed("sha256_cbor"),
        seed("sha256", PYTHONHASHSEED="0"),
        seed("sha256", PYTHONHASHSEED="1"),
        seed("xxhash", PYTHONHASHSEED="0"),
    ]
    assert all(named)
    assert len(set(named)) == len(named)
    assert len(seed("sha256", PYTHONHASHSEED="7" * 1000)) <= 256


def test_windows_and_local_chunks_start() -> None:
    groups = [Group(["a"]), Group(["b"], SlidingWindowSpec()), Group(["c"], ChunkedLocalAttentionSpec())]
    check_engine(vllm_config(), KvCacheConfig(8, groups))
    assert cache_groups(KvCacheConfig(8, groups)) == (
        CacheGroup(block_size=4),
        CacheGroup(block_size=4, window=127),  # vLLM's has the next token in it
        CacheGroup(block_size=4, local_chunk=64),
    )
    wider = Group(["b"], SlidingWindowSpec(extra_retained_tokens=2))
    assert cache_groups(KvCacheConfig(8, [wider])) == (CacheGroup(block_size=4, window=129),)


def test_states_start_and_are_groups_of_states() -> None:
    config = KvCacheConfig(8, [Group(["a"]), STATES])
    check_engine(vllm_config(), config)
    assert cache_groups(config) == (CacheGroup(block_size=4), CacheGroup(block_size=16, holds_state=True))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("hash_block_size", 4, "a block hash covers 4"), ("kv_tp_replicas", 2, "not all of them would store")],
)
def test_states_that_may_be_wrong_or_missing_do_not_start(name: str, value: int, message: str) -> None:
    config = KvCacheConfig(8, [Group(["a"]), STATES])
    setattr(config, name, value)
    with pytest.raises(Unsupported, match=message):
        check_engine(vllm_config(), config)
    config.kv_cache_groups.pop()
    check_engine(vllm_config(), config)


def test_engines_with_other_states_have_other_names() -> None:
    def name(spec: MambaSpec, settings: Any = None) -> str:
        config = KvCacheConfig(8, [Group(["a"]), Group(["b"], spec)])
        return cache_identity("model", config, has_all_layers=True, state_settings=settings)

    specs = [
        MambaSpec(),
        MambaSpec(dtypes=("torch.float32", "torch.float32")),
        MambaSpec(shapes=((4, 3), (2, 8, 8))),
        MambaSpec(mamba_type="LINEAR"),
        MambaSpec(block_size=32),
    ]
    names = [*map(name, specs), name(specs[0], ["cpu"])]
    assert len(set(names)) == len(names)
    assert name(MambaSpec()) == names[0]


def test_settings_of_states_name_the_device_the_order_of_bytes_and_the_backend() -> None:
    settings = [
        state_settings(vllm_config(), {}),
        state_settings(vllm_config(), {"VLLM_SSM_CONV_STATE_LAYOUT": "DS"}),
        state_settings(vllm_config(mamba_config=SimpleNamespace(backend="flashinfer")), {}),
        state_settings(vllm_config(additional_config={"gdn_prefill_backend": "triton"}), {}),
        state_settings(vllm_config(device_config=SimpleNamespace(device_type="cuda")), {}),
    ]
    assert len({repr(each) for each in settings}) == len(settings)


def test_engines_that_keep_other_parts_of_a_prefix_have_other_names() -> None:
    def name(*groups: Group, has_all_layers: bool = True) -> str:
        return cache_identity("model", KvCacheConfig(8, list(groups)), has_all_layers=has_all_layers)

    full, window = Group(["a"]), Group(["b"], SlidingWindowSpec())
    assert name(full) == name(Group(["a"], FullAttentionSpec(block_size=8))) == "model"
    others = [
        name(full, window),
        name(window, full),
        name(full, Group(["b"], SlidingWindowSpec(sliding_window=64))),
        name(full, Group(["b"], SlidingWindowSpec(extra_retained_tokens=1))),
        name(full, Group(["b"], SlidingWindowSpec(block_size=8))),
        name(full, Group(["b"], ChunkedLocalAttentionSpec())),
        name(full, Group(["c"], SlidingWindowSpec())),
        name(window),
    ]
    assert len({"model", *others}) == 9
    assert name(full, window) == others[0]
    assert len(cache_identity("x" * 600, KvCacheConfig(8, [window]), has_all_layers=True).encode()) <= 512
    # The workers of a pipeline have layers of their own, and are one model.
    others_of_it = Group(["x"]), Group([], SlidingWindowSpec())
    assert name(full, window, has_all_layers=False) == name(*others_of_it, has_all_layers=False)


def test_full_attention_starts() -> None:
    by_layer = SimpleNamespace(
        block_size=4, kv_cache_specs={"a": FullAttentionSpec(), "b": FullAttentionSpec(head_size=4)}
    )
    check_engine(vllm_config(), FULL)
    check_engine(vllm_config(), KvCacheConfig(8, [Group(["a", "b"], by_layer)]))


def test_layers_of_one_group_are_looked_at_one_by_one() -> None:
    by_layer = SimpleNamespace(block_size=4, kv_cache_specs={"a": FullAttentionSpec(), "b": MambaSpec()})
    with pytest.raises(Unsupported, match="keep different parts of a prefix"):
        check_engine(vllm_config(), KvCacheConfig(8, [Group(["a", "b"], by_layer)]))


def test_role_that_loads_nothing_may_have_any_policy() -> None:
    config = vllm_config(kv_transfer_config__is_kv_consumer=False, kv_transfer_config__kv_load_failure_policy="fail")
    check_engine(config, FULL)


def test_package_needs_neither_vllm_nor_torch_until_the_connector_is_used() -> None:
    script = (
        "import sys, kvdepot.vllm.engine_values, kvdepot.connector.scheduler, kvdepot.connector.worker\n"
        "import kvdepot.connector.scheduler_client\n"
        "assert not {'torch', 'vllm'} & set(sys.modules)\n"
        "assert kvdepot.vllm.__all__ == ['KvdepotConnector']\n"
        "import threading; assert threading.active_count() == 1\n"
        "try: kvdepot.vllm.KvdepotConnector\n"
        "except ModuleNotFoundError as error: assert error.name == 'vllm', error\n"
        "try: kvdepot.vllm.nothing\n"
        "except AttributeError: print('as it should')\n"
    )
    clients = Path(kvdepot.__file__).parents[1]
    ended = subprocess.run([sys.executable, "-c", script], cwd=clients, capture_output=True, text=True, check=False)
    assert (ended.stdout, ended.stderr) == ("as it should\n", "")
