"""Triton's attention in the interpreter, against float64 and beside torch's own op in the same dtype."""

import pytest
import torch
from cases import bounds, documents, doubled, gradients, heads, largest_errors
from tpt_kernels import attention, target
from tpt_kernels.flash import op, tiles
from tpt_kernels.flash.launch import backward, forward
from tpt_kernels.flash.ranges import visible_ranges
from tpt_kernels.flash.tiles import Tile

FLOOR = 1e-6  # absolute
NAMES = ("out", "query's", "key's", "value's")
# Blocks smaller than the documents, larger, unequal both ways, by pointer and by descriptor.
TILES = {
    "pointers 32x32": Tile(32, 32, 1, 1),
    "pointers 16x64": Tile(16, 64, 1, 1),
    "pointers 64x16": Tile(64, 16, 1, 1),
    "descriptors 32x64": Tile(32, 64, 1, 1, descriptors=True),
    "descriptors 64x32": Tile(64, 32, 1, 1, descriptors=True),
}


@pytest.fixture
def tile(request, monkeypatch):
    monkeypatch.setattr(op, "tile_of", lambda name, query: TILES[request.param])


@pytest.fixture
def unwritten_is_nan():
    """torch.empty gives NaN: a row that no program writes would else show what the memory held before."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def compare(lengths, group, dim, dtype, seed, heads_count=None):
    """Our errors, torch's and the size of the truth, for the output and the three gradients."""
    tokens = sum(lengths)
    given = heads(tokens, tokens, heads_count or group, group, dim, dtype, seed)
    named = {"cu_seqlens": bounds(lengths), "max_seqlen": max(lengths)}
    wide = doubled(given.inputs)
    want = gradients(attention(*wide, **named, impl="reference"), wide, given.upstream)
    errors = {}
    for impl in ("triton", "sdpa"):
        got = gradients(attention(*given.inputs, **named, impl=impl), given.inputs, given.upstream)
        assert all(g.dtype == dtype for g in got)
        errors[impl] = largest_errors(got, want)
    return errors["triton"], errors["sdpa"], [w.abs().max().item() for w in want]


def assert_close(lengths, group, dim, dtype, seed, heads_count=None):
    ours, torch_own, sizes = compare(lengths, group, dim, dtype, seed, heads_count)
    for name, error, peer, size in zip(NAMES, ours, torch_own, sizes, strict=True):
        limit = 1e-5 * size if dtype == torch.float32 else 2 * peer
        assert error <= limit + FLOOR, f"{name} error {error:.2e}, torch's own {peer:.2e}, limit {limit:.2e}"


@pytest.mark.usefixtures("unwritten_is_nan")
@pytest.mark.parametrize("tile", TILES, indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("tokens", "count", "group"), [(97, 4, 1), (130, 3, 2)])
def test_every_kind_of_tile(tile, dtype, tokens, count, group):
    assert_close(documents(tokens, count, seed=tokens), group, 64, dtype, seed=1, heads_count=2 * group)


@pytest.mark.parametrize("tile", ["pointers 32x32"], indirect=True)
@pytest.mark.parametrize(
    ("dim", "dtype"),
    [
        *((64, torch.float16), (96, torch.float32), (96, torch.bfloat16), (128, torch.bfloat16)),
        *((128, torch.float16), (256, torch.float32), (256, torch.bfloat16), (24, torch.bfloat16)),
    ],
    ids=str,
)
def test_head_dims_and_dtypes(tile, dim, dtype):
    assert_close([19, 1, 50], 2, dim, dtype, seed=dim)


@pytest.mark.parametrize("tile", ["descriptors 64x32"], indirect=True)
@pytest.mark.parametrize("dim", [128, 256])
def test_descriptors_of_wide_heads(tile, dim):
    assert_close([19, 1, 50], 2, dim, torch.bfloat16, seed=dim)


