"""The peer of the softmax rows: torch's causal scaled_dot_product_attention, timed as the harness times ours. Writes median milliseconds by row name.

    python3 peer_sdpa.py OUT.json [N,...]

Grouped heads run both ways that torch offers, shared in the kernel and repeated beforehand; the faster one counts, and so does the faster backend.
"""
import json
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

WIDTH = 128
HEADS = [(32, 8), (16, 16)]
BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION]


def median_ms(call, repeats=20, warm=3):
    """Repetitions are queued one behind the other, so that launches do not count."""
    marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for i in range(warm):
        call(i)
    for i, (start, end) in enumerate(marks):
        start.record()
        call(warm + i)
        end.record()
    torch.cuda.synchronize()
    return sorted(start.elapsed_time(end) for start, end in marks)[repeats // 2]


def inputs(tokens, heads, key_heads, sets=2):
    def normal(h):
        return torch.randn(1, tokens, h, WIDTH, device="cuda", dtype=torch.bfloat16).transpose(1, 2).requires_grad_()

    return [(normal(heads), normal(key_heads), normal(key_heads), normal(heads).detach()) for _ in range(sets)]


def time_shape(tokens, heads, key_heads, shared):
    """Forward, and forward with backward; infinity where a backend refuses the shape."""
    sets = inputs(tokens, heads, key_heads if shared else heads)
    shared = shared and heads != key_heads

    def forward(i):
        q, k, v, _ = sets[i % len(sets)]
        with torch.no_grad():
            F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=shared)

    def both(i):
        q, k, v, gradient = sets[i % len(sets)]
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=shared)
        torch.autograd.grad(o, (q, k, v), gradient)

    return median_ms(forward), median_ms(both)


def best(tokens, heads, key_heads):
    times = []
    for backend in BACKENDS:
        for shared in {True, heads == key_heads}:
            try:
                with sdpa_kernel(backend):
                    times.append(time_shape(tokens, heads, key_heads, shared))
            except RuntimeError as e:
                print(f"{backend.name} shared={shared} N={tokens} H={heads}: {str(e).splitlines()[0]}", file=sys.stderr)
    return [min(t[i] for t in times) for i in range(2)]


def main():
    out = sys.argv[1]
    lengths = [int(n) for n in sys.argv[2].split(",")] if len(sys.argv) > 2 else [8192, 32768]
    torch.manual_seed(1)
    record = {}
    for tokens in lengths:
        for heads, key_heads in HEADS:
            for what, ms in zip(("fwd", "fwd+bwd"), best(tokens, heads, key_heads)):
                name = f"softmax {what} N={tokens} H={heads} Hk={key_heads}"
                record[name] = ms
                flops = 2.0 * tokens * tokens * WIDTH * heads * (1 if what == "fwd" else 3.5)
                print(f"{name:<40} {ms:9.3f} ms {flops / ms / 1e9:7.0f} TFLOP/s", file=sys.stderr)
    with open(out, "w") as file:
        json.dump(record, file, indent=2)


if __name__ == "__main__":
    main()
