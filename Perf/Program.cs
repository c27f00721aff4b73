using BenchmarkDotNet.Configs;
using BenchmarkDotNet.Jobs;
using BenchmarkDotNet.Running;
using BenchmarkDotNet.Toolchains.InProcess.Emit;
using LaspNative.Perf;
using LaspNative.Runtime;

// Measurements and kernel budgets: Perf host | gpu | step | kernels --check | kernels --write
try
{
    return args switch
    {
        ["host", .. string[] rest] => Host(rest),
        ["gpu", .. string[] rest] => Gpu(rest),
        ["step", .. string[] rest] => StepCommand.Run(rest, Console.Error),
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
    HarnessOptions options = HarnessOptions.Parse(rest);
    if (!SystemProbe.IsCudaUsable(out string reason)) throw new LaspException(reason);
    bool right = options.Ranks > 1 ? new RanksHarness(options, Console.Error).Run() : new GpuHarness(options, Console.Error).Run();
    return right ? 0 : 1;
}

static int Usage()
{
    Console.Error.WriteLine($"usage: host [BenchmarkDotNet options] | {HarnessOptions.Usage} | step --help | kernels --check | kernels --write");
    return 2;
}
