using LaspNative.Runtime;

namespace LaspNative.Autograd;

/// <summary>
/// The last projection and the loss in one, so that the logits [R, V] never exist as a whole:
/// z = x W^T,  loss = sum over rows with a label of (logsumexp(z_r) - z_r[label_r]) / normalizer        x [R, C], W [V, C]
/// dz = (softmax(z) - onehot(label)) / normalizer,  dx = dz W,  dW = dz^T x
/// Rows go in chunks. The forward pass computes the gradients too while a chunk's logits are there, for d loss = 1; backward hands them on, scaled when the loss was not the
/// root of the backward pass. Logits are in Acc; dz is rounded to the type of x and W for the two products; dW is summed in Acc.
/// </summary>
public sealed class LinearCrossEntropy : Function
{
    /// <summary>Most bytes of a chunk's logits, as long as that leaves <see cref="MinChunkRows"/>.</summary>
    private const long ChunkBytes = 64L << 20;

    /// <summary>Each chunk reads W twice and updates dW once; fewer rows than this would make that traffic, not the products, the cost of a large vocabulary.</summary>
    private const long MinChunkRows = 2048;

    private Tensor? _dx;
    private Tensor? _dWeight;

    private LinearCrossEntropy(Tensor? dx, Tensor? dWeight)
    {
        _dx = dx;
        _dWeight = dWeight;
    }

    /// <param name="labels">I32 [R]; a negative label is ignored: it adds no loss and no gradient.</param>
    /// <param name="normalizer">The number of labels that count, over all ranks and the whole batch: the loss is a mean over tokens, never a mean of means.</param>
    /// <returns>The loss [1], in Acc.</returns>
    public static Variable Apply(Variable x, Variable weight, Tensor labels, double normalizer)
    {
        ArgumentNullException.ThrowIfNull(x);
        if (!(normalizer > 0)) throw new LaspException($"the loss is divided by {normalizer}; the number of tokens with a label must be above 0");
        using Tensor scale = Tensor.Empty([1], x.DType.Accumulator(), x.Device);
        x.Device.Backend.Fill(1 / normalizer, scale);
        return Apply(x, weight, labels, scale);
    }

    /// <summary>As above, where only the device knows how many labels count.</summary>
    /// <param name="scale">1 / normalizer, [1] in Acc; it stays the caller's.</param>
    public static Variable Apply(Variable x, Variable weight, Tensor labels, Tensor scale)
    {
        ArgumentNullException.ThrowIfNull(x);
        ArgumentNullException.ThrowIfNull(weight);
        ArgumentNullException.ThrowIfNull(labels);
        ArgumentNullException.ThrowIfNull(scale);
        if (x.Shape.Rank != 2 || weight.Shape.Rank != 2 || x.Shape[1] != weight.Shape[1] || x.DType != weight.DType)
            throw new LaspException($"the loss takes x [R, C] and weight [V, C] of one type, got {x.DType} {x.Shape} and {weight.DType} {weight.Shape}");
        if (labels.DType != DType.I32 || labels.Shape != [x.Shape[0]])
            throw new LaspException($"the loss takes one I32 label per row of x {x.Shape}, got {labels.DType} {labels.Shape}");

        DType acc = x.DType.Accumulator();
        Tensor? dx = null, dWeight = null, loss = null;
        try
        {
            if (x.RequiresGradient) dx = Tensor.Empty(x.Shape, x.DType, x.Device);
            if (weight.RequiresGradient) dWeight = Tensor.Empty(weight.Shape, acc, x.Device, MemoryCategory.Gradients);
            loss = Tensor.Empty([1], acc, x.Device);
            using Tensor losses = Tensor.Empty([x.Shape[0]], acc, x.Device);
            ForEachChunk(x.Value, weight.Value, labels, scale, losses, dx, dWeight);
            x.Device.Backend.Sum(losses, loss);
            x.Device.Backend.Scale(loss, scale, loss);
        }
        catch
        {
            // A caller that has run out of memory may try again with less.
            foreach (Tensor? made in (ReadOnlySpan<Tensor?>)[dx, dWeight, loss]) made?.Dispose();
            throw;
        }
        return new LinearCrossEntropy(dx, dWeight).Record([x, weight], loss);
    }

    private static void ForEachChunk(Tensor x, Tensor weight, Tensor labels, Tensor scale, Tensor losses, Tensor? dx, Tensor? dWeight)
    {
        IBackend backend = x.Device.Backend;
        long rows = x.Shape[0];
        long vocabulary = weight.Shape[0];
        if (rows == 0 && dWeight is not null) backend.Fill(0, dWeight);
        long chunk = Math.Min(rows, Math.Max(MinChunkRows, ChunkBytes / Math.Max(1, vocabulary * losses.DType.Size())));
        using Tensor logits = Tensor.Empty([chunk, vocabulary], losses.DType, x.Device, MemoryCategory.Workspace);
        bool rounds = x.DType != losses.DType && (dx ?? dWeight) is not null;
        using Tensor? rounded = rounds ? Tensor.Empty(logits.Shape, x.DType, x.Device, MemoryCategory.Workspace) : null;
        for (long start = 0; start < rows; start += chunk)
        {
            long count = Math.Min(chunk, rows - start);
            using Tensor xChunk = x.Slice(start, count);
            using Tensor labelChunk = labels.Slice(start, count);
            using Tensor lossChunk = losses.Slice(start, count);
            using Tensor z = logits.Slice(0, count);
            backend.Gemm(xChunk, transposeA: false, weight, transposeB: true, alpha: 1, beta: 0, z);
            using Tensor dz = rounded?.Slice(0, count) ?? z.Share();
            backend.CrossEntropy(z, labelChunk, scale, lossChunk, dz);
            if (dx is not null)
            {
                using Tensor dxChunk = dx.Slice(start, count);
                backend.Gemm(dz, transposeA: false, weight, transposeB: false, alpha: 1, beta: 0, dxChunk);
            }
            if (dWeight is not null) backend.Gemm(dz, transposeA: true, xChunk, transposeB: false, alpha: 1, beta: start == 0 ? 0 : 1, dWeight);
        }
    }

    protected internal override void Backward(BackwardPass pass)
    {
        Tensor? dLoss = pass.OutputFactor(0);
        HandOn(pass, 0, ref _dx, dLoss);
        HandOn(pass, 1, ref _dWeight, dLoss);
    }

    private static void HandOn(BackwardPass pass, int index, ref Tensor? gradient, Tensor? scale)
    {
        if (gradient is null) return;
        if (scale is not null) gradient.Device.Backend.Scale(gradient, scale, gradient);
        pass.Give(index, gradient);
        gradient = null;
    }

    protected internal override void Release()
    {
        base.Release();
        _dx?.Dispose();
        _dWeight?.Dispose();
    }
}
