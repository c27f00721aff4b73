namespace LaspNative.Runtime.Cuda;

/// <summary>What the strategies do with the pairs (A, M) of whole runs (states.cu). Both are fp32 whatever the operands were.</summary>
internal sealed partial class CudaBackend
{
    private const string StatesFile = "states";

    public void RunDecay(Tensor? decay, long tokens, Tensor factor)
    {
        RequireType(factor, DType.F32);
        if (decay is not null) RequireType(decay, DType.F32);
        RunDecayShape run = RunDecayShape.Of(decay, tokens, factor);
        Launch(
            StatesFile, "run_decay", DType.F32, LaunchShape.For(factor.Count, BlockThreads),
            PointerOrNull(decay), run.PerToken ? 1 : 0, tokens, run.Columns, factor.Count, factor.Pointer);
    }

    public void CombineStates(Tensor states, Tensor factors, int first, int count, int step, Tensor? initial, Tensor destination)
    {
        RequireType(states, DType.F32);
        RequireType(factors, DType.F32);
        RequireType(destination, DType.F32);
        if (initial is not null) RequireSame(destination, initial);
        bool inside = count <= 0 || (InRange(first, states) && InRange(first + ((count - 1L) * step), states));
        long groups = factors.Shape[0] == 0 ? 0 : factors.Count / factors.Shape[0];
        bool fits = states.Count == states.Shape[0] * destination.Count && factors.Shape[0] == states.Shape[0] && (groups == 0 ? destination.Count == 0 : destination.Count % groups == 0);
        if (!inside || !fits || step is not (1 or -1))
            throw new LaspException($"cannot combine runs {first}, {first + step}, .. ({count} of them) of states {states.Shape} with factors {factors.Shape} into {destination.Shape}");
        Launch(
            StatesFile, "combine_states", DType.F32, LaunchShape.For(destination.Count, BlockThreads),
            states.Pointer, factors.Pointer, first, count, step, PointerOrNull(initial), destination.Count, groups, destination.Pointer);
    }

    private static bool InRange(long run, Tensor states) => run >= 0 && run < states.Shape[0];
}
