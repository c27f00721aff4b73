using System.Runtime.InteropServices;

namespace LaspNative.Runtime.Cuda;

/// <summary>Sums over whole tensors, in two stages of fp64, and a sum of two that leaves its squares (reductions.cu).</summary>
internal sealed partial class CudaBackend
{
    private const string ReductionsFile = "reductions";
    private const long ReductionGrain = 8192;
    private const long ReductionBlocks = 1024;

    /// <summary>Row of reductions.cu.</summary>
    [StructLayout(LayoutKind.Sequential)]
    private readonly struct SquaresEntry(Tensor x, long end)
    {
        /// <summary>CHUNK of reductions.cu.</summary>
        public const long Chunk = 4096;

        private readonly nint _x = x.Pointer;
        private readonly long _elements = x.Count, _end = end;
        private readonly int _isBF16 = x.DType == DType.BF16 ? 1 : 0, _isPacked = ArePacked(x.Pointer) ? 1 : 0;
    }

    private SquaresEntry[] _squares = [];

    public void Sum(Tensor x, Tensor result)
    {
        RequireElement(x);
        RequireNumber(result);
        long wanted = Math.Clamp(CeilDivide(x.Count, ReductionGrain), 1, ReductionBlocks);
        long slab = RoundUp(CeilDivide(x.Count, wanted), Pack);
        long blocks = slab == 0 ? 0 : CeilDivide(x.Count, slab);
        nint partials = _device.Workspace(ReductionBlocks * sizeof(double));
        Launch(ReductionsFile, "sum_partial", x.DType, Blocks(blocks, BlockThreads), x.Pointer, x.Count, slab, partials);
        Finish(partials, blocks, accumulate: false, result);
    }

    public void AddSumOfSquares(ReadOnlySpan<Tensor> tensors, Tensor result)
    {
        RequireNumber(result);
        if (_squares.Length < tensors.Length) _squares = new SquaresEntry[tensors.Length];
        long chunks = 0;
        for (int i = 0; i < tensors.Length; i++)
        {
            RequireElement(tensors[i]);
            chunks += CeilDivide(tensors[i].Count, SquaresEntry.Chunk);
            _squares[i] = new SquaresEntry(tensors[i], chunks);
        }
        long blocks = Math.Min(chunks, ReductionBlocks);
        nint table = Upload<SquaresEntry>(_squares.AsSpan(0, tensors.Length), beyond: ReductionBlocks * sizeof(double), out nint partials);
        Launch(ReductionsFile, "squares_partial", DType.F32, Blocks(blocks, BlockThreads), table, chunks, partials);
        Finish(partials, blocks, accumulate: true, result);
    }

    public void AddSquaring(Tensor a, Tensor b, Tensor y, Tensor squares)
    {
        RequireElement(a);
        RequireSame(a, b);
        RequireSame(a, y);
        RequireType(squares, DType.F32);
        long needed = CeilDivide(y.Count, IBackend.SquaresGrain);
        if (squares.Count < needed) throw new LaspException($"the squares of {y.Count} elements need {needed} numbers, got {squares.Count}");
        Launch(ReductionsFile, "add_squaring", a.DType, PerPack(a.Count), a.Pointer, b.Pointer, a.Count, y.Pointer, squares.Pointer);
    }

    private void Finish(nint partials, long blocks, bool accumulate, Tensor result) =>
        Launch(ReductionsFile, "reduction_final", DType.F32, Blocks(1, BlockThreads), partials, blocks, accumulate ? 1 : 0, result.Pointer);
}
