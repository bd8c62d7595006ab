"""Attention and cross-entropy of tpt_megatron: one function each, `impl=` picks the backend.

Depends on torch and Triton alone; never imports tpt_megatron.
"""

from tpt_kernels.ops import attention, cross_entropy, linear_cross_entropy, linear_cross_entropy_sum
from tpt_kernels.options import LossOptions

__all__ = ["LossOptions", "attention", "cross_entropy", "linear_cross_entropy", "linear_cross_entropy_sum"]
