using System.Numerics;
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace LaspNative.Runtime.Cpu;

/// <summary>One AdamW step in one pass over gradient, moments, master weights and the parameter that rounds them; and the factor by which gradients are clipped.</summary>
internal sealed unsafe partial class CpuBackend
{
    public void ClipFactor(Tensor squaredNorm, Tensor loss, double bound, Tensor factor)
    {
        RequireScalar(factor, factor.DType);
        RequireScalar(squaredNorm, factor.DType);
        RequireScalar(loss, factor.DType);
        double squares = Scalar(squaredNorm), norm = Math.Sqrt(squares);
        bool isFinite = double.IsFinite(squares) && double.IsFinite(Scalar(loss));
        SetScalar(factor, !isFinite ? double.NaN : bound == 0 || norm <= bound ? 1 : bound / norm);
    }

    public void AdamW(ReadOnlySpan<AdamWRow> rows, in AdamWStep step, Tensor? gradientScale)
    {
        double scale = gradientScale is null ? 1 : Scalar(gradientScale);
        foreach (ref readonly AdamWRow row in rows)
        {
            RequireSame(row.Master, row.M);
            RequireSame(row.Master, row.V);
            RequireSameCount(row.Master, row.Gradient);
            RequireSameCount(row.Master, row.Parameter);
            RequireType(row.Master, row.Parameter.DType.Accumulator());
            if (row.Gradient.DType != DType.BF16) RequireType(row.Gradient, row.Master.DType);
            if (double.IsNaN(scale)) continue;
            switch (row.Parameter.DType, row.Gradient.DType)
            {
                case (DType.F64, DType.F64): AdamW<double, double, double>(row, step, scale); break;
                case (DType.F32, DType.F32): AdamW<float, float, float>(row, step, scale); break;
                case (DType.F32, DType.BF16): AdamW<BF16, float, float>(row, step, scale); break;
                case (DType.BF16, DType.F32): AdamW<float, BF16, float>(row, step, scale); break;
                case (DType.BF16, DType.BF16): AdamW<BF16, BF16, float>(row, step, scale); break;
                default: throw new LaspException($"AdamW takes no gradient of {row.Gradient.DType} for a parameter of {row.Parameter.DType}");
            }
        }
    }

    private void AdamW<G, T, A>(in AdamWRow row, in AdamWStep step, double scale)
        where G : unmanaged where T : unmanaged where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        var weights = new AdamWWeights<G, T, A>(row, new AdamWUpdate<A>(step, row.WeightDecay, scale));
        if (row.Master.Count <= Grain) weights.Step(0, row.Master.Count);
        else AdamW(row.Master.Count, weights);
    }

    private void AdamW<G, T, A>(long count, AdamWWeights<G, T, A> weights)
        where G : unmanaged where T : unmanaged where A : unmanaged, IBinaryFloatingPointIeee754<A> => ForRanges(count, Grain, (start, length) => weights.Step(start, start + length));

    /// <summary>The tensors of one parameter.</summary>
    private readonly struct AdamWWeights<G, T, A>(in AdamWRow row, in AdamWUpdate<A> update)
        where G : unmanaged where T : unmanaged where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        private readonly AdamWUpdate<A> _update = update;
        private readonly G* _gradient = (G*)row.Gradient.Pointer;
        private readonly A* _m = (A*)row.M.Pointer;
        private readonly A* _v = (A*)row.V.Pointer;
        private readonly A* _master = (A*)row.Master.Pointer;
        private readonly T* _parameter = (T*)row.Parameter.Pointer;

        /// <summary>Weights [start, end).</summary>
        public void Step(long start, long end)
        {
            long i = start;
            for (; i <= end - Vector512<A>.Count; i += Vector512<A>.Count) StepVector(i, Vector512<A>.Count);
            if (i < end) StepVector(i, end - i);
        }

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        private void StepVector(long i, long count)
        {
            Vector512<A> moment = Element.Load<A, A>(_m + i, count), square = Element.Load<A, A>(_v + i, count), weight = Element.Load<A, A>(_master + i, count);
            _update.Apply(Element.Load<G, A>(_gradient + i, count), ref moment, ref square, ref weight);
            Element.Store(moment, _m + i, count);
            Element.Store(square, _v + i, count);
            Element.Store(weight, _master + i, count);
            Element.Store(weight, _parameter + i, count);
        }
    }

    private readonly struct AdamWUpdate<A>(in AdamWStep step, double weightDecay, double gradientScale) where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        private readonly A _scale = A.CreateTruncating(gradientScale);
        private readonly A _beta1 = A.CreateTruncating(step.Beta1);
        private readonly A _rest1 = A.CreateTruncating(1 - step.Beta1);
        private readonly A _beta2 = A.CreateTruncating(step.Beta2);
        private readonly A _rest2 = A.CreateTruncating(1 - step.Beta2);
        private readonly A _correction1 = A.CreateTruncating(1 / (1 - Math.Pow(step.Beta1, step.Step)));
        private readonly A _correction2 = A.CreateTruncating(1 / (1 - Math.Pow(step.Beta2, step.Step)));
        private readonly A _epsilon = A.CreateTruncating(step.Epsilon);
        private readonly A _rate = A.CreateTruncating(step.LearningRate);
        private readonly A _decay = A.CreateTruncating(weightDecay);

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public void Apply(Vector512<A> gradient, ref Vector512<A> m, ref Vector512<A> v, ref Vector512<A> weight)
        {
            Vector512<A> g = gradient * _scale;
            m = (m * _beta1) + (g * _rest1);
            v = (v * _beta2) + (g * g * _rest2);
            Vector512<A> denominator = Vector512.Sqrt(v * _correction2) + Vector512.Create(_epsilon);
            weight -= _rate * ((m * _correction1 / denominator) + (weight * _decay));
        }
    }
}
