using System.Numerics;
using LaspNative.Runtime.Interop;

namespace LaspNative.Runtime.Cuda;

/// <summary>
/// Matrix products through cuBLASLt. Our matrices are row-major and its are column-major: a row-major matrix read column by column is its transpose,
/// and (A B)^T = B^T A^T, so the operands change places and nothing is moved. Algorithms are chosen by its heuristic, once per problem, never by timing:
/// the same problem gives the same bits on every run.
/// </summary>
public sealed unsafe class Blas : IDisposable
{
    /// <summary>What the library recommends for Hopper.</summary>
    private const long WorkspaceBytes = 32 << 20;

    private readonly CudaDevice _device;
    private readonly nint _handle;
    private readonly Dictionary<Problem, Plan> _plans = [];
    private Storage? _workspace;
    private int _disposed;

    internal Blas(CudaDevice device)
    {
        NativeLibraries.Require(NativeLibraries.CublasLt);
        _device = device;
        device.Context.MakeCurrent();
        CublasLt.cublasLtCreate(out _handle).Check();
    }

    /// <summary>Products launched so far.</summary>
    public long LaunchCount { get; private set; }

    /// <summary>
    /// Row-major c = alpha op(a) op(b) + beta c with op(a) [m, k], op(b) [k, n], c [m, n], for <paramref name="batch"/> contiguous problems in a row.
    /// a and b are F32 or BF16 (<paramref name="ab"/>), c is the same or F32; sums are fp32, never TF32. beta = 0 does not read c. Queued on the compute stream.
    /// </summary>
    public void Multiply(nint a, bool transposeA, nint b, bool transposeB, nint c, long m, long n, long k, long batch, DType ab, DType cType, float alpha, float beta)
    {
        if (m == 0 || n == 0 || batch == 0) return;
        if (k == 0)
        {
            ScaleOnly(c, m * n * batch * cType.Size(), beta);
            return;
        }
        var problem = new Problem(transposeA, transposeB, m, n, k, batch, ab, cType, AlignmentOf(a), AlignmentOf(b), AlignmentOf(c));
        _device.Context.MakeCurrent();
        if (!_plans.TryGetValue(problem, out Plan? plan)) _plans[problem] = plan = new Plan(_handle, problem);
        Prepare();
        ILaunchObserver? observer = _device.Kernels.Observer;
        observer?.BeforeOther(problem.Name, _device.Stream);
        fixed (cublasLtMatmulAlgo_t* algorithm = &plan.Algorithm)
        {
            CublasLt.cublasLtMatmul(
                _handle, plan.Operation, &alpha, b, plan.LayoutB, a, plan.LayoutA, &beta, c, plan.LayoutC, c, plan.LayoutC,
                algorithm, _workspace!.Pointer, (nuint)WorkspaceBytes, _device.Stream.Handle).Check();
        }
        observer?.AfterOther(problem.Name, _device.Stream);
        LaunchCount++;
    }

    /// <summary>Allocates the workspace if that has not happened yet.</summary>
    internal void Prepare() => _workspace ??= _device.Allocate(WorkspaceBytes, MemoryCategory.Workspace);

    public void Dispose()
    {
        if (Interlocked.Exchange(ref _disposed, 1) != 0) return;
        foreach (Plan plan in _plans.Values) plan.Dispose();
        _plans.Clear();
        _workspace?.Release();
        CublasLt.cublasLtDestroy(_handle);
    }

    /// <summary>A product over no terms leaves beta c.</summary>
    private void ScaleOnly(nint c, long bytes, float beta)
    {
        if (beta == 1) return;
        if (beta != 0) throw new LaspException($"a matrix product over 0 columns with beta {beta} is not supported; use beta 0 or 1");
        _device.Context.MakeCurrent();
        _device.Stream.FillAsync(0, c, bytes);
    }

    /// <summary>Largest power of two that divides the address, at most 256: algorithms that load wide vectors need to know.</summary>
    private static ushort AlignmentOf(nint pointer) => (ushort)(1 << Math.Min(8, BitOperations.TrailingZeroCount(pointer)));

    private readonly record struct Problem(
        bool TransposeA, bool TransposeB, long M, long N, long K, long Batch, DType Source, DType Destination, ushort AlignmentA, ushort AlignmentB, ushort AlignmentC)
    {
        /// <summary>As observers are told it.</summary>
        public string Name => FormattableString.Invariant($"gemm {(TransposeA ? 'T' : 'N')}{(TransposeB ? 'T' : 'N')} {M}x{N}x{K}{(Batch > 1 ? $"x{Batch}" : "")}{(Destination == Source ? "" : " to fp32")}");
    }

