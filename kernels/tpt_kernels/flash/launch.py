"""The launches of the attention kernels: grids, strides, and tensors as descriptors or pointers."""

from collections.abc import Mapping

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from tpt_kernels.flash.backward import delta_kernel, key_value_kernel, query_kernel
from tpt_kernels.flash.forward import forward_kernel
from tpt_kernels.flash.ranges import Ranges
from tpt_kernels.flash.tiles import Tile, padded_dim

LOG2_E = 1.4426950408889634
DELTA_BLOCK = 64
TMA_ALIGNMENT = 16  # bytes: of a descriptor's base and of every stride but the last


def forward(
    query: Tensor, key: Tensor, value: Tensor, key_begin: Tensor, key_end: Tensor, scale: float, tile: Tile
) -> tuple[Tensor, Tensor]:
    """out [tokens, heads, dim] and the base-2 logsumexp [heads, tokens] float32."""
    tokens, heads, dim = query.shape
    out = query.new_empty(query.shape)
    logsumexp = query.new_empty(heads, tokens, dtype=torch.float32)
    if not out.numel():
        return out, logsumexp
    query, key, value = (loadable(t, tile) for t in (query, key, value))
    forward_kernel[(heads, triton.cdiv(tokens, tile.block_q))](
        _queries(query, tile), _keys(key, tile), _keys(value, tile), _queries(out, tile), logsumexp,
        key_begin, key_end, tokens, key.shape[0], scale * LOG2_E, *_strides(query, key, value, out),
        GROUP=heads // key.shape[1], **_constants(dim, tile), **options(tile),
    )  # fmt: skip
    return out, logsumexp


def backward(
    query: Tensor, key: Tensor, value: Tensor, out: Tensor, logsumexp: Tensor, out_gradient: Tensor,
    ranges: Ranges, scale: float, key_value_tile: Tile, query_tile: Tile,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of query, key and value, contiguous."""
    if not query.numel():
        return torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
    dq, dk, dv = (t.new_empty(t.shape) for t in (query, key, value))
    tokens, heads, dim = query.shape
    kv_tokens, kv_heads, _ = key.shape
    inputs = [loadable(t, key_value_tile) for t in (query, key, value, out_gradient)]
    rows = (logsumexp, _delta(out, inputs[3]))
    lengths = (tokens, kv_tokens, scale, scale * LOG2_E)
    group = heads // kv_heads
    key_value_kernel[(kv_heads, triton.cdiv(kv_tokens, key_value_tile.block_kv))](
        *_inputs(inputs, key_value_tile), _keys(dk, key_value_tile), _keys(dv, key_value_tile), *rows,
        ranges.query_begin, ranges.query_end, *lengths, *_strides(*inputs, dk),
        GROUP=group, **_constants(dim, key_value_tile), **options(key_value_tile),
    )  # fmt: skip
    inputs = [loadable(t, query_tile) for t in inputs]
    query_kernel[(heads, triton.cdiv(tokens, query_tile.block_q))](
        *_inputs(inputs, query_tile), _queries(dq, query_tile), *rows,
        ranges.key_begin, ranges.key_end, *lengths, *_strides(*inputs, dq),
        GROUP=group, **_constants(dim, query_tile), **options(query_tile),
    )  # fmt: skip
    return dq, dk, dv


def _delta(out: Tensor, out_gradient: Tensor) -> Tensor:
    """The sum of out * out_gradient over dim, [heads, tokens] float32."""
    tokens, heads, dim = out.shape
    delta = out.new_empty(heads, tokens, dtype=torch.float32)
    delta_kernel[(heads, triton.cdiv(tokens, DELTA_BLOCK))](
        out, out_gradient, delta, tokens, *_strides(out, out_gradient),
        DIM=dim, WIDTH=padded_dim(dim), BLOCK_Q=DELTA_BLOCK, num_warps=4,
    )  # fmt: skip
    return delta


def loadable(tensor: Tensor, tile: Tile) -> Tensor:
    """The tensor, copied where the kernels cannot load it: a head's columns apart, or no fit for a
    descriptor."""
    _, heads, dim = tensor.shape
    row_stride, head_stride, column_stride = tensor.stride()
    fits = column_stride == 1
    if tile.descriptors:
        size = tensor.element_size()
        aligned = not any(
            x % TMA_ALIGNMENT for x in (tensor.data_ptr(), row_stride * size, head_stride * size)
        )
        fits = fits and aligned and (heads - 1) * head_stride + dim <= row_stride
    return tensor if fits else tensor.clone(memory_format=torch.contiguous_format)


def options(tile: Tile) -> Mapping[str, int]:
    """How Triton compiles a tile; a backend refuses the other's options."""
    chosen = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
    if tile.matrix_instruction:
        chosen["matrix_instr_nonkdim"] = tile.matrix_instruction
    return chosen


def _constants(dim: int, tile: Tile) -> Mapping[str, int | bool]:
    return {
        "DIM": dim, "WIDTH": padded_dim(dim), "BLOCK_Q": tile.block_q, "BLOCK_KV": tile.block_kv,
        "DESCRIPTORS": tile.descriptors,
    }  # fmt: skip


def _strides(*tensors: Tensor) -> list[int]:
    """Of rows and of heads, tensor by tensor."""
    return [stride for tensor in tensors for stride in tensor.stride()[:2]]


def _inputs(inputs: list[Tensor], tile: Tile) -> tuple[Tensor | TensorDescriptor, ...]:
    """Query, key, value and the output's gradient as the kernels take them."""
    query, key, value, out_gradient = inputs
    return _queries(query, tile), _keys(key, tile), _keys(value, tile), _queries(out_gradient, tile)


def _queries(tensor: Tensor, tile: Tile) -> Tensor | TensorDescriptor:
    return _argument(tensor, tile.block_q, tile)


def _keys(tensor: Tensor, tile: Tile) -> Tensor | TensorDescriptor:
    return _argument(tensor, tile.block_kv, tile)


def _argument(tensor: Tensor, block: int, tile: Tile) -> Tensor | TensorDescriptor:
    if not tile.descriptors:
        return tensor
    tokens, heads, dim = tensor.shape
    row_stride, head_stride, _ = tensor.stride()
    columns = (heads - 1) * head_stride + dim  # other heads, or other tensors' columns, may lie between
    return TensorDescriptor(tensor, [tokens, columns], [row_stride, 1], [block, dim])
