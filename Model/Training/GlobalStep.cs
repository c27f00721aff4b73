using LaspNative.Autograd;
using LaspNative.Collectives;
using LaspNative.Runtime;

namespace LaspNative.Model;

/// <summary>
/// Loss and gradient of a global batch, on one rank of DP x SP (LASP, arXiv 2404.02882, algorithm 1). The source rank of each group holds the group's share of the batch and
/// hands out the chunks; attention stays inside the group.
///   loss = sum of token losses over the world / labels that count over the world        gradient = sum of the ranks' gradients over the world
/// Never a mean of means: a rank, or a group, without any label that counts adds nothing.
/// </summary>
internal sealed class GlobalStep
{
    private readonly LinearLlamaModel _model;
    private readonly ICommunicator _world;
    private readonly SequenceContext _sequence;
    private readonly GradientBuckets _gradients;

    /// <param name="gradients">Where gradients are summed; the caller's.</param>
    public GlobalStep(LinearLlamaModel model, ICommunicator world, SequenceContext sequence, GradientBuckets gradients) =>
        (_model, _world, _sequence, _gradients) = (model, world, sequence, gradients);

    /// <summary>Sums the gradients, each message sent while backward goes on. On a GPU all of it is only queued: the host reads nothing back.</summary>
    /// <param name="batch">The group's share on its source rank, null on the others. It may be filled anew on return.</param>
    /// <param name="sequences">How many sequences that share has, known to all.</param>
    /// <param name="stop">Whether this rank was told to stop.</param>
    /// <param name="totals">[2] in fp32 (fp64): becomes the loss, and the number of ranks that were told to stop.</param>
    public void Run(SequenceBatch? batch, int sequences, bool stop, Tensor totals)
    {
        using var tape = new Tape { CheapValues = _sequence.Recomputation.CheapValues };
        using Tensor scale = LossScale(batch?.ValidLabels ?? 0, totals.DType);
        using Variable ids = tape.Constant(Scatter(batch is null ? [] : batch.AllTokens, sequences)); // [B, C]
        using Tensor labels = Scatter(batch is null ? [] : batch.AllLabels, sequences);
        using Tensor flatLabels = labels.View([labels.Count]);
        using Variable loss = _model.Loss(ids, flatLabels, scale, _sequence);
        Put(loss.Value, stop, totals);
        CommunicationWork reduced = _world.AllReduce(totals);
        loss.Backward();
        reduced.Wait();
        _gradients.Finish();
    }

    private Tensor Scatter(ReadOnlySpan<int> values, int sequences) => SequenceScatter.Scatter(_sequence.Group, _sequence.Partition, sequences, values);

    /// <summary>1 / labels that count over all ranks, [1]. A source rank knows its group's number on the host; the sum is known to devices alone, exact to 2^40 because it travels as two digits.</summary>
    private Tensor LossScale(long labels, DType dtype)
    {
        ReadOnlySpan<float> digits = [labels / IBackend.CountDigit, labels % IBackend.CountDigit];
        using Tensor count = Tensor.FromSpan(digits, [2], _world.Device);
        _world.AllReduce(count).Wait();
        Tensor scale = Tensor.Empty([1], dtype, _world.Device);
        _world.Device.Backend.CountReciprocal(count, scale);
        return scale;
    }

    /// <summary>totals = [this rank's loss, 1 if it was told to stop]: summed over ranks, both say the same to everybody.</summary>
    private static void Put(Tensor loss, bool stop, Tensor totals)
    {
        using Tensor first = totals.Slice(0, 1), second = totals.Slice(1, 1);
        loss.Device.Backend.Cast(loss, first);
        loss.Device.Backend.Fill(stop ? 1 : 0, second);
    }
}