    /// <summary>Descriptors and algorithm of one problem. "A" and "B" are ours; the library is handed them in the other order.</summary>
    private sealed class Plan : IDisposable
    {
        public readonly nint Operation;
        public readonly nint LayoutA;
        public readonly nint LayoutB;
        public readonly nint LayoutC;
        public readonly cublasLtMatmulAlgo_t Algorithm;

        public Plan(nint handle, Problem p)
        {
            CublasLt.cublasLtMatmulDescCreate(out Operation, cublasComputeType_t.CUBLAS_COMPUTE_32F, cudaDataType.CUDA_R_32F).Check();
            SetTranspose(cublasLtMatmulDescAttributes_t.CUBLASLT_MATMUL_DESC_TRANSA, p.TransposeB);
            SetTranspose(cublasLtMatmulDescAttributes_t.CUBLASLT_MATMUL_DESC_TRANSB, p.TransposeA);
            LayoutA = RowMajor(p.Source, p.TransposeA ? (p.K, p.M) : (p.M, p.K), p.Batch);
            LayoutB = RowMajor(p.Source, p.TransposeB ? (p.N, p.K) : (p.K, p.N), p.Batch);
            LayoutC = RowMajor(p.Destination, (p.M, p.N), p.Batch);
            Algorithm = Choose(handle, p);
        }

        public void Dispose()
        {
            CublasLt.cublasLtMatrixLayoutDestroy(LayoutC);
            CublasLt.cublasLtMatrixLayoutDestroy(LayoutB);
            CublasLt.cublasLtMatrixLayoutDestroy(LayoutA);
            CublasLt.cublasLtMatmulDescDestroy(Operation);
        }

        private void SetTranspose(cublasLtMatmulDescAttributes_t operand, bool transpose)
        {
            cublasOperation_t value = transpose ? cublasOperation_t.CUBLAS_OP_T : cublasOperation_t.CUBLAS_OP_N;
            CublasLt.cublasLtMatmulDescSetAttribute(Operation, operand, &value, sizeof(cublasOperation_t)).Check();
        }

        /// <summary>A stored row-major [rows, columns] is a column-major [columns, rows] whose columns lie `columns` apart.</summary>
        private static nint RowMajor(DType dtype, (long Rows, long Columns) stored, long batch)
        {
            CublasLt.cublasLtMatrixLayoutCreate(out nint layout, TypeOf(dtype), (ulong)stored.Columns, (ulong)stored.Rows, stored.Columns).Check();
            if (batch > 1)
            {
                int count = checked((int)batch);
                long stride = stored.Rows * stored.Columns;
                CublasLt.cublasLtMatrixLayoutSetAttribute(layout, cublasLtMatrixLayoutAttribute_t.CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof(int)).Check();
                CublasLt.cublasLtMatrixLayoutSetAttribute(layout, cublasLtMatrixLayoutAttribute_t.CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride, sizeof(long)).Check();
            }
            return layout;
        }

        private cublasLtMatmulAlgo_t Choose(nint handle, Problem p)
        {
            CublasLt.cublasLtMatmulPreferenceCreate(out nint preference).Check();
            try
            {
                ulong workspace = WorkspaceBytes;
                CublasLt.cublasLtMatmulPreferenceSetAttribute(preference, cublasLtMatmulPreferenceAttributes_t.CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof(ulong)).Check();
                SetAlignment(preference, cublasLtMatmulPreferenceAttributes_t.CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, p.AlignmentB);
                SetAlignment(preference, cublasLtMatmulPreferenceAttributes_t.CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, p.AlignmentA);
                SetAlignment(preference, cublasLtMatmulPreferenceAttributes_t.CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, p.AlignmentC);
                SetAlignment(preference, cublasLtMatmulPreferenceAttributes_t.CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, p.AlignmentC);
                cublasLtMatmulHeuristicResult_t best;
                CublasLt.cublasLtMatmulAlgoGetHeuristic(handle, Operation, LayoutB, LayoutA, LayoutC, LayoutC, preference, 1, &best, out int found).Check();
                if (found == 0) throw new LaspException($"cuBLASLt has no algorithm for the product {p}");
                best.state.Check("cublasLtMatmulAlgoGetHeuristic");
                return best.algo;
            }
            finally
            {
                CublasLt.cublasLtMatmulPreferenceDestroy(preference);
            }
        }

        private static void SetAlignment(nint preference, cublasLtMatmulPreferenceAttributes_t operand, uint bytes) =>
            CublasLt.cublasLtMatmulPreferenceSetAttribute(preference, operand, &bytes, sizeof(uint)).Check();

        private static cudaDataType TypeOf(DType dtype) => dtype switch
        {
            DType.F32 => cudaDataType.CUDA_R_32F,
            DType.BF16 => cudaDataType.CUDA_R_16BF,
            _ => throw new LaspException($"CUDA multiplies no {dtype} matrices; use F32 or BF16, or a CPU device"),
        };
    }
}
