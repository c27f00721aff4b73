using LaspNative.Runtime;
using LaspNative.Tests.Oracles;

namespace LaspNative.Tests.Backends;

/// <summary>One step of generation: the oracle's run of one token.</summary>
public static partial class OpCases
{
    private static void AddLinearAttentionDecode()
    {
        AddDecode(b: 1, h: 1, hk: 1, d: 1, e: 1, DecayKind.None);
        AddDecode(b: 2, h: 4, hk: 2, d: 64, e: 64, DecayKind.Head);
        AddDecode(b: 3, h: 4, hk: 1, d: 33, e: 17, DecayKind.Token);
        AddDecode(b: 2, h: 3, hk: 3, d: 128, e: 96, DecayKind.Channel);
        AddDecode(b: 2, h: 2, hk: 1, d: 200, e: 256, DecayKind.Channel);
        AddDecode(b: 1, h: 2, hk: 2, d: 256, e: 36, DecayKind.Head);
    }

    private static void AddDecode(int b, int h, int hk, int d, int e, DecayKind kind)
    {
        double scale = 1 / Math.Sqrt(d);
        Shape state = [b, h, d, e];
        Shape decay = kind switch { DecayKind.Token => [b, h], DecayKind.Channel => [b, h, d], _ => [h] };
        double[]? decays = TestData.Decays(kind, b, 1, h, d, rate: 3);
        s_rows[$"linear attention decode B={b} H={h} Hk={hk} D={d} E={e} {kind}"] = () => new OpCase
        {
            Operands =
            [
                T("q", [b, h, d], TestData.Heads(b, h, d, 1)), T("k", [b, hk, d], TestData.Heads(b, hk, d, 2)), T("v", [b, hk, e], TestData.Heads(b, hk, e, 3)),
                .. decays is null ? [] : (Operand[])[Acc("decay", decay, decays)],
                Acc("state", state, TestData.Normal(state.Count, 4)), T("o", [b, h, e]),
            ],
            Call = (backend, t) => backend.LinearAttentionDecode(t("q"), t("k"), t("v"), decays is null ? null : t("decay"), t("state"), scale, t("o")),
            Oracle = v =>
            {
                LinearAttentionOracle.Values step = new LinearAttentionOracle(b, 1, h, hk, d, e)
                {
                    Q = v("q"),
                    K = v("k"),
                    V = v("v"),
                    Decay = decays is null ? null : v("decay"),
                    InitialState = v("state"),
                    Scale = scale,
                }.Forward();
                return Results(("o", step.Output), ("state", step.FinalState));
            },
        };
    }
}
