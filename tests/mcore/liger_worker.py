"""Run by test_fused under TRITON_INTERPRET=1: Liger's functions, forward and backward, on CPU tensors.

liger_worker.py CASES.pt RESULTS.pt

A case has "op", "inputs", "gaps" (whether the first input is a view) and "upstream". A result has "output",
"gradients", "untouched" (nothing was written into the inputs and the upstream gradient) and "kernels", the
names of those that ran.
"""

import sys
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from liger_kernel.ops import rms_norm as liger_rms_norm
from torch import Tensor
from tpt_kernels.testing import install_interpreter

from tpt_megatron.mcore import liger

TAKES_GRADIENT = {"rms_norm": 2, "swiglu": 1, "rotary": 1}  # of so many of its first inputs
EPSILON = 1e-5


def mend_interpreter() -> list[str]:
    """The repaired interpreter, and what Liger needs beyond it; started kernels join the list returned."""
    install_interpreter()
    interpreter = triton.runtime.interpreter
    convert = interpreter._implicit_cvt

    def convert_floats_too(argument: object) -> object:
        if isinstance(argument, float):
            return tl.tensor(
                interpreter.TensorHandle(np.array([argument], np.float32), tl.float32), tl.float32
            )
        return convert(argument)

    interpreter._implicit_cvt = convert_floats_too
    liger_rms_norm.rsqrt = lambda x: tl.rsqrt(x)  # a function of NVIDIA's library

    kernels: list[str] = []
    start = interpreter.GridExecutor.__call__

    def start_and_note(self: Any, *arguments: object, **named: object) -> None:
        kernels.append(self.fn.__name__)
        start(self, *arguments, **named)

    interpreter.GridExecutor.__call__ = start_and_note
    return kernels


def run(case: dict, kernels: list[str]) -> dict:
    kernels.clear()
    inputs: list[Tensor] = [x.clone() for x in case["inputs"]]
    leaves = [x.requires_grad_() for x in inputs[: TAKES_GRADIENT[case["op"]]]]
    first = leaves[0] * 1
    if case["gaps"]:  # as the query and the key are views of the fused projection's output
        first = torch.stack([first, first.detach()], dim=-2)[..., 0, :]
    upstream = case["upstream"].clone()
    more = (EPSILON,) if case["op"] == "rms_norm" else ()
    output = getattr(liger, case["op"])(first, *inputs[1:], *more)
    output.backward(upstream)
    return {
        "output": output.detach(),
        "gradients": [leaf.grad for leaf in leaves],
        "kernels": list(kernels),
        "untouched": torch.equal(first, case["inputs"][0]) and torch.equal(upstream, case["upstream"]),
    }


def main() -> None:
    torch.set_num_threads(1)
    kernels = mend_interpreter()
    cases = torch.load(sys.argv[1])
    torch.save({name: run(case, kernels) for name, case in cases.items()}, sys.argv[2])


if __name__ == "__main__":
    main()
