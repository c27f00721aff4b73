using System.Diagnostics;

namespace LaspNative.Runtime;

/// <summary>What memory is for. The categories of the papers' memory tables.</summary>
public enum MemoryCategory
{
    Parameters,
    Gradients,
    Optimizer,
    Activations,
    States,
    Communication,
    Workspace,
}

/// <summary>What one allocation was booked as; handed back when it is freed.</summary>
internal readonly record struct AllocationTicket(long Id, long Bytes, MemoryCategory Category);

/// <summary>
/// Every byte that a device hands out, by category, current and peak, what other GPUs' copy engines write into too; not what libraries and the driver take for themselves. With <see cref="LaspOptions.TraceAllocations"/> it also keeps the call
/// stack of each live allocation, so that a leak can be named (<see cref="LiveAllocations"/>).
/// </summary>
public sealed class MemoryLedger
{
    private static readonly int s_categories = Enum.GetValues<MemoryCategory>().Length;
    private readonly Lock _lock = new();
    private readonly long[] _current = new long[s_categories];
    private readonly long[] _peak = new long[s_categories];
    private readonly long[] _atPeak = new long[s_categories];
    private readonly Dictionary<long, (long Bytes, MemoryCategory Category, StackTrace Site)>? _sites;
    private long _total;
    private long _totalPeak;
    private long _nextId;
    private long _live;

    public MemoryLedger() : this(LaspOptions.Current.TraceAllocations) { }

    internal MemoryLedger(bool traceSites) => _sites = traceSites ? [] : null;

    /// <summary>Bytes in use now.</summary>
    public long Current { get { lock (_lock) return _total; } }

    /// <summary>Most bytes in use at once since the start or <see cref="ResetPeak"/>.</summary>
    public long Peak { get { lock (_lock) return _totalPeak; } }

    /// <summary>Allocations in use now.</summary>
    public long LiveCount { get { lock (_lock) return _live; } }

    /// <summary>Allocations ever made.</summary>
    public long AllocationCount { get { lock (_lock) return _nextId; } }

    public long CurrentOf(MemoryCategory category) { lock (_lock) return _current[(int)category]; }

    /// <summary>The category's own peak; the categories' peaks need not fall together, so they may sum to more than <see cref="Peak"/>.</summary>
    public long PeakOf(MemoryCategory category) { lock (_lock) return _peak[(int)category]; }

    /// <summary>What the category held when <see cref="Peak"/> was reached (first): the categories sum to it.</summary>
    public long AtPeakOf(MemoryCategory category) { lock (_lock) return _atPeak[(int)category]; }

    public void ResetPeak()
    {
        lock (_lock)
        {
            _current.CopyTo(_peak, 0);
            _current.CopyTo(_atPeak, 0);
            _totalPeak = _total;
        }
    }

    internal AllocationTicket Add(long bytes, MemoryCategory category)
    {
        lock (_lock)
        {
            int c = (int)category;
            _current[c] += bytes;
            _total += bytes;
            _live++;
            _peak[c] = Math.Max(_peak[c], _current[c]);
            if (_total > _totalPeak)
            {
                _totalPeak = _total;
                _current.CopyTo(_atPeak, 0);
            }
            long id = ++_nextId;
            _sites?.Add(id, (bytes, category, new StackTrace(2, fNeedFileInfo: true)));
            return new AllocationTicket(id, bytes, category);
        }
    }

    internal void Remove(AllocationTicket ticket)
    {
        lock (_lock)
        {
            _current[(int)ticket.Category] -= ticket.Bytes;
            _total -= ticket.Bytes;
            _live--;
            _sites?.Remove(ticket.Id);
        }
    }

    /// <summary>Bytes, category and call stack of everything not freed yet; empty unless LASP_TRACE_ALLOCATIONS=1.</summary>
    public IReadOnlyList<(long Bytes, MemoryCategory Category, string Site)> LiveAllocations()
    {
        lock (_lock) return _sites is null ? [] : [.. _sites.Values.Select(s => (s.Bytes, s.Category, s.Site.ToString()))];
    }
}
