using System.Numerics;

namespace LaspNative.Runtime.Cpu;

/// <summary>
/// Rows times one state per head, y = scale x S or scale x S^T: linear attention without mask or decay. Where y has fewer heads than the state, the query heads of a group are summed in order.
/// </summary>
internal sealed unsafe partial class CpuBackend
{
    public void ApplyState(Tensor x, Tensor state, bool transpose, double scale, Tensor y)
    {
        (long d, long e) = transpose ? (state.Shape[3], state.Shape[2]) : (state.Shape[2], state.Shape[3]);
        (long batches, long tokens, long heads) = (state.Shape[0], x.Shape[1], state.Shape[1]);
        bool fits = x.Shape == new Shape([batches, tokens, x.Shape[2], d]) && y.Shape == new Shape([batches, tokens, y.Shape[2], e]);
        if (!fits || x.Shape[2] == 0 || y.Shape[2] == 0 || heads % x.Shape[2] != 0 || heads % y.Shape[2] != 0)
            throw new LaspException($"cannot apply the state {state.Shape}{(transpose ? ", transposed," : "")} to {x.Shape} giving {y.Shape}: expected [B,H,D,E], [B,N,Hx,D] and [B,N,Hy,E] with Hx and Hy dividing H");
        RequireType(y, x.DType);
        RequireType(state, x.DType.Accumulator());
        ForEach(batches * y.Shape[2], task =>
        {
            (long batch, long head) = Math.DivRem(task, y.Shape[2]);
            if (x.DType == DType.F64) ApplyState<double, double>(x, state, transpose, scale, y, batch, head);
            else if (x.DType == DType.F32) ApplyState<float, float>(x, state, transpose, scale, y, batch, head);
            else ApplyState<BF16, float>(x, state, transpose, scale, y, batch, head);
        });
    }

    private static void ApplyState<T, A>(Tensor x, Tensor state, bool transpose, double scale, Tensor y, long batch, long outputHead)
        where T : unmanaged where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        const int length = 64;
        (int d, int e) = ((int)x.Shape[3], (int)y.Shape[3]);
        long tokens = x.Shape[1], heads = state.Shape[1], group = heads / y.Shape[2], sharing = heads / x.Shape[2];
        using Workspace scratch = Workspace.Rent<A>(length * (long)(d + e));
        A* inputs = scratch.Take<A>(length * (long)d), outputs = scratch.Take<A>(length * (long)e);
        for (long start = 0; start < tokens; start += length)
        {
            int count = (int)Math.Min(length, tokens - start);
            for (long member = 0; member < group; member++)
            {
                long head = (outputHead * group) + member;
                HeadRows<T>.Of(x, batch, head / sharing).Gather(start, count, inputs);
                A* s = (A*)state.Pointer + (((batch * heads) + head) * d * e);
                MatrixProduct.Dense(inputs, false, s, transpose, count, e, d, A.CreateTruncating(scale), member == 0 ? A.Zero : A.One, outputs);
            }
            HeadRows<T>.Of(y, batch, outputHead).Scatter(outputs, start, count);
        }
    }
}
