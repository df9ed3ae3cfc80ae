"""Engines have the same revision exactly if they have loaded the same weights for certain."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvdepot.connector import model_weights as weights
from kvdepot.connector.model_weights import EngineProcess, process_start
from kvdepot.vllm import model_revision as model_revision_module
from kvdepot.vllm.model_revision import model_revision
from tests.fakes.vllm import vllm_config

COMMIT, OTHER_COMMIT = "a" * 40, "b" * 40
ALL_FILES_ARE_OLDER = math.inf


def revision_of(
    model: str | Path = "org/model",
    *,
    engine_id: str = "engine",
    engine_start: float = ALL_FILES_ARE_OLDER,
    configured: str = "",
    **changes: Any,
) -> str:
    """Return the revision of an engine with these changes of vLLM's configuration."""
    of_model = {"model_config__model": str(model), "model_config__hf_config___commit_hash": None}
    config = vllm_config(**{**of_model, **changes})
    return model_revision(config, engine=EngineProcess(engine_id, engine_start), configured=configured)


def is_shared(*arguments: Any, **facts: Any) -> bool:
    """Return whether two engines have the same revision."""
    revisions = {revision_of(*arguments, engine_id=engine_id, **facts) for engine_id in ("one", "two")}
    return len(revisions) == 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    return tmp_path


def snapshot(root: Path, commit: str, blob: str) -> Path:
    """Make a snapshot of Hugging Face's cache."""
    repository = root / "models--org--model"
    made = repository / "snapshots" / commit
    made.mkdir(parents=True)
    (repository / "blobs").mkdir(exist_ok=True)
    (repository / "blobs" / blob).write_bytes(b"weights")  # new, but the hub's files never change
    (made / "model.safetensors").symlink_to(f"../../blobs/{blob}")
    return made


