using LaspNative.Runtime;
using LaspNative.Runtime.Interop;
using Xunit;

namespace LaspNative.Tests.Cuda;

/// <summary>Missing libraries are answers with names tried and a remedy; found ones have a path and a version.</summary>
public class NativeLibrariesTests
{
    [Fact]
    public void Every_library_is_found_or_says_what_was_tried()
    {
        foreach (string name in new[] { NativeLibraries.Cuda, NativeLibraries.Nvrtc, NativeLibraries.CublasLt, NativeLibraries.Nccl })
        {
            NativeLibraryStatus status = NativeLibraries.Find(name);
            Assert.Equal(name, status.Name);
            Assert.NotEmpty(status.Tried);
            Assert.NotEmpty(status.Remedy);
            if (status.Found) continue;
            Assert.Contains(status.Tried[0], status.Explanation);
            Assert.Contains(status.Remedy, status.Explanation);
            Assert.DoesNotContain('\n', status.Explanation);
        }
    }

    [Fact]
    public void A_call_into_a_missing_library_is_one_line_and_no_crash()
    {
        if (NativeLibraries.Find(NativeLibraries.Nccl).Found) Assert.Skip("skipped: NCCL is installed");
        LaspException e = Assert.Throws<LaspException>(() => { Nccl.ncclGetVersion(out _); });
        Assert.Contains("libnccl.so.2", e.Message);
        Assert.DoesNotContain('\n', e.Message);
    }

    [Fact]
    public void The_probe_never_throws_and_its_parts_agree()
    {
        SystemReport report = SystemProbe.Run();
        Assert.All(new[] { report.Driver, report.Nvrtc, report.CublasLt, report.Nccl }, library =>
        {
            Assert.Equal(library.Usable, library.Problem is null);
            Assert.Equal(library.Usable, library.Version is not null);
            if (!library.Status.Found) Assert.False(library.Usable);
        });
        bool usable = SystemProbe.IsCudaUsable(out string reason);
        Assert.Equal(usable, reason.Length == 0);
        Assert.DoesNotContain('\n', reason);
        if (!report.Driver.Usable) Assert.Empty(report.Gpus);
    }

    [Fact]
    public void Opening_a_GPU_without_a_driver_says_so_in_one_line()
    {
        if (NativeLibraries.Find(NativeLibraries.Cuda).Found) Assert.Skip("skipped: the NVIDIA driver is installed");
        LaspException e = Assert.Throws<LaspException>(() => Device.Open("cuda:0"));
        Assert.StartsWith("cuda:0 cannot be opened: ", e.Message);
        Assert.Contains("libcuda.so.1", e.Message);
        Assert.Contains("install the NVIDIA driver", e.Message);
        Assert.DoesNotContain('\n', e.Message);
    }

    [Fact]
    public void Structures_have_the_sizes_of_NVIDIAs_headers()
    {
        unsafe
        {
            Assert.Equal(88, sizeof(CUmemPoolProps));
            Assert.Equal(12, sizeof(CUmemAccessDesc));
            Assert.Equal(64, sizeof(cublasLtMatmulAlgo_t));
            Assert.Equal(96, sizeof(cublasLtMatmulHeuristicResult_t));
            Assert.Equal(128, sizeof(ncclUniqueId));
        }
    }
}
