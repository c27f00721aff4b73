namespace LaspNative.Runtime.Cuda;

/// <summary>The optimizer's step (adamw.cu).</summary>
internal sealed partial class CudaBackend
{
    public void AdamW(Tensor gradient, in AdamWStep step, Tensor m, Tensor v, Tensor master, Tensor parameter)
    {
        RequireType(gradient, DType.F32);
        RequireSame(gradient, m);
        RequireSame(gradient, v);
        RequireSame(gradient, master);
        RequireSameCount(gradient, parameter);
        RequireElement(parameter);
        double correction1 = 1 / (1 - Math.Pow(step.Beta1, step.Step)), correction2 = 1 / (1 - Math.Pow(step.Beta2, step.Step));
        Launch(
            "adamw", "adamw", parameter.DType, PerPack(gradient.Count),
            gradient.Pointer, (float)step.LearningRate, (float)(1 - step.Beta1), (float)(1 - step.Beta2), (float)step.Epsilon, (float)step.WeightDecay,
            (float)correction1, (float)correction2, (float)step.GradientScale, gradient.Count, m.Pointer, v.Pointer, master.Pointer, parameter.Pointer);
    }
}
