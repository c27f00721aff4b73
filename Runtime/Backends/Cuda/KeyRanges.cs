namespace LaspNative.Runtime.Cuda;

/// <summary>The keys that queries see (key_ranges.cu).</summary>
internal sealed partial class CudaBackend
{
    private const string KeyRangesFile = "key_ranges";

    public void KeyRanges(Tensor? bounds, long tokens, long firstToken, bool causal, Tensor ranges)
    {
        RequireGpu(ranges);
        if (bounds is not null) RequireGpu(bounds);
        long count = KeyRangesExtents.Require(bounds, tokens, firstToken, ranges);
        if (count == 0) return;
        Launch(
            KeyRangesFile, "key_ranges", DType.F32, LaunchShape.For(count, BlockThreads), PointerOrNull(bounds), bounds is null ? 1 : bounds.Count - 1, tokens, firstToken, count, causal ? 1 : 0,
            ranges.Pointer);
    }
}
