using System.Globalization;
using LaspNative.Runtime.Cuda;
using LaspNative.Runtime.Interop;

namespace LaspNative.Runtime;

/// <summary>One native library: where it is, which version, or what to do about its absence.</summary>
/// <param name="Version">"13.0"; null when it is missing or would not say.</param>
/// <param name="Problem">Why it cannot be used; null when it can.</param>
public sealed record LibraryReport(NativeLibraryStatus Status, string? Version, string? Problem)
{
    public bool Usable => Problem is null;
}

/// <summary>One GPU that the driver shows.</summary>
public sealed record GpuReport(int Index, string Name, (int Major, int Minor) ComputeCapability, long MemoryBytes, int MultiprocessorCount);

/// <summary>What of CUDA this machine has.</summary>
/// <param name="DriverRelease">The kernel module's release, "580.159.03"; null when unknown.</param>
public sealed record SystemReport(LibraryReport Driver, string? DriverRelease, LibraryReport Nvrtc, LibraryReport CublasLt, LibraryReport Nccl, IReadOnlyList<GpuReport> Gpus);

/// <summary>Looks at the machine without computing on it: libraries, versions, GPUs. Never throws for what is missing.</summary>
public static class SystemProbe
{
    public static SystemReport Run()
    {
        LibraryReport driver = Library(NativeLibraries.Cuda, DriverVersion);
        return new SystemReport(
            driver,
            DriverRelease(),
            Library(NativeLibraries.Nvrtc, () => { (int major, int minor) = KernelCompiler.Version(); return $"{major}.{minor}"; }),
            Library(NativeLibraries.CublasLt, () => Dotted((long)Interop.CublasLt.cublasLtGetVersion())),
            Library(NativeLibraries.Nccl, NcclVersion),
            driver.Usable ? Gpus() : []);
    }

    /// <summary>Whether "cuda:0" can compute here: driver, a GPU of compute capability 8.0 or newer, NVRTC and cuBLASLt.</summary>
    /// <param name="reason">One line: what is missing and what to do; empty when nothing is.</param>
    public static bool IsCudaUsable(out string reason)
    {
        SystemReport report = Run();
        reason = report.Driver.Problem ?? NoGpu(report) ?? report.Nvrtc.Problem ?? report.CublasLt.Problem ?? "";
        return reason.Length == 0;
    }

    private static string? NoGpu(SystemReport report) => report.Gpus switch
    {
        [] => "the driver shows no GPU; check CUDA_VISIBLE_DEVICES and the container's GPU options",
        [{ ComputeCapability.Major: < 8 } gpu, ..] => $"{gpu.Name} has compute capability {gpu.ComputeCapability.Major}.{gpu.ComputeCapability.Minor}; 8.0 (Ampere) or newer is needed",
        _ => null,
    };

    private static LibraryReport Library(string name, Func<string> version)
    {
        NativeLibraryStatus status = NativeLibraries.Find(name);
        if (!status.Found) return new LibraryReport(status, null, status.Explanation);
        try
        {
            return new LibraryReport(status, version(), null);
        }
        catch (Exception e) when (e is LaspException or EntryPointNotFoundException)
        {
            return new LibraryReport(status, null, $"{status.Path} does not work: {e.Message}");
        }
    }

    /// <summary>The newest CUDA that the driver supports; initialises it, because a driver that loads may still refuse. A machine without a GPU is no fault of the driver's.</summary>
    private static string DriverVersion()
    {
        CUresult result = CudaContext.TryInitialize();
        if (result != CUresult.CUDA_ERROR_NO_DEVICE) result.Check("cuInit");
        CudaDriver.cuDriverGetVersion(out int version).Check();
        return $"{version / 1000}.{version % 1000 / 10}";
    }

    private static string NcclVersion()
    {
        Nccl.ncclGetVersion(out int version).Check(rank: 0, communicator: 0);
        return Dotted(version);
    }

    /// <summary>22803 is 2.28.3.</summary>
    private static string Dotted(long version) => string.Create(CultureInfo.InvariantCulture, $"{version / 10000}.{version / 100 % 100}.{version % 100}");

    private static List<GpuReport> Gpus()
    {
        var gpus = new List<GpuReport>();
        if (CudaContext.TryInitialize() != CUresult.CUDA_SUCCESS) return gpus;
        CudaDriver.cuDeviceGetCount(out int count).Check();
        for (int i = 0; i < count; i++)
        {
            CudaDriver.cuDeviceGet(out int gpu, i).Check();
            CudaDriver.cuDeviceTotalMem(out nuint bytes, gpu).Check();
            CudaDriver.cuDeviceGetAttribute(out int major, CUdevice_attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, gpu).Check();
            CudaDriver.cuDeviceGetAttribute(out int minor, CUdevice_attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, gpu).Check();
            CudaDriver.cuDeviceGetAttribute(out int multiprocessors, CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, gpu).Check();
            gpus.Add(new GpuReport(i, CudaContext.NameOf(gpu), (major, minor), (long)bytes, multiprocessors));
        }
        return gpus;
    }

    private static string? DriverRelease()
    {
        const string File = "/proc/driver/nvidia/version";
        try
        {
            // "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.03  Release Build ..."
            string line = System.IO.File.ReadLines(File).FirstOrDefault() ?? "";
            return line.Split(' ', StringSplitOptions.RemoveEmptyEntries).FirstOrDefault(w => char.IsAsciiDigit(w[0]) && w.Contains('.', StringComparison.Ordinal));
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            return null;
        }
    }
}
