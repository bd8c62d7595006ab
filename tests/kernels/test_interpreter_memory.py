"""The repaired interpreter's errors: memory outside a launch's tensors, and addresses that programs share."""

import pytest
import torch
import triton
import triton.language as tl
from tpt_kernels.testing import OutOfBoundsError, RaceError, install_interpreter
from triton.runtime import interpreter
from triton.tools.tensor_descriptor import TensorDescriptor

pytestmark = pytest.mark.usefixtures("interpreter")
FLOATS = [torch.bfloat16, torch.float16, torch.float32]


@triton.jit
def copy_rows(x, out, x_stride, out_stride, columns, N: tl.constexpr):
    """One row a program."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, N)
    value = tl.load(x + row * x_stride + at, mask=at < columns, other=0.0)
    tl.store(out + row * out_stride + at, value, mask=at < columns)


@triton.jit
def copy_rows_int32(x, out, x_stride, N: tl.constexpr):
    """A planted overflow: the row's offset in 32 bits."""
    row = tl.program_id(0)
    at = tl.arange(0, N)
    tl.store(out + row * N + at, tl.load(x + (row * x_stride).to(tl.int32) + at))


@triton.jit
def shift(x, out, load_by, store_by, N: tl.constexpr):
    at = tl.program_id(0) * N + tl.arange(0, N)
    tl.store(out + at + store_by, tl.load(x + at + load_by))


@triton.jit
def load_tile(x, stride, M: tl.constexpr, N: tl.constexpr):
    return tl.load(x + tl.arange(0, M)[:, None] * stride + tl.arange(0, N)[None, :])


@triton.jit
def double_tile(x, out, stride, M: tl.constexpr, N: tl.constexpr, TRANSPOSED: tl.constexpr):
    """A tile of N columns a program, read by a device function, written as it is or transposed."""
    first = tl.program_id(0) * N
    value = load_tile(x + first, stride, M, N) * 2
    m, n = tl.arange(0, M), first + tl.arange(0, N)
    if TRANSPOSED:
        tl.store(out + n[:, None] * M + m[None, :], tl.trans(value))
    else:
        tl.store(out + m[:, None] * stride + n[None, :], value)


