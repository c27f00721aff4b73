using LaspNative.Runtime.Cuda;

namespace LaspNative.Perf;

/// <summary>What a step's time is divided into.</summary>
internal enum KernelFamily
{
    MatrixProducts,
    LinearAttention,
    SoftmaxAttention,
    Elementwise,
    Loss,
    Optimizer,
    Copies,

    /// <summary>On a stream of their own, beside all the others.</summary>
    Messages,
}

/// <summary>Kernels belong to a family by the file they come from.</summary>
internal static class KernelFamilies
{
    /// <summary>Time in which the compute stream stands waiting for messages.</summary>
    public const string Waiting = "exposed communication";

    public const string MessagesName = "(messages, beside the above)";

    /// <summary>What is left of the step: nothing was queued, or what no observer sees, such as clearing memory.</summary>
    public const string Idle = "idle, host, gaps";

    public static KernelFamily Of(CudaKernel kernel) => kernel.File switch
    {
        "adamw.cu" => KernelFamily.Optimizer,
        "reductions.cu" when kernel.Name == "add_squaring" => KernelFamily.Elementwise, // sums of gradients over ranks
        "reductions.cu" => KernelFamily.Optimizer, // the gradient's norm; the loss takes one launch
        _ when kernel.File.StartsWith("cross_entropy", StringComparison.Ordinal) => KernelFamily.Loss,
        "states.cu" or "apply_state.cu" => KernelFamily.LinearAttention,
        _ when kernel.File.StartsWith("linear_attention", StringComparison.Ordinal) => KernelFamily.LinearAttention,
        _ when kernel.File.StartsWith("softmax", StringComparison.Ordinal) => KernelFamily.SoftmaxAttention,
        _ => KernelFamily.Elementwise,
    };

    public static KernelFamily OfOther(string name) => name.StartsWith("gemm", StringComparison.Ordinal) ? KernelFamily.MatrixProducts : KernelFamily.Copies;

    public static string NameOf(KernelFamily family) => family switch
    {
        KernelFamily.MatrixProducts => "GEMM",
        KernelFamily.LinearAttention => "linear attention",
        KernelFamily.SoftmaxAttention => "softmax attention",
        KernelFamily.Elementwise => "element-wise and norms",
        KernelFamily.Loss => "loss (without its GEMMs)",
        KernelFamily.Optimizer => "optimizer and gradient norm",
        KernelFamily.Copies => "copies",
        _ => MessagesName,
    };
}
