namespace LaspNative.Model;

/// <summary>
/// Draws each step's sequences from the seed and the step's number alone, so that the global batch is the same for any number of ranks and after any resume.
/// </summary>
public sealed class BatchSampler
{
    private readonly TokenStream _stream;
    private readonly ulong _seed;
    private readonly int _first;
    private readonly TokenMasking? _masking;
    private readonly SequenceBatch _batch;

    /// <param name="stream">The text.</param>
    /// <param name="seed">Of the run.</param>
    /// <param name="batch">Sequences to draw.</param>
    /// <param name="sequenceLength">N.</param>
    /// <param name="first">Index of the first of them in the step's global batch.</param>
    /// <param name="masking">Makes them the task of a masked language model.</param>
    public BatchSampler(TokenStream stream, ulong seed, int batch, long sequenceLength, int first = 0, TokenMasking? masking = null)
    {
        (_stream, _seed, _first, _masking) = (stream, seed, first, masking);
        _batch = new SequenceBatch(batch, checked((int)sequenceLength));
    }

    /// <summary>The sequences of a step (counted from 1). The same object every time, refilled: use it before the next call.</summary>
    public SequenceBatch Sample(long step)
    {
        var random = new CounterRandom(CounterRandom.Mix(_seed) ^ (ulong)step);
        for (int b = 0; b < _batch.Count; b++)
        {
            int sequence = _first + b;
            _stream.Read((long)(random.Uniform((ulong)sequence) * _stream.Count), _batch.Tokens(b), _batch.Labels(b));
            _masking?.Apply(step, sequence, _batch.Tokens(b), _batch.Labels(b));
        }
        return _batch;
    }
}