def test_weights_that_were_replaced_under_the_same_path_are_another_revision(folder: Path) -> None:
    revision = revision_of(folder)
    assert is_shared(folder)
    (folder / "README.md").write_text("of no effect")
    (folder / "checkpoint-1").mkdir()
    assert revision_of(folder) == revision
    stat = (folder / "model.safetensors").stat()
    (folder / "model.safetensors").write_bytes(b"\1" + bytes(999))
    os.utime(folder / "model.safetensors", ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as a copying tool does
    assert revision_of(folder) != revision


def test_one_file_of_weights_is_a_revision(folder: Path) -> None:
    path = folder / "model.gguf"
    path.write_bytes(b"old")
    old = revision_of(path)
    assert is_shared(path)
    path.write_bytes(b"new")
    assert revision_of(path) != old


def test_large_weights_are_distinguished_by_time_and_by_samples(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "MAX_READ_BYTES", 100)
    path = folder / "model.safetensors"
    revisions = []
    for value, modified in ((0, 1), (0, 2), (1, 1), (0, 1)):
        path.write_bytes(bytes([value]) * (1 << 20))
        os.utime(path, (1, modified))
        revisions.append(revision_of(folder))
    assert len(set(revisions)) == 3
    assert revisions[0] == revisions[3]


def test_snapshot_of_the_hub_has_the_revision_of_its_commit_wherever_it_is(tmp_path: Path) -> None:
    assert revision_of(snapshot(tmp_path / "a", COMMIT, "b1")) == COMMIT
    assert revision_of(snapshot(tmp_path / "b", COMMIT, "b1")) == COMMIT


def test_snapshot_in_which_a_user_replaced_a_file_is_no_commit(tmp_path: Path) -> None:
    made = snapshot(tmp_path, COMMIT, "b1")
    (made / "model.safetensors").unlink()
    (made / "model.safetensors").write_bytes(b"fine-tuned")
    assert revision_of(made).startswith("files-")


def test_snapshot_without_a_commit_is_named_by_its_content(tmp_path: Path) -> None:
    same = revision_of(snapshot(tmp_path / "a", "c1", "b1"))
    assert same == revision_of(snapshot(tmp_path / "b", "c2", "b1"))
    assert same != revision_of(snapshot(tmp_path / "c", "c1", "b2"))


@pytest.mark.parametrize(
    ("model", "changes", "revision"),
    [
        ("org/model", {"model_config__revision": COMMIT}, COMMIT),
        ("org/model", {"model_config__hf_config___commit_hash": COMMIT}, COMMIT),
        ("org/model", {"model_config__hf_config___commit_hash": COMMIT, "model_config__revision": "v2"}, COMMIT),
        ("org/model", {"model_config__revision": "v2"}, None),  # a tag or a branch, which can move
        ("org/model", {}, None),
        ("org/model:Q4_K_M", {"model_config__hf_config___commit_hash": COMMIT}, None),
        ("org/model", {"model_config__hf_config___commit_hash": COMMIT, "model_config__hf_config_path": "org/b"}, None),
        ("s3://models/a", {"model_config__hf_config___commit_hash": COMMIT}, None),
    ],
)
def test_weights_that_are_not_here_are_named_by_a_commit_or_shared_with_nobody(
    model: str, changes: dict[str, Any], revision: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    if revision is not None:
        assert revision_of(model, **changes) == revision
        assert not caplog.records
    else:
        assert not is_shared(model, **changes)
        assert "kvdepot.model_revision can name the revision" in caplog.text


def test_weights_of_an_object_store_are_not_those_of_the_configurations_folder(folder: Path) -> None:
    assert not is_shared(folder, model_config__model_weights="s3://models/a")


def test_dummy_weights_are_named_by_their_seed() -> None:
    assert revision_of(load_config__load_format="dummy", model_config__seed=7) == "dummy seed=7"
    assert is_shared(load_config__load_format="dummy")


def test_weights_of_a_draft_model_are_part_of_the_revision(folder: Path, tmp_path: Path) -> None:
    def with_draft(draft: Any) -> str:
        speculative = SimpleNamespace(method="eagle", model="draft", draft_model_config=draft)
        return revision_of(folder, speculative_config=speculative)

    draft = SimpleNamespace(model="org/draft", revision=COMMIT)
    other = SimpleNamespace(model="org/draft", revision=OTHER_COMMIT)
    assert with_draft(draft) == f"{revision_of(folder)}+{COMMIT}"
    assert with_draft(other) == f"{revision_of(folder)}+{OTHER_COMMIT}"
    assert not is_shared(folder, speculative_config=SimpleNamespace(method="eagle", model="draft"))
    assert revision_of(folder, speculative_config=SimpleNamespace(method="ngram", model="ngram")) == revision_of(folder)


def test_engine_whose_files_changed_while_it_started_shares_with_no_other(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    started_before = time.time() - 60
    assert not is_shared(folder, engine_start=started_before)
    assert "files changed while the engine started (config.json, model.safetensors)" in caplog.text
    ranks = [revision_of(folder, engine_start=started_before) for _ in range(2)]
    assert ranks[0] == ranks[1]  # of one engine


def test_process_start_time_is_that_of_the_process() -> None:
    assert time.time() - 3600 < process_start() < time.time()
    script = (
        "import time; from kvdepot.connector.model_weights import process_start; print(time.time() - process_start())"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert -0.1 < float(ended.stdout) < 60


def test_files_that_can_not_be_read_are_no_ground_to_share(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def denied(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", denied)
    assert not is_shared(folder)
    assert "shares KV with no other one" in caplog.text
    assert "Permission denied" in caplog.text


def test_folder_without_weights_or_with_too_many_files_is_no_ground_to_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not is_shared(tmp_path)
    for number in range(4):
        (tmp_path / f"{number}.bin").write_bytes(b"")
    assert is_shared(tmp_path)
    monkeypatch.setattr(weights, "MAX_FILES", 3)
    assert not is_shared(tmp_path)


def test_mount_that_hangs_delays_the_engine_for_a_bounded_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hung = threading.Event()
    monkeypatch.setattr(model_revision_module, "READ_SECONDS", 0.01)
    monkeypatch.setattr(os, "scandir", lambda path: hung.wait(10))
    try:
        assert revision_of(folder, engine_id="one") == "unknown-one"
    finally:
        hung.set()
    assert "can't be read in time" in caplog.text


def test_configuration_that_a_later_vllm_has_otherwise_does_not_stop_the_engine(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = vllm_config()
    del config.load_config
    revision = model_revision(config, engine=EngineProcess("one", ALL_FILES_ARE_OLDER), configured="")
    assert revision == "unknown-one"
    assert "load_config" in caplog.text


def test_configured_revision_counts_and_the_files_do_not(folder: Path, tmp_path: Path) -> None:
    assert revision_of(folder, configured="v7") == "v7"
    assert revision_of(tmp_path / "gone", configured="v7") == "v7"
    assert len(revision_of(folder, configured="é" * 300).encode()) <= 256
