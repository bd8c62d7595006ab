"""The repaired interpreter's bfloat16, bit for bit that of torch on CPU: arithmetic, casts, sums, dots."""

import pytest
import torch
import triton
import triton.language as tl

pytestmark = pytest.mark.usefixtures("interpreter")
BLOCK = 1 << 14
FLOATS = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


@triton.jit
def binary(left, right, out, OP: tl.constexpr, N: tl.constexpr):
    at = tl.program_id(0) * N + tl.arange(0, N)
    a = tl.load(left + at)
    b = tl.load(right + at)
    if OP == "add":
        value = a + b
    elif OP == "sub":
        value = a - b
    elif OP == "mul":
        value = a * b
    elif OP == "div":
        value = a / b
    elif OP == "lt":
        value = a < b
    elif OP == "le":
        value = a <= b
    elif OP == "gt":
        value = a > b
    elif OP == "ge":
        value = a >= b
    elif OP == "eq":
        value = a == b
    elif OP == "ne":
        value = a != b
    elif OP == "minimum":
        value = tl.minimum(a, b)
    elif OP == "maximum":
        value = tl.maximum(a, b)
    elif OP == "where":
        value = tl.where(a < b, a, b)
    else:
        value = tl.fma(a, b, a)
    tl.store(out + at, value)


@triton.jit
def unary(x, out, OP: tl.constexpr, N: tl.constexpr):
    at = tl.arange(0, N)
    a = tl.load(x + at)
    if OP == "neg":
        value = -a
    elif OP == "abs":
        value = tl.abs(a)
    elif OP == "add_scalar":
        value = a + 1
    elif OP == "mul_scalar":
        value = a * 0.3
    elif OP == "rsub_scalar":
        value = 2.5 - a
    elif OP == "lt_scalar":
        value = a < 0.5
    elif OP == "truncate":
        value = a.to(tl.bfloat16, fp_downcast_rounding="rtz")
    elif OP == "cast":
        value = a
    tl.store(out + at, value)


@triton.jit
def reduce(x, out, OP: tl.constexpr, N: tl.constexpr):
    a = tl.load(x + tl.arange(0, N))
    if OP == "sum":
        value = tl.sum(a, 0)
    elif OP == "max":
        value = tl.max(a, 0)
    elif OP == "min":
        value = tl.min(a, 0)
    elif OP == "raw_max":
        value = tl.reduce(a, 0, tl.standard._elementwise_max)
    elif OP == "argmax":
        value = tl.argmax(a, 0)
    elif OP == "cumsum":
        value = tl.max(tl.cumsum(a, 0), 0)
    elif OP == "raw_cumsum":
        value = tl.max(tl.associative_scan(a, 0, tl.standard._sum_combine), 0)
    tl.store(out, value)


@triton.jit
def matmul(a, b, out, M: tl.constexpr, K: tl.constexpr, N: tl.constexpr, OUT: tl.constexpr):
    m, k, n = tl.arange(0, M), tl.arange(0, K), tl.arange(0, N)
    left = tl.load(a + m[:, None] * K + k[None, :])
    right = tl.load(b + k[:, None] * N + n[None, :])
    tl.store(out + m[:, None] * N + n[None, :], tl.dot(left, right, out_dtype=OUT))


def every_bfloat16():
    return torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)


