using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>
/// The zigzag assignment: every rank's chunk is cut into two halves, pieces 0 .. 2W-1 of the sequence, and rank r computes pieces r and 2W-1-r. Under a causal mask a piece's work grows with
/// its index, and these two sum to the same on every rank (contiguous chunks give the last rank about twice the mean). The tokens stay where they are: rank r owns pieces 2r and 2r+1,
/// so what is computed elsewhere is sent there and its results come back, in one all-to-all each way.
/// </summary>
internal sealed class BalancedPieces(SoftmaxCall call)
{
    private readonly SequencePartition _partition = call.Partition;

    private int Ranks => _partition.Ranks;

    /// <summary>The runs of tokens that a rank computes, in the order in which they arrive.</summary>
    public TokenSpan[] ComputedBy(int rank) => [Span(rank), Span(2 * Ranks - 1 - rank)];

    /// <summary>Tokens that leave a rank to be computed elsewhere.</summary>
    public long TokensSent(int rank) => OwnedBy(rank).Where(p => Computer(p) != rank).Sum(p => Span(p).Length);

    /// <summary>Tokens whose results a rank sends back.</summary>
    public long TokensReturned(int rank) => ((int[])[rank, 2 * Ranks - 1 - rank]).Where(p => Owner(p) != rank).Sum(p => Span(p).Length);

    /// <summary>This rank's chunk [B, C, ..] goes to the ranks that compute it; the pieces that this rank computes arrive.</summary>
    public TokenMessage Send(Tensor chunk)
    {
        int[] owned = OwnedBy(call.Group.Rank);
        using Tensor inRankOrder = IsDescending(owned) ? SwapRuns(chunk, Span(owned[0]).Length) : chunk.Share();
        return TokenMessage.AllToAll(call, inRankOrder, Between(call.Group.Rank, sender: true), Between(call.Group.Rank, sender: false));
    }

    /// <summary>Results for the pieces that this rank computed go home; <see cref="TakeReturned"/> gives those for its own chunk.</summary>
    public TokenMessage Return(Tensor computed) =>
        TokenMessage.AllToAll(call, computed, Between(call.Group.Rank, sender: false), Between(call.Group.Rank, sender: true));

    /// <summary>Results for this rank's chunk [B, C, ..], in the order of its tokens.</summary>
    public Tensor TakeReturned(TokenMessage message)
    {
        int[] owned = OwnedBy(call.Group.Rank);
        Tensor arrived = message.Take();
        if (!IsDescending(owned)) return arrived;
        using (arrived) return SwapRuns(arrived, Span(owned[1]).Length);
    }

    private static int[] OwnedBy(int rank) => [2 * rank, 2 * rank + 1];

    private static int Owner(int piece) => piece / 2;

    private int Computer(int piece) => piece < Ranks ? piece : 2 * Ranks - 1 - piece;

    /// <summary>Messages go out in rank order: in the second half of the ranks a chunk's second piece is for the lower rank.</summary>
    private bool IsDescending(int[] owned) => Computer(owned[0]) > Computer(owned[1]);

    private TokenSpan Span(int piece)
    {
        TokenSpan chunk = call.Chunk(Owner(piece));
        long half = (chunk.Length + 1) / 2;
        return piece % 2 == 0 ? new TokenSpan(chunk.Start, half) : new TokenSpan(chunk.Start + half, chunk.Length - half);
    }

    /// <summary>Per rank, the tokens of this rank's chunk that it computes (sender) or those of its chunk that this rank computes.</summary>
    private long[] Between(int rank, bool sender)
    {
        var tokens = new long[Ranks];
        for (int piece = 0; piece < 2 * Ranks; piece++)
        {
            (int self, int other) = sender ? (Owner(piece), Computer(piece)) : (Computer(piece), Owner(piece));
            if (self == rank) tokens[other] += Span(piece).Length;
        }
        return tokens;
    }

    /// <summary>The tokens from <paramref name="first"/> on, then those before.</summary>
    private static Tensor SwapRuns(Tensor x, long first)
    {
        using Tensor head = TokenRuns.Cut(x, 0, first), tail = TokenRuns.Cut(x, first, x.Shape[1] - first);
        return TokenRuns.Join(tail, head);
    }
}
