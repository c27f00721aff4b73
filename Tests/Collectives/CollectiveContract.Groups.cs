using LaspNative.Collectives;
using LaspNative.Runtime;
using Xunit;

namespace LaspNative.Tests.Collectives;

// Groups within the world, and what is built on them.
public abstract partial class CollectiveContract
{
    public static TheoryData<int, int> Meshes
    {
        get
        {
            var meshes = new TheoryData<int, int>();
            for (int ranks = 1; ranks <= 8; ranks++)
                for (int dp = 1; dp <= ranks; dp++)
                    if (ranks % dp == 0) meshes.Add(dp, ranks / dp);
            return meshes;
        }
    }

    [Theory, MemberData(nameof(Meshes))]
    public void A_mesh_divides_the_world_into_groups_that_do_not_hear_one_another(int dp, int sp) => Run(dp * sp, DType.F32, r =>
    {
        using var mesh = new ProcessMesh(r.World, dp, sp);
        Assert.Equal((r.Rank / sp, r.Rank % sp), (mesh.DpRank, mesh.SpRank));
        Assert.Equal((mesh.SpRank, sp, mesh.DpRank, dp), (mesh.SequenceParallel.Rank, mesh.SequenceParallel.Size, mesh.DataParallel.Rank, mesh.DataParallel.Size));
        // All in flight at once, waited for in another order than they were started in.
        using Tensor own = Filled(r, DType.F32, 5, i => Value(r.Rank, i));
        using Tensor alongSequence = Poisoned(r, DType.F32, 5 * sp);
        using Tensor alongData = Poisoned(r, DType.F32, 5 * dp);
        using Tensor everywhere = Filled(r, DType.F32, 5, i => Value(r.Rank, i));
        CommunicationWork onSequence = mesh.SequenceParallel.AllGather(own, alongSequence);
        CommunicationWork onWorld = mesh.World.AllReduce(everywhere);
        CommunicationWork onData = mesh.DataParallel.AllGather(own, alongData);
        onData.Wait();
        onWorld.Wait();
        onSequence.Wait();
        int[] spRanks = mesh.SpRanks(mesh.DpRank), dpRanks = mesh.DpRanks(mesh.SpRank);
        Equal(5 * sp, i => Value(spRanks[i / 5], i % 5), alongSequence);
        Equal(5 * dp, i => Value(dpRanks[i / 5], i % 5), alongData);
        Equal(5, i => Enumerable.Range(0, dp * sp).Sum(rank => Value(rank, i)), everywhere);
        Assert.Equal((sp - 1) * own.Bytes, mesh.SequenceParallel.Counters.BytesSentBy(CollectiveKind.AllGather));
    });

    [Fact]
    public void Groups_keep_the_order_of_their_list_and_can_be_split_again() => Run(4, DType.F32, r =>
    {
        using ICommunicator? three = r.World.Split([3, 0, 2]);
        Assert.Equal(r.Rank == 1, three is null);
        if (three is null) return;
        Assert.Equal(Array.IndexOf([3, 0, 2], r.Rank), three.Rank);
        using ICommunicator? two = three.Split([2, 0]);
        Assert.Equal(r.Rank == 0, two is null);
        if (two is null) return;
        using Tensor own = Filled(r, DType.F32, 1, _ => r.Rank);
        using Tensor all = Poisoned(r, DType.F32, 2);
        two.AllGather(own, all).Wait();
        Assert.Equal([2.0, 3.0], all.ToDoubles());
    });

    [Fact]
    public void A_failing_rank_ends_every_group()
    {
        LaspException error = Assert.Throws<LaspException>(() => Run(4, DType.F32, r =>
        {
            using var mesh = new ProcessMesh(r.World, 2, 2);
            r.World.Barrier();
            if (r.Rank == 3) throw new LaspException("the disk is full");
            // Rank 0 shares no group but the world with rank 3: it waits for ranks that wait for it.
            if (r.Rank != 0) (r.Rank == 1 ? mesh.DataParallel : mesh.SequenceParallel).Barrier();
            mesh.SequenceParallel.Barrier();
            mesh.DataParallel.Barrier();
            r.World.Barrier();
        }));
        Assert.Equal("the disk is full", error.Message);
    }

    [Fact]
    public void Groups_that_make_no_sense_are_refused_in_one_line() => Run(4, DType.F32, r =>
    {
        Assert.Equal(
            "a mesh of 3 data-parallel x 2 sequence-parallel ranks needs 6 ranks, but the world has 4; choose --dp x --ranks equal to the world",
            Assert.Throws<LaspException>(() => new ProcessMesh(r.World, 3, 2)).Message);
        Assert.Contains("both need at least 1", Assert.Throws<LaspException>(() => new ProcessMesh(r.World, 0, 4)).Message, StringComparison.Ordinal);
        Assert.Equal($"Split on rank {r.Rank}: the list of ranks is empty; name at least one rank", Assert.Throws<LaspException>(() => r.World.Split([])).Message);
        Assert.Equal($"Split on rank {r.Rank}: rank 4 is not in this group of 4", Assert.Throws<LaspException>(() => r.World.Split([0, 4])).Message);
        Assert.Equal($"Split on rank {r.Rank}: the list 1, 1 names a rank twice; name each once", Assert.Throws<LaspException>(() => r.World.Split([1, 1])).Message);
    });

    /// <summary>Each sequence-parallel group has its own batch, which only its first rank knows. The last case has ranks without a token.</summary>
    [Theory, InlineData(1, 1, 10), InlineData(2, 2, 7), InlineData(1, 4, 10), InlineData(1, 4, 2)]
    public void A_source_rank_scatters_the_chunks_of_its_batch(int dp, int sp, int tokens) => Run(dp * sp, DType.F32, r =>
    {
        const int Sequences = 3;
        using var mesh = new ProcessMesh(r.World, dp, sp);
        var partition = new SequencePartition(tokens, sp);
        int Token(int sequence, long i) => 10_000 * mesh.DpRank + 1000 * sequence + (int)i;
        int[] batch = mesh.SpRank == SequenceScatter.Source ? [.. Enumerable.Range(0, Sequences * tokens).Select(i => Token(i / tokens, i % tokens))] : [];
        using Tensor chunk = SequenceScatter.Scatter(mesh.SequenceParallel, partition, Sequences, batch);
        long length = partition.Length(mesh.SpRank);
        Assert.Equal(new Shape([Sequences, length]), chunk.Shape);
        Assert.Equal(Enumerable.Range(0, (int)(Sequences * length)).Select(i => Token((int)(i / length), partition.Start(mesh.SpRank) + i % length)), chunk.ToArray<int>());
    });
}
