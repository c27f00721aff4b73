using System.Numerics;
using System.Runtime.Intrinsics;

namespace LaspNative.Runtime.Cpu;

/// <summary>What the strategies do with the pairs (A, M) of whole runs.</summary>
internal sealed unsafe partial class CpuBackend
{
    public void RunDecay(Tensor? decay, ReadOnlySpan<long> lengths, Tensor factors)
    {
        long heads = factors.Shape[-1];
        if (factors.Count != lengths.Length * heads) throw new LaspException($"factors of shape {factors.Shape} do not hold one row for each of {lengths.Length} runs");
        if (decay is not null)
        {
            RequireType(decay, factors.DType);
            if (decay.Count != heads) throw new LaspException($"a decay of shape {decay.Shape} does not fit factors of shape {factors.Shape}");
        }
        if (factors.DType == DType.F64) RunDecay<double>(decay, lengths, heads, (double*)factors.Pointer);
        else RunDecay<float>(decay, lengths, heads, (float*)factors.Pointer);
    }

    public void CombineStates(Tensor states, Tensor factors, int first, int count, int step, Tensor? initial, Tensor destination)
    {
        RequireType(factors, states.DType);
        RequireType(destination, states.DType);
        if (initial is not null) RequireSame(destination, initial);
        bool inside = count <= 0 || (InRange(first, states) && InRange(first + ((count - 1) * step), states));
        if (!inside || step is not (1 or -1) || states.Count != states.Shape[0] * destination.Count || factors.Shape[0] != states.Shape[0])
            throw new LaspException($"cannot combine runs {first}, {first + step}, .. ({count} of them) of states {states.Shape} with factors {factors.Shape} into {destination.Shape}");
        if (states.DType == DType.F64) CombineStates<double>(states, factors, first, count, step, initial, destination);
        else CombineStates<float>(states, factors, first, count, step, initial, destination);
    }

    private static bool InRange(int run, Tensor states) => run >= 0 && run < states.Shape[0];

    private static void RunDecay<A>(Tensor? decay, ReadOnlySpan<long> lengths, long heads, A* factors) where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        for (int j = 0; j < lengths.Length; j++)
        {
            for (long h = 0; h < heads; h++)
            {
                double g = decay is null ? 0 : double.CreateTruncating(((A*)decay.Pointer)[h]);
                factors[(j * heads) + h] = A.CreateTruncating(Math.Exp(lengths[j] * g));
            }
        }
    }

    private void CombineStates<A>(Tensor states, Tensor factors, int first, int count, int step, Tensor? initial, Tensor destination)
        where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        A* runs = (A*)states.Pointer, decays = (A*)factors.Pointer, result = (A*)destination.Pointer;
        A* entering = initial is null ? null : (A*)initial.Pointer;
        long size = destination.Count, heads = factors.Shape[1], batches = destination.Shape[0];
        long block = batches * heads == 0 ? 0 : size / (batches * heads); // D * E
        ForEach(batches * heads, task =>
        {
            long offset = task * block, head = task % heads;
            for (long i = 0; i < block; i += Vector512<A>.Count)
            {
                Vector512<A> p = entering is null ? Vector512<A>.Zero : Element.Load<A, A>(entering + offset + i, block - i);
                for (int n = 0, j = first; n < count; n++, j += step)
                    p = VectorMath.Fma(Vector512.Create(decays[(j * heads) + head]), p, Element.Load<A, A>(runs + (j * size) + offset + i, block - i));
                Element.Store(p, result + offset + i, block - i);
            }
        });
    }
}
