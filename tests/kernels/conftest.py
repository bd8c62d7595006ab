"""Repairs the interpreter, which tests/conftest.py has turned on where there is no GPU."""

import pytest
import torch
from tpt_kernels.testing import install_interpreter

INTERPRET = not torch.cuda.is_available()
if INTERPRET:
    install_interpreter()


@pytest.fixture
def interpreter():
    """For tests of the interpreter itself, which may switch its checks off; they are on again after them."""
    if not INTERPRET:
        pytest.skip("Triton compiles for the GPU of this machine")
    install_interpreter()
    yield
    install_interpreter()
