namespace LaspNative.Runtime.Cuda;

/// <summary>Sums over whole tensors, in two stages of fp64 (reductions.cu).</summary>
internal sealed partial class CudaBackend
{
    private const string ReductionsFile = "reductions";
    private const long ReductionGrain = 8192;
    private const long ReductionBlocks = 1024;

    public void Sum(Tensor x, Tensor result) => Reduce(x, square: false, accumulate: false, result);

    public void AddSumOfSquares(Tensor x, Tensor result) => Reduce(x, square: true, accumulate: true, result);

    private void Reduce(Tensor x, bool square, bool accumulate, Tensor result)
    {
        RequireElement(x);
        RequireType(result, DType.F32);
        if (result.Count != 1) throw new LaspException($"a sum is one number, and the result's shape is {result.Shape}");
        long wanted = Math.Clamp(CeilDivide(x.Count, ReductionGrain), 1, ReductionBlocks);
        long slab = RoundUp(CeilDivide(x.Count, wanted), Pack);
        long blocks = slab == 0 ? 0 : CeilDivide(x.Count, slab);
        nint partials = _device.Workspace(ReductionBlocks * sizeof(double));
        Launch(ReductionsFile, "reduction_partial", x.DType, Blocks(blocks, BlockThreads), x.Pointer, x.Count, slab, square ? 1 : 0, partials);
        Launch(ReductionsFile, "reduction_final", x.DType, Blocks(1, BlockThreads), partials, blocks, accumulate ? 1 : 0, result.Pointer);
    }
}
