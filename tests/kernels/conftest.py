"""Repairs the interpreter, which tests/conftest.py has turned on."""

import pytest
from tpt_kernels.testing import install_interpreter

install_interpreter()


@pytest.fixture
def interpreter():
    """For tests of the interpreter itself, which may switch its checks off; they are on again after them."""
    install_interpreter()
    yield
    install_interpreter()
