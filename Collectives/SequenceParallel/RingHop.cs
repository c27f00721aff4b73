using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>Tensors [B, C, ..] of one rank's chunk that travel together.</summary>
internal sealed class RingTensors(Tensor[] tensors) : IDisposable
{
    private Tensor[] _tensors = tensors;

    public Tensor this[int index] => _tensors[index];

    /// <summary>Second owners of the same tensors.</summary>
    public Tensor[] Share() => [.. _tensors.Select(t => t.Share())];

    /// <summary>The tensors for another owner; these are empty afterwards.</summary>
    public Tensor[] TakeOver()
    {
        Tensor[] taken = _tensors;
        _tensors = [];
        return taken;
    }

    public void Dispose()
    {
        foreach (Tensor tensor in _tensors) tensor.Dispose();
    }
}

/// <summary>One step of a ring: what belongs to one rank's chunk goes to the next rank, and what belongs to the chunk before it in the ring arrives, in buffers of that chunk's length.</summary>
internal sealed class RingHop : IDisposable
{
    private readonly Tensor[] _sent;
    private readonly Tensor[] _arriving;
    private readonly CommunicationWork[] _work;

    private RingHop(ICommunicator group, Tensor[] sent, Tensor[] arriving)
    {
        (_sent, _arriving) = (sent, arriving);
        int next = (group.Rank + 1) % group.Size, previous = (group.Rank - 1 + group.Size) % group.Size;
        _work = [.. sent.Zip(arriving, (s, a) => group.SendReceive(s, next, a, previous))];
    }

    /// <summary>Takes over <paramref name="tensors"/>, which belong to the chunk of <paramref name="rank"/>.</summary>
    public static RingHop Start(AttentionCall call, int rank, Tensor[] tensors)
    {
        long tokens = call.Partition.Length((rank - 1 + call.Group.Size) % call.Group.Size);
        return new RingHop(call.Group, tensors, [.. tensors.Select(t => Tensor.Empty(WithTokens(t.Shape, tokens), t.DType, call.Device, MemoryCategory.Communication))]);
    }

    /// <summary>What has arrived, for the caller to own. Wait exactly once.</summary>
    public RingTensors Wait()
    {
        foreach (CommunicationWork work in _work) work.Wait();
        foreach (Tensor tensor in _sent) tensor.Dispose();
        return new RingTensors(_arriving);
    }

    /// <summary>Gives up a hop that nobody waits for.</summary>
    public void Dispose()
    {
        try
        {
            Wait().Dispose();
        }
        catch (LaspException)
        {
            // The group has failed: nothing arrives any more, and whoever waits for it says so.
        }
    }

    private static Shape WithTokens(Shape shape, long tokens) => shape.Rank == 4 ? [shape[0], tokens, shape[2], shape[3]] : [shape[0], tokens, shape[2]];
}