@pytest.mark.parametrize("tile", ["pointers 16x64"], indirect=True)
@pytest.mark.parametrize("seed", range(10))
def test_random_ragged_documents(tile, seed):
    """1 to 300 tokens in up to 12 documents, GQA 1, 4 or 8."""
    tokens = [1, 2, 15, 16, 17, 64, 65, 128, 233, 300][seed]
    lengths = documents(tokens, 1 + seed * 7 % 12, seed)
    assert_close(lengths, (1, 4, 8)[seed % 3], 64, (torch.bfloat16, torch.float32)[seed % 2], seed)


@pytest.mark.parametrize("tile", ["pointers 16x64", "descriptors 64x32"], indirect=True)
@pytest.mark.parametrize("placed", [[*range(12, 40), *range(100, 128)], [0], [*range(50, 128)], [127]])
def test_placed_queries(tile, placed):
    """A context-parallel rank's queries (zigzag: two chunks) in a row that its keys cover whole."""
    lengths = [30, 0, 51, 47]
    given = heads(len(placed), 128, 4, 2, 64, torch.float32, seed=len(placed))
    named = {"cu_seqlens": bounds(lengths), "max_seqlen": 51}
    named["query_positions"] = torch.tensor(placed, dtype=torch.int32)
    got = gradients(attention(*given.inputs, **named, impl="triton"), given.inputs, given.upstream)
    wide = doubled(given.inputs)
    want = gradients(attention(*wide, **named, impl="reference"), wide, given.upstream)
    for error, truth in zip(largest_errors(got, want), want, strict=True):
        assert error <= 1e-5 * max(truth.abs().max().item(), 1.0)


