using BenchmarkDotNet.Attributes;
using LaspNative.Autograd;
using LaspNative.Runtime;

namespace LaspNative.Perf;

/// <summary>Host time and managed bytes of what a training step does thousands of times. Tensors are tiny, so that bookkeeping is all there is.</summary>
[MemoryDiagnoser]
public class TapeCosts
{
    private Device _device = null!;
    private Variable _x = null!;

    [GlobalSetup]
    public void Setup()
    {
        _device = Device.Open("cpu:1");
        _x = Variable.Parameter(Tensor.Zeros([8], DType.F32, _device));
    }

    /// <summary>One recorded function and its backward, over a chain of 100.</summary>
    [Benchmark(OperationsPerInvoke = 100)]
    public void RecordAndRunBackward()
    {
        using var tape = new Tape();
        Variable y = _x;
        using Variable zero = tape.Constant(Tensor.Zeros([8], DType.F32, _device));
        for (int i = 0; i < 100; i++) y = Add.Apply(y, zero);
        using Tensor dy = Tensor.Zeros([8], DType.F32, _device);
        y.Backward(dy);
        _x.ZeroGradient();
    }

    [GlobalCleanup]
    public void Cleanup()
    {
        _x.Dispose();
        _device.Dispose();
    }
}

/// <summary>One allocation and its return, with the books kept.</summary>
[MemoryDiagnoser]
public class AllocatorCosts
{
    private Device _device = null!;

    [ParamsSource(nameof(Devices))]
    public string Name { get; set; } = "cpu";

    public static IEnumerable<string> Devices => HostCostDevices.Available;

    [GlobalSetup]
    public void Setup() => _device = Device.Open(Name);

    [Benchmark]
    public void AllocateAndFree() => Tensor.Empty([1 << 16], DType.F32, _device).Dispose();

    [GlobalCleanup]
    public void Cleanup() => _device.Dispose();
}

/// <summary>One kernel launch through the typed interface; needs a GPU.</summary>
[MemoryDiagnoser]
public class LaunchCosts
{
    private Device _device = null!;
    private Tensor _x = null!;
    private Tensor _y = null!;

    [GlobalSetup]
    public void Setup()
    {
        _device = Device.Open("cuda:0");
        _x = Tensor.Zeros([1024], DType.F32, _device);
        _y = Tensor.Zeros([1024], DType.F32, _device);
    }

    [Benchmark(OperationsPerInvoke = 100)]
    public void Launch()
    {
        for (int i = 0; i < 100; i++) _device.Backend.Silu(_x, _y);
        _device.Synchronize();
    }

    [GlobalCleanup]
    public void Cleanup()
    {
        _x.Dispose();
        _y.Dispose();
        _device.Dispose();
    }
}

internal static class HostCostDevices
{
    public static IEnumerable<string> Available => SystemProbe.IsCudaUsable(out _) ? ["cpu", "cuda:0"] : ["cpu"];
}
