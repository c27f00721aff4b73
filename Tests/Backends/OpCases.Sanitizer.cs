namespace LaspNative.Tests.Backends;

/// <summary>What compute-sanitizer runs, which makes kernels some hundred times slower: all small rows for memory, and for races the fewest rows that launch every kernel.</summary>
public static partial class OpCases
{
    /// <summary>Rows small enough for a memory checker, every kernel at least once.</summary>
    public static IEnumerable<string> SmallNames => s_rows.Keys.Where(name => Get(name).Operands.Sum(o => o.Shape.Count) < 100_000);

    /// <summary>
    /// The smallest rows that still give each kernel several chunks, segments, slabs and heads to get in one another's way. <see cref="SanitizerCoverageTests"/> proves that no kernel is left out.
    /// </summary>
    public static IReadOnlyList<string> RaceNames { get; } =
    [
        "linear attention N=600 D=128 E=128 B=1 H=1 Hk=1 decay=0.05 with states",
        "linear attention N=600 D=64 E=64 B=1 H=2 Hk=1 decay=0.05 with states",
        "linear attention N=600 D=64 E=64 B=1 H=1 Hk=1 decay=0.05 per token with states",
        "linear attention N=600 D=64 E=64 B=1 H=1 Hk=1 decay=0.05 per channel with states",
        "linear attention N=1000 D=5 E=7 B=1 H=4 Hk=1 decay=0.2 with states",
        "linear attention N=130 D=128 E=96 B=2 H=2 Hk=1 decay=0 with states",
        "linear attention N=130 D=128 E=128 B=1 H=2 Hk=2 decay=0.02 per channel with states",
        "left product C=65 M=130 D=5 E=7 B=2 H=4 Hk=2 weights=PerChannel",
        "left product C=130 M=65 D=128 E=96 B=1 H=2 Hk=2 weights=PerChannel",
        "softmax attention causal C=65 M=65 D=64 E=64 B=1 H=4 Hk=2",
        "softmax attention causal C=385 M=385 D=128 E=128 B=1 H=4 Hk=2",
        "softmax attention causal at 200 C=170 M=127+130+113 D=128 E=128 B=1 H=2 Hk=1",
        "softmax attention documents both ways C=200 M=128+128+4 D=5 E=7 B=2 H=4 Hk=2",
        "softmax attention causal C=130 M=130 D=128 E=96 B=1 H=2 Hk=1",
        "softmax attention causal at 101 C=99 M=70+1+129 D=64 E=64 B=1 H=4 Hk=2",
        "apply state N=65 H=4 Hx=2 Hy=4",
        "apply transposed state N=130 H=3 Hx=1 Hy=1",
        "run decay per token over 65 tokens",
        "combine 3 states from 3 by -1 onto an initial state",
        "decay weights per head over 65 tokens to the end",
        "decay weights per channel over 300 tokens to the end",
        "decay paths per head over 300 tokens of 2 heads to the end",
        "decay paths per channel over 300 tokens of 4 heads from the entry",
        "rms norm [3, 129]",
        "rms norm backward [3, 129]",
        "rms norm [5, 2048]",
        "rms norm backward [5, 2048]",
        "add and rms norm [67, 64]",
        "add and rms norm backward [67, 64]",
        "gated head norm [67, 2, 64]",
        "gated head norm backward [67, 2, 64]",
        "gated head norm backward [3, 2, 129]",
        "linear attention decode B=2 H=3 Hk=3 D=128 E=96 Channel",
        "linear attention decode B=3 H=4 Hk=1 D=33 E=17 Token",
        "cross entropy 5x257 T",
        "embedding 11x5 of 17 I32",
        "embedding backward 11x5 of 17 I32",
        "embedding 300x129 of 70 I64",
        "embedding backward 300x129 of 70 I64",
        "sum 5003",
        "add sum of squares 5003",
        "adamw step 1",
        "rope [2, 7, 3, 10] at 5",
        "rope [1, 66, 2, 64] at 3000001",
        "silu and rope [1, 66, 2, 64] at 3000001",
        "silu and rope backward [1, 66, 2, 64] at 3000001",
        "permute T [33, 65] to [1, 0]",
        "permute I64 [33, 65] to [1, 0]",
        "permute T [2, 9, 4, 64] to [0, 2, 1, 3]",
        "fill 35",
        "fill integers 35",
        "copy 35",
        "cast to accumulator 35",
        "cast from accumulator 35",
        "add 35",
        "add scaled 35",
        "add scaled into accumulator 35",
        "add scaled from accumulator 35",
        "silu 35",
        "silu backward 35",
        "gated linear unit Silu [35]",
        "gated linear unit backward Silu [35]",
    ];
}
