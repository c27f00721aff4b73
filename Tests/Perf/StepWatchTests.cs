using LaspNative.Perf;
using Xunit;

namespace LaspNative.Tests.Perf;

public sealed class StepWatchTests
{
    [Fact]
    public async Task Says_where_each_rank_is_when_no_step_begins()
    {
        var text = new Listener("no step has begun for 0.05 s: rank 0 in step 2, rank 1 before its first, rank 2 in step 1");
        using var watch = new StepWatch(ranks: 3, TimeSpan.FromMilliseconds(50), text);
        watch.Begins(rank: 0, step: 1);
        watch.Begins(rank: 2, step: 1);
        watch.Begins(rank: 0, step: 2);
        await text.Heard.WaitAsync(TimeSpan.FromSeconds(30), TestContext.Current.CancellationToken);
    }

    /// <summary>Waits for a line; a slow machine may be told others before.</summary>
    private sealed class Listener(string line) : StringWriter
    {
        private readonly TaskCompletionSource _heard = new();

        public Task Heard => _heard.Task;

        public override void WriteLine(string? value)
        {
            if (value == line) _heard.TrySetResult();
        }
    }
}
