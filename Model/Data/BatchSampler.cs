namespace LaspNative.Model;

/// <summary>
/// Draws each step's sequences from the seed and the step's number alone, so that every rank, for any number of ranks and after any resume, sees the same global batch
/// and takes its own part of it.
/// </summary>
public sealed class BatchSampler
{
    private readonly TokenStream _stream;
    private readonly ulong _seed;
    private readonly SequenceBatch _batch;

    public BatchSampler(TokenStream stream, ulong seed, int batch, long sequenceLength)
    {
        (_stream, _seed) = (stream, seed);
        _batch = new SequenceBatch(batch, checked((int)sequenceLength));
    }

    /// <summary>The global batch of a step (counted from 1). The same object every time, refilled: use it before the next call.</summary>
    public SequenceBatch Sample(long step)
    {
        var random = new CounterRandom(CounterRandom.Mix(_seed) ^ (ulong)step);
        for (int b = 0; b < _batch.Count; b++)
            _stream.Read((long)(random.Uniform((ulong)b) * _stream.Count), _batch.Tokens(b), _batch.Labels(b));
        return _batch;
    }
}
