"""What the tests of all commands share."""

from __future__ import annotations

import pytest
from tiny import tiny_model


@pytest.fixture(autouse=True)
def _warnings(monkeypatch):
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")  # `main` sets it; so it is put back


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model with random weights."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model().save_pretrained(folder)
    return folder
