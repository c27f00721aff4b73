using System.Runtime.CompilerServices;
using LaspNative.Runtime;
using Xunit;

namespace LaspNative.Tests.Diagnostics;

/// <summary>Bytes by category, peaks, and naming what leaks.</summary>
public class MemoryLedgerTests
{
    [Fact]
    public void Peaks_are_per_category_and_in_total()
    {
        var ledger = new MemoryLedger(traceSites: false);
        AllocationTicket a = ledger.Add(100, MemoryCategory.States);
        ledger.Remove(a);
        ledger.Add(60, MemoryCategory.Gradients);
        Assert.Equal((60, 100, 1, 2), (ledger.Current, ledger.Peak, ledger.LiveCount, ledger.AllocationCount));
        Assert.Equal((0, 100), (ledger.CurrentOf(MemoryCategory.States), ledger.PeakOf(MemoryCategory.States)));
        ledger.ResetPeak();
        Assert.Equal((60, 0), (ledger.Peak, ledger.PeakOf(MemoryCategory.States)));
        Assert.Empty(ledger.LiveAllocations());
    }

    [Fact]
    public void What_the_categories_held_at_the_peak_sums_to_it()
    {
        var ledger = new MemoryLedger(traceSites: false);
        ledger.Remove(ledger.Add(50, MemoryCategory.States));
        ledger.Add(30, MemoryCategory.Gradients);
        AllocationTicket last = ledger.Add(40, MemoryCategory.Workspace);
        Assert.Equal((70, 50), (ledger.Peak, ledger.PeakOf(MemoryCategory.States)));
        Assert.Equal((0, 30, 40), (ledger.AtPeakOf(MemoryCategory.States), ledger.AtPeakOf(MemoryCategory.Gradients), ledger.AtPeakOf(MemoryCategory.Workspace)));
        ledger.Remove(last);
        ledger.ResetPeak();
        Assert.Equal((30, 30, 0), (ledger.Peak, ledger.AtPeakOf(MemoryCategory.Gradients), ledger.AtPeakOf(MemoryCategory.Workspace)));
    }

    [Fact]
    public void A_leak_is_named_by_where_it_was_allocated()
    {
        var ledger = new MemoryLedger(traceSites: true);
        ledger.Remove(Allocate(ledger, 1));
        Allocate(ledger, 2);
        (long bytes, MemoryCategory category, string site) = Assert.Single(ledger.LiveAllocations());
        Assert.Equal((2, MemoryCategory.Activations), (bytes, category));
        Assert.Contains(nameof(A_leak_is_named_by_where_it_was_allocated), site);
    }

    /// <summary>Stands for Device.Allocate and its caller, whose frames are left out.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    private static AllocationTicket Allocate(MemoryLedger ledger, long bytes) => ledger.Add(bytes, MemoryCategory.Activations);
}
