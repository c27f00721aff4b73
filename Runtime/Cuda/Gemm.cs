using System.Numerics;
using LaspNative.Runtime.Interop;

namespace LaspNative.Runtime.Cuda;

/// <summary>
/// Matrix products through cuBLASLt. Which of its algorithms a problem takes is settled once: small ones take what the library's heuristic names first, large ones the fastest of several, measured
/// where nobody has measured before (<see cref="GemmTuning"/>) and remembered on disk (<see cref="GemmChoices"/>), so that the same problem gives the same bits on every rank and every run.
/// </summary>
public sealed class Blas : IDisposable
{
    private readonly CudaDevice _device;
    private readonly nint _handle;
    private readonly GemmChoices? _choices;
    private readonly Dictionary<GemmProblem, GemmPlan> _plans = [];
    private Storage? _workspace;
    private int _disposed;

    /// <param name="device">Whose stream the products are queued on.</param>
    /// <param name="choices">What was measured so far, and where more is kept; null: nothing is measured.</param>
    internal Blas(CudaDevice device, GemmChoices? choices)
    {
        NativeLibraries.Require(NativeLibraries.CublasLt);
        (_device, _choices) = (device, choices);
        device.Context.MakeCurrent();
        CublasLt.cublasLtCreate(out _handle).Check();
    }

    /// <summary>Products launched so far, those of measurements left out.</summary>
    public long LaunchCount { get; private set; }

    /// <summary>
    /// Row-major c = alpha op(a) op(b) + beta c with op(a) [m, k], op(b) [k, n], c [m, n], for <paramref name="batch"/> contiguous problems in a row.
    /// a and b are F32 or BF16 (<paramref name="ab"/>), c is the same or F32; sums are fp32, never TF32. beta = 0 does not read c. Queued on the compute stream; the first use of a large problem waits for it.
    /// </summary>
    public void Multiply(nint a, bool transposeA, nint b, bool transposeB, nint c, long m, long n, long k, long batch, DType ab, DType cType, float alpha, float beta)
    {
        if (m == 0 || n == 0 || batch == 0) return;
        if (k == 0)
        {
            ScaleOnly(c, m * n * batch * cType.Size(), beta);
            return;
        }
        var problem = new GemmProblem(transposeA, transposeB, m, n, k, batch, ab, cType, AlignmentOf(a), AlignmentOf(b), AlignmentOf(c), Adds: beta != 0);
        _device.Context.MakeCurrent();
        Prepare();
        if (!_plans.TryGetValue(problem, out GemmPlan? plan)) plan = Plan(problem, a, b, c, beta);
        ILaunchObserver? observer = _device.Kernels.Observer;
        observer?.BeforeOther(problem.Name, _device.Stream);
        plan.Launch(a, b, c, alpha, beta, _workspace!.Pointer, _device.Stream.Handle);
        observer?.AfterOther(problem.Name, _device.Stream);
        LaunchCount++;
    }

    /// <summary>Allocates the workspace if that has not happened yet.</summary>
    internal void Prepare() => _workspace ??= _device.Allocate(GemmPlan.WorkspaceBytes, MemoryCategory.Workspace);

    public void Dispose()
    {
        if (Interlocked.Exchange(ref _disposed, 1) != 0) return;
        foreach (GemmPlan plan in _plans.Values) plan.Dispose();
        _plans.Clear();
        _workspace?.Release();
        CublasLt.cublasLtDestroy(_handle);
    }

    /// <summary>
    /// cuBLASLt loads a kernel at its first launch, under a lock of the whole process, and the driver lets nothing be loaded while the GPU works. Behind a collective that waits for another rank of this
    /// process, which waits for that lock, it would never end: so the GPU is idle before, and the product that the plan is for follows at once.
    /// </summary>
    private GemmPlan Plan(GemmProblem problem, nint a, nint b, nint c, float beta)
    {
        _device.Context.Synchronize();
        var plan = new GemmPlan(_handle, problem);
        _plans.Add(problem, plan);
        plan.Algorithm = Remembered(plan, problem) ?? Measured(plan, problem, a, b, c, beta) ?? plan.Candidates(1)[0];
        return plan;
    }

    private cublasLtMatmulAlgo_t? Remembered(GemmPlan plan, GemmProblem problem) =>
        GemmTuning.Pays(problem) && _choices?.Read(problem) is { } choice && plan.Accepts(choice) ? choice : null;

    /// <summary>Null where measuring does not pay, or its outcome could not be kept: then results would differ from run to run.</summary>
    private cublasLtMatmulAlgo_t? Measured(GemmPlan plan, GemmProblem problem, nint a, nint b, nint c, float beta)
    {
        if (!GemmTuning.Pays(problem) || _choices is null) return null;
        cublasLtMatmulAlgo_t[] candidates = plan.Candidates(GemmTuning.CandidateCount);
        // What is there before the product is not to be lost to the measurement.
        Storage? scratch = beta == 0 ? null : _device.Allocate(problem.ResultBytes, MemoryCategory.Workspace);
        try
        {
            nint target = scratch?.Pointer ?? c;
            float[] milliseconds = GemmTuning.Measure(_device, candidates.Length, i => plan.Launch(candidates[i], a, b, target, 1, beta, _workspace!.Pointer, _device.Stream.Handle) == cublasStatus_t.CUBLAS_STATUS_SUCCESS);
            if (GemmTuning.Best(milliseconds) is not { } best) return null;
            return _choices.Settle(problem, candidates[best], milliseconds[best], milliseconds[0]) is { } choice && plan.Accepts(choice) ? choice : null;
        }
        finally
        {
            scratch?.Release();
        }
    }

    /// <summary>A product over no terms leaves beta c.</summary>
    private void ScaleOnly(nint c, long bytes, float beta)
    {
        if (beta == 1) return;
        if (beta != 0) throw new LaspException($"a matrix product over 0 columns with beta {beta} is not supported; use beta 0 or 1");
        _device.Context.MakeCurrent();
        _device.Stream.FillAsync(0, c, bytes);
    }

    private static ushort AlignmentOf(nint pointer) => (ushort)(1 << Math.Min(8, BitOperations.TrailingZeroCount(pointer)));
}
