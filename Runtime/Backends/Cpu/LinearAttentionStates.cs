using System.Numerics;
using System.Runtime.Intrinsics;

namespace LaspNative.Runtime.Cpu;

/// <summary>What the strategies do with the pairs (A, M) of whole runs.</summary>
internal sealed unsafe partial class CpuBackend
{
    public void RunDecay(Tensor? decay, long tokens, Tensor factor)
    {
        RunDecayShape run = RunDecayShape.Of(decay, tokens, factor);
        if (decay is not null) RequireType(decay, factor.DType);
        if (factor.DType == DType.F64) RunDecay<double>(decay, run, (double*)factor.Pointer);
        else RunDecay<float>(decay, run, (float*)factor.Pointer);
    }

    public void CombineStates(Tensor states, Tensor factors, int first, int count, int step, Tensor? initial, Tensor destination)
    {
        RequireType(factors, states.DType);
        RequireType(destination, states.DType);
        if (initial is not null) RequireSame(destination, initial);
        bool inside = count <= 0 || (InRange(first, states) && InRange(first + ((count - 1) * step), states));
        if (!inside || step is not (1 or -1) || states.Count != states.Shape[0] * destination.Count || !FactorsFit(states, factors, destination))
            throw new LaspException($"cannot combine runs {first}, {first + step}, .. ({count} of them) of states {states.Shape} with factors {factors.Shape} into {destination.Shape}");
        if (states.DType == DType.F64) CombineStates<double>(states, factors, first, count, step, initial, destination);
        else CombineStates<float>(states, factors, first, count, step, initial, destination);
    }

    /// <summary>One factor for each of equally many consecutive elements.</summary>
    private static bool FactorsFit(Tensor states, Tensor factors, Tensor destination)
    {
        long groups = factors.Shape[0] == 0 ? 0 : factors.Count / factors.Shape[0];
        return factors.Shape[0] == states.Shape[0] && (groups == 0 ? destination.Count == 0 : destination.Count % groups == 0);
    }

    private static bool InRange(int run, Tensor states) => run >= 0 && run < states.Shape[0];

    private static void RunDecay<A>(Tensor? decay, RunDecayShape run, A* factor) where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        A* g = decay is null ? null : (A*)decay.Pointer;
        for (long b = 0; b < run.Batch; b++)
        {
            for (long c = 0; c < run.Columns; c++)
            {
                double sum = 0;
                if (run.PerToken)
                    for (long n = 0; n < run.Tokens; n++) sum += double.CreateTruncating(g[(((b * run.Tokens) + n) * run.Columns) + c]);
                else if (g is not null)
                    sum = run.Tokens * double.CreateTruncating(g[c]);
                factor[(b * run.Columns) + c] = A.CreateTruncating(Math.Exp(sum));
            }
        }
    }

    private void CombineStates<A>(Tensor states, Tensor factors, int first, int count, int step, Tensor? initial, Tensor destination)
        where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        A* runs = (A*)states.Pointer, decays = (A*)factors.Pointer, result = (A*)destination.Pointer;
        A* entering = initial is null ? null : (A*)initial.Pointer;
        long size = destination.Count, groups = factors.Count / factors.Shape[0];
        long block = groups == 0 ? 0 : size / groups; // elements that share a factor: D * E, or E
        ForEach(groups, task =>
        {
            long offset = task * block;
            for (long i = 0; i < block; i += Vector512<A>.Count)
            {
                Vector512<A> p = entering is null ? Vector512<A>.Zero : Element.Load<A, A>(entering + offset + i, block - i);
                for (int n = 0, j = first; n < count; n++, j += step)
                {
                    A factor = decays[(j * groups) + task];
                    Vector512<A> own = Element.Load<A, A>(runs + (j * size) + offset + i, block - i);
                    p = A.IsZero(factor) ? own : VectorMath.Fma(Vector512.Create(factor), p, own);
                }
                Element.Store(p, result + offset + i, block - i);
            }
        });
    }
}
