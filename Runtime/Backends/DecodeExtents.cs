namespace LaspNative.Runtime;

/// <summary>B, H, Hk, D and E of one step of generation, taken from its tensors, which must agree, and where the decay of a state's row lies.</summary>
/// <param name="DecayBatch">Elements of the decay from one sequence to the next, 0 where they share it; so for heads and key channels.</param>
internal readonly record struct DecodeExtents(
    long Batches, long Heads, long KeyHeads, long KeyWidth, long ValueWidth, long DecayBatch, long DecayHead, long DecayChannel)
{
    /// <summary>From q [B,H,D], k [B,Hk,D], v [B,Hk,E], decay [H], [B,H], [B,H,D] or null, state [B,H,D,E], o [B,H,E].</summary>
    public static DecodeExtents Of(Tensor q, Tensor k, Tensor v, Tensor? decay, Tensor state, Tensor o)
    {
        if (state.Shape.Rank != 4 || k.Shape.Rank != 3) throw Mismatch(q, k, v, state, o);
        (long batches, long heads, long keyHeads, long width, long valueWidth) = (state.Shape[0], state.Shape[1], k.Shape[1], state.Shape[2], state.Shape[3]);
        bool fits = q.Shape == [batches, heads, width] && k.Shape == [batches, keyHeads, width] && v.Shape == [batches, keyHeads, valueWidth] && o.Shape == [batches, heads, valueWidth];
        if (!fits || keyHeads == 0 || heads % keyHeads != 0) throw Mismatch(q, k, v, state, o);
        (long batch, long head, long channel) = decay?.Shape switch
        {
            null => (0L, 0L, 0L),
            var shape when shape == [heads] => (0, 1, 0),
            var shape when shape == [batches, heads] => (heads, 1, 0),
            var shape when shape == [batches, heads, width] => (heads * width, width, 1),
            var shape => throw new LaspException($"a decay of shape {shape} does not fit; expected [{heads}], [{batches}, {heads}] or [{batches}, {heads}, {width}]"),
        };
        return new DecodeExtents(batches, heads, keyHeads, width, valueWidth, batch, head, channel);
    }

    public long KeyHead(long head) => head / (Heads / KeyHeads);

    public long DecayAt(long batch, long head, long channel) => (batch * DecayBatch) + (head * DecayHead) + (channel * DecayChannel);

    private static LaspException Mismatch(Tensor q, Tensor k, Tensor v, Tensor state, Tensor o) =>
        new($"a decoding step takes q [B,H,D], k [B,Hk,D], v [B,Hk,E], a state [B,H,D,E] and o [B,H,E] with H a multiple of Hk; got {q.Shape}, {k.Shape}, {v.Shape}, {state.Shape}, {o.Shape}");
}
