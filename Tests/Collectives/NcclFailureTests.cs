using LaspNative.Collectives;
using LaspNative.Runtime;
using LaspNative.Runtime.Cuda;
using Xunit;

namespace LaspNative.Tests.Collectives;

/// <summary>
/// A rank that fails ends the others, wherever their GPUs are: a hang is a failure here, told when the patience is spent. GPUs run behind their hosts, so what the failed rank had queued still arrives after it
/// has said so. Each test holds the GPU of one rank back, then the other's.
/// </summary>
[Trait("Category", "TwoGpus")]
[Collection(nameof(OverNccl))]
public sealed class NcclFailureTests
{
    private static readonly TimeSpan s_start = TimeSpan.FromSeconds(120); // kernels may have to be compiled
    private static readonly TimeSpan s_patience = TimeSpan.FromSeconds(15);

    /// <summary>When the failed rank's blocks come, the flags of the other have let everything pass already; its GPU comes to its own waits after that.</summary>
    [Theory]
    [InlineData(0)]
    [InlineData(1)]
    public Task Blocks_that_arrive_after_their_sender_has_failed_hold_nobody(int failing) =>
        EndsWithTheFirstError((r, fail) => FailBetween(r, failing, fail, Gather, before: 3, after: 4)); // into the same memory; the last one's sender has never begun it

    /// <summary>The last rank waits for pieces, or the first for room for them, that the other never gives.</summary>
    [Theory]
    [InlineData(0)]
    [InlineData(1)]
    public Task Pieces_that_never_come_or_find_no_room_hold_nobody(int failing) =>
        EndsWithTheFirstError((r, fail) => FailBetween(r, failing, fail, Relay, before: 3, after: 10));

    /// <summary>Sums in the background, held back likewise: by NCCL, and by copy engines.</summary>
    [Theory]
    [InlineData(0, false)]
    [InlineData(1, false)]
    [InlineData(0, true)]
    [InlineData(1, true)]
    public Task Sums_in_the_background_that_nobody_joins_hold_nobody(int failing, bool byCopyEngines) => EndsWithTheFirstError((r, fail) =>
    {
        using Tensor tensor = Tensor.Zeros([1 << 24], DType.F32, r.Device);
        using var load = new Load(r);
        using ICommunicator background = r.World.Background();
        if (r.Rank == failing) load.Keep(copies: 200);
        Sum(background, tensor, times: 3);
        if (r.Rank == failing) fail();
        load.Keep(copies: 600);
        Sum(background, tensor, times: 20);
        r.World.Barrier();
    }, byCopyEngines);

    /// <summary>The others wait inside NCCL for a rank that could not allocate what it needs; nobody knows their communicators yet.</summary>
    [Fact]
    public async Task A_rank_that_fails_while_it_joins_lets_the_others_go()
    {
        Gpu.Require(2);
        NcclEnvironment.ConnectAtStart();
        byte[] id = NcclCommunicator.NewUniqueId();
        using var failed = new CancellationTokenSource();
        using var meeting = new ThreadMeeting(2, failed.Token);
        Task[] ranks = [.. Enumerable.Range(0, 2).Select(rank => OnThread(() => Join(rank)))];
        await Assert.ThrowsAsync<ObjectDisposedException>(() => ranks[1].WaitAsync(s_start, TestContext.Current.CancellationToken));
        await Assert.ThrowsAnyAsync<LaspException>(() => ranks[0].WaitAsync(s_patience, TestContext.Current.CancellationToken));

        void Join(int rank)
        {
            using var device = (CudaDevice)Device.Open($"cuda:{rank}");
            device.Prepare(DType.F32, DType.BF16);
            // Its context lives, so NCCL takes the rank; then there is no memory for it.
            if (rank == 1) device.Dispose();
            try
            {
                using var communicator = new NcclCommunicator(device, rank, 2, id, meeting, peerSums: false);
            }
            catch
            {
                failed.Cancel();
                throw;
            }
        }
    }

    private static async Task EndsWithTheFirstError(Action<RankContext, Action> body, bool peerSums = true)
    {
        Gpu.Require(2);
        var failing = new TaskCompletionSource();
        Task run = OnThread(() => World.Run(new WorldOptions(DeviceKind.Cuda, 2) { PeerSums = peerSums }, r => body(r, Fail)));
        await Task.WhenAny(run, failing.Task).WaitAsync(s_start, TestContext.Current.CancellationToken);
        LaspException error = await Assert.ThrowsAsync<LaspException>(() => run.WaitAsync(s_patience, TestContext.Current.CancellationToken));
        Assert.Equal("the disk is full", error.Message);

        void Fail()
        {
            failing.TrySetResult();
            throw new LaspException("the disk is full");
        }
    }

    private static Task OnThread(Action action) => Task.Factory.StartNew(action, TestContext.Current.CancellationToken, TaskCreationOptions.LongRunning, TaskScheduler.Default);

    private static void Gather(RankContext rank, Tensor source, int times)
    {
        for (int i = 0; i < times; i++)
        {
            using BlockGather gather = rank.World.Gather(source);
            gather.Wait(0, rank.Size);
        }
    }

    /// <summary>Exchanges a block so many times; then one rank fails, whose GPU is held back, and the other, held back longer, goes on.</summary>
    private static void FailBetween(RankContext rank, int failing, Action fail, Action<RankContext, Tensor, int> exchange, int before, int after)
    {
        using Tensor block = Tensor.Zeros([1000], DType.F32, rank.Device);
        using var load = new Load(rank);
        if (rank.Rank == failing) load.Keep(copies: 200);
        exchange(rank, block, before);
        if (rank.Rank == failing) fail();
        load.Keep(copies: 600);
        exchange(rank, block, after);
        rank.World.Barrier();
    }

    /// <summary>From the first rank to the last of two, in four pieces.</summary>
    private static void Relay(RankContext rank, Tensor block, int times)
    {
        const int Pieces = 4;
        for (int i = 0; i < times; i++)
        {
            using BlockRelay relay = rank.World.Relay(block.Shape, block.DType, Pieces, from: rank.Rank == 0 ? null : 0, to: rank.Rank == 0 ? 1 : null);
            for (int piece = 0; piece < Pieces && rank.Rank == 0; piece++)
            {
                using Tensor part = block.Slice(piece * block.Count / Pieces, block.Count / Pieces);
                relay.Send(part);
            }
            relay.Wait(Pieces);
        }
    }

    private static void Sum(ICommunicator group, Tensor tensor, int times)
    {
        for (int i = 0; i < times; i++) group.AllReduce(tensor).Wait();
    }

    /// <summary>Keeps a rank's compute stream behind: about half a millisecond per copy on an H200.</summary>
    private sealed class Load : IDisposable
    {
        private readonly Tensor _from;
        private readonly Tensor _to;

        public Load(RankContext rank)
        {
            _from = Tensor.Zeros([1 << 28], DType.F32, rank.Device);
            _to = Tensor.Zeros([1 << 28], DType.F32, rank.Device);
            rank.World.Barrier();
        }

        public void Keep(int copies)
        {
            for (int i = 0; i < copies; i++) _from.Device.Copy(_from.Pointer, _to.Pointer, _from.Bytes);
        }

        public void Dispose()
        {
            _from.Dispose();
            _to.Dispose();
        }
    }
}
