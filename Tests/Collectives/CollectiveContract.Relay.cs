using LaspNative.Collectives;
using LaspNative.Runtime;
using Xunit;

namespace LaspNative.Tests.Collectives;

// Blocks handed from rank to rank in pieces.
public abstract partial class CollectiveContract
{
    /// <summary>Up and down the ranks, of sizes that change, among gathers in the same memory; at the end more are held than there is room for, all one way.</summary>
    [Theory, MemberData(nameof(Cases))]
    public void Relay_hands_pieces_from_rank_to_rank(int ranks, DType dtype) => RunSizes(ranks, dtype, (r, count) =>
    {
        const int Rounds = 12;
        var held = new Queue<RunningSum>();
        long bytes = 0, messages = 0, gathered = 0;
        for (int round = 0; round < Rounds; round++)
        {
            var sum = new RunningSum(r, dtype, count + round, pieces: (int)Math.Min(count + round, 1 + (5 * round % 7)), isUp: round % 3 != 1 || round >= 7);
            (bytes, messages) = (bytes + sum.BytesSent, messages + sum.MessagesSent);
            held.Enqueue(sum);
            if (round < 7) Finish();
            if (round == 4) gathered += GatherBetween(r, dtype, 2 * count);
        }
        while (held.Count > 0) Finish();
        gathered += GatherBetween(r, dtype, 3 * count);
        Assert.Equal((bytes, messages), (r.World.Counters.BytesSentBy(CollectiveKind.SendReceive), r.World.Counters.MessagesBy(CollectiveKind.SendReceive)));
        Assert.Equal(bytes + gathered, r.World.Counters.BytesSent);

        void Finish()
        {
            using RunningSum sum = held.Dequeue();
            sum.Finish();
        }
    });

    /// <summary>Longer than what travels in memory set aside for it, or in more pieces.</summary>
    [Theory, InlineData(2, (1 << 20) / 3, 3), InlineData(3, ((1 << 20) / 3) + 1, 3), InlineData(3, 40, 16), InlineData(2, 40, 17)]
    public void Relay_takes_blocks_of_any_length_in_any_number_of_pieces(int ranks, long rows, int pieces) => Run(ranks, DType.F32, r =>
    {
        for (int round = 0; round < 2; round++)
        {
            using var sum = new RunningSum(r, DType.F32, rows, pieces, isUp: round == 0);
            sum.Finish();
        }
    });

    [Fact]
    public void A_relay_that_makes_no_sense_is_refused_in_one_line() => Run(2, DType.F32, r =>
    {
        int other = 1 - r.Rank;
        RefusedRelay($"Relay on rank {r.Rank}: a block [4] cannot go in 0 pieces; use 1 to 4, its rows", () => r.World.Relay([4], DType.F32, 0, null, other));
        RefusedRelay($"Relay on rank {r.Rank}: a block [4, 3] cannot go in 5 pieces; use 1 to 4, its rows", () => r.World.Relay([4, 3], DType.F32, 5, null, other));
        RefusedRelay($"Relay on rank {r.Rank}: rank 2 is not in this group of 2", () => r.World.Relay([4], DType.F32, 1, 2, null));
        using Tensor two = Filled(r, DType.F32, 2, i => i), three = Filled(r, DType.F32, 3, i => i);
        using BlockRelay relay = r.World.Relay([5], DType.F32, 2, r.Rank == 1 ? 0 : null, r.Rank == 0 ? 1 : null);
        RefusedRelay($"Relay on rank {r.Rank}: cannot wait for 3 of 2 pieces; wait for 0 to 2", () => relay.Wait(3));
        RefusedRelay($"Relay on rank {r.Rank}: cannot wait for -1 of 2 pieces; wait for 0 to 2", () => relay.Wait(-1));
        if (r.Rank == 1)
        {
            RefusedRelay("Relay on rank 1: this rank passes nothing on; name the rank that it sends to when the relay begins", () => relay.Send(three));
            return;
        }
        RefusedRelay("Relay on rank 0: pieces 0 to 0 of 2 have 3 elements, but [2] has 2; pass whole pieces on", () => relay.Send(two));
        using (Tensor narrow = Filled(r, DType.BF16, 3, i => i))
            RefusedRelay("Relay on rank 0: the relay is of F32, but [3] is BF16; cast it first", () => relay.Send(narrow));
        relay.Send(three);
        relay.Send(two);
        RefusedRelay("Relay on rank 0: all 2 pieces were passed on already; a block has no more", () => relay.Send(two));
    });