def test_zigzag_chunks_add_up_to_the_whole():
    """Two ranks' outputs are the whole's rows; their key and value gradients sum to the whole's."""
    whole = heads(64, 64, 2, 1, 64, torch.float32, seed=3)
    named = {"cu_seqlens": bounds([40, 24]), "max_seqlen": 40, "impl": "triton"}
    want = gradients(attention(*whole.inputs, **named), whole.inputs, whole.upstream)
    sums = [torch.zeros_like(t) for t in want]
    for rows in ([*range(16), *range(48, 64)], [*range(16, 48)]):
        query = whole.query[rows]
        out = attention(
            query, whole.key, whole.value, **named, query_positions=torch.tensor(rows, dtype=torch.int32)
        )
        mine = torch.autograd.grad(out, whole.inputs, whole.upstream[rows])
        sums[0][rows] = out.detach()
        for total, part in zip(sums[1:], mine, strict=True):
            total += part
    for got, expected in zip(sums, want, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_positions_that_do_not_ascend_are_refused():
    given = heads(2, 8, 2, 1, 64, torch.float32, seed=0)
    with pytest.raises(RuntimeError, match="query_positions: expected to ascend"):
        attention(
            *given.inputs, cu_seqlens=bounds([8]), max_seqlen=8, impl="triton",
            query_positions=torch.tensor([5, 2], dtype=torch.int32),
        )  # fmt: skip


@pytest.mark.parametrize("tile", ["pointers 32x32", "descriptors 32x64"], indirect=True)
def test_views_of_a_larger_tensor(tile):
    """Query and key as megatron-core cuts them from one projection, value and the upstream gradients with
    strides of their own: every second head of a tensor, and one number expanded."""
    generator = torch.Generator().manual_seed(5)
    mixed = torch.randn(50, 2, 4 * 64, generator=generator).requires_grad_()
    upstream = (torch.randn(50, 8, 64, generator=generator)[:, ::2], torch.ones(()).expand(50, 4, 64))
    named = {"cu_seqlens": bounds([30, 20]), "max_seqlen": 30}

    def gradient(impl):
        query, key, value = mixed.split([128, 64, 64], dim=2)
        out = attention(query.reshape(50, 4, 64), key, value.contiguous(), **named, impl=impl)
        return [torch.autograd.grad(out, mixed, up, retain_graph=True)[0] for up in upstream]

    torch.testing.assert_close(gradient("triton"), gradient("reference"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("descriptors", [False, True])
def test_a_changed_token_changes_no_other_document(descriptors):
    """Bit for bit: outputs and gradients of the second document, whatever stands in the first."""
    tile = Tile(32, 32, 1, 1, descriptors=descriptors)
    lengths = [21, 43]
    ranges = visible_ranges(bounds(lengths), 64, None)
    results = []
    for scale in (1.0, 100.0):
        given = heads(64, 64, 2, 2, 64, torch.float32, seed=7)
        query, key, value, upstream = (t.detach().clone() for t in (*given.inputs, given.upstream))
        for tensor in (query, key, value, upstream):
            tensor[:21] *= scale
        out, logsumexp = forward(query, key, value, ranges.key_begin, ranges.key_end, 0.125, tile)
        got = backward(query, key, value, out, logsumexp, upstream, ranges, 0.125, tile, tile)
        results.append([t[21:] for t in (out, *got)])
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


def test_offsets_beyond_32_bits():
    """Rows 2^30 elements apart on memory that is never touched between them."""
    stride = 2**30 + 64
    store = torch.empty(4 * stride, dtype=torch.bfloat16)
    wide = store.as_strided((4, 1, 64), (stride, 64, 1))
    small = torch.randn(4, 1, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    wide.copy_(small)
    named = {"cu_seqlens": bounds([4]), "max_seqlen": 4, "impl": "triton"}
    for place in range(3):
        inputs = [wide if i == place else small for i in range(3)]
        assert torch.equal(attention(*inputs, **named), attention(small, small, small, **named))


@pytest.mark.parametrize(("dim", "descriptors"), [(24, False), (64, True), (112, False), (128, True)])
def test_dims_that_fit_no_descriptor_go_by_pointers(dim, descriptors, monkeypatch):
    monkeypatch.setattr(tiles, "target_of", lambda device: "sm_90")
    query = torch.empty(1, 1, dim, dtype=torch.bfloat16)
    assert {tiles.tile_of(name, query).descriptors for name in tiles.PASSES} == {descriptors}


def test_cpu_tensors_without_the_interpreter_are_refused(monkeypatch):
    monkeypatch.setattr(target.knobs.runtime, "interpret", False)
    given = heads(8, 8, 2, 1, 64, torch.float32, seed=0)
    with pytest.raises(ValueError, match="set TRITON_INTERPRET=1"):
        attention(*given.inputs, cu_seqlens=bounds([8]), max_seqlen=8, impl="triton")


@pytest.mark.parametrize("impl", ["triton", "sdpa", "reference"])
def test_no_tokens(impl):
    given = heads(0, 0, 2, 1, 64, torch.float32, seed=0)
    out = attention(*given.inputs, cu_seqlens=bounds([0]), max_seqlen=0, impl=impl)
    assert out.shape == (0, 2, 64)
    assert [g.shape[0] for g in torch.autograd.grad(out.sum(), given.inputs)] == [0, 0, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": (8, 2, 20)}, "multiple of 8"),
        ({"key": (8, 2, 32)}, "equal key and value"),
        ({"query": (8, 3, 64)}, "multiple of kv_heads"),
        ({"query": (6, 2, 64)}, "got 6 tokens for 8 keys"),
        ({"cu_seqlens": torch.tensor([0.0, 8.0])}, "cu_seqlens: got torch.float32"),
        ({"dtype": torch.float64}, "expected one dtype"),
    ],
)
def test_inputs_that_do_not_fit_are_named(change, message):
    shapes = {"query": (8, 2, 64), "key": (8, 2, 64), "value": (8, 2, 64)}
    shapes |= {k: v for k, v in change.items() if k in shapes}
    if shapes["query"][2] == 20:
        shapes = dict.fromkeys(shapes, (8, 2, 20))
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
    tensors["query"] = tensors["query"].to(change.get("dtype", torch.float32))
    lengths = change.get("cu_seqlens", bounds([8]))
    with pytest.raises(ValueError, match=message):
        attention(*tensors.values(), cu_seqlens=lengths, max_seqlen=8, impl="triton")