def pairs():
    """Random patterns (subnormal, infinite and NaN ones among them), and neighbours whose sums are ties."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(1 << 15), 1 << 15, (2, 3 * BLOCK), generator=generator, dtype=torch.int16)
    close = torch.randint(-(1 << 9), 1 << 9, (BLOCK,), generator=generator, dtype=torch.int16)
    left, right = bits.view(torch.bfloat16)
    near = (left[:BLOCK].view(torch.int16) + close).view(torch.bfloat16)
    return torch.cat([left, left[:BLOCK]]), torch.cat([right, near])


def assert_same_bits(got, want):
    """Equal to the last bit and the sign of zero, NaN where NaN is."""
    assert got.dtype == want.dtype
    if not want.is_floating_point():
        assert torch.equal(got, want)
        return
    nan = want.isnan()
    assert torch.equal(got.isnan(), nan)
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[want.element_size()]
    assert torch.equal(got.view(whole)[~nan], want.view(whole)[~nan])


ARITHMETIC = {"add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div}
COMPARISONS = {name: getattr(torch, name) for name in ("lt", "le", "gt", "ge", "eq", "ne")}


@pytest.mark.parametrize("op", [*ARITHMETIC, "where", "fma"])
def test_bfloat16_arithmetic(op):
    left, right = pairs()
    out = torch.empty_like(left)
    binary[(4,)](left, right, out, op, BLOCK)
    if op == "where":
        want = torch.where(left < right, left, right)
    elif op == "fma":
        want = (left.float() * right.float() + left.float()).bfloat16()
    else:
        want = ARITHMETIC[op](left, right)
    assert 100 < want.isnan().sum() < want.numel() / 4
    assert_same_bits(out, want)


@pytest.mark.parametrize("op", COMPARISONS)
def test_bfloat16_comparisons(op):
    left, right = pairs()
    right[:100] = left[:100]
    out = torch.empty(left.shape, dtype=torch.bool)
    binary[(4,)](left, right, out, op, BLOCK)
    assert_same_bits(out, COMPARISONS[op](left, right))


@pytest.mark.parametrize("op", ["minimum", "maximum"])
def test_nan_wins_in_minimum_and_maximum(op):
    left, right = pairs()
    out = torch.empty_like(left)
    binary[(4,)](left, right, out, op, BLOCK)
    zeros = (left == 0) & (right == 0)  # which zero wins is nobody's promise
    assert_same_bits(out[~zeros], getattr(torch, op)(left, right)[~zeros])


@pytest.mark.parametrize("op", ["neg", "abs", "add_scalar", "mul_scalar", "rsub_scalar", "lt_scalar"])
def test_every_bfloat16_with_a_scalar(op):
    x = every_bfloat16()
    out = torch.empty(x.shape, dtype=torch.bool if op == "lt_scalar" else x.dtype)
    unary[(1,)](x, out, op, x.numel())
    scalar = torch.tensor(0.3).bfloat16()  # Triton rounds the scalar to the tensor's dtype first
    want = {
        "neg": lambda: 0 - x,  # Triton negates by subtracting from zero
        "abs": lambda: x.abs(),
        "add_scalar": lambda: x + 1,
        "mul_scalar": lambda: x * scalar,
        "rsub_scalar": lambda: 2.5 - x,
        "lt_scalar": lambda: x < 0.5,
    }[op]()
    if op == "neg":
        out, want = out[x != 0], want[x != 0]  # the sign of -(0) differs between Triton versions
    assert_same_bits(out, want)


def float32_patterns():
    """Around every tie of bfloat16, and random patterns."""
    high = every_bfloat16().view(torch.int16).int() << 16
    generator = torch.Generator().manual_seed(1)
    low = torch.randint(0, 1 << 16, high.shape, generator=generator, dtype=torch.int32)
    return torch.cat([high | part for part in (0x8000, 0x7FFF, 0x8001, low)]).view(torch.float32)


@pytest.mark.parametrize("source", [*FLOATS, torch.int64, torch.int32, torch.int16, torch.uint8])
def test_casts_to_bfloat16_round_to_nearest_even(source):
    x = float32_patterns()
    if not source.is_floating_point:
        x = x.view(torch.int32)
        x = x.long() * 977 if source == torch.int64 else x
    x = x.to(source)
    out = torch.empty(x.shape, dtype=torch.bfloat16)
    unary[(1,)](x, out, "cast", x.numel())
    assert_same_bits(out, x.to(torch.bfloat16))


@pytest.mark.parametrize("target", [*FLOATS, torch.int64, torch.int32, torch.int16])
def test_casts_from_bfloat16(target):
    x = every_bfloat16()
    if not target.is_floating_point:
        x = x[x.abs() < torch.iinfo(target).max / 2]
        x = x[: 1 << 14]
    out = torch.empty(x.shape, dtype=target)
    unary[(1,)](x, out, "cast", x.numel())
    assert_same_bits(out, x.to(target))


@pytest.mark.parametrize("source", [torch.float32, torch.float64])
def test_asked_to_truncate_a_cast_truncates(source):
    x = torch.cat([float32_patterns()[: 1 << 17].to(source), torch.full((1 << 17,), 1 - 2**-9, dtype=source)])
    x[-1] = 1 - 2.0**-40 if source == torch.float64 else x[-1]
    out = torch.empty(x.shape, dtype=torch.bfloat16)
    unary[(1,)](x, out, "truncate", x.numel())
    kept = ~x.isnan()
    assert torch.equal(out.isnan(), ~kept)
    finite = x.isfinite()
    gap = x[finite].abs() - out[finite].double().abs()
    assert (gap >= 0).all()
    assert ((out[finite].view(torch.int16) + 1).view(torch.bfloat16).double().abs() > x[finite].abs()).all()


@pytest.mark.parametrize("op", ["sum", "max", "min", "raw_max", "cumsum", "raw_cumsum", "argmax"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_reductions(op, dtype):
    """Values of eighths: every sum below 32 is exact in float32, so that one rounding is left."""
    x = (torch.randint(-16, 16, (256,), generator=torch.Generator().manual_seed(2)) / 8).to(dtype)
    out = torch.empty(1, dtype=torch.int32 if op == "argmax" else dtype)
    reduce[(1,)](x, out, op, 256)
    wide = x.double()
    want = {
        "sum": wide.sum(),
        "min": wide.min(),
        "argmax": wide.argmax(),
        "cumsum": wide.cumsum(0).max(),
        "raw_cumsum": wide.cumsum(0).max(),
    }.get(op, wide.max())
    assert_same_bits(out[0], want.to(out.dtype))


@pytest.mark.parametrize("op", ["sum", "max", "min", "raw_max", "cumsum"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_nan_does_not_vanish_in_a_reduction(op, dtype):
    x = torch.ones(64, dtype=dtype)
    x[40] = torch.nan
    out = torch.empty(1, dtype=dtype)
    reduce[(1,)](x, out, op, 64)
    assert out.isnan()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dot_accumulates_in_float32(dtype):
    generator = torch.Generator().manual_seed(3)
    a = (torch.randint(-128, 128, (16, 64), generator=generator) / 64).to(dtype)
    b = (torch.randint(-128, 128, (64, 32), generator=generator) / 64).to(dtype)
    out = torch.empty(16, 32)
    matmul[(1,)](a, b, out, 16, 64, 32, tl.float32)
    assert_same_bits(out, a.float() @ b.float())  # 22 bits at most: exact in any order


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dot_into_float16_rounds_once(dtype):
    out = torch.empty(16, 16, dtype=torch.float16)
    matmul[(1,)](
        torch.ones(16, 4096, dtype=dtype), torch.ones(4096, 16, dtype=dtype), out, 16, 4096, 16, tl.float16
    )
    assert (out == 4096).all()  # a float16 sum of ones stops at 2048
