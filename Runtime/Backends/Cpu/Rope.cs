using System.Numerics;
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace LaspNative.Runtime.Cpu;

/// <summary>Rotary position embedding. The angles of a token are computed once, in fp64, and turn all its heads of all batches.</summary>
internal sealed unsafe partial class CpuBackend
{
    public void Rope(Tensor x, long firstPosition, double theta, bool inverse, Tensor y)
    {
        RequireSame(x, y);
        if (x.Shape.Rank != 4 || x.Shape[3] % 2 != 0) throw new LaspException($"rotary embedding takes [B,N,H,D] with D even, got {x.Shape}");
        if (x.DType == DType.F64) Rope<double, double>(x, firstPosition, theta, inverse, y);
        else if (x.DType == DType.F32) Rope<float, float>(x, firstPosition, theta, inverse, y);
        else Rope<BF16, float>(x, firstPosition, theta, inverse, y);
    }

    private void Rope<T, A>(Tensor x, long firstPosition, double theta, bool inverse, Tensor y)
        where T : unmanaged where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        T* px = (T*)x.Pointer, py = (T*)y.Pointer;
        long batches = x.Shape[0], tokens = x.Shape[1], heads = x.Shape[2];
        int half = (int)(x.Shape[3] / 2);
        ForRanges(tokens, Math.Max(1, Grain / Math.Max(1, batches * heads * half)), (start, length) =>
        {
            using Workspace scratch = Workspace.Rent<double>(3L * half);
            double* frequencies = scratch.Take<double>(half);
            A* cosines = scratch.Take<A>(half), sines = scratch.Take<A>(half);
            for (int d = 0; d < half; d++) frequencies[d] = Math.Pow(theta, -(double)d / half);
            for (long n = start; n < start + length; n++)
            {
                FillAngles(firstPosition + n, frequencies, inverse, half, cosines, sines);
                for (long batch = 0; batch < batches; batch++)
                {
                    long token = ((batch * tokens) + n) * heads;
                    for (long row = token; row < token + heads; row++) Rotate(px + (row * 2 * half), cosines, sines, half, py + (row * 2 * half));
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

    private static void Rotate<T, A>(T* x, A* cosines, A* sines, int half, T* y) where T : unmanaged where A : unmanaged
    {
        int d = 0;
        for (; d <= half - Vector512<A>.Count; d += Vector512<A>.Count) Step(d, Vector512<A>.Count);
        if (d < half) Step(d, half - d);

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        void Step(int at, int count)
        {
            Vector512<A> c = Element.Load<A, A>(cosines + at, count), s = Element.Load<A, A>(sines + at, count);
            Vector512<A> left = Element.Load<T, A>(x + at, count), right = Element.Load<T, A>(x + half + at, count);
            Element.Store((left * c) - (right * s), y + at, count);
            Element.Store((left * s) + (right * c), y + half + at, count);
        }
    }
}
