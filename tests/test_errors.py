"""What a package that cannot be imported leads to."""

from __future__ import annotations

import pytest

from vlp_gym import errors
from vlp_gym.errors import MissingExtraError, import_extra


def test_a_missing_package_says_what_to_install():
    with pytest.raises(MissingExtraError, match=r'^drawing needs it: pip install "vlp_gym\[viz\]"$'):
        import_extra("vlp_no_such_package", "drawing needs it", "viz")


@pytest.mark.parametrize("between", [0, 1])
def test_ctrl_c_in_an_import_is_no_missing_package(monkeypatch, between):
    """An extension in C++ makes an ImportError of it, and Python code may wrap that."""

    def broken_off(name):
        try:
            try:
                raise KeyboardInterrupt
            except KeyboardInterrupt as interrupt:
                raise ImportError("initialization failed") from interrupt
        except ImportError as error:
            if between:
                raise ImportError("cannot import a part") from error
            raise

    monkeypatch.setattr(errors, "import_module", broken_off)
    with pytest.raises(KeyboardInterrupt):
        import_extra("matplotlib", "drawing needs it", "viz")
