using System.Text.Json;
using LaspNative.Runtime;
using Xunit;

namespace LaspNative.Tests.Cli;

/// <summary>lasp doctor tells the truth of the machine that it runs on, with or without a GPU.</summary>
public class DoctorTests
{
    [Fact]
    public void The_findings_agree_with_the_probe()
    {
        LaspRun run = Lasp.Run("doctor");
        Assert.True(run.ExitCode == 0, run.Error);
        using JsonDocument report = JsonDocument.Parse(run.Output);
        SystemReport system = SystemProbe.Run();
        bool usable = SystemProbe.IsCudaUsable(out _);
        Assert.Equal(usable, report.RootElement.GetProperty("cuda_usable").GetBoolean());
        Assert.Equal(system.Gpus.Count, report.RootElement.GetProperty("gpus").GetArrayLength());
        JsonElement libraries = report.RootElement.GetProperty("libraries");
        Assert.Equal(system.Nvrtc.Usable, libraries.GetProperty("nvrtc").GetProperty("usable").GetBoolean());
        Assert.Equal(system.Nccl.Status.Path, libraries.GetProperty("nccl").GetProperty("path").GetString());
        string Status(int check) => report.RootElement.GetProperty("checks")[check].GetProperty("status").GetString()!;
        Assert.Equal(system.Nvrtc.Usable ? "passed" : "skipped", Status(0));
        Assert.Equal(usable ? "passed" : "skipped", Status(1));
        Assert.Contains(usable ? "CUDA can be used" : "everything runs on the CPU", run.Error, StringComparison.Ordinal);
    }

    [Fact]
    public void A_library_that_a_variable_names_in_vain_is_named()
    {
        if (SystemProbe.Run().Driver.Status.Found) Assert.Skip("this machine has a driver");
        LaspRun run = Lasp.RunProcessWith("LASP_NVRTC", "/no/such/libnvrtc.so", "doctor");
        Assert.Equal(0, run.ExitCode);
        Assert.Contains("/no/such/libnvrtc.so is not there or does not load; install NVRTC", run.Error, StringComparison.Ordinal);
    }

    [Fact]
    public void What_is_missing_comes_with_a_remedy()
    {
        if (SystemProbe.Run().Driver.Status.Found) Assert.Skip("this machine has a driver");
        Assert.Contains("install the NVIDIA driver", Lasp.RunProcess("doctor").Error, StringComparison.Ordinal);
    }
}
