namespace LaspNative.Runtime;

/// <summary>
/// Runs of tokens that lie one after another in the single row of a batch, as packed documents do: none sees another, and each has states of its own, so that states beside them are [runs, H, D, E].
/// A device that computes all of them in the launches of one keeps its tables here; another computes them one by one (<see cref="ForEach"/>).
/// </summary>
public sealed class PackedRuns : IDisposable
{
    private readonly long[] _boundaries;
    private readonly Dictionary<object, IDisposable> _kept = [];

    /// <param name="boundaries">First token of every run, and the number of tokens: from 0, strictly increasing.</param>
    public PackedRuns(params ReadOnlySpan<long> boundaries)
    {
        if (boundaries.Length < 2 || boundaries[0] != 0) throw new LaspException($"packed runs begin at token 0 and have an end each, got {boundaries.Length} boundaries");
        for (int i = 1; i < boundaries.Length; i++)
            if (boundaries[i] <= boundaries[i - 1]) throw new LaspException($"packed runs have tokens each: boundary {i} is {boundaries[i]} after {boundaries[i - 1]}");
        _boundaries = boundaries.ToArray();
    }

    public int Count => _boundaries.Length - 1;

    /// <summary>Tokens of all runs.</summary>
    public long Tokens => _boundaries[^1];

    /// <summary>First token of a run.</summary>
    public long Start(int run) => _boundaries[run];

    /// <summary>Tokens of a run.</summary>
    public long Length(int run) => _boundaries[run + 1] - _boundaries[run];

    /// <summary>Calls <paramref name="body"/> with every run, in order.</summary>
    public void ForEach(Action<PackedRun> body)
    {
        for (int i = 0; i < Count; i++)
        {
            using var run = new PackedRun(this, i);
            body(run);
        }
    }

    /// <summary>What a device has made of these runs under this key, made at the first call; disposed with the runs.</summary>
    internal T Keep<T>(object key, Func<T> make) where T : class, IDisposable
    {
        if (_kept.TryGetValue(key, out IDisposable? kept)) return (T)kept;
        T made = make();
        _kept.Add(key, made);
        return made;
    }

    public void Dispose()
    {
        foreach (IDisposable kept in _kept.Values) kept.Dispose();
        _kept.Clear();
    }
}

/// <summary>One of several packed runs: its part of the tensors beside them. The parts live until the run is disposed.</summary>
public sealed class PackedRun(PackedRuns runs, int index) : IDisposable
{
    private readonly List<Tensor> _parts = [];

    /// <summary>The run's tokens of x [1, N, ..].</summary>
    public Tensor Tokens(Tensor x)
    {
        if (x.Shape.Rank < 2 || x.Shape[0] != 1 || x.Shape[1] != runs.Tokens) throw new LaspException($"packed runs of {runs.Tokens} tokens do not lie in a tensor of shape {x.Shape}; it is [1, {runs.Tokens}, ..]");
        Span<long> extents = stackalloc long[x.Shape.Rank];
        for (int i = 0; i < extents.Length; i++) extents[i] = x.Shape[i];
        using Tensor rows = x.View(new Shape(extents[1..]));
        using Tensor cut = rows.Slice(runs.Start(index), runs.Length(index));
        extents[1] = runs.Length(index);
        return Own(cut.View(new Shape(extents)));
    }

    /// <summary>The run's log decay: one per head is everybody's.</summary>
    public Tensor? Decay(Tensor? decay) => decay is null or { Shape.Rank: 1 } ? decay : Tokens(decay);

    /// <summary>The run's row of states [runs, H, D, E].</summary>
    public Tensor State(Tensor states) => Own(states.Slice(index, 1));

    /// <summary>The run's row of states that may be missing.</summary>
    public Tensor? StateOrNull(Tensor? states) => states is null ? null : State(states);

    private Tensor Own(Tensor part)
    {
        _parts.Add(part);
        return part;
    }

    public void Dispose()
    {
        foreach (Tensor part in _parts) part.Dispose();
        _parts.Clear();
    }
}
