using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace LaspNative.Runtime.Cpu;

/// <summary>
/// Sums over whole tensors: vector lanes add up runs of fixed length, and the runs' sums are added in order in fp64, so neither threads nor length cost accuracy.
/// </summary>
internal sealed unsafe partial class CpuBackend
{
    /// <summary>Elements that the lanes of one accumulator take in before they go to fp64.</summary>
    private const int SumRun = 4096;

    public void Sum(Tensor x, Tensor result)
    {
        RequireType(result, x.DType.Accumulator());
        if (x.DType == DType.F64) *(double*)result.Pointer = Total<double, double>(x, squares: false);
        else if (x.DType == DType.F32) *(float*)result.Pointer = (float)Total<float, float>(x, squares: false);
        else *(float*)result.Pointer = (float)Total<BF16, float>(x, squares: false);
    }

    public void AddSumOfSquares(ReadOnlySpan<Tensor> tensors, Tensor result)
    {
        foreach (Tensor x in tensors) AddSumOfSquares(x, result);
    }

    public void AddSquaring(Tensor a, Tensor b, Tensor y, Tensor squares)
    {
        Add(a, b, y);
        if (y.Count == 0) return;
        using Tensor first = squares.Slice(0, 1);
        AddSumOfSquares(y, first);
    }

    private void AddSumOfSquares(Tensor x, Tensor result)
    {
        RequireType(result, x.DType.Accumulator());
        if (x.DType == DType.F64) *(double*)result.Pointer += Total<double, double>(x, squares: true);
        else if (x.DType == DType.F32) *(float*)result.Pointer += (float)Total<float, float>(x, squares: true);
        else *(float*)result.Pointer += (float)Total<BF16, float>(x, squares: true);
    }

    private double Total<T, A>(Tensor x, bool squares) where T : unmanaged where A : unmanaged
    {
        T* p = (T*)x.Pointer;
        long count = x.Count, runs = (count + SumRun - 1) / SumRun;
        using Workspace scratch = Workspace.Rent<double>(runs);
        double* sums = scratch.Take<double>(runs);
        if (count <= Grain) RunTotals<T, A>(p, count, 0, runs, squares, sums);
        else AllTotals<T, A>(p, count, runs, squares, sums);
        double total = 0;
        for (long run = 0; run < runs; run++) total += sums[run];
        return total;
    }

    private void AllTotals<T, A>(T* p, long count, long runs, bool squares, double* sums) where T : unmanaged where A : unmanaged =>
        ForRanges(runs, Grain / SumRun, (first, number) => RunTotals<T, A>(p, count, first, number, squares, sums));

    private static void RunTotals<T, A>(T* p, long count, long first, long number, bool squares, double* sums) where T : unmanaged where A : unmanaged
    {
        for (long run = first; run < first + number; run++)
        {
            long start = run * SumRun;
            sums[run] = RunTotal<T, A>(p + start, (int)Math.Min(SumRun, count - start), squares);
        }
    }

    private static double RunTotal<T, A>(T* p, int count, bool squares) where T : unmanaged where A : unmanaged
    {
        int lanes = Vector512<A>.Count, i = 0;
        Vector512<A> sum = Vector512<A>.Zero;
        for (; i <= count - lanes; i += lanes) sum = Accumulate(sum, Element.Load<T, A>(p + i), squares);
        double total = VectorMath.Total(sum);
        if (i < count) total += VectorMath.Total(Accumulate(Vector512<A>.Zero, Element.Load<T, A>(p + i, count - i), squares));
        return total;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector512<A> Accumulate<A>(Vector512<A> sum, Vector512<A> x, bool squares) where A : unmanaged =>
        squares ? VectorMath.Fma(x, x, sum) : sum + x;
}
