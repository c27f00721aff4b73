using LaspNative.Collectives;
using LaspNative.Model;
using LaspNative.Runtime;
using Xunit;

namespace LaspNative.Tests.Model;

/// <summary>Batches depend on seed and step only; labels are shifted before ranks take their chunks.</summary>
public class BatchSamplerTests
{
    private static readonly TokenStream s_stream = new([[.. Enumerable.Range(0, 700)], [.. Enumerable.Range(1000, 300)]]);

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    [InlineData(7)]
    public void Chunks_put_together_are_the_global_batch(int ranks)
    {
        const int batch = 3, n = 50;
        SequenceBatch whole = new BatchSampler(s_stream, seed: 9, batch, n).Sample(4);
        var partition = new SequencePartition(n, ranks);
        using Device device = Device.Open("cpu:1");
        for (int rank = 0; rank < ranks; rank++)
        {
            SequenceBatch own = new BatchSampler(s_stream, seed: 9, batch, n).Sample(4);
            (Tensor ids, Tensor labels) = own.Shard(partition, rank, device);
            using (ids)
            using (labels)
            {
                int start = (int)partition.Start(rank), c = (int)partition.Length(rank);
                Assert.Equal(new Shape([batch, c]), ids.Shape);
                for (int b = 0; b < batch; b++)
                {
                    Assert.Equal(whole.Tokens(b).Slice(start, c), ids.ToArray<int>().AsSpan(b * c, c));
                    Assert.Equal(whole.Labels(b).Slice(start, c), labels.ToArray<int>().AsSpan(b * c, c));
                }
            }
        }
    }

    [Fact]
    public void A_chunks_last_label_is_the_next_chunks_first_token()
    {
        SequenceBatch batch = new BatchSampler(new TokenStream([[.. Enumerable.Range(0, 1000)]]), seed: 1, batch: 2, sequenceLength: 30).Sample(1);
        using Device device = Device.Open("cpu:1");
        var partition = new SequencePartition(30, 3);
        (Tensor ids0, Tensor labels0) = batch.Shard(partition, 0, device);
        (Tensor ids1, Tensor labels1) = batch.Shard(partition, 1, device);
        Assert.Equal(ids1.ToArray<int>()[0], labels0.ToArray<int>()[9]);
        Assert.Equal(ids1.ToArray<int>()[10], labels0.ToArray<int>()[19]);
        foreach (Tensor tensor in (Tensor[])[ids0, labels0, ids1, labels1]) tensor.Dispose();
    }

    [Fact]
    public void Valid_labels_are_counted_over_the_whole_batch()
    {
        SequenceBatch batch = new BatchSampler(new TokenStream([[1, 2, 3, 4], [5]]), seed: 1, batch: 4, sequenceLength: 10).Sample(1);
        Assert.Equal(4 * 6, batch.ValidLabels); // of any 5 consecutive positions, 2 end a document
        for (int b = 0; b < 4; b++) Assert.Equal(4, batch.Labels(b).ToArray().Count(l => l < 0));
    }

    [Fact]
    public void Steps_and_seeds_draw_different_sequences()
    {
        int[] Drawn(ulong seed, long step, int sequence = 0) => new BatchSampler(s_stream, seed, 2, 20).Sample(step).Tokens(sequence).ToArray();
        Assert.Equal(Drawn(1, 1), Drawn(1, 1));
        Assert.NotEqual(Drawn(1, 1), Drawn(1, 2));
        Assert.NotEqual(Drawn(1, 1), Drawn(2, 1));
        Assert.NotEqual(Drawn(1, 1), Drawn(1, 1, sequence: 1));
    }

    [Fact]
    public void Random_numbers_are_uniform_and_normal_enough()
    {
        CounterRandom random = CounterRandom.Named(3, "x");
        double mean = Enumerable.Range(0, 100000).Average(i => random.Uniform((ulong)i));
        Assert.InRange(mean, 0.495, 0.505);
        var values = new float[100001];
        random.FillNormal(values, 2);
        Assert.InRange(values.Average(), -0.03, 0.03);
        Assert.InRange(Math.Sqrt(values.Average(x => (double)x * x)), 1.98, 2.02);
        Assert.InRange(values.Count(x => Math.Abs(x) > 4) / 100001.0, 0.042, 0.049);
        var again = new float[100001];
        random.FillNormal(again, 2);
        Assert.Equal(values, again);
    }
}
