using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>
/// Runs of tokens on their way between the ranks of a call's group, with the buffers at both ends. What goes in and comes out is [B, tokens, heads, width].
/// A message that nobody takes is waited for when it is disposed, so that its buffers can be freed.
/// </summary>
internal sealed class TokenMessage : IDisposable
{
    private readonly Tensor _source; // [tokens, B, heads, width]
    private readonly Tensor _destination; // [tokens, B, heads, width]
    private CommunicationWork? _work;

    private TokenMessage(Tensor source, long arriving, Func<Tensor, Tensor, CommunicationWork> start)
    {
        _source = source;
        _destination = Tensor.Empty([arriving, source.Shape[1], source.Shape[2], source.Shape[3]], source.DType, source.Device, MemoryCategory.Communication);
        _work = start(_source, _destination);
    }

    /// <summary>Every rank's chunk, in rank order: the whole sequence arrives.</summary>
    public static TokenMessage Gather(SoftmaxCall call, Tensor x)
    {
        long[] counts = Elements(x, call.Partition.Lengths());
        return new TokenMessage(TokenRuns.SwapBatchAndTokens(x), call.Partition.Tokens, (s, d) => call.Group.AllGather(s, d, counts));
    }

    /// <summary>Every rank gives a part for the whole sequence; the sum over the ranks arrives, for this rank's chunk.</summary>
    public static TokenMessage ReduceScatter(SoftmaxCall call, Tensor x)
    {
        long[] counts = Elements(x, call.Partition.Lengths());
        return new TokenMessage(TokenRuns.SwapBatchAndTokens(x), call.Tokens, (s, d) => call.Group.ReduceScatter(s, d, counts));
    }

    /// <summary>Rank r is sent the next send[r] tokens; receive[r] tokens arrive from it, in rank order.</summary>
    public static TokenMessage AllToAll(SoftmaxCall call, Tensor x, long[] send, long[] receive)
    {
        long[] sendCounts = Elements(x, send), receiveCounts = Elements(x, receive);
        return new TokenMessage(TokenRuns.SwapBatchAndTokens(x), receive.Sum(), (s, d) => call.Group.AllToAll(s, sendCounts, d, receiveCounts));
    }

    /// <summary>x goes to the next rank; this many tokens arrive from the previous one.</summary>
    public static TokenMessage PassOn(SoftmaxCall call, Tensor x, long arriving)
    {
        ICommunicator group = call.Group;
        int next = (group.Rank + 1) % group.Size, previous = (group.Rank + group.Size - 1) % group.Size;
        return new TokenMessage(TokenRuns.SwapBatchAndTokens(x), arriving, (s, d) => group.SendReceive(s, next, d, previous));
    }

    /// <summary>Waits for the message and hands over what arrived.</summary>
    public Tensor Take()
    {
        using (this)
        {
            Wait();
            return TokenRuns.SwapBatchAndTokens(_destination);
        }
    }

    public void Dispose()
    {
        try
        {
            Wait();
        }
        catch (LaspException)
        {
            // The group has failed: nothing arrives any more, and whoever takes a message says so.
        }
        _source.Dispose();
        _destination.Dispose();
    }

    private void Wait()
    {
        CommunicationWork? work = _work;
        _work = null;
        work?.Wait();
    }

    private static long[] Elements(Tensor x, long[] tokens) => Array.ConvertAll(tokens, n => n * x.Shape[0] * x.Shape[2] * x.Shape[3]);
}
