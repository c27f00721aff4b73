using LaspNative.Collectives;
using Xunit;

namespace LaspNative.Tests.Collectives;

public sealed class ThreadMeetingTests
{
    [Fact]
    public void Every_rank_hears_what_all_have_told_time_after_time()
    {
        using var failed = new CancellationTokenSource();
        using var meeting = new ThreadMeeting(3, failed.Token);
        OnThreads(3, rank =>
        {
            for (int round = 0; round < 50; round++)
            {
                if (round % 7 == rank) Thread.Sleep(1);
                Assert.Equal([round, round + 10, round + 20], meeting.Share(rank, round + (10 * rank)));
            }
        });
    }

    [Fact]
    public void Parts_hold_the_ranks_that_split_off()
    {
        using var failed = new CancellationTokenSource();
        using var meeting = new ThreadMeeting(4, failed.Token);
        OnThreads(4, rank =>
        {
            ThreadMeeting? low = meeting.Part(rank, [0, 1]), high = meeting.Part(rank, [2, 3]), all = meeting.Part(rank, [0, 1, 2, 3]);
            Assert.Equal((rank < 2, rank >= 2), (low is not null, high is not null));
            Assert.Equal([rank / 2 * 2, (rank / 2 * 2) + 1], (low ?? high)!.Share(rank % 2, rank));
            Assert.Equal([0, 1, 2, 3], all!.Share(rank, rank));
        });
    }

    [Fact]
    public void A_failure_lets_those_go_who_wait()
    {
        using var failed = new CancellationTokenSource();
        using var meeting = new ThreadMeeting(3, failed.Token);
        OnThreads(3, rank =>
        {
            if (rank == 2) failed.Cancel();
            else Assert.Throws<GroupFailedException>(() => meeting.Part(rank, [0, 1, 2])!.Share(rank, rank));
        });
    }

    /// <summary>One thread per rank; the first failure is thrown here.</summary>
    private static void OnThreads(int ranks, Action<int> body)
    {
        Task[] threads = [.. Enumerable.Range(0, ranks).Select(rank => Task.Factory.StartNew(() => body(rank), TestContext.Current.CancellationToken, TaskCreationOptions.LongRunning, TaskScheduler.Default))];
        Assert.True(Task.WaitAll(threads, TimeSpan.FromSeconds(60)), "the ranks hang");
    }
}
