namespace LaspNative.Runtime.Cuda;

/// <summary>Rotary position embedding, alone or after the feature map (rope.cu).</summary>
internal sealed partial class CudaBackend
{
    private const string RopeFile = "rope";

    /// <summary>TOKENS and PAIRS of rope.cu: what a block makes its table of angles for.</summary>
    private const long RopeTokens = 8;
    private const long RopePairs = 128;

    public void Rope(Tensor x, long firstPosition, double theta, bool inverse, Tensor y)
    {
        LaunchShape shape = RopeShape(x, y);
        Launch(RopeFile, "rope", x.DType, shape, x.Pointer, x.Shape[1], x.Shape[2], x.Shape[3], firstPosition, Math.Log2(theta), inverse ? 1 : 0, y.Pointer);
    }

    public void SiluRope(Tensor x, long firstPosition, double theta, Tensor y)
    {
        LaunchShape shape = RopeShape(x, y);
        Launch(RopeFile, "silu_rope_fwd", x.DType, shape, x.Pointer, x.Shape[1], x.Shape[2], x.Shape[3], firstPosition, Math.Log2(theta), y.Pointer);
    }

    public void SiluRopeBackward(Tensor x, Tensor dy, long firstPosition, double theta, Tensor dx)
    {
        RequireSame(x, dy);
        LaunchShape shape = RopeShape(x, dx);
        Launch(RopeFile, "silu_rope_bwd", x.DType, shape, x.Pointer, dy.Pointer, x.Shape[1], x.Shape[2], x.Shape[3], firstPosition, Math.Log2(theta), dx.Pointer);
    }

    private static LaunchShape RopeShape(Tensor x, Tensor y)
    {
        RequireElement(x);
        RequireSame(x, y);
        if (x.Shape.Rank != 4 || x.Shape[3] % 2 != 0) throw new LaspException($"rotary embedding takes [B, N, H, D] with an even D, got {x.Shape}");
        return new LaunchShape(
            checked((uint)CeilDivide(x.Shape[1], RopeTokens)), checked((uint)CeilDivide(x.Shape[3] / 2, RopePairs)), checked((uint)x.Shape[0]), BlockThreads);
    }
}
