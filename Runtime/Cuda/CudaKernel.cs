using LaspNative.Runtime.Interop;

namespace LaspNative.Runtime.Cuda;

/// <summary>A loaded kernel. Launching it allocates nothing.</summary>
public sealed unsafe class CudaKernel
{
    /// <summary>Shared memory per block that every GPU grants without being asked.</summary>
    private const int DefaultSharedLimit = 48 << 10;

    private readonly KernelLibrary _library;
    private readonly nint _function;
    private readonly int _parameterCount;
    private uint _dynamicLimit;

    internal CudaKernel(KernelLibrary library, nint function, string file, KernelResources resources)
    {
        _library = library;
        _function = function;
        File = file;
        Name = resources.Name;
        Registers = Attribute(CUfunction_attribute.CU_FUNC_ATTRIBUTE_NUM_REGS);
        SharedBytes = Attribute(CUfunction_attribute.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES);
        MaxThreads = Attribute(CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK);
        SpillBytes = resources.SpillStoreBytes + resources.SpillLoadBytes;
        _parameterCount = CountParameters();
        _dynamicLimit = (uint)Math.Max(0, DefaultSharedLimit - SharedBytes);
    }

    /// <summary>The .cu file it comes from.</summary>
    public string File { get; }

    public string Name { get; }

    /// <summary>Registers per thread.</summary>
    public int Registers { get; }

    /// <summary>Bytes that a thread spills to and reloads from local memory, as the assembler counted them.</summary>
    public int SpillBytes { get; }

    /// <summary>Static shared memory per block; dynamic comes on top.</summary>
    public int SharedBytes { get; }

    /// <summary>The most threads per block that its registers allow.</summary>
    public int MaxThreads { get; }

    /// <summary>
    /// Queues the kernel. An empty grid (an extent of 0) launches nothing. The number of arguments is checked, their types cannot be:
    /// they follow the order of the .cu file's signature.
    /// </summary>
    public void Launch(CudaStream stream, LaunchShape shape, params ReadOnlySpan<KernelArg> args)
    {
        ArgumentNullException.ThrowIfNull(stream);
        if (shape.GridX == 0 || shape.GridY == 0 || shape.GridZ == 0) return;
        if (_parameterCount >= 0 && args.Length != _parameterCount) throw WrongArgumentCount(args.Length);
        _library.Context.MakeCurrent();
        if (shape.SharedBytes > _dynamicLimit) RaiseSharedLimit(shape.SharedBytes);

        ILaunchObserver? observer = _library.Observer;
        observer?.BeforeLaunch(this, stream);
        void** pointers = stackalloc void*[args.Length + 1];
        fixed (KernelArg* values = args)
        {
            for (int i = 0; i < args.Length; i++) pointers[i] = values[i].IsAddress ? (void*)values[i].Bits : values + i;
            CUresult result = CudaDriver.cuLaunchKernel(
                _function, shape.GridX, shape.GridY, shape.GridZ, shape.BlockX, 1, 1, shape.SharedBytes, stream.Handle, pointers, null);
            if (result != CUresult.CUDA_SUCCESS) throw LaunchFailed(shape, result);
        }
        observer?.AfterLaunch(this, stream);
        _library.CountLaunch();
    }

    private void RaiseSharedLimit(uint bytes)
    {
        CUresult result = CudaDriver.cuFuncSetAttribute(_function, CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, (int)bytes);
        if (result != CUresult.CUDA_SUCCESS)
            throw new LaspException($"kernel {Name} wants {bytes} bytes of shared memory per block, which this GPU does not grant: {result.Describe()}");
        _dynamicLimit = bytes;
    }

    private int Attribute(CUfunction_attribute attribute)
    {
        CudaDriver.cuFuncGetAttribute(out int value, attribute, _function).Check();
        return value;
    }

    /// <summary>-1 where the driver is too old to say.</summary>
    private int CountParameters()
    {
        CudaDriver.cuDriverGetVersion(out int version).Check();
        if (version < 12040) return -1;
        int count = 0;
        while (CudaDriver.cuFuncGetParamInfo(_function, (nuint)count, out _, out _) == CUresult.CUDA_SUCCESS) count++;
        return count;
    }

    private InvalidOperationException WrongArgumentCount(int count) => new($"kernel {Name} of {File} takes {_parameterCount} arguments, got {count}");

    private LaspException LaunchFailed(LaunchShape shape, CUresult result) =>
        new($"kernel {Name} of {File} could not be launched as {shape} ({Registers} registers per thread, at most {MaxThreads} threads): {result.Describe()}");
}
