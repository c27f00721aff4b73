using LaspNative.Collectives;
using LaspNative.Runtime;
using LaspNative.Runtime.Cuda;
using Xunit;

namespace LaspNative.Tests.Collectives;

/// <summary>
/// Long sums and gathers by copy engines, bit by bit: more of them, and more pieces, than are under way at once, shards that do not divide into pieces nor pieces into 16 bytes, in place and not.
/// Values are random, so that a sum in another order than the ranks' shows. And the squares that the sums leave, over all ranks: each element once, as it was rounded.
/// </summary>
internal static class PeerShardsCheck
{
    private const long PieceBytes = 1 << 18;

    private static readonly long[] s_lengths = [(4L << 20) + 4099, 1 << 19, (2L << 20) + 3, 1 << 19, (3L << 20) + 1, 600_007];

    /// <summary>Between GPUs that reach one another.</summary>
    public static void Run(RankContext rank, DType dtype)
    {
        using PeerShards shards = PeerShards.Open((CudaDevice)rank.Device, rank.Rank, ((NcclCommunicator)rank.World).Meeting!, PieceBytes) ?? throw new InvalidOperationException("the GPUs do not reach one another");
        for (int round = 0; round < s_lengths.Length; round++)
        {
            long length = s_lengths[round] / rank.Size * (dtype == DType.BF16 ? 2 : 1); // of one shard
            Tensor?[] all = [Random(rank, dtype, rank.Rank, round, length * rank.Size), Random(rank, dtype, rank.Rank, round, length * rank.Size), Random(rank, dtype, rank.Rank, round, (length * rank.Size) - 1)];
            using Tensor inPlace = all[0]!, source = all[1]!, whole = all[2]!;
            using Tensor own = inPlace.Slice(rank.Rank * length, length), apart = Tensor.Empty([length], dtype, rank.Device), gathered = Tensor.Empty([length * rank.Size], dtype, rank.Device);
            Assert.True(shards.Takes(CollectiveKind.ReduceScatter, inPlace) && shards.Takes(CollectiveKind.AllReduce, whole) && shards.Takes(CollectiveKind.AllGather, own), "too short");
            CommunicationWork[] sums = [shards.Start(CollectiveKind.ReduceScatter, inPlace, own), shards.Start(CollectiveKind.AllReduce, whole, whole), shards.Start(CollectiveKind.ReduceScatter, source, apart)];
            if (round % 2 == 0) Array.Reverse(sums); // waited for in any order
            foreach (CommunicationWork sum in sums) sum.Wait();
            double squares = Squares(shards, rank);
            CommunicationWork[] gathers = [shards.Start(CollectiveKind.AllGather, apart, gathered), shards.Start(CollectiveKind.AllGather, own, inPlace)];
            foreach (CommunicationWork gather in gathers) gather.Wait();
            float[] expected = SumOf(rank, dtype, round, length * rank.Size);
            Same(expected, inPlace, "scattered in place and gathered");
            Same(expected, gathered, "scattered and gathered");
            float[] expectedWhole = SumOf(rank, dtype, round, (length * rank.Size) - 1);
            Same(expectedWhole, whole, "summed for all");
            double expectedSquares = (2 * expected.Sum(x => (double)x * x)) + expectedWhole.Sum(x => (double)x * x);
            Assert.InRange(squares / expectedSquares, 1 - 1e-6, 1 + 1e-6);
        }
        shards.Drain();
        rank.World.Barrier();
    }

    private static double Squares(PeerShards shards, RankContext rank)
    {
        using Tensor squares = Tensor.Empty([1], DType.F32, rank.Device);
        shards.TakeSquares(squares);
        rank.World.AllReduce(squares).Wait();
        return squares.ToDoubles()[0];
    }

    /// <summary>The sum in the order of the ranks, rounded after each.</summary>
    private static float[] SumOf(RankContext rank, DType dtype, int round, long count)
    {
        float[] sum = Values(0, round, count, dtype);
        for (int other = 1; other < rank.Size; other++)
        {
            float[] next = Values(other, round, count, dtype);
            for (long i = 0; i < count; i++) sum[i] = Round(sum[i] + next[i], dtype);
        }
        return sum;
    }

    private static Tensor Random(RankContext rank, DType dtype, int owner, int round, long count)
    {
        float[] values = Values(owner, round, count, dtype);
        return dtype == DType.F32 ? Tensor.FromSpan(values, [count], rank.Device) : Tensor.FromSpan(Array.ConvertAll(values, x => (BF16)x), [count], rank.Device);
    }

    private static float[] Values(int rank, int round, long count, DType dtype)
    {
        var random = new Random((rank * 100) + round);
        var values = new float[count];
        for (long i = 0; i < count; i++) values[i] = Round(random.NextSingle() - 0.5f, dtype);
        return values;
    }

    private static float Round(float value, DType dtype) => dtype == DType.BF16 ? (float)(BF16)value : value;

    private static void Same(float[] expected, Tensor actual, string what)
    {
        double[] values = actual.ToDoubles();
        for (int i = 0; i < values.Length; i++)
            if (values[i] != expected[i]) Assert.Fail($"{what}: element {i} of {values.Length} is {values[i]}, not {expected[i]}");
    }
}
