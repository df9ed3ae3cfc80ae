"""The file of the demo's weights keeps what int8 can hold, and a bad one is named in a line."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from examples.demo import corpus
from examples.demo.text import DOCUMENT, QUESTIONS, VOCABULARY_SIZE
from examples.demo.weights import SHIPPED, WeightsUnreadable, load, save
from tests.fakes.demo_model import random_weights


def test_weights_are_read_back_to_half_a_step_of_their_row(tmp_path: Path) -> None:
    written = random_weights()
    save(written, tmp_path / "model.npz")
    read = load(tmp_path / "model.npz")
    assert read.shape == written.shape
    assert read.num_weights == written.num_weights
    assert read.arrays.keys() == written.arrays.keys()
    for name, array in written.arrays.items():
        step = np.abs(array).max(axis=1, keepdims=True) / 127 if array.ndim == 2 else np.float32(0)
        assert (np.abs(read.arrays[name] - array) <= step * 0.501).all(), name


def test_the_shipped_weights_are_small_and_fit_the_text() -> None:
    assert SHIPPED.stat().st_size <= 4e6
    assert load(SHIPPED).shape.vocabulary_size == VOCABULARY_SIZE


@pytest.mark.parametrize("cut", [0, 1, 1_000])
def test_a_damaged_file_is_named_in_one_line(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "model.npz"
    save(random_weights(), path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(WeightsUnreadable, match=f"^{path}: no file of weights .*make demo-model"):
        load(path)


def test_a_missing_file_is_named_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(WeightsUnreadable, match="No such file or directory"):
        load(tmp_path / "model.npz")


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    path = tmp_path / "model.npz"
    path.write_bytes(pickle.dumps({"shape": 1}))
    with pytest.raises(WeightsUnreadable):
        load(path)
    with path.open("wb") as file:
        np.savez(file, allow_pickle=True, shape=np.array([{}], dtype=object))
    with pytest.raises(WeightsUnreadable):
        load(path)


def test_an_array_that_lacks_its_scale_is_an_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "model.npz"
    with path.open("wb") as file:
        np.savez(file, shape=np.array("{}"), matrix=np.zeros((2, 2), np.int8))
    with pytest.raises(WeightsUnreadable):
        load(path)


def test_the_questions_of_the_demo_are_among_those_that_the_model_learns() -> None:
    assert set(QUESTIONS.values()) <= {question for question, _ in corpus.questions()}


def test_the_corpus_is_prose() -> None:
    texts = [*corpus.documents(), *corpus.comments(), DOCUMENT]
    assert len(texts) > 100
    assert not [line for text in texts for line in text.splitlines() if line.startswith(("|", "```"))]
    assert any("so that no prompt is prefilled twice" in text for text in texts)
