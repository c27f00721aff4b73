namespace LaspNative.Runtime.Cuda;

/// <summary>How a log decay is stored: DecayKind of attention_decay.cuh, in its order.</summary>
internal enum DecayKind
{
    None,
    PerHead,
    PerToken,
    PerChannel,
}

/// <summary>The log decay of one linear-attention call: null, [H], [B,N,H] or [B,N,H,D], told apart by its shape.</summary>
internal readonly record struct AttentionDecay(nint Pointer, DecayKind Kind)
{
    public static AttentionDecay Of(Tensor? decay, AttentionRun run)
    {
        if (decay is null) return new AttentionDecay(0, DecayKind.None);
        DecayKind kind = decay.Shape.Rank switch
        {
            1 when decay.Shape == [run.Heads] => DecayKind.PerHead,
            3 when decay.Shape == [run.Batches, run.Tokens, run.Heads] => DecayKind.PerToken,
            4 when decay.Shape == [run.Batches, run.Tokens, run.Heads, run.KeyWidth] => DecayKind.PerChannel,
            _ => throw new LaspException(
                $"a decay of shape {decay.Shape} does not fit; expected [{run.Heads}], [{run.Batches}, {run.Tokens}, {run.Heads}] or [{run.Batches}, {run.Tokens}, {run.Heads}, {run.KeyWidth}]"),
        };
        return new AttentionDecay(decay.Pointer, kind);
    }

    /// <summary>Factors of one head's state: one, or one per channel.</summary>
    public long Channels(AttentionRun run) => Kind == DecayKind.PerChannel ? run.KeyWidth : 1;
}
