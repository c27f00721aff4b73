using LaspNative.Collectives;
using LaspNative.Runtime;
using LaspNative.Runtime.Cuda;

namespace LaspNative.Cli;

internal enum CheckStatus
{
    Passed,
    Failed,
    Skipped,
}

/// <summary>One thing that was tried, and what came of it in one line.</summary>
internal sealed record DoctorCheck(string Name, CheckStatus Status, string Detail);

/// <summary>What lasp doctor tries out: that kernels compile, that one computes what the CPU does, that GPUs can gather.</summary>
internal static class DoctorChecks
{
    private const int Count = 10_000;

    public static IReadOnlyList<DoctorCheck> Run(SystemReport system)
    {
        bool canCompute = SystemProbe.IsCudaUsable(out _);
        string? noGpu = canCompute ? null : "needs a usable GPU";
        string? noGroup = system.Gpus.Count < 2 ? "needs two GPUs" : system.Nccl.Usable ? null : "needs NCCL";
        return
        [
            Try("compile a kernel", system.Nvrtc.Usable ? null : "needs NVRTC", () => Compile(system)),
            Try("run a kernel", noGpu, Add),
            Try("all-gather", noGpu ?? noGroup, Gather),
        ];
    }

    private static DoctorCheck Try(string name, string? reasonToSkip, Func<string> action)
    {
        if (reasonToSkip is not null) return new DoctorCheck(name, CheckStatus.Skipped, reasonToSkip);
        try
        {
            return new DoctorCheck(name, CheckStatus.Passed, action());
        }
        catch (Exception e) when (!LaspOptions.Current.Debug)
        {
            return new DoctorCheck(name, CheckStatus.Failed, e.Message.ReplaceLineEndings(" "));
        }
    }

    /// <summary>For the GPU that is there, or for the oldest that is supported.</summary>
    private static string Compile(SystemReport system)
    {
        const string file = "elementwise.cu";
        string architecture = system.Gpus is [GpuReport gpu, ..] ? KernelCompiler.ArchitectureFor(gpu.ComputeCapability) : "sm_80";
        CompiledKernels kernels = KernelCompiler.Compile(file, KernelCompiler.DefinesFor(DType.F32), architecture);
        return $"{file} for {architecture}: {kernels.Image.Length} bytes{(kernels.FromCache ? ", from the kernel cache" : "")}";
    }

    private static string Add()
    {
        using Device device = Device.Open("cuda:0");
        float[] a = [.. Enumerable.Range(0, Count).Select(i => i * 0.25f)];
        float[] b = [.. Enumerable.Range(0, Count).Select(i => 1f / (i + 1))];
        using Tensor x = Tensor.FromSpan(a, [Count], device);
        using Tensor y = Tensor.FromSpan(b, [Count], device);
        using Tensor sum = Tensor.Empty([Count], DType.F32, device);
        device.Backend.Add(x, y, sum);
        float[] result = sum.ToArray<float>();
        int wrong = Enumerable.Range(0, Count).Count(i => result[i] != a[i] + b[i]);
        return wrong == 0 ? $"{Count} sums on {device.Name} equal the CPU's" : throw new LaspException($"{wrong} of {Count} sums on {device.Name} differ from the CPU's");
    }

    private static string Gather()
    {
        World.Run(new WorldOptions(DeviceKind.Cuda, Ranks: 2), rank =>
        {
            using Tensor own = Tensor.FromSpan(Enumerable.Repeat(rank.Rank + 1f, Count).ToArray(), [Count], rank.Device);
            using Tensor all = Tensor.Empty([2, Count], DType.F32, rank.Device);
            rank.World.AllGather(own, all).Wait();
            float[] result = all.ToArray<float>();
            int wrong = Enumerable.Range(0, 2 * Count).Count(i => result[i] != i / Count + 1);
            if (wrong > 0) throw new LaspException($"rank {rank.Rank} gathered {wrong} wrong values of {2 * Count}");
        });
        return $"2 GPUs exchanged {Count} values each";
    }
}