@triton.jit
def copy_first(tensors, out, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(out + at, tl.load(tensors[0] + at) + tl.load(tensors[1] + at))


@triton.jit
def store_one(out, ATOMIC: tl.constexpr):
    if ATOMIC:
        tl.atomic_add(out, 1.0)
    else:
        tl.store(out, 1.0)


@triton.jit
def copy_by_descriptor(source, target, row, column):
    target.store([row, column], source.load([row, column]))


@triton.jit
def copy_by_block_pointer(x, out, rows, columns, PADDING: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    source = tl.make_block_ptr(x, (rows, columns), (columns, 1), (0, 0), (M, N), (1, 0))
    value = tl.load(source, boundary_check=(0, 1), padding_option=PADDING)
    tl.store(out + tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :], value)


@pytest.mark.parametrize(
    ("load_by", "store_by", "message"),
    [
        (3, 0, r"kernel shift, program \(1, 0, 0\): load of 3 lanes .* 0 bytes past the end of `x`"),
        (0, 2, r"kernel shift, program \(1, 0, 0\): store of 2 lanes .* 0 bytes past the end of `out`"),
        (-1, 0, r"kernel shift, program \(0, 0, 0\): load of 1 lanes .* 4 bytes before the start of `x`"),
        (0, -2, r"kernel shift, program \(0, 0, 0\): store of 2 lanes .* 8 bytes before the start of `out`"),
        (1 << 40, 0, r"load of 16 lanes"),
    ],
)
def test_out_of_bounds(load_by, store_by, message):
    memory = torch.zeros(4096)  # room around both tensors, so that a stock launch would go on
    x, out = memory[1000:1032], memory[3000:3032]
    with pytest.raises(OutOfBoundsError, match=message):
        shift[(2,)](x, out, load_by, store_by, 16)
    assert (memory == 0).all()


def test_within_bounds_and_after_a_fault():
    x, out = torch.randn(32), torch.empty(32)
    with pytest.raises(OutOfBoundsError):
        shift[(2,)](x, out, 1, 0, 16)
    shift[(2,)](x, out, 0, 0, 16)
    assert torch.equal(out, x)


def test_the_memory_check_can_be_switched_off():
    memory = torch.arange(64.0)
    install_interpreter(check_memory=False)
    shift[(1,)](memory[:16], memory[32:48], 8, 0, 16)
    assert torch.equal(memory[32:48], torch.arange(8.0, 24.0))


@pytest.mark.parametrize("columns", [5, 6])
def test_the_gap_between_rows_is_out_of_bounds(columns):
    x, out = torch.randn(4, 8)[:, :5], torch.zeros(4, 8)
    if columns == 5:
        copy_rows[(4,)](x, out, 8, 8, columns, 8)
        assert torch.equal(out[:, :5], x)
        return
    with pytest.raises(
        OutOfBoundsError, match=r"program \(0, 0, 0\): load of 1 lanes .*between the rows of `x`"
    ):
        copy_rows[(4,)](x, out, 8, 8, columns, 8)


def test_an_empty_tensor_holds_nothing():
    x, out = torch.empty(0), torch.zeros(16)
    copy_rows[(1,)](x, out, 0, 0, 0, 16)
    with pytest.raises(OutOfBoundsError, match="load of 1 lanes"):
        copy_rows[(1,)](x, out, 0, 0, 1, 16)
    with pytest.raises(OutOfBoundsError, match="no tensor with elements"):
        copy_rows[(1,)](x, torch.empty(0), 0, 0, 1, 16)


def test_tensors_in_a_tuple():
    pair, out = (torch.ones(16), torch.ones(16)), torch.empty(16)
    copy_first[(1,)](pair, out, 16)
    assert (out == 2).all()
    with pytest.raises(OutOfBoundsError, match=r"past the end of `tensors\[1\]`"):
        copy_first[(1,)]((pair[0], torch.ones(1 << 12)[:12]), out, 16)


@pytest.mark.parametrize("columns", [12, 16])
def test_a_fault_in_a_device_function_keeps_its_type(columns):
    x, out = torch.zeros(64, 32)[:4, :columns], torch.empty(4, 32)
    if columns == 16:
        double_tile[(1,)](x, out, 32, 4, 16, False)
    else:
        with pytest.raises(OutOfBoundsError, match="kernel double_tile"):
            double_tile[(1,)](x, out, 32, 4, 16, False)


def test_rows_further_apart_than_int32_reaches():
    """Memory between the rows is never touched: 13 GB of addresses, a few pages of memory."""
    stride = 2**31 + 64
    x = torch.empty(2 * stride + 32, dtype=torch.bfloat16).as_strided((3, 32), (stride, 1))
    for row in range(3):
        x[row] = torch.randn(32)
    out = torch.empty(3, 32, dtype=torch.bfloat16)
    copy_rows[(3,)](x, out, stride, 32, 32, 32)
    assert torch.equal(out, x)
    out.copy_(out + 1)
    copy_rows[(3,)](out, x, 32, stride, 32, 32)
    assert torch.equal(out, x)
    with pytest.raises(OutOfBoundsError, match=r"copy_rows_int32, program \(1, 0, 0\): load of 32 lanes"):
        copy_rows_int32[(3,)](x, out, stride, 32)


@pytest.mark.parametrize("out_stride", [0, 16, 31])
def test_two_programs_store_to_one_address(out_stride):
    x, out = torch.randn(2, 32), torch.zeros(64)
    shared = 32 - out_stride
    with pytest.raises(RaceError, match=rf"kernel copy_rows: {shared} addresses of `out` stored by two"):
        copy_rows[(2,)](x, out, 32, out_stride, 32, 32)


@pytest.mark.parametrize(("shift_by", "shared"), [(1, 1), (16, 16), (31, 1)])
def test_one_program_loads_what_another_stores(shift_by, shared):
    memory = torch.zeros(64)
    with pytest.raises(RaceError, match=rf"kernel shift: {shared} addresses .*and loaded by another"):
        shift[(2,)](memory, memory, shift_by, 0, 16)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
def test_programs_that_own_what_they_store_do_not_race(transposed, in_place):
    """Columns of one row each: the programs' tiles interleave in memory, and share no address."""
    x = torch.randn(8, 64)
    out = x if in_place else torch.empty(64 * 8)
    want = x * 2
    if in_place and transposed:
        with pytest.raises(RaceError, match="kernel double_tile"):
            double_tile[(4,)](x, out, 64, 8, 16, transposed)
        return
    double_tile[(4,)](x, out, 64, 8, 16, transposed)
    assert torch.equal(out.view(64, 8).T if transposed else out.view(8, 64), want)


def test_what_all_programs_read_is_no_race():
    x, out = torch.randn(1, 32), torch.empty(5, 32)
    copy_rows[(5,)](x, out, 0, 32, 32, 32)
    assert torch.equal(out, x.expand(5, 32))


def test_atomics_do_not_race_and_plain_stores_do():
    out = torch.zeros(1)
    store_one[(3,)](out, True)
    assert out == 3
    with pytest.raises(RaceError, match="1 addresses of `out`"):
        store_one[(3,)](out, False)
    install_interpreter(check_races=False)
    store_one[(3,)](out, False)
    assert out == 1


TILES = pytest.mark.parametrize(("row", "column"), [(0, 0), (4, 8), (-2, 16), (8, 0)])


@TILES
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_descriptor_does_not_store_outside_its_shape(dtype, row, column):
    """A 6 x 20 tensor of 24 columns in memory, in tiles of 4 x 16."""
    x = torch.randn(6, 24).to(dtype)[:, :20]
    memory = torch.full((20, 24), 7, dtype=dtype)
    source, target = (TensorDescriptor(t, [6, 20], [24, 1], [4, 16]) for t in (x, memory[8:14, :20]))
    copy_by_descriptor[(1,)](source, target, row, column)
    rows, columns = slice(max(row, 0), max(row + 4, 0)), slice(column, column + 16)
    want = torch.full((20, 24), 7, dtype=dtype)
    want[8:14, :20][rows, columns] = x[rows, columns]
    assert torch.equal(memory, want)


@TILES
@pytest.mark.parametrize("padding", ["zero", "nan"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_descriptor_pads_what_it_loads_outside_its_shape(dtype, padding, row, column):
    x = torch.randn(6, 24).to(dtype)[:, :20]
    out = torch.full((12, 48), 7, dtype=dtype)
    source = TensorDescriptor(x, [6, 20], [24, 1], [4, 16], padding)
    copy_by_descriptor[(1,)](source, TensorDescriptor(out, [12, 48], [48, 1], [4, 16]), row, column)
    rows, columns = slice(max(row, 0), row + 4), slice(column, column + 16)
    padded = torch.full((12, 48), torch.nan if padding == "nan" else 0.0, dtype=dtype)
    padded[:6, :20] = x
    torch.testing.assert_close(out[rows, columns], padded[rows, columns], rtol=0, atol=0, equal_nan=True)


def test_a_descriptor_that_claims_more_than_its_tensor():
    x, out = torch.zeros(8, 16)[:5], torch.zeros(8, 16)
    target = TensorDescriptor(out, [8, 16], [16, 1], [4, 16])
    copy_by_descriptor[(1,)](TensorDescriptor(x, [5, 16], [16, 1], [4, 16]), target, 4, 0)
    with pytest.raises(OutOfBoundsError, match=r"load of 48 lanes .* past the end of `source`"):
        copy_by_descriptor[(1,)](TensorDescriptor(x, [8, 16], [16, 1], [4, 16]), target, 4, 0)


@pytest.mark.skipif(not hasattr(interpreter, "BlockPointerHandle"), reason="Triton 3.9 has none")
@pytest.mark.parametrize("padding", ["zero", "nan", ""])
@pytest.mark.parametrize("dtype", FLOATS)
def test_block_pointers(dtype, padding):
    x, out = torch.ones(3, 10, dtype=dtype), torch.empty(4, 16, dtype=dtype)
    copy_by_block_pointer[(1,)](x, out, 3, 10, padding, 4, 16)
    want = torch.full((4, 16), 0.0 if padding == "zero" else torch.nan, dtype=dtype)
    want[:3, :10] = 1
    torch.testing.assert_close(out, want, rtol=0, atol=0, equal_nan=True)
