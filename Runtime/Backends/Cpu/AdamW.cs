using System.Numerics;
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace LaspNative.Runtime.Cpu;

/// <summary>One AdamW step in one pass over gradient, moments, master weights and the parameter that rounds them.</summary>
internal sealed unsafe partial class CpuBackend
{
    public void AdamW(Tensor gradient, in AdamWStep step, Tensor m, Tensor v, Tensor master, Tensor parameter)
    {
        RequireSame(master, gradient);
        RequireSame(master, m);
        RequireSame(master, v);
        RequireSameCount(master, parameter);
        RequireType(master, parameter.DType.Accumulator());
        if (parameter.DType == DType.F64) AdamW<double, double>(gradient, step, m, v, master, parameter);
        else if (parameter.DType == DType.F32) AdamW<float, float>(gradient, step, m, v, master, parameter);
        else AdamW<BF16, float>(gradient, step, m, v, master, parameter);
    }

    private void AdamW<T, A>(Tensor gradient, in AdamWStep step, Tensor m, Tensor v, Tensor master, Tensor parameter)
        where T : unmanaged where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        A* pg = (A*)gradient.Pointer, pm = (A*)m.Pointer, pv = (A*)v.Pointer, pw = (A*)master.Pointer;
        T* pp = (T*)parameter.Pointer;
        var update = new AdamWUpdate<A>(step);
        ForRanges(master.Count, Grain, (start, length) =>
        {
            long i = start, end = start + length;
            for (; i <= end - Vector512<A>.Count; i += Vector512<A>.Count) Step(i, Vector512<A>.Count);
            if (i < end) Step(i, end - i);
        });

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        void Step(long i, long count)
        {
            Vector512<A> moment = Element.Load<A, A>(pm + i, count), square = Element.Load<A, A>(pv + i, count), weight = Element.Load<A, A>(pw + i, count);
            update.Apply(Element.Load<A, A>(pg + i, count), ref moment, ref square, ref weight);
            Element.Store(moment, pm + i, count);
            Element.Store(square, pv + i, count);
            Element.Store(weight, pw + i, count);
            Element.Store(weight, pp + i, count);
        }
    }

    private readonly struct AdamWUpdate<A>(in AdamWStep step) where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        private readonly A _scale = A.CreateTruncating(step.GradientScale);
        private readonly A _beta1 = A.CreateTruncating(step.Beta1);
        private readonly A _rest1 = A.CreateTruncating(1 - step.Beta1);
        private readonly A _beta2 = A.CreateTruncating(step.Beta2);
        private readonly A _rest2 = A.CreateTruncating(1 - step.Beta2);
        private readonly A _correction1 = A.CreateTruncating(1 / (1 - Math.Pow(step.Beta1, step.Step)));
        private readonly A _correction2 = A.CreateTruncating(1 / (1 - Math.Pow(step.Beta2, step.Step)));
        private readonly A _epsilon = A.CreateTruncating(step.Epsilon);
        private readonly A _rate = A.CreateTruncating(step.LearningRate);
        private readonly A _decay = A.CreateTruncating(step.WeightDecay);

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
