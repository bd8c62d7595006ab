"""`make gpu`: on a GPU machine, each op against float64 and its time beside torch's own."""

import sys

import torch
from torch.nn.functional import cross_entropy as torch_cross_entropy
from torch.nn.functional import scaled_dot_product_attention
from tpt_kernels import attention, linear_cross_entropy
from triton.testing import do_bench


def check_attention() -> str:
    query = torch.randn(4096, 32, 128, device="cuda", dtype=torch.bfloat16)
    key, value = (torch.randn(4096, 8, 128, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    bounds = torch.tensor([0, 4096], dtype=torch.int32, device="cuda")
    row = [t.transpose(0, 1)[None] for t in (query, key, value)]

    def peer(*tensors: torch.Tensor) -> torch.Tensor:
        return scaled_dot_product_attention(*tensors, is_causal=True, enable_gqa=True)

    out = attention(query, key, value, cu_seqlens=bounds, max_seqlen=4096)
    truth = peer(*(t[:, :, :512].double() for t in row))[0].transpose(0, 1)
    error = (out[:512].double() - truth).abs().max().item()
    ours = do_bench(lambda: attention(query, key, value, cu_seqlens=bounds, max_seqlen=4096))
    theirs = do_bench(lambda: peer(*row))
    return f"attention forward: error {error:.1e}, {ours:.3f} ms; torch {theirs:.3f} ms"


def check_loss() -> str:
    hidden = torch.randn(4096, 2048, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(32768, 2048, device="cuda", dtype=torch.bfloat16) * 0.02
    target = torch.randint(0, 32768, (4096,), device="cuda")

    def peer() -> torch.Tensor:
        return torch_cross_entropy((hidden @ weight.T).float(), target, reduction="none")

    truth = torch_cross_entropy((hidden[:512].double() @ weight.T.double()), target[:512], reduction="none")
    error = (linear_cross_entropy(hidden, weight, target)[:512].double() - truth).abs().max().item()
    ours, theirs = do_bench(lambda: linear_cross_entropy(hidden, weight, target)), do_bench(peer)
    return f"linear cross-entropy forward: error {error:.1e}, {ours:.3f} ms; torch {theirs:.3f} ms"


def main() -> int:
    if not torch.cuda.is_available():
        print("make gpu: no GPU on this machine; nothing was measured", file=sys.stderr)
        return 2
    print(torch.cuda.get_device_name(), torch.__version__)
    print(check_attention())
    print(check_loss())
    return 0


if __name__ == "__main__":
    sys.exit(main())
