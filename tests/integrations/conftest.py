"""Libraries that may be missing."""

from __future__ import annotations

import logging

import pytest


@pytest.fixture
def torchrl():
    library = pytest.importorskip("torchrl", exc_type=ImportError)
    pytest.importorskip("torchrl.envs")
    logging.getLogger("torchrl").setLevel(logging.ERROR)
    return library
