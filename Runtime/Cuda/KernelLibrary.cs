using System.Collections.Concurrent;
using System.Runtime.ExceptionServices;
using LaspNative.Runtime.Interop;

namespace LaspNative.Runtime.Cuda;

/// <summary>
/// The kernels of one device, compiled and loaded at first use and unloaded with it. A .cu file makes one module per element type, or one per kernel where its kernels are compiled alone; kernels are extern "C".
/// </summary>
public sealed class KernelLibrary : IDisposable
{
    private readonly Lock _lock = new();
    private readonly ConcurrentDictionary<(string File, string Kernel, DType Element), CudaKernel> _kernels = new();
    private readonly Dictionary<CompiledKernels, nint> _modules = [];
    private int _disposed;

    internal KernelLibrary(CudaContext context, string architecture)
    {
        Context = context;
        Architecture = architecture;
    }

    /// <summary>What kernels are compiled for: "sm_90a", or "compute_80" when the driver is to finish the job.</summary>
    public string Architecture { get; }

    /// <summary>Kernels launched so far.</summary>
    public long LaunchCount { get; private set; }

    /// <summary>Sees every launch; null: nobody looks. For profiles, and for tests of what was launched.</summary>
    public ILaunchObserver? Observer { get; set; }

    internal CudaContext Context { get; }

    /// <summary>
    /// The kernel <paramref name="kernel"/> of the embedded "<paramref name="file"/>.cu", compiled with LASP_ELEMENT_F32 or LASP_ELEMENT_BF16 defined.
    /// Compiles and loads on first use, which takes seconds where the disk cache has nothing; afterwards it is a look-up.
    /// </summary>
    public CudaKernel Get(string file, string kernel, DType element) =>
        _kernels.TryGetValue((file, kernel, element), out CudaKernel? found) ? found : Load(file, kernel, element);

    /// <summary>
    /// Compiles and loads all kernels of all embedded files for these element types, so that none is loaded during a step. The compiler works on as many at once as there are processors, the slow ones first.
    /// </summary>
    public void LoadAll(params ReadOnlySpan<DType> elements)
    {
        foreach ((DType element, CompiledKernels compiled) in CompileAll(Architecture, elements))
            foreach (string kernel in compiled.Names) Get(Path.GetFileNameWithoutExtension(compiled.File), kernel, element);
    }

    /// <summary>What <see cref="LoadAll"/> loads; needs no GPU. Throws the first error as it was.</summary>
    internal static (DType Element, CompiledKernels Compiled)[] CompileAll(string architecture, params ReadOnlySpan<DType> elements)
    {
        var all = new List<(string File, string? Kernel, DType Element)>();
        foreach (DType element in elements) all.AddRange(KernelCompiler.Files.SelectMany(file => Units(file, element)));
        all.Sort((a, b) => (a.Kernel is null).CompareTo(b.Kernel is null));
        var compiled = new (DType, CompiledKernels)[all.Count];
        try
        {
            Parallel.ForEach(
                Partitioner.Create(Enumerable.Range(0, all.Count), EnumerablePartitionerOptions.NoBuffering),
                i => compiled[i] = (all[i].Element, Compile(all[i].File, all[i].Kernel, all[i].Element, architecture)));
        }
        catch (AggregateException errors)
        {
            // Most often every file fails alike, where the compiler is missing or does not know the architecture.
            ExceptionDispatchInfo.Throw(errors.InnerExceptions[0]);
        }
        return compiled;
    }

    /// <summary>What a file is compiled in. The kernels that are compiled alone are there for bf16 only.</summary>
    private static IEnumerable<(string File, string? Kernel, DType Element)> Units(string file, DType element) =>
        element == DType.BF16 && KernelCompiler.CompiledAlone(file) is { Count: > 0 } kernels ? kernels.Select(k => (file, (string?)k, element)) : [(file, null, element)];

    private static CompiledKernels Compile(string file, string? kernel, DType element, string architecture) =>
        kernel is null ? KernelCompiler.Compile(file, KernelCompiler.DefinesFor(element), architecture) : KernelCompiler.CompileFor(file, kernel, element, architecture);

    private CudaKernel Load(string file, string kernel, DType element)
    {
        lock (_lock)
        {
            if (_kernels.TryGetValue((file, kernel, element), out CudaKernel? found)) return found;
            CompiledKernels compiled = KernelCompiler.CompileFor(file + ".cu", kernel, element, Architecture);
            return _kernels[(file, kernel, element)] = Load(compiled, kernel);
        }
    }

    /// <summary>A kernel of a file that was compiled by hand.</summary>
    internal CudaKernel Load(CompiledKernels compiled, string kernel)
    {
        lock (_lock)
        {
            ObjectDisposedException.ThrowIf(_disposed != 0, this);
            Context.MakeCurrent();
            if (CudaDriver.cuModuleGetFunction(out nint function, Module(compiled), kernel) != CUresult.CUDA_SUCCESS)
                throw new InvalidOperationException($"{compiled.File} has no kernel named {kernel}; it has {string.Join(", ", compiled.Names)}");
            KernelResources resources = compiled.Kernels.FirstOrDefault(k => k.Name == kernel) ?? new KernelResources(kernel, 0, 0, 0, 0, 0);
            return new CudaKernel(this, function, compiled.File, resources);
        }
    }

    private unsafe nint Module(CompiledKernels compiled)
    {
        if (_modules.TryGetValue(compiled, out nint known)) return known;
        fixed (byte* image = compiled.Image) CudaDriver.cuModuleLoadData(out known, image).Check();
        _modules.Add(compiled, known);
        return known;
    }

    internal void CountLaunch() => LaunchCount++;

    public void Dispose()
    {
        lock (_lock)
        {
            if (_disposed != 0) return;
            _disposed = 1;
            foreach (nint module in _modules.Values) CudaDriver.cuModuleUnload(module);
            _modules.Clear();
            _kernels.Clear();
        }
    }
}

/// <summary>Told of the launches of one device, on the thread that makes them.</summary>
public interface ILaunchObserver
{
    /// <summary>The kernel is about to be queued on the stream.</summary>
    void BeforeLaunch(CudaKernel kernel, CudaStream stream);

    /// <summary>It has been queued.</summary>
    void AfterLaunch(CudaKernel kernel, CudaStream stream);

    /// <summary>Work that is no kernel of ours is about to be queued: a matrix product of cuBLASLt ("gemm TN 32768x2048x8192", op(a) op(b) m x n x k), a copy, a message of NCCL.</summary>
    void BeforeOther(string name, CudaStream stream) { }

    /// <summary>It has been queued.</summary>
    void AfterOther(string name, CudaStream stream) { }
}
