"""`KvdepotConnector` with `kvdepot.head_shards`. `test_connector` runs these tests with a stub of vLLM."""

from __future__ import annotations

import pytest
import torch

from kvdepot import DepotClient
from kvdepot.connector.config import ConfigError
from kvdepot.vllm.support import Unsupported
from tests.e2e.vllm.started_engines import DEPOT, OLD_MODEL, Start, compute, load, prompt, start

__all__ = ["start"]

SHARED = {"kvdepot.head_shards": 2}


def test_engines_with_equal_head_shards_share_and_others_find_nothing(start: Start) -> None:
    one, two = (start(f"sharded-{name}", settings=SHARED, model_config__model=OLD_MODEL) for name in "12")
    plain = start("plain", model_config__model=OLD_MODEL)
    one_shard = start("one-shard", settings={"kvdepot.head_shards": 1}, model_config__model=OLD_MODEL)
    compute(one, prompt(31, "first"), [1, 2, 3, 4, 5])
    load(two, prompt(31, "second"), [9, 8, 7, 6, 5])
    assert torch.equal(two.cache[[9, 8, 7, 6]], one.cache[[1, 2, 3, 4]])
    for other in (plain, one_shard):
        request = prompt(31, "third")
        other.add(request)
        assert other.match(request) == (0, False)


def test_status_shows_shards_as_ranks_of_a_model_that_names_them(start: Start) -> None:
    start("shown", settings=SHARED)
    with DepotClient(DEPOT) as depot:
        (shown,) = [each for each in depot.list_instances().instances if each.instance_id == "shown"]
    assert shown.model_name.endswith(" in 2 head shards")
    assert (shown.world_size, [rank.rank for rank in shown.ranks]) == (2, [0, 1])


def test_statistics_count_an_engine_with_shards_as_one_worker(start: Start) -> None:
    engine = start("counted", settings=SHARED)
    compute(engine, prompt(32, "stored"), [1, 2, 3, 4, 5])
    stats = engine.scheduler.get_kv_connector_stats()
    assert stats is not None
    values = stats.data
    assert values["attached_workers"] == {"": 1}
    assert values["tokens"] == {"store": 16}
    assert values["bytes"] == {"store": 16 * 2 * 8 * 4}  # both heads of each token


@pytest.mark.parametrize(("head_shards", "message"), [(4, "2 KV heads, which can't be split"), (3, "2 KV heads")])
def test_engine_that_shards_do_not_fit_does_not_start(start: Start, head_shards: int, message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        start("wrong", settings={"kvdepot.head_shards": head_shards})
    with pytest.raises(ConfigError, match="a whole number"):
        start("wrong", settings={"kvdepot.head_shards": -2})
