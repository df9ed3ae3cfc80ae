"""Settings, who an engine is to the depot, and what is refused when it starts."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import kvdepot
from kvdepot.vllm.config import ConfigError, ConnectorConfig
from kvdepot.vllm.groups import CacheGroup, cache_groups
from kvdepot.vllm.identity import place_of, salt_of, session_of, traceparent_of
from kvdepot.vllm.model_identity import cache_identity
from kvdepot.vllm.support import Unsupported, check_engine, warn_of_hashes
from tests.fakes.vllm import FullAttentionSpec, Group, KvCacheConfig, Request, vllm_config

FULL = KvCacheConfig(8, [Group(["layer"])])
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_settings_are_read_and_others_keys_are_left_alone() -> None:
    config = ConnectorConfig.of({"kvdepot.address": "unix:/d.sock", "kvdepot.report_blocks": False, "other": 1}, {})
    assert config == replace(ConnectorConfig(), address="unix:/d.sock", report_blocks=False)


def test_address_of_the_environment_counts_unless_one_is_set() -> None:
    environment = {"KVDEPOT_ADDRESS": "depot:1"}
    assert ConnectorConfig.of({}, {}).address == "unix:/run/kvdepot/kvdepot.sock"
    assert ConnectorConfig.of({}, environment).address == "depot:1"
    assert ConnectorConfig.of({"kvdepot.address": "depot:2"}, environment).address == "depot:2"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kvdepot.adress": "x"}, "did you mean kvdepot.address?"),
        ({"kvdepot.zzz": 1}, "kvdepot.zzz is not a setting; there are address"),
        ({"kvdepot.address": ""}, "kvdepot.address: text is expected, not ''"),
        ({"kvdepot.report_blocks": "yes"}, "true or false is expected, not 'yes'"),
        ({"kvdepot.lookup_timeout_seconds": 0}, "a positive number of seconds is expected, not 0"),
        ({"kvdepot.lookup_timeout_seconds": True}, "a positive number of seconds is expected, not True"),
        ({"kvdepot.lookup_timeout_seconds": float("inf")}, "a positive number of seconds is expected, not inf"),
        ({"kvdepot.share_memory_by": "magic"}, "one of name, fd is expected, not 'magic'"),
        ({"kvdepot.token_file": "/no/such/token"}, "/no/such/token"),
        ({"kvdepot.address": "depot:1", "kvdepot.ca_file": "/no/such/ca"}, "/no/such/ca"),
        ({"kvdepot.key_file": "/key"}, "certificate_file and key_file: give both or none"),
        ({"kvdepot.address": "depot:1", "kvdepot.token_file": "/dev/null"}, "a token is not sent over TCP without TLS"),
    ],
)
def test_wrong_settings_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ConnectorConfig.of(settings, {})
    assert message in str(caught.value)


def test_everything_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(ConfigError, match=r"adress.*report_blocks"):
        ConnectorConfig.of({"kvdepot.adress": "x", "kvdepot.report_blocks": 1}, {})


def test_workers_with_equal_kv_are_replicas_of_one_rank() -> None:
    places = [place_of("engine", worker, 4, 2) for worker in range(4)]
    assert [(place.instance_id, place.rank, place.stores) for place in places] == [
        ("engine-replica0", 0, True),
        ("engine-replica1", 0, False),
        ("engine-replica0", 1, True),
        ("engine-replica1", 1, False),
    ]
    assert {place.world_size for place in places} == {2}
    alone = place_of("engine", 1, 2, 1)
    assert (alone.instance_id, alone.rank, alone.world_size, alone.stores) == ("engine", 1, 2, True)


def test_salts_and_traces_are_taken_from_the_request() -> None:
    request = Request(cache_salt="salt", trace_headers={"TraceParent": PARENT})
    assert (salt_of(request, ""), salt_of(request, "g1"), salt_of(Request(), "")) == ("salt", "salt#g1", "")
    assert (traceparent_of(request), traceparent_of(Request())) == (PARENT, "")


@pytest.mark.parametrize("sent", ["", "00-1-2-01", PARENT + "\n", PARENT + "é", PARENT.upper().replace("0", "G")])
def test_trace_that_is_none_is_not_passed_on(sent: str) -> None:
    assert traceparent_of(Request(trace_headers={"traceparent": sent})) == ""


@pytest.mark.parametrize("name", ["x" * 3000, "é" * 200, "\ud800"], ids=["long", "long in bytes", "no text"])
def test_whatever_a_client_calls_its_request_the_depot_takes_it(name: str) -> None:
    for taken, most in ((session_of(Request(request_id=name)), 256), (salt_of(Request(cache_salt=name), ""), 256)):
        assert len(taken.encode()) <= most
    assert session_of(Request(request_id="ééé")) == "ééé"


def test_names_that_are_too_long_for_the_depot_stay_apart() -> None:
    salts = {salt_of(Request(cache_salt="x" * 300 + end), "") for end in "ab"}
    assert len(salts) == 2
    assert all(len(salt) <= 256 for salt in salts)


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


@dataclass(frozen=True)
class MambaSpec:
    block_size: int = 16


@pytest.mark.parametrize(
    ("changes", "groups", "message"),
    [
        (
            {},
            [Group(["a"]), Group(["b"], MambaSpec())],
            "group 1 of the KV cache is a MambaSpec: full attention, sliding",
        ),
        ({}, [Group(["a"], SlidingWindowMLASpec())], "group 0 of the KV cache is a SlidingWindowMLASpec"),
        ({}, [Group(["a", "b"], MIXED)], "group 0 .* keep different parts of a prefix"),
        ({}, [Group(["a"], FullAttentionSpec(tokens_per_state=4))], "4 tokens in one state"),
        ({}, [Group(["a"], enable_kv_transfer=False)], "not meant to be moved"),
        ({}, [Group(["a"], host_resident=True)], "not meant to be moved"),
        ({}, [], "no KV cache"),
        (
            {"parallel_config__decode_context_parallel_size": 2},
            FULL.kv_cache_groups,
            "decode_context_parallel_size is 2",
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
def test_engine_whose_hashes_nobody_shares_says_so_with_both_remedies(
    algorithm: str, environment: dict[str, str], is_warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_hashes(vllm_config(cache_config__prefix_caching_hash_algo=algorithm), environment)
    assert len(caplog.records) == is_warned
    if is_warned:
        assert all(text in caplog.text for text in (algorithm, "use sha256", "set PYTHONHASHSEED", "shares no KV"))


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
    with pytest.raises(Unsupported, match="MambaSpec"):
        check_engine(vllm_config(), KvCacheConfig(8, [Group(["a", "b"], by_layer)]))


def test_role_that_loads_nothing_may_have_any_policy() -> None:
    config = vllm_config(kv_transfer_config__is_kv_consumer=False, kv_transfer_config__kv_load_failure_policy="fail")
    check_engine(config, FULL)


def test_package_needs_neither_vllm_nor_torch_until_the_connector_is_asked_for() -> None:
    script = (
        "import sys, kvdepot.vllm, kvdepot.vllm.scheduler, kvdepot.vllm.worker, kvdepot.connector.scheduler_client\n"
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


def test_every_setting_is_in_the_docs_with_its_default() -> None:
    text = (Path(__file__).parents[3] / "docs" / "vllm.md").read_text()
    for field in fields(ConnectorConfig):
        assert f"kvdepot.{field.name}`" in text or f"`.{field.name}`" in text, field.name
        if field.name.endswith("_seconds"):
            assert f"| `kvdepot.{field.name}` | {field.default:g} |" in text, field.name
