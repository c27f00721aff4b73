using System.Numerics;

namespace LaspNative.Runtime.Cpu;

/// <summary>
/// What the decay does to left products between runs: the weights of tokens towards a run's edges, and the gradient of the log decay along the paths that
/// cross an edge. Both are running sums over the whole run, so they are kept in fp64.
/// </summary>
internal sealed unsafe partial class CpuBackend
{
    public void DecayWeights(Tensor? decay, bool toEnd, Tensor? between, Tensor weights)
    {
        Shape shape = weights.Shape;
        bool perChannel = shape.Rank == 4;
        Shape edge = perChannel ? [shape[0], shape[2], shape[3]] : [shape[0], shape[2]];
        bool fits = shape.Rank is 3 or 4 && (between is null || between.Shape == edge)
            && (decay is null || (decay.Shape.Rank == 1 ? !perChannel && decay.Shape[0] == shape[2] : decay.Shape == shape));
        if (!fits) throw new LaspException($"a decay of shape {decay?.Shape.ToString() ?? "none"} and factors of shape {between?.Shape.ToString() ?? "none"} do not fit weights of shape {shape}");
        if (decay is not null) RequireType(decay, weights.DType);
        if (between is not null) RequireType(between, weights.DType);
        if (weights.DType == DType.F64) DecayWeights<double>(decay, toEnd, between, weights);
        else DecayWeights<float>(decay, toEnd, between, weights);
    }

    private void DecayWeights<A>(Tensor? decay, bool toEnd, Tensor? between, Tensor weights) where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        long batches = weights.Shape[0], tokens = weights.Shape[1], columns = weights.Shape[2] * (weights.Shape.Rank == 4 ? weights.Shape[3] : 1);
        bool perToken = decay is { Shape.Rank: > 1 };
        A* g = decay is null ? null : (A*)decay.Pointer, factors = between is null ? null : (A*)between.Pointer, result = (A*)weights.Pointer;
        ForEach(batches * columns, task =>
        {
            (long batch, long column) = Math.DivRem(task, columns);
            double factor = factors is null ? 1 : double.CreateTruncating(factors[task]), sum = 0;
            for (long n = 0; n < tokens; n++)
            {
                long at = (((batch * tokens) + (toEnd ? tokens - 1 - n : n)) * columns) + column;
                double own = g is null ? 0 : double.CreateTruncating(g[perToken ? at : column]);
                if (!toEnd) sum += own; // the decay of token i acts before the token is added: it counts from the entry, not towards the end
                result[at] = A.CreateTruncating(factor * Math.Exp(sum));
                if (toEnd) sum += own;
            }
        });
    }

    public void AddDecayPaths(Tensor x, Tensor dx, bool fromEntry, Tensor dDecay)
    {
        Shape gradient = dx.Shape, decay = dDecay.Shape;
        bool fits = x.Shape.Rank == 4 && gradient.Rank == 4 && x.Shape[2] > 0 && gradient[2] % x.Shape[2] == 0 && x.Shape == [gradient[0], gradient[1], x.Shape[2], gradient[3]]
            && (decay == gradient || decay == [gradient[0], gradient[1], gradient[2]] || decay == [gradient[2]]);
        if (!fits) throw new LaspException($"paths of x {x.Shape} with dx {gradient} cannot be added to a decay's gradient of shape {decay}: expected [B,N,Hx,D], [B,N,H,D] and [H], [B,N,H] or [B,N,H,D]");
        RequireType(dx, x.DType.Accumulator());
        RequireType(dDecay, dx.DType);
        if (x.DType == DType.F64) AddDecayPaths<double, double>(x, dx, fromEntry, dDecay);
        else if (x.DType == DType.F32) AddDecayPaths<float, float>(x, dx, fromEntry, dDecay);
        else AddDecayPaths<BF16, float>(x, dx, fromEntry, dDecay);
    }

    private void AddDecayPaths<T, A>(Tensor x, Tensor dx, bool fromEntry, Tensor dDecay) where T : unmanaged where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        long batches = dx.Shape[0], heads = dx.Shape[2], group = heads / x.Shape[2];
        A* result = (A*)dDecay.Pointer;
        ForEach(heads, head =>
        {
            double total = 0; // of a decay per head
            for (long batch = 0; batch < batches; batch++)
            {
                var paths = new PathRows<T, A>(HeadRows<T>.Of(x, batch, head / group), HeadRows<A>.Of(dx, batch, head), dx.Shape[1]);
                if (dDecay.Shape.Rank == 4)
                    for (int d = 0; d < paths.Width; d++) paths.AddRunning(d, 1, fromEntry, result + (((batch * paths.Tokens * heads) + head) * paths.Width) + d, heads * paths.Width);
                else if (dDecay.Shape.Rank == 3) paths.AddRunning(0, paths.Width, fromEntry, result + (batch * paths.Tokens * heads) + head, heads);
                else total += paths.SumOfRunning(fromEntry);
            }
            if (dDecay.Shape.Rank == 1) result[head] += A.CreateTruncating(total);
        });
    }

    /// <summary>The products x_i . dx_i of one head.</summary>
    private readonly struct PathRows<T, A>(HeadRows<T> x, HeadRows<A> dx, long tokens) where T : unmanaged where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        public long Tokens => tokens;

        public int Width => dx.Width;

        /// <summary>target_n += sum_{i>=n} (from the entry) or sum_{j&lt;n} (towards the end) of the products over channels [first, first + count); targets lie a stride apart.</summary>
        public void AddRunning(int first, int count, bool fromEntry, A* target, long stride)
        {
            double sum = 0;
            for (long n = 0; n < tokens; n++)
            {
                long at = fromEntry ? tokens - 1 - n : n;
                double own = Product(at, first, count);
                if (fromEntry) sum += own;
                target[at * stride] += A.CreateTruncating(sum);
                if (!fromEntry) sum += own;
            }
        }

        /// <summary>The sum of those running sums over all positions: a product counts once per position that its path crosses.</summary>
        public double SumOfRunning(bool fromEntry)
        {
            double sum = 0;
            for (long n = 0; n < tokens; n++) sum += (fromEntry ? n + 1 : tokens - 1 - n) * Product(n, 0, dx.Width);
            return sum;
        }

        private double Product(long token, int first, int count)
        {
            T* a = x.Data + (token * x.Stride) + first;
            A* b = dx.Data + (token * dx.Stride) + first;
            double sum = 0;
            for (int d = 0; d < count; d++) sum += double.CreateTruncating(Element.Widen<T, A>(a[d])) * double.CreateTruncating(b[d]);
            return sum;
        }
    }
}
