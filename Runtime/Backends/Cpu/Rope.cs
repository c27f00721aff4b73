using System.Numerics;
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace LaspNative.Runtime.Cpu;

/// <summary>Rotary position embedding, alone or after the feature map. The angles of a token are computed once, in fp64, and turn all its heads of all batches.</summary>
internal sealed unsafe partial class CpuBackend
{
    public void Rope(Tensor x, long firstPosition, double theta, bool inverse, Tensor y) => Rotate(x, null, new Rotation(firstPosition, theta, inverse, Silu: false), y);

    public void SiluRope(Tensor x, long firstPosition, double theta, Tensor y) => Rotate(x, null, new Rotation(firstPosition, theta, Inverse: false, Silu: true), y);

    public void SiluRopeBackward(Tensor x, Tensor dy, long firstPosition, double theta, Tensor dx) => Rotate(dy, x, new Rotation(firstPosition, theta, Inverse: true, Silu: true), dx);

    private readonly record struct Rotation(long FirstPosition, double Theta, bool Inverse, bool Silu);

    /// <summary>y = R x, R silu(x), or with <paramref name="mapped"/>, what silu was applied to: silu'(mapped) * R x.</summary>
    private void Rotate(Tensor x, Tensor? mapped, Rotation rotation, Tensor y)
    {
        RequireSame(x, y);
        if (mapped is not null) RequireSame(x, mapped);
        if (x.Shape.Rank != 4 || x.Shape[3] % 2 != 0) throw new LaspException($"rotary embedding takes [B,N,H,D] with D even, got {x.Shape}");
        if (x.DType == DType.F64) Rotate<double, double>(x, mapped, rotation, y);
        else if (x.DType == DType.F32) Rotate<float, float>(x, mapped, rotation, y);
        else Rotate<BF16, float>(x, mapped, rotation, y);
    }

    private void Rotate<T, A>(Tensor x, Tensor? mapped, Rotation rotation, Tensor y)
        where T : unmanaged where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        T* px = (T*)x.Pointer, py = (T*)y.Pointer, pm = PointerOrNull<T>(mapped);
        long batches = x.Shape[0], tokens = x.Shape[1], heads = x.Shape[2];
        int half = (int)(x.Shape[3] / 2);
        ForRanges(tokens, Math.Max(1, Grain / Math.Max(1, batches * heads * half)), (start, length) =>
        {
            using Workspace scratch = Workspace.Rent<double>(3L * half);
            double* frequencies = scratch.Take<double>(half);
            A* cosines = scratch.Take<A>(half), sines = scratch.Take<A>(half);
            for (int d = 0; d < half; d++) frequencies[d] = Math.Pow(rotation.Theta, -(double)d / half);
            for (long n = start; n < start + length; n++)
            {
                FillAngles(rotation.FirstPosition + n, frequencies, rotation.Inverse, half, cosines, sines);
                for (long batch = 0; batch < batches; batch++)
                {
                    long token = ((batch * tokens) + n) * heads;
                    for (long row = token; row < token + heads; row++)
                    {
                        long at = row * 2 * half;
                        Rotate(px + at, pm is null ? null : pm + at, rotation.Silu, cosines, sines, half, py + at);
                    }
                }
            }
        });
    }

    private static void FillAngles<A>(long position, double* frequencies, bool inverse, int half, A* cosines, A* sines)
        where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        for (int d = 0; d < half; d++)
        {
            (double sine, double cosine) = Math.SinCos(position * frequencies[d]);
            cosines[d] = A.CreateTruncating(cosine);
            sines[d] = A.CreateTruncating(inverse ? -sine : sine);
        }
    }

    private static void Rotate<T, A>(T* x, T* mapped, bool silu, A* cosines, A* sines, int half, T* y) where T : unmanaged where A : unmanaged
    {
        int d = 0;
        for (; d <= half - Vector512<A>.Count; d += Vector512<A>.Count) Step(d, Vector512<A>.Count);
        if (d < half) Step(d, half - d);

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        void Step(int at, int count)
        {
            Vector512<A> c = Element.Load<A, A>(cosines + at, count), s = Element.Load<A, A>(sines + at, count);
            Vector512<A> left = Element.Load<T, A>(x + at, count), right = Element.Load<T, A>(x + half + at, count);
            if (silu && mapped is null) (left, right) = (left * VectorMath.Sigmoid(left), right * VectorMath.Sigmoid(right));
            (left, right) = ((left * c) - (right * s), (left * s) + (right * c));
            if (mapped is not null)
            {
                left *= VectorMath.SiluDerivative(Element.Load<T, A>(mapped + at, count));
                right *= VectorMath.SiluDerivative(Element.Load<T, A>(mapped + half + at, count));
            }
            Element.Store(left, y + at, count);
            Element.Store(right, y + half + at, count);
        }
    }
}
