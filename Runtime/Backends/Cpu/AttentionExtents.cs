namespace LaspNative.Runtime.Cpu;

/// <summary>B, N, H, Hk, D and E of a call of linear attention, taken from its tensors, which must agree.</summary>
internal readonly record struct AttentionExtents(long Batches, long Tokens, long Heads, long KeyHeads, int KeyWidth, int ValueWidth)
{
    /// <summary>From query-like [B,N,H,D], k [B,N,Hk,D], v [B,N,Hk,E], output-like [B,N,H,E].</summary>
    public static AttentionExtents Of(Tensor q, Tensor k, Tensor v, Tensor o)
    {
        var extents = new AttentionExtents(q.Shape[0], q.Shape[1], q.Shape[2], k.Shape[2], checked((int)q.Shape[3]), checked((int)o.Shape[3]));
        Shape query = [extents.Batches, extents.Tokens, extents.Heads, extents.KeyWidth], key = [extents.Batches, extents.Tokens, extents.KeyHeads, extents.KeyWidth];
        bool fits = q.Shape == query && o.Shape == query.WithLast(extents.ValueWidth) && k.Shape == key && v.Shape == key.WithLast(extents.ValueWidth);
        if (!fits || extents.KeyHeads == 0 || extents.Heads % extents.KeyHeads != 0)
            throw new LaspException($"linear attention of q {q.Shape}, k {k.Shape}, v {v.Shape}, o {o.Shape}: expected [B,N,H,D], [B,N,Hk,D], [B,N,Hk,E], [B,N,H,E] with Hk dividing H");
        return extents;
    }

    /// <summary>From k, v and the state [B,H,D,E], which alone says how many query heads there are.</summary>
    public static AttentionExtents Of(Tensor k, Tensor v, Tensor state)
    {
        Shape key = [state.Shape[0], k.Shape[1], k.Shape[2], state.Shape[2]];
        if (k.Shape != key || v.Shape != key.WithLast(state.Shape[3]) || key[2] == 0 || state.Shape[1] % key[2] != 0)
            throw new LaspException($"the state {state.Shape} of k {k.Shape} and v {v.Shape}: expected [B,H,D,E], [B,N,Hk,D], [B,N,Hk,E] with Hk dividing H");
        return new AttentionExtents(state.Shape[0], k.Shape[1], state.Shape[1], k.Shape[2], checked((int)state.Shape[2]), checked((int)state.Shape[3]));
    }

    /// <summary>Query heads per key head.</summary>
    public int Group => (int)(Heads / KeyHeads);

    public long KeyHead(long head) => head / Group;

    /// <summary>Whether a decay is [H], [B,N,H] or [B,N,H,D].</summary>
    public bool Fits(Shape decay) => decay == new Shape([Heads]) || decay == new Shape([Batches, Tokens, Heads]) || decay == new Shape([Batches, Tokens, Heads, KeyWidth]);
}
