using LaspNative.Runtime;
using LaspNative.Runtime.Cuda;
using Xunit;

namespace LaspNative.Tests;

/// <summary>For tests that need hardware or libraries: they say by name why they did not run.</summary>
internal static class Gpu
{
    private static readonly Lazy<(bool Usable, string Reason)> s_usable = new(() => (SystemProbe.IsCudaUsable(out string reason), reason));
    private static readonly Lazy<int> s_count = new(() => SystemProbe.Run().Gpus.Count);

    /// <summary>Keep the primary contexts of the first GPUs alive between tests; creating one costs more than most of them.</summary>
    private static readonly List<CudaContext> s_contexts = [];

    public static bool IsAvailable => s_usable.Value.Usable;

    /// <summary>Skips the running test where there are fewer GPUs than it needs.</summary>
    public static void Require(int gpus = 1)
    {
        if (!IsAvailable) Assert.Skip($"skipped: no CUDA device ({s_usable.Value.Reason})");
        if (s_count.Value < gpus) Assert.Skip($"skipped: {gpus} CUDA devices needed, {s_count.Value} found");
        lock (s_contexts)
            while (s_contexts.Count < gpus) s_contexts.Add(CudaContext.OpenPrimary(s_contexts.Count));
    }

    /// <summary>Whether each of the first GPUs reads and writes every other's memory: then copy engines may carry messages.</summary>
    public static bool ReachOneAnother(int gpus) => Enumerable.Range(0, gpus * gpus).All(pair => pair / gpus == pair % gpus || CudaContext.CanAccess(pair / gpus, pair % gpus));

    /// <summary>As <see cref="Require"/>, also where copy engines cannot carry messages between them.</summary>
    public static void RequirePeers(int gpus)
    {
        Require(gpus);
        if (!ReachOneAnother(gpus)) Assert.Skip($"skipped: {gpus} CUDA devices that reach one another's memory needed");
    }

    /// <summary>Skips the running test where kernels cannot be compiled; no GPU is needed for that.</summary>
    public static void RequireCompiler()
    {
        LibraryReport nvrtc = SystemProbe.Run().Nvrtc;
        if (!nvrtc.Usable) Assert.Skip($"skipped: no NVRTC ({nvrtc.Problem})");
    }

    /// <summary>GPU 0, or a skipped test.</summary>
    public static CudaDevice Open()
    {
        Require();
        return (CudaDevice)Device.Open("cuda:0");
    }
}
