using System.Runtime.InteropServices;
using System.Security.Cryptography;
using LaspNative.Collectives;
using LaspNative.Model;
using Xunit;

namespace LaspNative.Tests.Model;

/// <summary>Batches depend on seed and step only; labels are shifted before ranks are given their chunks.</summary>
public class BatchSamplerTests
{
    private static readonly TokenStream s_stream = new([[.. Enumerable.Range(0, 700)], [.. Enumerable.Range(1000, 300)]]);

    [Theory]
    [InlineData(1, false)]
    [InlineData(2, false)]
    [InlineData(3, true)]
    [InlineData(6, true)]
    public void The_groups_shares_put_together_are_the_global_batch(int groups, bool masked)
    {
        const int batch = 6, n = 50;
        TokenMasking? masking = masked ? new TokenMasking(seed: 9, maskToken: 2000, vocabulary: 1300) : null;
        SequenceBatch whole = new BatchSampler(s_stream, seed: 9, batch, n, masking: masking).Sample(4);
        for (int group = 0; group < groups; group++)
        {
            int share = batch / groups, first = group * share;
            SequenceBatch own = new BatchSampler(s_stream, seed: 9, share, n, first, masking).Sample(4);
            for (int b = 0; b < share; b++)
            {
                Assert.Equal(whole.Tokens(first + b), own.Tokens(b));
                Assert.Equal(whole.Labels(first + b), own.Labels(b));
            }
        }
    }

    [Fact]
    public void A_chunks_last_label_is_the_next_chunks_first_token()
    {
        SequenceBatch batch = new BatchSampler(new TokenStream([[.. Enumerable.Range(0, 1000)]]), seed: 1, batch: 2, sequenceLength: 30).Sample(1);
        var partition = new SequencePartition(30, 4);
        for (int rank = 1; rank < partition.Ranks; rank++)
        {
            int start = (int)partition.Start(rank);
            for (int b = 0; b < batch.Count; b++) Assert.Equal(batch.Tokens(b)[start], batch.Labels(b)[start - 1]);
        }
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
        for (int i = 0; i < values.Length - 1; i += 2)
        {
            double radius = 2 * Math.Sqrt(-2 * Math.Log(1 - random.Uniform((ulong)i))), angle = 2 * Math.PI * random.Uniform((ulong)i + 1);
            Assert.Equal(radius * Math.Cos(angle), values[i], 1e-6 * radius);
            Assert.Equal(radius * Math.Sin(angle), values[i + 1], 1e-6 * radius);
        }
        // The same bits on every machine.
        Assert.StartsWith("f7a8778c3f84f79f33d141e343ef391e", Convert.ToHexStringLower(SHA256.HashData(MemoryMarshal.AsBytes(values.AsSpan()))), StringComparison.Ordinal);
        var part = new float[33333];
        random.FillNormal(part, 2, first: 20000);
        Assert.Equal(values[20000..53333], part);
        Assert.Throws<ArgumentOutOfRangeException>(() => random.FillNormal(part, 2, first: 1));
    }
}
