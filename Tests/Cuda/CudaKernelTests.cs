using LaspNative.Runtime;
using LaspNative.Runtime.Cuda;
using Xunit;

namespace LaspNative.Tests.Cuda;

/// <summary>Loading and launching on a real GPU: argument types, shared memory, counts, errors.</summary>
public class CudaKernelTests
{
    private static readonly KernelSource s_source = new(
        "arguments.cu",
        """
        extern "C" __global__ void arguments(int i, long long l, float f, double d, double* y, unsigned u)
        {
            if (blockIdx.x == 0 && threadIdx.x == 0) { y[0] = i; y[1] = (double)l; y[2] = f; y[3] = d; y[4] = u; }
        }
        extern "C" __global__ void shared(float* y)
        {
            extern __shared__ float tile[];
            for (int i = threadIdx.x; i < 16 * 1024; i += blockDim.x) tile[i] = i;
            __syncthreads();
            if (threadIdx.x == 0) y[0] = tile[16 * 1024 - 1];
        }
        """,
        []);

    private static CudaKernel Load(CudaDevice device, string kernel) =>
        device.Kernels.Load(KernelCompiler.Compile(s_source, [], device.Kernels.Architecture, cache: null), kernel);

    [Fact]
    public void Arguments_arrive_with_their_types()
    {
        using CudaDevice device = Gpu.Open();
        CudaKernel kernel = Load(device, "arguments");
        using Tensor y = Tensor.Empty([10], DType.F32, device);
        kernel.Launch(device.Stream, new LaunchShape(2, 1, 1, 32), -3, -5_000_000_000L, 0.5f, 0.1, y.Pointer, 7u);
        var values = new double[5];
        device.CopyToHost(y.Pointer, System.Runtime.InteropServices.MemoryMarshal.AsBytes(values.AsSpan()));
        Assert.Equal([-3, -5e9, 0.5, 0.1, 7], values);
        Assert.Equal(1, device.Kernels.LaunchCount);
    }

    [Fact]
    public void A_wrong_number_of_arguments_and_an_unknown_kernel_are_named()
    {
        using CudaDevice device = Gpu.Open();
        CudaKernel kernel = Load(device, "arguments");
        InvalidOperationException count = Assert.Throws<InvalidOperationException>(() => kernel.Launch(device.Stream, new LaunchShape(1, 1, 1, 32), 1, 2L));
        Assert.Equal("kernel arguments of arguments.cu takes 6 arguments, got 2", count.Message);
        InvalidOperationException name = Assert.Throws<InvalidOperationException>(() => Load(device, "absent"));
        Assert.Contains("absent", name.Message);
    }

    [Fact]
    public void Large_shared_memory_is_granted_and_too_large_is_named()
    {
        using CudaDevice device = Gpu.Open();
        CudaKernel kernel = Load(device, "shared");
        using Tensor y = Tensor.Empty([1], DType.F32, device);
        kernel.Launch(device.Stream, new LaunchShape(1, 1, 1, 256, 64 << 10), y.Pointer);
        Assert.Equal([(16 * 1024) - 1f], y.ToArray<float>());
        LaspException e = Assert.Throws<LaspException>(() => kernel.Launch(device.Stream, new LaunchShape(1, 1, 1, 256, 1 << 20), y.Pointer));
        Assert.Contains("shared memory", e.Message);
        LaspException threads = Assert.Throws<LaspException>(() => kernel.Launch(device.Stream, new LaunchShape(1, 1, 1, 2048, 64 << 10), y.Pointer));
        Assert.Contains("could not be launched", threads.Message);
    }

    [Fact]
    public void A_launch_allocates_nothing_and_an_empty_grid_launches_nothing()
    {
        using CudaDevice device = Gpu.Open();
        CudaKernel kernel = Load(device, "arguments");
        using Tensor y = Tensor.Empty([10], DType.F32, device);
        nint pointer = y.Pointer;
        void Launch(int n)
        {
            for (int i = 0; i < n; i++) kernel.Launch(device.Stream, new LaunchShape(1, 1, 1, 32), i, 2L, 3f, 4.0, pointer, 5u);
        }

        Launch(100);
        long before = GC.GetAllocatedBytesForCurrentThread();
        Launch(1000);
        Assert.Equal(0, GC.GetAllocatedBytesForCurrentThread() - before);
        Assert.Equal(1100, device.Kernels.LaunchCount);
        kernel.Launch(device.Stream, new LaunchShape(0, 1, 1, 32), 1, 2L, 3f, 4.0, pointer, 5u);
        Assert.Equal(1100, device.Kernels.LaunchCount);
        device.Synchronize();
    }

    [Fact]
    public void A_kernel_reports_its_resources()
    {
        using CudaDevice device = Gpu.Open();
        CudaKernel kernel = Load(device, "arguments");
        Assert.InRange(kernel.Registers, 4, 64);
        Assert.Equal(0, kernel.SpillBytes);
        Assert.InRange(kernel.SharedBytes, 0, 1024); // some drivers count what they reserve for themselves
        Assert.Equal(1024, kernel.MaxThreads);
    }

    [Fact]
    public void PTX_of_the_older_architecture_is_assembled_by_the_driver()
    {
        using CudaDevice device = Gpu.Open();
        CudaKernel kernel = device.Kernels.Load(KernelCompiler.Compile(s_source, [], "compute_80", cache: null), "arguments");
        using Tensor y = Tensor.Empty([10], DType.F32, device);
        kernel.Launch(device.Stream, new LaunchShape(1, 1, 1, 32), 1, 2L, 3f, 4.0, y.Pointer, 5u);
        var values = new double[5];
        device.CopyToHost(y.Pointer, System.Runtime.InteropServices.MemoryMarshal.AsBytes(values.AsSpan()));
        Assert.Equal([1, 2, 3, 4, 5], values);
    }

    [Fact]
    public void A_prepared_device_has_all_it_will_load()
    {
        using CudaDevice device = Gpu.Open();
        device.Prepare(DType.F32, DType.BF16);
        long allocations = device.Memory.AllocationCount;
        device.Prepare(DType.F32, DType.BF16);
        Assert.Equal(allocations, device.Memory.AllocationCount);
        Assert.Equal(0, device.Kernels.LaunchCount);
    }
}
