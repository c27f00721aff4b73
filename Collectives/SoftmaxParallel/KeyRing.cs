using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>A run of tokens' keys [B, tokens, Hk, D] and values [B, tokens, Hk, E], or their gradients.</summary>
internal sealed record KeyBlock(TokenSpan Tokens, Tensor Key, Tensor Value) : IDisposable
{
    public void Dispose()
    {
        Key.Dispose();
        Value.Dispose();
    }
}

/// <summary>
/// Keys and values that circulate: at hop h rank r holds the blocks of rank r - h, and passes them to the next rank while it computes with them.
///   forward    W-1 hops of K, V
///   backward   W-1 hops of K, V again; their dk, dv in fp32 follow one hop behind, collecting every rank's part, and are home after W hops
/// A ring of whole chunks and a zigzag of half chunks differ only in which runs of tokens a rank's blocks are.
/// </summary>
/// <param name="tokensOf">The runs of tokens whose keys a rank contributes.</param>
internal sealed class KeyRing(SoftmaxCall call, Func<int, TokenSpan[]> tokensOf)
{
    private int Rank => call.Group.Rank;

    private int Size => call.Group.Size;

    /// <summary>Tokens of the blocks that a rank sends on in <paramref name="hops"/> hops.</summary>
    public long TokensSent(int hops) => Enumerable.Range(0, hops).Sum(hop => tokensOf(At(hop)).Sum(span => span.Length));

    /// <summary>Starts the first hop: this rank's blocks to the next.</summary>
    public Hop Start(IReadOnlyList<KeyBlock> own) => new(call, own, tokensOf(At(1)));

    /// <summary>The queries attend to all blocks: this rank's own, then the others' as they come by.</summary>
    public void Attend(SoftmaxQueries queries, IReadOnlyList<KeyBlock> own, Hop first) => Circulate(own, first, (_, blocks) =>
    {
        foreach (KeyBlock block in blocks) queries.Attend(block.Key, block.Value, block.Tokens);
    });

    /// <summary>Adds every block's part of dq, and sends each block's dk and dv around behind it. Those of this rank's own blocks are in the hop that is returned; null when they are not wanted.</summary>
    public Hop? AddGradients(SoftmaxQueries queries, IReadOnlyList<KeyBlock> own, bool wanted)
    {
        Hop? collecting = null;
        Circulate(own, Start(own), (hop, blocks) =>
        {
            KeyBlock[] gradients = [.. blocks.Select(Zeros)];
            for (int i = 0; i < blocks.Count; i++)
                queries.AddGradients(blocks[i].Key, blocks[i].Value, blocks[i].Tokens, gradients[i].Key, gradients[i].Value);
            if (wanted)
            {
                AddArrived(collecting, gradients);
                collecting = new Hop(call, gradients, tokensOf(At(hop + 1)));
            }
            foreach (KeyBlock gradient in gradients) gradient.Dispose();
        });
        return collecting;
    }

    private void Circulate(IReadOnlyList<KeyBlock> own, Hop first, Action<int, IReadOnlyList<KeyBlock>> visit)
    {
        Hop next = first;
        visit(0, own);
        for (int hop = 1; hop < Size; hop++)
        {
            IReadOnlyList<KeyBlock> blocks = next.Take();
            if (hop < Size - 1) next = new Hop(call, blocks, tokensOf(At(hop + 1)));
            visit(hop, blocks);
            foreach (KeyBlock block in blocks) block.Dispose();
        }
    }

    /// <summary>The rank whose blocks are here at a hop.</summary>
    private int At(int hop) => (Rank + Size - hop % Size) % Size;

    private KeyBlock Zeros(KeyBlock block)
    {
        DType sum = call.DType.Accumulator();
        return new KeyBlock(block.Tokens, Tensor.Zeros(block.Key.Shape, sum, call.Device), Tensor.Zeros(block.Value.Shape, sum, call.Device));
    }

    private void AddArrived(Hop? arriving, KeyBlock[] gradients)
    {
        if (arriving is null) return;
        KeyBlock[] arrived = arriving.Take();
        for (int i = 0; i < gradients.Length; i++)
        {
            using KeyBlock part = arrived[i];
            call.Device.Backend.AddScaled(part.Key, 1, gradients[i].Key);
            call.Device.Backend.AddScaled(part.Value, 1, gradients[i].Value);
        }
    }

    /// <summary>Blocks on their way to the next rank, while others arrive.</summary>
    internal sealed class Hop : IDisposable
    {
        private readonly (TokenSpan Tokens, TokenMessage Key, TokenMessage Value)[] _messages;

        public Hop(SoftmaxCall call, IReadOnlyList<KeyBlock> leaving, TokenSpan[] arriving) =>
            _messages = [.. leaving.Zip(arriving, (block, tokens) => (tokens, TokenMessage.PassOn(call, block.Key, tokens.Length), TokenMessage.PassOn(call, block.Value, tokens.Length)))];

        /// <summary>Waits, and hands over what arrived.</summary>
        public KeyBlock[] Take() => [.. _messages.Select(m => new KeyBlock(m.Tokens, m.Key.Take(), m.Value.Take()))];

        public void Dispose()
        {
            foreach ((_, TokenMessage key, TokenMessage value) in _messages)
            {
                key.Dispose();
                value.Dispose();
            }
        }
    }
}
