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

    /// <summary>Sums the gradients, each message sent while backward goes on. Returns the loss, and whether any rank was told to stop.</summary>
    /// <param name="batch">The group's share on its source rank, null on the others.</param>
    /// <param name="sequences">How many sequences that share has, known to all.</param>
    /// <param name="stop">Whether this rank was told to stop.</param>
    public (double Loss, bool Stop) Run(SequenceBatch? batch, int sequences, bool stop = false)
    {
        using var tape = new Tape();
        long labelled = SumOverWorld(batch?.ValidLabels ?? 0);
        using Variable ids = tape.Constant(Scatter(batch is null ? [] : batch.AllTokens, sequences)); // [B, C]
        using Tensor labels = Scatter(batch is null ? [] : batch.AllLabels, sequences);
        using Tensor flatLabels = labels.View([labels.Count]);
        using Variable loss = _model.Loss(ids, flatLabels, Math.Max(1, labelled), _sequence);
        using Tensor totals = LossAndStop(loss.Value, stop);
        CommunicationWork reduced = _world.AllReduce(totals);
        loss.Backward();
        reduced.Wait();
        double[] values = totals.ToDoubles();
        _gradients.Finish();
        return (values[0], values[1] > 0);
    }

    private Tensor Scatter(ReadOnlySpan<int> values, int sequences) => SequenceScatter.Scatter(_sequence.Group, _sequence.Partition, sequences, values);

    /// <summary>The sum of a count over all ranks, exact to 2^40 in fp32 because it travels as two digits.</summary>
    private long SumOverWorld(long count)
    {
        const long Base = 1 << 20;
        using Tensor digits = Tensor.FromSpan([(float)(count / Base), count % Base], [2], _world.Device);
        _world.AllReduce(digits).Wait();
        float[] sums = digits.ToArray<float>();
        return (long)sums[0] * Base + (long)sums[1];
    }

    /// <summary>[this rank's loss, 1 if it was told to stop]: summed over ranks, both say the same to everybody.</summary>
    private static Tensor LossAndStop(Tensor loss, bool stop)
    {
        double flag = stop ? 1 : 0;
        Tensor totals = loss.DType == DType.F64 ? Tensor.FromSpan([0.0, flag], [2], loss.Device) : Tensor.FromSpan([0f, (float)flag], [2], loss.Device);
        using Tensor first = totals.Slice(0, 1);
        loss.Device.Backend.AddScaled(loss, 1, first);
        return totals;
    }
}
