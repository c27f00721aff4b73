using Xunit;

namespace LaspNative.Tests;

/// <summary>
/// Tests of ranks over NCCL in this process run one after the other, beside nothing else. Two worlds on the same GPUs can lock each other up: loading a kernel or freeing memory waits for everything on its
/// GPU, also for a collective of the other world, which waits for a rank whose GPU does the same the other way round.
/// </summary>
[CollectionDefinition(nameof(OverNccl), DisableParallelization = true)]
public sealed class OverNccl
{
    /// <summary>Rows of a theory over ranks, each with the trait of the hosts that it needs: Category=TwoGpus, or FourGpus, where there are ranks between others, which receive and send on.</summary>
    internal static IEnumerable<TRow> ByGpus<TRow>(IEnumerable<TRow> rows, Func<TRow, int> ranks)
        where TRow : TheoryDataRowBase
    {
        foreach (TRow row in rows)
        {
            row.Traits["Category"] = [ranks(row) <= 2 ? "TwoGpus" : "FourGpus"];
            yield return row;
        }
    }
}
