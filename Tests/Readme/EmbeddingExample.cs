using LaspNative.Autograd;
using LaspNative.Collectives;
using LaspNative.Runtime;

namespace LaspNative.Tests.Readme;

/// <summary>The README's example, word for word between the two marks; <see cref="EmbeddingExampleTests"/> runs it and keeps the two equal.</summary>
public static class EmbeddingExample
{
    public static void Run(TextWriter Console)
    {
        // <example>
        const int N = 1024, W = 4, H = 2, D = 64; // one sequence of 1024 tokens over 4 ranks

        World.Run(new WorldOptions(DeviceKind.Cpu, Ranks: W), rank =>
        {
            long chunk = new SequencePartition(N, W).Length(rank.Rank);
            var random = new Random(rank.Rank);
            Tensor Values() => Tensor.FromSpan(Enumerable.Range(0, (int)chunk * H * D).Select(_ => random.NextSingle() - 0.5f).ToArray(), [1, chunk, H, D], rank.Device);

            using var q = Variable.Parameter(Values()); // this rank's chunk: [B, C, H, D]
            using var k = Variable.Parameter(Values());
            using var v = Variable.Parameter(Values());
            using var decay = Variable.Parameter(Tensor.FromSpan([-0.01f, -0.1f], [H], rank.Device)); // log decay per head

            using Variable output = LinearAttention.Apply(q, k, v, decay, rank.World, Lasp2.Default);
            using Tensor dOutput = Values();
            output.Backward(dOutput); // q.Gradient, k.Gradient, v.Gradient: exact on every rank

            using Tensor dDecay = decay.Gradient!.Share(); // this rank's part of the gradient; the sum over the ranks is the whole
            rank.World.AllReduce(dDecay).Wait();
            Console.WriteLine($"rank {rank.Rank}: tokens {chunk}, bytes sent {rank.World.Counters.BytesSent}, dDecay {string.Join(" ", dDecay.ToArray<float>())}");
        });
        // </example>
    }
}
