using System.Globalization;
using LaspNative.Autograd;
using LaspNative.Runtime;

namespace LaspNative.Model;

/// <summary>
/// What a forward pass does not keep for backward but computes again: time and, for blocks, messages against memory. Losses and gradients are the same bits, except that
/// <see cref="MlpChunk"/> sums the gradients of the feed-forward weights in another order.
/// </summary>
public sealed record Recomputation
{
    /// <summary>Everything that backward reads is kept.</summary>
    public static Recomputation None { get; } = new();

    /// <summary>k: of blocks 0, k, 2k, ... only the input [B, C, hidden] is kept. 0: all of every block is kept. The last block is never computed again: backward begins with it, when its activations are there.</summary>
    public int EveryBlock { get; init; }

    /// <summary>Whether norms and feature maps are kept too, 5 hidden widths per token and linear layer of the papers' model, rather than made again from what is kept: a percent of a step's time.</summary>
    public bool KeepElementwise { get; init; }

    /// <summary>Whether of every block's feed-forward part only its input is kept: the products of gate and up, 8 of the 14 hidden widths that a block of the papers' model keeps per token, are made again.</summary>
    public bool FeedForward { get; init; }

    /// <summary>Whether the linear layers of those blocks keep the state that entered this rank (LASP's KV-state cache), so that computing them again sends nothing.</summary>
    public bool KeepStates { get; init; }

    /// <summary>Bytes of those blocks' inputs that wait for backward on the device, the rest in host memory. Null: all on the device.</summary>
    public long? DeviceBytes { get; init; }

    /// <summary>Most bytes of host memory, per rank, for those that do not wait on the device; what it cannot hold waits there all the same. Null: as much as they take.</summary>
    public long? HostBytes { get; init; }

    /// <summary>Tokens whose feed-forward activations are there at once, in forward and backward, of every block. 0: all of them, kept.</summary>
    public long MlpChunk { get; init; }

    /// <summary>What is computed again, as the command line says it: none, selective (the feed-forward parts), block, block:k.</summary>
    public string Kind => EveryBlock switch
    {
        0 => FeedForward ? "selective" : "none",
        1 => "block",
        _ => string.Create(CultureInfo.InvariantCulture, $"block:{EveryBlock}"),
    };

    /// <summary>What the tape of a step is to be told (<see cref="Tape.CheapValues"/>) by whoever runs a model's steps without the trainer.</summary>
    public CheapValues CheapValues => KeepElementwise ? CheapValues.Kept : MlpChunk > 0 ? CheapValues.MadeForEach : CheapValues.MadeAgain;

    /// <summary>A block that is computed again keeps its norms and feature maps rather than making them a third time; where the feed-forward part goes in chunks, memory is short, and it makes them for each reader.</summary>
    internal CheapValues CheapValuesOfBlocks => MlpChunk == 0 || KeepElementwise ? CheapValues.Kept : CheapValues.MadeForEach;

    /// <summary>none, selective, block or block:k; null for anything else.</summary>
    public static Recomputation? Parse(string text)
    {
        ArgumentNullException.ThrowIfNull(text);
        if (text == "none") return None;
        if (text == "selective") return new Recomputation { FeedForward = true };
        if (text == "block") return new Recomputation { EveryBlock = 1 };
        string? number = text.StartsWith("block:", StringComparison.Ordinal) ? text[6..] : null;
        return int.TryParse(number, NumberStyles.None, CultureInfo.InvariantCulture, out int every) && every > 0 ? new Recomputation { EveryBlock = every } : null;
    }

    /// <summary>Tokens of a chunk of the feed-forward part of this many, whose activations are made again; null: of all of them at once, and kept.</summary>
    internal long? FeedForwardChunk(long tokens) => MlpChunk > 0 && MlpChunk < tokens ? MlpChunk : FeedForward ? Math.Max(1, tokens) : null;

    /// <summary>Whether this block of so many is computed again.</summary>
    internal bool Covers(int layer, int layers) => EveryBlock > 0 && layer % EveryBlock == 0 && layer < layers - 1;

    /// <summary>Throws a <see cref="LaspException"/> that names the first value that cannot be.</summary>
    public void Validate()
    {
        if (FeedForward && EveryBlock > 0) throw new LaspException("blocks that are computed again hold their feed-forward parts; ask for one of the two");
        if (EveryBlock < 0) throw new LaspException($"every {EveryBlock}th block cannot be computed again; use 1 or more, or 0 for none");
        if (KeepStates && EveryBlock == 0) throw new LaspException("states are to be kept for blocks that are computed again, but none is; add --checkpointing block, or leave out --keep-states");
        if (DeviceBytes is not null && EveryBlock == 0) throw new LaspException("a part of the inputs of blocks that are computed again is to stay on the device, but none is; add --checkpointing block, or leave out --checkpoint-memory");
        if (DeviceBytes < 0) throw new LaspException($"{DeviceBytes} bytes of block inputs cannot stay on the device; use 0 or more");
        if (HostBytes is not null && DeviceBytes is null) throw new LaspException("host memory for blocks' inputs is limited, but all of them stay on the device; add --checkpoint-memory, or leave out --pinned-memory");
        if (HostBytes < 0) throw new LaspException($"{HostBytes} bytes of host memory cannot be; use 0 or more");
        if (MlpChunk < 0) throw new LaspException($"a feed-forward chunk of {MlpChunk} tokens cannot be; use 1 or more, or 0 for all at once");
    }

    public override string ToString() =>
        $"checkpointing {Kind}{(KeepStates ? " with kept states" : "")}{(KeepElementwise ? ", element-wise values kept" : "")}{(MlpChunk > 0 ? string.Create(CultureInfo.InvariantCulture, $", feed-forward in chunks of {MlpChunk} tokens") : "")}";
}
