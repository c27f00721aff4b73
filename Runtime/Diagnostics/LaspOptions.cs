namespace LaspNative.Runtime;

/// <summary>
/// Every environment variable that the library reads, in one place. Read once, at first use.
/// </summary>
/// <param name="Debug">LASP_DEBUG=1: stack traces on errors.</param>
/// <param name="TraceAllocations">LASP_TRACE_ALLOCATIONS=1: keep the call stack of every live allocation, to name leaks.</param>
/// <param name="KernelCache">LASP_KERNEL_CACHE=DIR: where compiled kernels (until nobody has used them for 30 days) and the fastest algorithms of matrix products are kept; "off" keeps none. Default: the user's cache folder.</param>
/// <param name="GemmTuning">LASP_GEMM_TUNING=0: large matrix products take the algorithm that cuBLASLt's heuristic names, not the fastest of several as measured at their first use.</param>
/// <param name="NvrtcPath">LASP_NVRTC=FILE: the NVRTC library to load instead of the versions searched for.</param>
/// <param name="OpenBlas">LASP_OPENBLAS=0: never use OpenBLAS, even when it is installed; =FILE: load this one.</param>
/// <param name="ForceSm80">LASP_FORCE_SM80=1: use the kernels for compute capability 8.0 on newer GPUs too.</param>
/// <param name="PeerCopies">LASP_PEER_COPIES=0: between GPUs of one process states travel through NCCL too, not by copy engines.</param>
/// <param name="PeerSums">LASP_PEER_SUMS=0: between GPUs of one process long gradients, and the parameters of ZeRO-1 and 2, travel through NCCL too, not by copy engines.</param>
/// <param name="Poison">LASP_POISON=1: fresh memory is filled with 0xFF bytes (NaN), so that reading what was never written shows. For tests.</param>
/// <param name="CudaHome">CUDA_HOME=DIR: a CUDA toolkit whose libraries are searched after the loader's own path.</param>
public sealed record LaspOptions(
    bool Debug, bool TraceAllocations, string? KernelCache, bool GemmTuning, string? NvrtcPath, string? OpenBlas, bool ForceSm80, bool PeerCopies, bool PeerSums, bool Poison, string? CudaHome)
{
    public static LaspOptions Current { get; } = FromEnvironment();

    private static LaspOptions FromEnvironment() => new(
        Flag("LASP_DEBUG"),
        Flag("LASP_TRACE_ALLOCATIONS"),
        Environment.GetEnvironmentVariable("LASP_KERNEL_CACHE"),
        !IsOff("LASP_GEMM_TUNING"),
        Environment.GetEnvironmentVariable("LASP_NVRTC"),
        Environment.GetEnvironmentVariable("LASP_OPENBLAS"),
        Flag("LASP_FORCE_SM80"),
        !IsOff("LASP_PEER_COPIES"),
        !IsOff("LASP_PEER_SUMS"),
        Flag("LASP_POISON"),
        Environment.GetEnvironmentVariable("CUDA_HOME"));

    private static bool IsOff(string name) => Environment.GetEnvironmentVariable(name) is "0" or "false";

    private static bool Flag(string name) => Environment.GetEnvironmentVariable(name) is "1" or "true";
}
