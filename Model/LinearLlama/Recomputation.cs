using System.Globalization;
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

    /// <summary>k: of blocks 0, k, 2k, ... only the input [B, C, hidden] is kept. 0: all of every block is kept.</summary>
    public int EveryBlock { get; init; }

    /// <summary>Whether the linear layers of those blocks keep the state that entered this rank (LASP's KV-state cache), so that computing them again sends nothing.</summary>
    public bool KeepStates { get; init; }

    /// <summary>Bytes of those blocks' inputs that wait for backward on the device, the rest in host memory. Null: all on the device.</summary>
    public long? DeviceBytes { get; init; }

    /// <summary>Most bytes of host memory, per rank, for those that do not wait on the device; what it cannot hold waits there all the same. Null: as much as they take.</summary>
    public long? HostBytes { get; init; }

    /// <summary>Tokens whose feed-forward activations are there at once, in forward and backward, of every block. 0: all of them, kept.</summary>
    public long MlpChunk { get; init; }

    /// <summary>Which blocks, as the command line says it: none, block, block:k.</summary>
    public string Blocks => EveryBlock switch
    {
        0 => "none",
        1 => "block",
        _ => string.Create(CultureInfo.InvariantCulture, $"block:{EveryBlock}"),
    };

    /// <summary>k of none, block or block:k; null for anything else.</summary>
    public static int? ParseBlocks(string text)
    {
        ArgumentNullException.ThrowIfNull(text);
        if (text == "none") return 0;
        if (text == "block") return 1;
        return text.StartsWith("block:", StringComparison.Ordinal) && int.TryParse(text.AsSpan(6), NumberStyles.None, CultureInfo.InvariantCulture, out int every) && every > 0 ? every : null;
    }

    /// <summary>Whether this block is computed again.</summary>
    internal bool Covers(int layer) => EveryBlock > 0 && layer % EveryBlock == 0;

    /// <summary>Throws a <see cref="LaspException"/> that names the first value that cannot be.</summary>
    public void Validate()
    {
        if (EveryBlock < 0) throw new LaspException($"every {EveryBlock}th block cannot be computed again; use 1 or more, or 0 for none");
        if (KeepStates && EveryBlock == 0) throw new LaspException("states are to be kept for blocks that are computed again, but none is; add --checkpointing block, or leave out --keep-states");
        if (DeviceBytes is not null && EveryBlock == 0) throw new LaspException("a part of the inputs of blocks that are computed again is to stay on the device, but none is; add --checkpointing block, or leave out --checkpoint-memory");
        if (DeviceBytes < 0) throw new LaspException($"{DeviceBytes} bytes of block inputs cannot stay on the device; use 0 or more");
        if (HostBytes is not null && DeviceBytes is null) throw new LaspException("host memory for blocks' inputs is limited, but all of them stay on the device; add --checkpoint-memory, or leave out --pinned-memory");
        if (HostBytes < 0) throw new LaspException($"{HostBytes} bytes of host memory cannot be; use 0 or more");
        if (MlpChunk < 0) throw new LaspException($"a feed-forward chunk of {MlpChunk} tokens cannot be; use 1 or more, or 0 for all at once");
    }

    public override string ToString() =>
        $"checkpointing {Blocks}{(KeepStates ? " with kept states" : "")}{(MlpChunk > 0 ? string.Create(CultureInfo.InvariantCulture, $", feed-forward in chunks of {MlpChunk} tokens") : "")}";
}
