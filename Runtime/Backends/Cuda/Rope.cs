namespace LaspNative.Runtime.Cuda;

/// <summary>Rotary position embedding (rope.cu).</summary>
internal sealed partial class CudaBackend
{
    public void Rope(Tensor x, long firstPosition, double theta, bool inverse, Tensor y)
    {
        RequireElement(x);
        RequireSame(x, y);
        if (x.Shape.Rank != 4 || x.Shape[3] % 2 != 0) throw new LaspException($"rotary embedding takes [B, N, H, D] with an even D, got {x.Shape}");
        long batches = x.Shape[0], tokens = x.Shape[1], heads = x.Shape[2], width = x.Shape[3];
        Launch(
            "rope", "rope", x.DType, LaunchShape.For(batches * tokens * (width / 2), BlockThreads),
            x.Pointer, batches, tokens, heads, width, firstPosition, theta, inverse ? 1 : 0, y.Pointer);
    }
}
