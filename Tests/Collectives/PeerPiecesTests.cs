using LaspNative.Collectives;
using LaspNative.Runtime;
using LaspNative.Runtime.Cuda;
using Xunit;

namespace LaspNative.Tests.Collectives;

/// <summary>Where pieces of long messages lie.</summary>
[Trait("Category", "Gpu")]
public class PeerPiecesTests
{
    /// <summary>Each piece in the slot behind the last one's, whatever their number: also where a run of months takes it past 2^32, which six does not divide.</summary>
    [Fact]
    public void Pieces_take_the_slots_in_turn()
    {
        const int Slots = 6, Bytes = 256;
        Gpu.Require();
        using var meeting = new ThreadMeeting(2, TestContext.Current.CancellationToken);
        World.Run(new WorldOptions(DeviceKind.Cuda, 2, VirtualRanks: true), rank =>
        {
            var device = (CudaDevice)rank.Device;
            using PeerMemory memory = PeerMemory.Open(device, rank.Rank, meeting, PeerPieces.BytesFor(2, Slots, Bytes), PeerPieces.FlagsFor(2), series: 1, m => m)!;
            var pieces = new PeerPieces(memory, device.CommunicationStream, start: 0, firstFlag: 0, Slots, Bytes);
            foreach (long first in (long[])[1, (1L << 32) - 8])
                for (long piece = first; piece < first + 16; piece++)
                    Assert.Equal(memory.At(rank.Rank, piece % Slots * Bytes), pieces.At(piece, sender: 1 - rank.Rank));
            rank.World.Barrier();
        });
    }
}
