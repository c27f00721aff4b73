namespace LaspNative.Runtime.Cuda;

/// <summary>
/// What the decay does to left products between runs (linear_attention_block_decay.cu): running sums along whole runs, cut into slabs that walk side by side.
/// </summary>
internal sealed partial class CudaBackend
{
    private const string BlockDecayFile = "linear_attention_block_decay";

    /// <summary>How often a term counts in a slab's sum: Count of linear_attention_block_decay.cu.</summary>
    private enum TermCount
    {
        Once,
        FromEntry,
        ToEnd,
    }

    /// <summary>Sums along [Batches, Tokens, Heads * Width], a column each, and how the tokens are cut.</summary>
    private readonly record struct DecaySums(long Batches, long Tokens, long Heads, long Width)
    {
        /// <summary>Threads worth having, and the bounds on a column's slabs: each slab reads the sums of those before it.</summary>
        private const long WantedThreads = 1 << 17;
        private const long FewestSlabs = 16;
        private const long MostSlabs = 1024;
        private const long ShortestSlab = 64;

        public long Columns => Heads * Width;

        public long SlabTokens => Math.Max(ShortestSlab, CeilDivide(Tokens, Math.Clamp(WantedThreads / Math.Max(1, Batches * Columns), FewestSlabs, MostSlabs)));

        public long Slabs => CeilDivide(Tokens, SlabTokens);

        /// <summary>Of all columns: the threads of a slab kernel.</summary>
        public long Count => Batches * Slabs * Columns;

        public long Bytes => RoundUp(Count * sizeof(double), 256);

        /// <summary>Reads a tensor [B,N,H] or [B,N,H,D].</summary>
        public static DecaySums Of(Shape shape) => new(shape[0], shape[1], shape[2], shape.Rank == 4 ? shape[3] : 1);
    }

    public void DecayWeights(Tensor? decay, bool toEnd, Tensor? between, Tensor weights)
    {
        Shape shape = weights.Shape;
        bool perChannel = shape.Rank == 4, perToken = decay is { Shape.Rank: > 1 };
        bool fits = shape.Rank is 3 or 4 && (between is null || between.Shape == (perChannel ? [shape[0], shape[2], shape[3]] : [shape[0], shape[2]]))
            && (decay is null || (perToken ? decay.Shape == shape : !perChannel && decay.Shape == [shape[2]]));
        if (!fits) throw new LaspException($"a decay of shape {decay?.Shape.ToString() ?? "none"} and factors of shape {between?.Shape.ToString() ?? "none"} do not fit weights of shape {shape}");
        RequireType(weights, DType.F32);
        if (decay is not null) RequireType(decay, DType.F32);
        if (between is not null) RequireType(between, DType.F32);

        var run = DecaySums.Of(shape);
        int end = toEnd ? 1 : 0;
        if (!perToken)
        {
            Launch(
                BlockDecayFile, "decay_weights_constant", DType.F32, LaunchShape.For(weights.Count, BlockThreads),
                PointerOrNull(decay), PointerOrNull(between), run.Tokens, run.Columns, end, weights.Count, weights.Pointer);
            return;
        }
        nint sums = _device.Workspace(run.Bytes);
        SumSlabs(DType.F32, run, 0, run.Heads, decay!.Pointer, TermCount.Once, sums);
        Launch(
            BlockDecayFile, "decay_weights_running", DType.F32, LaunchShape.For(run.Count, BlockThreads),
            decay.Pointer, PointerOrNull(between), sums, run.Tokens, run.Heads, run.Width, end, run.SlabTokens, run.Slabs, run.Count, weights.Pointer);
    }

    public void AddDecayPaths(Tensor x, Tensor dx, bool fromEntry, Tensor dDecay)
    {
        Shape shape = dx.Shape, decay = dDecay.Shape;
        bool fits = x.Shape.Rank == 4 && shape.Rank == 4 && x.Shape[2] > 0 && shape[2] % x.Shape[2] == 0 && x.Shape == [shape[0], shape[1], x.Shape[2], shape[3]]
            && (decay == shape || decay == [shape[0], shape[1], shape[2]] || decay == [shape[2]]);
        if (!fits) throw new LaspException($"paths of x {x.Shape} with dx {shape} cannot be added to a decay's gradient of shape {decay}: expected [B,N,Hx,D], [B,N,H,D] and [H], [B,N,H] or [B,N,H,D]");
        RequireElement(x);
        RequireType(dx, DType.F32);
        RequireType(dDecay, DType.F32);
        if (decay.Rank == 4) AddRunningPaths(x.DType, DecaySums.Of(shape), x.Pointer, x.Shape[2], dx.Pointer, fromEntry, dDecay, _device.Workspace(DecaySums.Of(shape).Bytes));
        else AddHeadPaths(x, dx, fromEntry, dDecay);
    }

    /// <summary>A decay without channels: the products are summed over the channels first.</summary>
    private void AddHeadPaths(Tensor x, Tensor dx, bool fromEntry, Tensor dDecay)
    {
        var run = new DecaySums(dx.Shape[0], dx.Shape[1], dx.Shape[2], 1);
        long products = run.Batches * run.Tokens * run.Heads;
        nint sums = _device.Workspace(run.Bytes + (products * sizeof(float))), terms = sums + (nint)run.Bytes;
        Launch(BlockDecayFile, "decay_path_products", x.DType, PerWarp(products), x.Pointer, dx.Pointer, run.Heads, x.Shape[2], dx.Shape[3], products, terms);
        if (dDecay.Shape.Rank == 3)
        {
            AddRunningPaths(x.DType, run, 0, run.Heads, terms, fromEntry, dDecay, sums);
            return;
        }
        SumSlabs(x.DType, run, 0, run.Heads, terms, fromEntry ? TermCount.FromEntry : TermCount.ToEnd, sums);
        Launch(BlockDecayFile, "decay_paths_per_head", x.DType, Blocks(run.Heads, WarpThreads), sums, run.Batches * run.Slabs, run.Heads, dDecay.Pointer);
    }

    private void AddRunningPaths(DType element, DecaySums run, nint x, long xHeads, nint y, bool fromEntry, Tensor dDecay, nint sums)
    {
        SumSlabs(element, run, x, xHeads, y, TermCount.Once, sums);
        Launch(
            BlockDecayFile, "decay_paths_running", element, LaunchShape.For(run.Count, BlockThreads),
            x, y, sums, run.Tokens, run.Heads, xHeads, run.Width, fromEntry ? 1 : 0, run.SlabTokens, run.Slabs, run.Count, dDecay.Pointer);
    }

    private void SumSlabs(DType element, DecaySums run, nint x, long xHeads, nint y, TermCount counted, nint sums) =>
        Launch(
            BlockDecayFile, "decay_slab_sums", element, LaunchShape.For(run.Count, BlockThreads),
            x, y, run.Tokens, run.Heads, xHeads, run.Width, (int)counted, run.SlabTokens, run.Slabs, run.Count, sums);
}
