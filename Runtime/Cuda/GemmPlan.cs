using System.Globalization;
using LaspNative.Runtime.Interop;

namespace LaspNative.Runtime.Cuda;

/// <summary>
/// What decides about the algorithm of a row-major product c = op(a) op(b), with op(a) [M, K], op(b) [K, N] and c [M, N], <see cref="Batch"/> times over contiguous matrices. Alignments are the largest
/// powers of two that divide the addresses, at most 256: algorithms that load wide vectors need to know. A product that <see cref="Adds"/> to c (beta is not 0) is another problem: the library has other kernels for it.
/// </summary>
internal readonly record struct GemmProblem(
    bool TransposeA, bool TransposeB, long M, long N, long K, long Batch, DType Source, DType Destination, ushort AlignmentA, ushort AlignmentB, ushort AlignmentC, bool Adds)
{
    public double Flops => 2.0 * M * N * K * Batch;

    public long ResultBytes => M * N * Batch * Destination.Size();

    /// <summary>As observers are told it.</summary>
    public string Name => FormattableString.Invariant($"gemm {(TransposeA ? 'T' : 'N')}{(TransposeB ? 'T' : 'N')} {M}x{N}x{K}{(Batch > 1 ? $"x{Batch}" : "")}{(Destination == Source ? "" : " to fp32")}");

    /// <summary>All of it, in one line.</summary>
    public override string ToString() => string.Create(
        CultureInfo.InvariantCulture,
        $"{Batch} x {Source} {Operand(TransposeA, M, K)} {Operand(TransposeB, K, N)} to {Destination}, aligned to {AlignmentA}, {AlignmentB} and {AlignmentC} bytes{(Adds ? ", added" : "")}");

    private static string Operand(bool transposed, long rows, long columns) => transposed ? $"[{columns}, {rows}]^T" : $"[{rows}, {columns}]";
}

/// <summary>
/// Descriptors and algorithm of one problem. cuBLASLt's matrices are column-major: a row-major matrix read column by column is its transpose, and (A B)^T = B^T A^T, so the operands
/// change places and nothing is moved. "A" and "B" are ours; the library is handed them in the other order.
/// </summary>
internal sealed unsafe class GemmPlan : IDisposable
{
    /// <summary>What the library recommends for Hopper.</summary>
    public const long WorkspaceBytes = 32 << 20;

    private readonly nint _handle;
    private readonly GemmProblem _problem;
    private readonly nint _operation;
    private readonly nint _layoutA;
    private readonly nint _layoutB;
    private readonly nint _layoutC;

    public GemmPlan(nint handle, GemmProblem problem)
    {
        (_handle, _problem) = (handle, problem);
        CublasLt.cublasLtMatmulDescCreate(out _operation, cublasComputeType_t.CUBLAS_COMPUTE_32F, cudaDataType.CUDA_R_32F).Check();
        SetTranspose(cublasLtMatmulDescAttributes_t.CUBLASLT_MATMUL_DESC_TRANSA, problem.TransposeB);
        SetTranspose(cublasLtMatmulDescAttributes_t.CUBLASLT_MATMUL_DESC_TRANSB, problem.TransposeA);
        _layoutA = RowMajor(problem.Source, problem.TransposeA ? (problem.K, problem.M) : (problem.M, problem.K), problem.Batch);
        _layoutB = RowMajor(problem.Source, problem.TransposeB ? (problem.N, problem.K) : (problem.K, problem.N), problem.Batch);
        _layoutC = RowMajor(problem.Destination, (problem.M, problem.N), problem.Batch);
    }

    /// <summary>What <see cref="Launch(nint, nint, nint, float, float, nint, nint)"/> runs.</summary>
    public cublasLtMatmulAlgo_t Algorithm { get; set; }

