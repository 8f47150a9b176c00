"""Examples of a prompt: pictures with their percentages in their names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlp_gym.errors import DatasetError
from vlp_gym.prompting.shots import load_examples


def picture(value: int = 0) -> np.ndarray:
    return np.full((4, 6, 3), value, dtype=np.uint8)


def test_examples_are_pictures_with_percentages_in_their_names(tmp_path: Path) -> None:
    for name, value in (("open-0", 1), ("open-100", 3), ("open-62.5", 2), ("shut-9", 4)):
        Image.fromarray(picture(value)).save(tmp_path / f"{name}.png")
    (tmp_path / "notes.txt").write_text("x")
    first, second = load_examples(tmp_path)
    assert (first[0][:, 0, 0, 0].tolist(), first[1]) == ([1, 2, 3], [0.0, 62.5, 100.0])
    assert (second[0].shape, second[1]) == ((1, 4, 6, 3), [9.0])


def test_examples_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        load_examples(tmp_path)
    assert str(caught.value) == f"{tmp_path}: expected pictures such as drawer-0.png and drawer-62.5.png, found none"
    Image.fromarray(picture()).save(tmp_path / "open-101.png")
    with pytest.raises(DatasetError) as caught:
        load_examples(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: the pictures of 'open' are no example (expected percentages in [0, 100], got [101.0])"
    )
    (tmp_path / "open-101.png").write_bytes(b"no picture")
    with pytest.raises(DatasetError):
        load_examples(tmp_path)


def test_pictures_of_a_folder_are_of_64_megapixels_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("open-0", "open-100", "shut-9"):
        Image.fromarray(picture()).save(tmp_path / f"{name}.png")
    monkeypatch.setattr("vlp_gym.prompting.shots.MAX_PIXELS", 3 * 4 * 6)
    assert len(load_examples(tmp_path)) == 2
    monkeypatch.setattr("vlp_gym.prompting.shots.MAX_PIXELS", 3 * 4 * 6 - 1)
    with pytest.raises(DatasetError) as caught:
        load_examples(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: the pictures of 'shut' are no example (expected at most 0 megapixels in all pictures of the "
        "folder)"
    )
