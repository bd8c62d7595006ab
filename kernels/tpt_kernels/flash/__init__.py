"""Attention in Triton: each query sees a contiguous range of keys, whatever made the range."""