    private static void RefusedRelay(string message, Action operation) => Assert.Equal(message, Assert.Throws<LaspException>(operation).Message);

    private static long GatherBetween(RankContext rank, DType dtype, long count)
    {
        using Tensor source = Filled(rank, dtype, count, i => Value(rank.Rank, i));
        using BlockGather gather = rank.World.Gather(source);
        // Not all that comes is waited for.
        int last = rank.Size - 1;
        gather.Wait(last, 1);
        using Tensor block = gather.Blocks.Slice(last, 1);
        Equal(count, i => Value(last, i), block);
        return (rank.Size - 1) * source.Bytes;
    }

    /// <summary>A relay along all ranks: each adds what has come to its own piece and passes the sum on.</summary>
    private sealed class RunningSum : IDisposable
    {
        private const int Width = 3;
        private readonly RankContext _rank;
        private readonly SequencePartition _pieces;
        private readonly int[] _before; // the ranks that the block has been at
        private readonly bool _passesOn;
        private readonly Tensor _own; // [rows, Width]
        private readonly BlockRelay _relay;

        public RunningSum(RankContext rank, DType dtype, long rows, int pieces, bool isUp)
        {
            (_rank, _pieces) = (rank, new SequencePartition(rows, pieces));
            _before = isUp ? [.. Enumerable.Range(0, rank.Rank)] : [.. Enumerable.Range(rank.Rank + 1, rank.Size - rank.Rank - 1)];
            (int previous, int next) = isUp ? (rank.Rank - 1, rank.Rank + 1) : (rank.Rank + 1, rank.Rank - 1);
            _passesOn = next >= 0 && next < rank.Size;
            using Tensor own = Filled(rank, dtype, rows * Width, i => Value(rank.Rank, i));
            _own = own.View([rows, Width]);
            _relay = rank.World.Relay(_own.Shape, dtype, pieces, _before.Length > 0 ? previous : null, _passesOn ? next : null);
            if (_before.Length > 0 || !_passesOn) return;
            // All at once, or the first piece and the others.
            using Tensor first = _own.Slice(0, _pieces.Length(0)), others = _own.Slice(_pieces.Start(1), rows - _pieces.Start(1));
            if (isUp) _relay.Send(_own);
            else _relay.Send(first);
            if (!isUp && pieces > 1) _relay.Send(others);
        }

        public long BytesSent => _passesOn ? _own.Bytes : 0;

        public long MessagesSent => _passesOn ? _pieces.Ranks : 0;

        /// <summary>Passes on what is still to come, and checks it.</summary>
        public void Finish()
        {
            if (_relay.Block is not { } block) return;
            Assert.Equal(_own.Shape, block.Shape);
            for (int piece = 0; piece < _pieces.Ranks && _passesOn; piece++) AddAndPassOn(block, piece);
            _relay.Wait(_pieces.Ranks);
            Equal(block.Count, i => _before.Sum(rank => Value(rank, i)), block);
        }

        private void AddAndPassOn(Tensor block, int piece)
        {
            using Tensor own = _own.Slice(_pieces.Start(piece), _pieces.Length(piece)), came = block.Slice(_pieces.Start(piece), _pieces.Length(piece));
            _relay.Wait(piece + 1);
            _rank.Device.Backend.AddScaled(came, 1, own);
            _relay.Send(own);
        }

        public void Dispose()
        {
            _relay.Dispose();
            _own.Dispose();
        }
    }
}
