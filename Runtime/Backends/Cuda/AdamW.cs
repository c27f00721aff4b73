using System.Runtime.InteropServices;

namespace LaspNative.Runtime.Cuda;

/// <summary>The optimizer's step on all parameters in one launch, and the clipping factor that it reads (adamw.cu).</summary>
internal sealed partial class CudaBackend
{
    /// <summary>Row of adamw.cu.</summary>
    [StructLayout(LayoutKind.Sequential)]
    private readonly struct AdamWEntry(in AdamWRow row, long end)
    {
        /// <summary>CHUNK of adamw.cu.</summary>
        public const long Chunk = 1024;

        private const int BF16Gradient = 1, BF16Parameter = 2, IsPacked = 4;

        private readonly nint _gradient = row.Gradient.Pointer, _m = row.M.Pointer, _v = row.V.Pointer, _master = row.Master.Pointer, _parameter = row.Parameter.Pointer;
        private readonly long _elements = row.Master.Count, _end = end;
        private readonly float _weightDecay = (float)row.WeightDecay;
        private readonly int _flags =
            (row.Gradient.DType == DType.BF16 ? BF16Gradient : 0) | (row.Parameter.DType == DType.BF16 ? BF16Parameter : 0)
            | (ArePacked(row.Gradient.Pointer | row.M.Pointer | row.V.Pointer | row.Master.Pointer | row.Parameter.Pointer) ? IsPacked : 0);
    }

    private AdamWEntry[] _adamW = [];

    public void ClipFactor(Tensor squaredNorm, Tensor loss, double bound, Tensor factor)
    {
        RequireNumber(squaredNorm);
        RequireNumber(loss);
        RequireNumber(factor);
        Launch("adamw", "clip_factor", DType.F32, Blocks(1, 1), squaredNorm.Pointer, loss.Pointer, bound, factor.Pointer);
    }

    public void AdamW(ReadOnlySpan<AdamWRow> rows, in AdamWStep step, Tensor? gradientScale)
    {
        if (gradientScale is not null) RequireNumber(gradientScale);
        if (_adamW.Length < rows.Length) _adamW = new AdamWEntry[rows.Length];
        long chunks = 0;
        for (int i = 0; i < rows.Length; i++)
        {
            RequireRow(rows[i]);
            chunks += CeilDivide(rows[i].Master.Count, AdamWEntry.Chunk);
            _adamW[i] = new AdamWEntry(rows[i], chunks);
        }
        nint table = Upload<AdamWEntry>(_adamW.AsSpan(0, rows.Length), beyond: 0, out _);
        double correction1 = 1 / (1 - Math.Pow(step.Beta1, step.Step)), correction2 = 1 / (1 - Math.Pow(step.Beta2, step.Step));
        Launch(
            "adamw", "adamw", DType.F32, Blocks(chunks, BlockThreads),
            table, rows.Length, (float)step.LearningRate, (float)(1 - step.Beta1), (float)(1 - step.Beta2), (float)step.Epsilon, (float)correction1, (float)correction2, PointerOrNull(gradientScale));
    }

    private static void RequireRow(in AdamWRow row)
    {
        RequireType(row.Master, DType.F32);
        RequireSame(row.Master, row.M);
        RequireSame(row.Master, row.V);
        RequireSameCount(row.Master, row.Gradient);
        RequireSameCount(row.Master, row.Parameter);
        RequireElement(row.Gradient);
        RequireElement(row.Parameter);
    }
}