    /// <summary>At most <paramref name="count"/> algorithms for the problem, the one that the library expects to be fastest first. Sums over parts of K are fp32 and in a fixed order.</summary>
    public cublasLtMatmulAlgo_t[] Candidates(int count)
    {
        CublasLt.cublasLtMatmulPreferenceCreate(out nint preference).Check();
        try
        {
            ulong workspace = WorkspaceBytes;
            uint reductions = CublasLt.CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
            CublasLt.cublasLtMatmulPreferenceSetAttribute(preference, cublasLtMatmulPreferenceAttributes_t.CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof(ulong)).Check();
            CublasLt.cublasLtMatmulPreferenceSetAttribute(preference, cublasLtMatmulPreferenceAttributes_t.CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reductions, sizeof(uint)).Check();
            SetAlignment(preference, cublasLtMatmulPreferenceAttributes_t.CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, _problem.AlignmentB);
            SetAlignment(preference, cublasLtMatmulPreferenceAttributes_t.CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, _problem.AlignmentA);
            SetAlignment(preference, cublasLtMatmulPreferenceAttributes_t.CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, _problem.AlignmentC);
            SetAlignment(preference, cublasLtMatmulPreferenceAttributes_t.CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, _problem.AlignmentC);
            var results = new cublasLtMatmulHeuristicResult_t[count];
            int found;
            fixed (cublasLtMatmulHeuristicResult_t* first = results)
                CublasLt.cublasLtMatmulAlgoGetHeuristic(_handle, _operation, _layoutB, _layoutA, _layoutC, _layoutC, preference, count, first, out found).Check();
            if (found == 0) throw new LaspException($"cuBLASLt has no algorithm for the product {_problem}");
            results[0].state.Check("cublasLtMatmulAlgoGetHeuristic");
            return [.. results.Take(found).Where(r => r.state == cublasStatus_t.CUBLAS_STATUS_SUCCESS).Select(r => r.algo)];
        }
        finally
        {
            CublasLt.cublasLtMatmulPreferenceDestroy(preference);
        }
    }

    /// <summary>Whether the library would run this algorithm, which may be of any origin, for the problem.</summary>
    public bool Accepts(cublasLtMatmulAlgo_t algorithm)
    {
        cublasStatus_t status = CublasLt.cublasLtMatmulAlgoCheck(_handle, _operation, _layoutB, _layoutA, _layoutC, _layoutC, &algorithm, out cublasLtMatmulHeuristicResult_t result);
        return status == cublasStatus_t.CUBLAS_STATUS_SUCCESS && result.state == cublasStatus_t.CUBLAS_STATUS_SUCCESS && result.workspaceSize <= (nuint)WorkspaceBytes;
    }

    public void Launch(nint a, nint b, nint c, float alpha, float beta, nint workspace, nint stream) => Launch(Algorithm, a, b, c, alpha, beta, workspace, stream).Check("cublasLtMatmul");

    public cublasStatus_t Launch(cublasLtMatmulAlgo_t algorithm, nint a, nint b, nint c, float alpha, float beta, nint workspace, nint stream) =>
        CublasLt.cublasLtMatmul(
            _handle, _operation, &alpha, b, _layoutB, a, _layoutA, &beta, c, _layoutC, c, _layoutC, &algorithm, workspace, (nuint)WorkspaceBytes, stream);

    public void Dispose()
    {
        CublasLt.cublasLtMatrixLayoutDestroy(_layoutC);
        CublasLt.cublasLtMatrixLayoutDestroy(_layoutB);
        CublasLt.cublasLtMatrixLayoutDestroy(_layoutA);
        CublasLt.cublasLtMatmulDescDestroy(_operation);
    }

    private void SetTranspose(cublasLtMatmulDescAttributes_t operand, bool transpose)
    {
        cublasOperation_t value = transpose ? cublasOperation_t.CUBLAS_OP_T : cublasOperation_t.CUBLAS_OP_N;
        CublasLt.cublasLtMatmulDescSetAttribute(_operation, operand, &value, sizeof(cublasOperation_t)).Check();
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

    private static void SetAlignment(nint preference, cublasLtMatmulPreferenceAttributes_t operand, uint bytes) =>
        CublasLt.cublasLtMatmulPreferenceSetAttribute(preference, operand, &bytes, sizeof(uint)).Check();

    private static cudaDataType TypeOf(DType dtype) => dtype switch
    {
        DType.F32 => cudaDataType.CUDA_R_32F,
        DType.BF16 => cudaDataType.CUDA_R_16BF,
        _ => throw new LaspException($"CUDA multiplies no {dtype} matrices; use F32 or BF16, or a CPU device"),
    };
}
