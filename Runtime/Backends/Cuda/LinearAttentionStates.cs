namespace LaspNative.Runtime.Cuda;

/// <summary>What the strategies do with the pairs (A, M) of whole runs (states.cu). Both are fp32 whatever the operands were.</summary>
internal sealed partial class CudaBackend
{
    private const string StatesFile = "states";

    public void RunDecay(Tensor? decay, ReadOnlySpan<long> lengths, Tensor factors)
    {
        RequireType(factors, DType.F32);
        long heads = factors.Shape[-1];
        if (factors.Count != lengths.Length * heads) throw new LaspException($"factors of shape {factors.Shape} do not hold one row for each of {lengths.Length} runs");
        if (decay is not null)
        {
            RequireType(decay, DType.F32);
            if (decay.Count != heads) throw new LaspException($"a decay of shape {decay.Shape} does not fit factors of shape {factors.Shape}");
        }
        for (int run = 0; run < lengths.Length; run++)
            Launch(StatesFile, "run_decay", DType.F32, LaunchShape.For(heads, BlockThreads), PointerOrNull(decay), lengths[run], heads, factors.Pointer + (nint)(run * heads * sizeof(float)));
    }

    public void CombineStates(Tensor states, Tensor factors, int first, int count, int step, Tensor? initial, Tensor destination)
    {
        RequireType(states, DType.F32);
        RequireType(factors, DType.F32);
        RequireType(destination, DType.F32);
        if (initial is not null) RequireSame(destination, initial);
        bool inside = count <= 0 || (InRange(first, states) && InRange(first + ((count - 1L) * step), states));
        bool fits = states.Count == states.Shape[0] * destination.Count && factors.Shape.Rank == 2 && factors.Shape[0] == states.Shape[0];
        if (!inside || !fits || step is not (1 or -1) || destination.Shape.Rank != 4 || factors.Shape[1] != destination.Shape[1])
            throw new LaspException($"cannot combine runs {first}, {first + step}, .. ({count} of them) of states {states.Shape} with factors {factors.Shape} into {destination.Shape}");
        Launch(
            StatesFile, "combine_states", DType.F32, LaunchShape.For(destination.Count, BlockThreads),
            states.Pointer, factors.Pointer, first, count, step, PointerOrNull(initial), destination.Count, destination.Shape[2] * destination.Shape[3],
            destination.Shape[1], destination.Pointer);
    }

    private static bool InRange(long run, Tensor states) => run >= 0 && run < states.Shape[0];
}
