using System.Numerics;
using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>
/// The two layouts of Ulysses: token chunks [B, C, h, ..] of all h heads, and head shards [B, N, h/W, ..] of all tokens. Blocks travel with their tokens outermost, [tokens, B, heads of one rank],
/// so that chunks of different lengths arrive as one tensor.
/// </summary>
internal sealed class HeadShards(SequenceCall call)
{
    private readonly int _size = call.Group.Size;
    private readonly int _rank = call.Group.Rank;

    private IBackend Backend => call.Device.Backend;

    /// <summary>Throws <see cref="LaspException"/> naming the largest group when this one does not divide the query heads and the key/value heads.</summary>
    public static void CheckHeads(SequenceCall call)
    {
        long largest = (long)BigInteger.GreatestCommonDivisor(call.Heads, call.KeyHeads);
        if (largest % call.Group.Size != 0)
            throw new LaspException($"ulysses cannot divide {call.Heads} query and {call.KeyHeads} key/value heads among {call.Group.Size} ranks; use a number that divides both: the largest number of ranks it can use is {largest}");
    }

    /// <summary>Each rank is sent its heads of this rank's tokens.</summary>
    public HeadMessage ToHeads(Tensor x)
    {
        long width = HeadWidth(x) * x.Shape[2] / _size; // of one rank's heads
        Tensor sent = Empty([_size, call.Tokens, call.Batch, width], x);
        using Tensor chunk = x.View([call.Batch, call.Tokens, _size, width]);
        Backend.Permute(chunk, [2, 1, 0, 3], sent);
        Tensor received = Empty([call.Partition.Tokens, call.Batch, width], x);
        CommunicationWork work = call.Group.AllToAll(sent, EveryRank(width), received, Chunks(width));
        Shape result = WithTokensAndHeads(x, call.Partition.Tokens, x.Shape[2] / _size);
        return new HeadMessage(sent, received, work, [1, 0, 2], [call.Batch, call.Partition.Tokens, width], result);
    }

    /// <summary>Each rank is sent its tokens of this rank's heads.</summary>
    public HeadMessage ToTokens(Tensor x)
    {
        long width = HeadWidth(x) * x.Shape[2];
        Tensor sent = Empty([call.Partition.Tokens, call.Batch, width], x);
        using Tensor shard = x.View([call.Batch, call.Partition.Tokens, width]);
        Backend.Permute(shard, [1, 0, 2], sent);
        Tensor received = Empty([_size, call.Tokens, call.Batch, width], x);
        CommunicationWork work = call.Group.AllToAll(sent, Chunks(width), received, EveryRank(width));
        Shape result = WithTokensAndHeads(x, call.Tokens, x.Shape[2] * _size);
        return new HeadMessage(sent, received, work, [2, 1, 0, 3], [call.Batch, call.Tokens, _size, width], result);
    }

    /// <summary>This rank's part of [H].</summary>
    public Tensor OwnHeads(Tensor x) => x.Slice(_rank * x.Shape[0] / _size, x.Shape[0] / _size);

    /// <summary>x = this rank's part, and zeros for the other heads.</summary>
    public void WriteHeads(Tensor own, Tensor x)
    {
        Backend.Fill(0, x);
        using Tensor target = OwnHeads(x);
        Backend.Cast(own, target);
    }

    /// <summary>This rank's heads of states [n, H, D, E].</summary>
    public Tensor OwnStates(Tensor states)
    {
        Shape shape = states.Shape;
        long share = states.Count / shape[0] / _size;
        using Tensor byDocument = states.View([shape[0], _size, share]), byRank = Empty([_size, shape[0], share], states);
        Backend.Permute(byDocument, [1, 0, 2], byRank);
        using Tensor own = byRank.Slice(_rank, 1);
        return own.View([shape[0], shape[1] / _size, shape[2], shape[3]]);
    }

    /// <summary>states [n, H, D, E] = this rank's heads, and zeros for the others.</summary>
    public void WriteStates(Tensor own, Tensor states)
    {
        long documents = states.Shape[0], share = own.Count / documents;
        using Tensor byRank = Tensor.Zeros([_size, documents, share], states.DType, call.Device, MemoryCategory.States), target = byRank.Slice(_rank, 1), byDocument = states.View([documents, _size, share]);
        Backend.Cast(own, target);
        Backend.Permute(byRank, [1, 0, 2], byDocument);
    }

    private Tensor Empty(Shape shape, Tensor like) => Tensor.Empty(shape, like.DType, call.Device, MemoryCategory.Communication);

    /// <summary>Elements of one head of one token: 1 for a decay per token.</summary>
    private static long HeadWidth(Tensor x) => x.Shape.Rank == 4 ? x.Shape[3] : 1;

    private static Shape WithTokensAndHeads(Tensor x, long tokens, long heads) => x.Shape.Rank == 4 ? [x.Shape[0], tokens, heads, x.Shape[3]] : [x.Shape[0], tokens, heads];

    /// <summary>Elements between this rank and each one: its own tokens of one rank's heads.</summary>
    private long[] EveryRank(long width) => [.. Enumerable.Repeat(call.Tokens * call.Batch * width, _size)];

    /// <summary>Elements between this rank and each one: that rank's tokens of one rank's heads.</summary>
    private long[] Chunks(long width) => [.. call.Partition.Lengths().Select(tokens => tokens * call.Batch * width)];
}

/// <summary>One all-to-all in flight, with the buffers at both ends. What arrives is put in order by one permutation when it is taken.</summary>
/// <param name="axes">The permutation of <paramref name="received"/>.</param>
/// <param name="ordered">Its shape after it, with a head's channels and a rank's heads as one dimension.</param>
/// <param name="result">The shape of what is taken.</param>
internal sealed class HeadMessage(Tensor sent, Tensor received, CommunicationWork work, int[] axes, Shape ordered, Shape result) : IDisposable
{
    private CommunicationWork? _work = work;

    /// <summary>Waits, and returns what arrived, for the caller to own.</summary>
    public Tensor Take()
    {
        Tensor taken = Tensor.Empty(result, received.DType, received.Device);
        WriteTo(taken);
        return taken;
    }

    /// <summary>Waits, and writes what arrived.</summary>
    public void WriteTo(Tensor destination)
    {
        Wait();
        using Tensor view = destination.View(ordered);
        received.Device.Backend.Permute(received, axes, view);
    }

    private void Wait()
    {
        CommunicationWork? pending = _work;
        _work = null;
        pending?.Wait();
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
        sent.Dispose();
        received.Dispose();
    }
}
