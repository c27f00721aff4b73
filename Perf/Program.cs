using BenchmarkDotNet.Configs;
using BenchmarkDotNet.Jobs;
using BenchmarkDotNet.Running;
using BenchmarkDotNet.Toolchains.InProcess.Emit;
using LaspNative.Perf;
using LaspNative.Runtime;
using LaspNative.Runtime.Cuda;

// Measurements and kernel budgets: Perf host | gpu [--out FILE] [--lengths 8192,32768] | kernels --check | kernels --write
try
{
    return args switch
    {
        ["host", .. string[] rest] => Host(rest),
        ["gpu", .. string[] rest] => Gpu(rest),
        ["kernels", .. string[] rest] => KernelCheck.Run(rest),
        _ => Usage(),
    };
}
catch (LaspException e)
{
    Console.Error.WriteLine(e.Message);
    return 1;
}

// BenchmarkDotNet in this process: no SDK is needed where it runs.
static int Host(string[] rest)
{
    IConfig config = DefaultConfig.Instance.AddJob(Job.ShortRun.WithToolchain(InProcessEmitToolchain.Instance));
    List<Type> benchmarks = [typeof(TapeCosts), typeof(AllocatorCosts)];
    if (SystemProbe.IsCudaUsable(out _)) benchmarks.Add(typeof(LaunchCosts));
    new BenchmarkSwitcher([.. benchmarks]).Run(rest.Length == 0 ? ["--filter", "*"] : rest, config);
    return 0;
}

static int Gpu(string[] rest)
{
    if (!SystemProbe.IsCudaUsable(out string reason)) throw new LaspException(reason);
    string file = Option(rest, "--out") ?? "gpu-record.json";
    int[] lengths = [.. (Option(rest, "--lengths") ?? "8192,32768").Split(',').Select(int.Parse)];
    using var device = (CudaDevice)Device.Open("cuda:0");
    GpuHarness.Write(new GpuHarness(device).Run(lengths), file, Console.Error);
    return 0;
}

static string? Option(string[] rest, string name) => Array.IndexOf(rest, name) is var at and >= 0 && at + 1 < rest.Length ? rest[at + 1] : null;

static int Usage()
{
    Console.Error.WriteLine("usage: host [BenchmarkDotNet options] | gpu [--out FILE] [--lengths N,N] | kernels --check | kernels --write");
    return 2;
}
