using System.Runtime.InteropServices;
using LaspNative.Runtime;
using LaspNative.Runtime.Cuda;
using LaspNative.Runtime.Interop;
using Xunit;

namespace LaspNative.Tests.Cuda;

/// <summary>What was measured once counts for every rank and every run, and what is not whole or not ours is left alone.</summary>
public sealed class GemmChoicesTests : IDisposable
{
    private static readonly GemmProblem s_problem = new(false, true, 4096, 2048, 8192, 1, DType.BF16, DType.F32, 256, 128, 16, Adds: false);

    private readonly DirectoryInfo _folder = Directory.CreateTempSubdirectory("lasp-products-");

    private GemmChoices Choices => new(_folder.FullName, "GPU 1");

    [Fact]
    public void The_first_choice_stands()
    {
        Assert.Null(Choices.Read(s_problem));
        Assert.Equal(Words(Algorithm(1)), Words(Choices.Settle(s_problem, Algorithm(1), 0.5f, 0.75f)));
        Assert.Equal(Words(Algorithm(1)), Words(Choices.Settle(s_problem, Algorithm(2), 0.25f, 0.75f)));
        Assert.Equal(Words(Algorithm(1)), Words(Choices.Read(s_problem)));
        Assert.Single(_folder.GetFiles());
    }

    [Theory]
    [InlineData(0, 1f, 0.96f, 2f)] // too little gained
    [InlineData(1, 1f, 0.95f, 0.951f)]
    [InlineData(2, 1f, 0.9f, 0.8f)]
    [InlineData(1, float.PositiveInfinity, 3f, float.PositiveInfinity)] // the heuristic's own did not run
    [InlineData(null, float.PositiveInfinity, float.PositiveInfinity, float.PositiveInfinity)]
    public void Another_algorithm_than_the_heuristics_must_be_faster_by_five_percent(int? best, params float[] milliseconds) => Assert.Equal(best, GemmTuning.Best(milliseconds));

    [Fact]
    public void Whoever_measures_at_the_same_time_takes_the_same_choice()
    {
        for (int round = 0; round < 50; round++)
        {
            GemmProblem problem = s_problem with { M = round };
            var taken = new ulong[4][];
            Parallel.For(0, taken.Length, new ParallelOptions { MaxDegreeOfParallelism = taken.Length }, i => taken[i] = Words(Choices.Settle(problem, Algorithm(i), 1, 1)));
            Assert.All(taken, words => Assert.Equal(taken[0], words));
            Assert.Equal(taken[0], Words(Choices.Read(problem)));
        }
        Assert.Equal(50, _folder.GetFiles().Length);
    }

    [Fact]
    public void Another_problem_and_another_machine_know_nothing_of_it()
    {
        Choices.Settle(s_problem, Algorithm(1), 1, 1);
        foreach (GemmProblem other in new[] { s_problem with { N = 2049 }, s_problem with { TransposeA = true }, s_problem with { Destination = DType.BF16 }, s_problem with { AlignmentC = 32 }, s_problem with { Adds = true }, s_problem with { Batch = 2 } })
        {
            Assert.Null(Choices.Read(other));
            File.Copy(Choices.FileOf(s_problem), Choices.FileOf(other));
            Assert.Null(Choices.Read(other));
        }
        Assert.Null(new GemmChoices(_folder.FullName, "GPU 2").Read(s_problem));
    }

    [Fact]
    public void A_file_that_is_not_whole_is_replaced()
    {
        Choices.Settle(s_problem, Algorithm(1), 1, 1);
        string file = Choices.FileOf(s_problem), text = File.ReadAllText(file);
        foreach (string broken in new[] { text[..^5], text[..40], "", text.Replace("algorithm: 0", "algorithm: 1", StringComparison.Ordinal), text.Replace("sha256", "sha255", StringComparison.Ordinal) })
        {
            Assert.NotEqual(text, broken);
            File.WriteAllText(file, broken);
            Assert.Null(Choices.Read(s_problem));
            Assert.Equal(Words(Algorithm(2)), Words(Choices.Settle(s_problem, Algorithm(2), 1, 1)));
            Assert.Equal(Words(Algorithm(2)), Words(Choices.Read(s_problem)));
        }
        Assert.Single(_folder.GetFiles());
    }

    [Fact]
    public void What_cannot_be_kept_is_no_choice()
    {
        string file = Path.Combine(_folder.FullName, "not-a-folder");
        File.WriteAllText(file, "");
        var choices = new GemmChoices(Path.Combine(file, "below"), "GPU 1");
        Assert.Null(choices.Settle(s_problem, Algorithm(1), 1, 1));
        Assert.Null(choices.Read(s_problem));
    }

    private static cublasLtMatmulAlgo_t Algorithm(int seed)
    {
        ulong[] words = [.. Enumerable.Range(0, 8).Select(i => ((ulong)seed << 32) + (ulong)i)];
        return MemoryMarshal.Cast<ulong, cublasLtMatmulAlgo_t>(words)[0];
    }

    private static ulong[] Words(cublasLtMatmulAlgo_t? algorithm)
    {
        cublasLtMatmulAlgo_t value = Assert.NotNull(algorithm);
        return MemoryMarshal.Cast<cublasLtMatmulAlgo_t, ulong>(new ReadOnlySpan<cublasLtMatmulAlgo_t>(in value)).ToArray();
    }

    public void Dispose() => _folder.Delete(recursive: true);
}
